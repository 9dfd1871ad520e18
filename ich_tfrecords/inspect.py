"""The command-line door to a converted data set: what it holds, whether it is whole, pictures, a report, PNG files.

python -m ich_tfrecords.inspect info data/rsna_ich
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ich_tfrecords import environment
from ich_tfrecords.command_line import Parser, WrongUse
from ich_tfrecords.dataset import manifest, verify
from ich_tfrecords.dataset.manifest import DatasetError, Manifest
from ich_tfrecords.dataset.summary import flat, megabytes, plain, prevalence, total_counts, totals
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath, any_path, local_path
from ich_tfrecords.views import export, montage, progress_line, report

MAX_PER_STRATUM = 50


class Damaged(Exception):
    """`verify` found problems and has listed them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the data set is damaged, 2 wrong use or input."""
    environment.settle()
    try:
        arguments = _parser().parse_args(argv)
        arguments.command(arguments)
    except Damaged:
        return 1
    except montage.DamagedSlice as error:
        return _complain(error, 1)
    except (WrongUse, DatasetError, export.ExportError) as error:
        return _complain(error, 2)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or arguments.directory}", 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    return 0


def _complain(error: object, code: int) -> int:
    print(f"inspect: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ich_tfrecords.inspect",
        description="Look into a data set that beam_pipelines.convert has made.",
        epilog="Begin with `info DIR`. Exit codes: 0 done, 1 the data set is damaged, 2 wrong use or input, "
        "130 interrupted.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = _command(commands, "info", _info, "say what the data set holds", "python -m ich_tfrecords.inspect info data")
    info.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    _command(
        commands, "verify", _verify,
        "check every byte: sizes, checksums, records, counts, patients in one split only; exit code 1 for damage",
        "python -m ich_tfrecords.inspect verify data",
    )  # fmt: skip
    show = _command(
        commands, "show", _show,
        "draw a montage: some slices of each stratum, each window beside a composite of all as red, green and blue",
        "python -m ich_tfrecords.inspect show data --output montage.png --per_stratum 6 --split train",
    )  # fmt: skip
    show.add_argument("--output", type=local_path, required=True, metavar="FILE.png", help="picture to write")
    show.add_argument(
        "--per_stratum", type=int, default=3, metavar="N",
        help=f"slices of each stratum, 1 to {MAX_PER_STRATUM} (default: %(default)s)",
    )  # fmt: skip
    show.add_argument("--split", metavar="NAME", help="draw from this split only (default: all)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other slices (default: 0)")
    page = _command(
        commands, "report", _report,
        "write one HTML page without scripts: counts, balance, labels together, windows, pictures, rejects, duplicates",
        "python -m ich_tfrecords.inspect report data --output page",
    )  # fmt: skip
    page.add_argument("--output", type=local_path, required=True, metavar="FOLDER", help=f"folder for {report.PAGE}")
    files = _command(
        commands, "export", _export,
        "write a PNG a slice (RGB when there are three windows, else one in grey a window) to FOLDER/<split>/, and "
        "FOLDER/labels_<split>.csv: filename, then the labels (1, 0, or -1 for unknown)",
        "python -m ich_tfrecords.inspect export data --output png --split test",
    )  # fmt: skip
    files.add_argument("--output", type=local_path, required=True, metavar="FOLDER", help="new or empty folder")
    files.add_argument("--split", metavar="NAME", help="this split only (default: all)")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], what: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"Example: {example}", allow_abbrev=False
    )
    parser.add_argument(
        "directory",
        type=any_path,
        metavar="DIR",
        help="folder of the data set, with its manifest.json, here or on gs://",
    )
    parser.set_defaults(command=run)
    return parser


def _info(arguments: argparse.Namespace) -> None:
    done = manifest.read(arguments.directory)
    known = facts(done, _generator(arguments.directory))
    print(json.dumps(known, indent=1, ensure_ascii=False) if arguments.json else describe(done, known))


def _verify(arguments: argparse.Namespace) -> None:
    with progress_line.shown("verify", "shards", sys.stderr) as tell:
        result = verify.verify(arguments.directory, tell)
    for note in result.notes:
        print(note)
    for problem in result.problems:
        print(f"inspect: {problem}", file=sys.stderr)
    if result.problems:
        raise Damaged
    slices, shards = counted(result.slices, "slice"), counted(result.shards, "shard")
    print(f"{arguments.directory}: whole; checked {slices} in {shards}")


def _show(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.per_stratum <= MAX_PER_STRATUM:
        raise WrongUse(f"--per_stratum is {arguments.per_stratum}; use 1 to {MAX_PER_STRATUM}")
    if arguments.seed < 0:
        raise WrongUse(f"--seed is {arguments.seed}; use 0 or more")
    if arguments.output.suffix.lower() != ".png":
        raise WrongUse(f"--output is {arguments.output}; the picture is a PNG, so end its name in .png")
    done = manifest.read(arguments.directory)
    splits = _splits(done, arguments.split)
    rows = montage.of_splits(montage.slice_rows(arguments.directory, done.spec), splits)
    groups = []
    for stratum, count, drawn in montage.draw_strata(rows, done.spec, arguments.per_stratum, arguments.seed):
        heading = f"{stratum}: {drawn.num_rows:,} of {count:,} slices"
        groups.append((heading, montage.read_pictures(arguments.directory, drawn, done.spec)))
    if not groups:
        filled = [name for name, entry in done.splits.items() if entry["slices"]]
        raise WrongUse(
            f"{arguments.directory} holds no slice in {', '.join(splits)}, so there is nothing to draw; the splits "
            f"with slices are {', '.join(filled) or 'none'}: name one with --split"
        )
    subtitle = f"{', '.join(splits)}; seed {arguments.seed}; fingerprint {done.fingerprint[:16]}"
    picture = montage.montage(done, groups, subtitle)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(arguments.output, montage.png_bytes(picture))
    print(f"{arguments.output}: {sum(len(pictures) for _, pictures in groups):,} slices of {len(groups)} strata")


def _report(arguments: argparse.Namespace) -> None:
    done = manifest.read(arguments.directory)
    if isinstance(arguments.directory, Path) and arguments.output.resolve() == arguments.directory.resolve():
        raise WrongUse(f"--output {arguments.output} is the data set itself; name another folder")
    print(report.write(arguments.directory, done, _generator(arguments.directory), arguments.output))


def _export(arguments: argparse.Namespace) -> None:
    done = manifest.read(arguments.directory)
    splits = _splits(done, arguments.split)
    with progress_line.shown("export", "slices", sys.stderr) as tell:
        files = export.export(arguments.directory, done, arguments.output, splits, tell)
    print(f"{arguments.output}: {files:,} PNG files of {', '.join(splits)}, labels in labels_<split>.csv")


def _splits(done: Manifest, wanted: str | None) -> list[str]:
    if wanted is not None and wanted not in done.splits:
        raise WrongUse(f"--split {wanted}: the data set has {', '.join(done.splits)}")
    return [wanted] if wanted else list(done.splits)


def _generator(directory: AnyPath) -> str:
    """What wrote the data set, such as `ich_tfrecords 1.0.0`."""
    text = (directory / manifest.MANIFEST).read_text(encoding="utf-8")
    return str(json.loads(text).get("generator", "unknown"))


def facts(done: Manifest, generator: str) -> dict[str, Any]:
    """What a data set holds, as plain values for JSON."""
    image = done.spec.image
    return {
        "name": done.spec.name,
        "version": done.spec.version,
        "fingerprint": done.fingerprint,
        "generator": generator,
        **totals(done),
        "image": {"shape": list(image.shape), "dtype": image.dtype, "pad_hu": image.pad_hu, "crop": image.crop},
        "windows": [
            {"name": window.name, "level_hu": window.level_hu, "width_hu": window.width_hu} for window in image.windows
        ],
        "labels": {name: total_counts(done, name) for name in done.spec.labels.names},
        "splits": done.splits,
        "made_from": done.made_from,
        "rejects": done.rejects,
        "not_drawn": done.not_drawn,
        "labels_unused": done.labels_unused,
    }


def describe(done: Manifest, known: Mapping[str, Any]) -> str:
    """The facts of a data set as text, in aligned columns."""
    counted = ("shards", "slices", "patients", "studies", "series")
    image = done.spec.image
    windows = ", ".join(map(str, image.windows))
    head = [
        ["data set", f"{known['name']} {known['version']}, by {known['generator']}"],
        ["fingerprint", known["fingerprint"]],
        ["image", f"{image.dtype} {image.shape}, {image.shown}, padded with {image.pad_hu} HU"],
        [image.holds, f"{windows} (level/width in HU)"],
        *([name, plain(value)] for name, value in flat(known["made_from"]).items()),
        ["outside subset", f"{done.not_drawn:,} slices"],
        ["labels unused", f"{done.labels_unused:,} label rows of no slice"],
    ]
    splits = {**done.splits, "all": {**totals(done), "labels": known["labels"]}}
    sizes = [[name, *(f"{of[fact]:,}" for fact in counted), megabytes(of["bytes"])] for name, of in splits.items()]
    labels = [[name, *(_label_cell(of["labels"][name]) for of in splits.values())] for name in done.spec.labels.names]
    strata = [
        [name, *(f"{of['strata'].get(name, 0):,}" for of in done.splits.values())] for name in done.spec.labels.strata
    ]
    rejects = [[f"{count:,}", reason] for reason, count in sorted(done.rejects.items(), key=lambda item: -item[1])]
    parts = [
        aligned(head, left=2),
        aligned([["split", *counted, "size"], *sizes]),
        aligned([["positive slices", *splits], *labels]),
        aligned([["stratum", *done.splits], *strata]),
        [f"files without a record: {sum(done.rejects.values()):,} (see {manifest.REJECTS})"]
        + [f"  {count:>9}  {reason}" for count, reason in rejects],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts)


def _label_cell(counts: Mapping[str, int]) -> str:
    share, unknown = prevalence(counts), counts["unknown"]
    known = [f"{share.count:,} ({share.percent})"] if share.total else []
    return ", ".join([*known, *([f"{unknown:,} unknown"] if unknown else [])]) or "-"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table: the first `left` columns set to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
