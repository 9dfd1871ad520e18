"""What the documentation shows, taken out of Markdown: commands, flags that stand alone, links, headings.

`complaints` judges a command by the parser, the settings or the Makefile that it would meet.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines import convert, inputs, launch
from ich_tfrecords import spec
from trainer import task
from trainer.shell.problems import WrongUse
from trainer.training import hparams

ROOT = Path(__file__).resolve().parents[2]
OURS = ("beam_pipelines", "ich_tfrecords", "trainer")
# console script -> the module behind it, and what `python -m` calls that: a department has its command in `command.py`
SCRIPTS = dict(re.findall(r'"(ich-\w+)=([\w.]+):main"', (ROOT / "setup.py").read_text(encoding="utf-8")))
MODULES = {name.removesuffix(".command"): name for name in sorted(SCRIPTS.values())}
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
_SHORT = {**{module: module for module in MODULES}, "inspect": "ich_tfrecords.inspect"}  # as a table writes them
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*(\.\w+)?(=[A-Z]+)?|\S*\.\.\.")  # N, FILE.html, KEY=VALUE, gs://...
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")


class Command(NamedTuple):
    """Words of a command line. One that is `whole` could be typed as it is; of others only the flags count."""

    words: list[str]
    whole: bool


class _RefusedError(Exception):
    pass


def pages() -> list[Path]:
    """Every Markdown page that a reader finds, the README first."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(markdown: str) -> Iterator[Command]:
    """Each command of a page: of a fence whole, in the running text what is said of it."""
    for language, fence in _FENCE.findall(markdown):
        if language in ("", "sh"):
            yield from in_text(fence)
    for span in spans(markdown):
        for command in _in_line(span, short=True):
            yield command._replace(whole=False)


def spans(markdown: str) -> list[str]:
    """The inline code of a page."""
    return [" ".join(span.replace("\\|", "|").split()) for span in _SPAN.findall(_FENCE.sub("", markdown))]


def in_text(text: str) -> Iterator[Command]:
    """Each command that stands to the end of its line, lines joined by a backslash counting as one."""
    for line in re.sub(r"\\\n\s*#?", " ", text).splitlines():
        yield from _in_line(line, short=False)


