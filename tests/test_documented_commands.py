"""Every command that README, docs, `--help`, configs and Makefile show is one that its parser understands."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess

import pytest
from documented import MODULES, ROOT, SCRIPTS, TARGETS, Command, commands, complaints, in_text, pages, spans

from beam_pipelines import launch

pytestmark = pytest.mark.slow  # imports every command

FOREIGN = {"--xla_gpu_cuda_data_dir", "--model_base_path=/models/ich"}  # of XLA_FLAGS, of TF Serving


@pytest.fixture(autouse=True)
def _as_a_reader_would(monkeypatch):
    monkeypatch.chdir(ROOT)  # where ./setup.py is
    monkeypatch.setattr(launch.beam, "Pipeline", lambda **options: None)  # Dataflow's would look for a login


def _wrong(found: list[Command]) -> list[str]:
    return [f"{' '.join(command.words)}: {text}" for command in found for text in complaints(command)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page(page):
    text = page.read_text(encoding="utf-8")
    found = list(commands(text))
    assert _wrong(found) == []
    ours = [command for command in found if command.words[0] in MODULES]
    assert len(ours) >= len(re.findall(r"python -m (?:beam_pipelines|ich_tfrecords|trainer)\.", text))


def test_the_pages_show_every_command_and_the_main_targets():
    found = [command.words for page in pages() for command in commands(page.read_text(encoding="utf-8"))]
    assert {words[0] for words in found} >= set(MODULES)
    assert {words[1] for words in found if words[0] == "make"} >= {"demo", "test", "bench"}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_stand_alone_are_known_to_some_command(page):
    shown = spans(page.read_text(encoding="utf-8"))
    alone = [shlex.split(span) for span in shown if re.match(r"--\w", span) and span not in FOREIGN]
    known = [*MODULES, "benchmarks/page.py"]
    assert [words for words in alone if all(complaints(Command([name, *words], False)) for name in known)] == []


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(found for parsers in below for one in parsers for found in _parsers(one))]


@pytest.mark.parametrize("name", MODULES)
def test_commands_in_docstring_and_help(name):
    module = importlib.import_module(MODULES[name])
    texts = [module.__doc__ or "", *(one.epilog or "" for one in _parsers(module._parser()))]
    shown = [command for text in texts for command in in_text(text)]
    assert shown != []
    assert _wrong(shown) == []


def test_commands_of_the_configs():
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))]
    shown = [command for text in texts for command in in_text(text)]
    assert len(shown) >= 8
    assert _wrong(shown) == []


def test_commands_of_the_demo():
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shown = [command for command in in_text(printed) if command.words[0] in MODULES]
    assert len(shown) == 15
    assert _wrong(shown) == []


def test_console_scripts_are_the_commands():
    for name, module in SCRIPTS.items():
        assert callable(importlib.import_module(module).main), name
    assert {"demo", "test", "bench", "clean"} <= TARGETS


# --- the checker itself ---

WRONG = [
    ("python -m trainer.tusk --model cnn", "trainer.tusk is no command"),
    ("python -m trainer.training.losses", "trainer.training.losses is no command"),
    ("python -m no_such_module", "no module no_such_module"),
    ("python -m trainer.task --model alexnet", "model is 'alexnet'"),
    ("python -m trainer.task --model cnn --epoch 3", "unknown --epoch"),
    ("python -m trainer.task --model cnn --epochs many", "epochs is 'many'"),
    ("python -m trainer.task --config modern_cnn", "modern_cnn"),
    ("python -m trainer.task --model cnn --set rotate=3", "unknown setting"),
    ("python -m trainer.task --model cnn --set flip=3", "true or false"),
    ("python -m trainer.task --model cnn --set schedule=cosine --set decay_per_epoch=0.5", "decay_per_epoch"),
    ("python -m trainer.task --model cnn --sampling fair", "sampling is 'fair'"),
    ("python -m trainer.predict --model RUN --input PATH --output DIR --map lime", "invalid choice"),
    ("python -m trainer.predict --model RUN --input PATH", "required: --output"),
    ("python -m trainer.evaluate --job_dir RUN --resamples few", "invalid"),
    ("python -m ich_tfrecords.inspect look DIR", "invalid choice"),
    ("python -m ich_tfrecords.inspect show DIR", "required: --output"),
    ("python -m ich_tfrecords.synthetic --output DIR --patient 3", "unknown --patient"),
    ("python -m beam_pipelines.convert --input A --labels none", "required: --output"),
    ("python -m beam_pipelines.convert --input A --labels none --output B --spec rsna", "rsna"),
    ("python -m beam_pipelines.convert --input A --labels none --output B --direct_workers 2", "--direct_workers"),
    ("python -m beam_pipelines.convert --input A --labels none --output B --runner DataflowRunner", "is missing"),
    ("X=1 ich-train --model cnn --colour red && true", "unknown --colour"),
    ("make tests", "no target tests"),
    ("python benchmarks/bench_nothing.py", "no file bench_nothing.py"),
    ("python benchmarks/bench_step.py --round 3", "knows no --round"),
]


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_line_is_found(line, words):
    (command,) = commands(f"Do this:\n\n```sh\n{line}  # and so on\n```\n")
    (complaint,) = complaints(command)
    assert words in complaint


@pytest.mark.parametrize(
    "line",
    [
        "python -m trainer.task --model cnn --set sampling=explicit --set 'proportions={any: 1}'",
        "python -m trainer.task --model MODEL --config FILE.yaml --set KEY=VALUE --folds N",
        "python -m trainer.compare RUN RUN --output FILE.html",
        "TF_CONFIG='{}' python -m trainer.task --model cnn --strategy multi_worker &",
        "python -m beam_pipelines.convert --input A --labels none --output B --direct_num_workers 2",
        "make demo PYTHON=python3.11",
        "python benchmarks/bench_step.py --rounds 3 --steps 30",
    ],
)
def test_a_right_line_is_left_alone(line):
    (command,) = commands(f"```\n{line}\n```\n")
    assert command.whole
    assert complaints(command) == []


def test_mentions_in_running_text_need_no_more_than_right_flags():
    text = "`trainer.evaluate --recalibrate`, `inspect info DIR`, `python -m trainer.task --model\ncnn` or `make demo`."
    found = list(commands(text))
    assert [command.words[0] for command in found] == [
        "trainer.evaluate", "ich_tfrecords.inspect", "trainer.task", "make",
    ]  # fmt: skip
    assert _wrong(found) == []
    (wrong,) = commands("Try `trainer.evaluate --recalibrated`.")
    assert complaints(wrong) == ["unknown --recalibrated"]