def _in_line(line: str, short: bool) -> Iterator[Command]:
    if not re.search(r"python3? |ich-|make |" + "|".join(map(re.escape, _SHORT)), line):
        return
    lexer = shlex.shlex(line.partition(" # ")[0].replace("`", ";"), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    part: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()<>"):
            yield from _command(part, short)
            part = []
        else:
            part.append(word)


def _command(words: list[str], short: bool) -> Iterator[Command]:
    """The command among `words`, after variables and prose, as module, script file or target and its flags."""
    whole = "..." not in words
    words = [word for word in words if word != "..."]
    for at, word in enumerate(words):
        if re.fullmatch(r"(.*/)?python3?", word) and len(words) > at + 1:
            flag, *rest = words[at + 1 :]
            if rest if flag == "-m" else flag.endswith(".py"):
                yield Command(rest if flag == "-m" else [flag, *rest], whole)
            return
        if word in SCRIPTS:
            yield Command([SCRIPTS[word].removesuffix(".command"), *words[at + 1 :]], whole)
            return
    if words and words[0] == "make" and len(words) > 1:
        yield Command(words, whole)
    elif words and short and words[0] in _SHORT:
        yield Command([_SHORT[words[0]], *words[1:]], whole)
    elif words and short and re.fullmatch(r"(bench_\w+|page)\.py", words[0]):
        yield Command([f"benchmarks/{words[0]}", *words[1:]], whole)


def complaints(command: Command) -> list[str]:
    """What is wrong with a command; nothing where it would be understood."""
    name, *rest = command.words
    if name == "make":
        return [f"no target {word}" for word in rest if "=" not in word and word not in TARGETS]
    if name.endswith(".py"):
        return _of_program(ROOT / name, rest)
    if name.partition(".")[0] not in OURS:
        return [] if importlib.util.find_spec(name) else [f"no module {name}"]
    if name not in MODULES:
        return [f"{name} is no command"]
    try:
        _parse(importlib.import_module(MODULES[name]), rest, command.whole)
    except (_RefusedError, WrongUse, launch.WrongUse, spec.SpecError) as error:
        return [str(error)]
    return []


def _of_program(path: Path, words: list[str]) -> list[str]:
    if not path.is_file():
        return [f"no file {path.name}"]
    known = path.read_text(encoding="utf-8")
    return [f"{path.name} knows no {word}" for word in words if word.startswith("--") and f'"{word}"' not in known]


def _parse(module: Any, words: list[str], whole: bool) -> None:
    parser, words = module._parser(), [_lower(word) for word in words if word != "--help"]
    if words:  # a bare name is only a mention
        _adapt(parser, words, whole)
        args, unknown = parser.parse_known_args(words)
        if module is convert:
            unknown = _check_beam(args, unknown, whole)
        if unknown:
            raise _RefusedError(f"unknown {unknown[0]}")
        if module is task:
            _resolve(args)


def _check_beam(args: argparse.Namespace, flags: list[str], whole: bool) -> list[str]:
    """What neither `convert` nor Beam knows; the spec, and where a command is whole its runner, are looked at too."""
    if args.spec and not _PLACEHOLDER.fullmatch(args.spec):
        inputs.data_spec(args)
    if whole:
        launch.beam_options(args.runner, [flag.lower() if _PLACEHOLDER.fullmatch(flag) else flag for flag in flags])
    return _beam_parser(whole, launch._is_dask(args.runner)).parse_known_args(flags)[1]


@functools.cache
def _beam_parser(whole: bool, dask: bool) -> argparse.ArgumentParser:
    if dask:
        launch._import_dask()  # which makes its flags known
    known: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=known.append)
    _adapt(known[0], [], whole)
    return known[0]


def _lower(word: str) -> str:
    """`gs://BUCKET/beam` as a name that a bucket may have."""
    return re.sub(r"[A-Z]{2,}", lambda found: found[0].lower(), word) if word.startswith("gs:") else word


def _adapt(parser: argparse.ArgumentParser, words: list[str], whole: bool) -> None:
    """Let placeholders stand for any value, refusals be exceptions, and mentions lack what a command needs."""

    def refuse(message: str) -> NoReturn:
        raise _RefusedError(message)

    parser.error = refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False
    for action in parser._actions:
        action.required = action.required and whole
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _adapt(below, words, whole)
            continue
        if action.option_strings and action.nargs is None and not whole:
            action.nargs = "?"
        if action.type is not None:
            action.type = _or_placeholder(action.type)
        if action.choices is not None:
            action.choices = [*action.choices, *filter(_PLACEHOLDER.fullmatch, words)]


def _or_placeholder(kind: Any) -> Callable[[str], Any]:
    def convert_value(text: str) -> Any:
        return text if _PLACEHOLDER.fullmatch(text) else kind(text)

    return convert_value


def _resolve(args: argparse.Namespace) -> None:
    """The settings of a run, as far as real ones are given."""
    for name, value in vars(args).items():
        if isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
            setattr(args, name, None)
    args.set = [text for text in args.set if text and not _PLACEHOLDER.fullmatch(text)]
    if args.model is None and args.config is None:
        args.model = "cnn"
    hparams.resolve(args.model, args.config, task._sets(args))


def links(markdown: str) -> list[str]:
    """Targets of the links and pictures that lie in this repository."""
    plain = _SPAN.sub("", _FENCE.sub("", markdown))
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", plain) if not re.match(r"\w+:", target)]


def anchors(markdown: str) -> set[str]:
    """The anchor of each heading, as GitHub makes it."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", markdown), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths(markdown: str) -> set[str]:
    """Files and folders of this repository that a page names."""
    found = re.findall(r"(?<![\w/.<])((?:configs|docs|benchmarks|tests|\.ci)/[\w./*<>-]*)", markdown)
    return {path.rstrip(".") for path in found}
