"""The command that writes phantom studies.

python -m ich_tfrecords.synthetic --output data/phantom --patients 40
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ich_tfrecords import environment
from ich_tfrecords.command_line import Parser, WrongUse
from ich_tfrecords.storage.bucket_path import local_path
from ich_tfrecords.synthetic import hospital
from ich_tfrecords.synthetic.confounders import FEWEST_SLICES
from ich_tfrecords.synthetic.plan import SyntheticError
from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS, ZIP_NAME, Summary, generate
from ich_tfrecords.views import progress_line


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0 done, 1 the disk failed, 2 wrong use, 130 interrupted."""
    environment.settle()
    try:
        arguments = _parser().parse_args(argv)
    except WrongUse as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    options = {name: value for name, value in vars(arguments).items() if name not in ("output", "hospital")}
    try:
        make = generate
        if arguments.hospital:
            make = _hospital(options)
        with progress_line.shown("draw", "slices", sys.stderr) as tell:
            summary = make(arguments.output, **options, progress=tell)
    except SyntheticError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"synthetic: interrupted; {arguments.output} is incomplete, remove it", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"synthetic: cannot write {arguments.output}: {error}; what is there is incomplete",
            file=sys.stderr,
        )
        return 1
    shares = ", ".join(f"{label} {100 * summary.fraction(label):.1f}%" for label in RSNA_LABELS)
    print(f"{summary.count('train')} train and {summary.count('test')} test slices in {summary.output}: {shares}")
    for defect in summary.defects:
        print(f"planted {defect.name}: {defect.file}: {defect.detail}")
    return 0


def _hospital(options: dict[str, Any]) -> Callable[..., Summary]:
    """What writes a hospital's export, with what it has no use for taken out of `options`."""
    for name, flag in (("zip_archive", "--zip"), ("defects", "--defects")):
        if options.pop(name):
            raise SyntheticError(f"--hospital writes folders without RSNA's defects: leave out {flag}")
    return hospital.generate


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ich_tfrecords.synthetic",
        description="Write phantom head-CT studies with labelled bleeds, in the layout of the RSNA 2019 data: "
        "stage_2_train/*.dcm, stage_2_test/*.dcm, stage_2_train.csv, stage_2_sample_submission.csv.",
        epilog="The same arguments give the same bytes. A slice takes 0.5 MB, about 0.2 MB with --zip; the "
        "defaults make some 1,700 slices. Example: python -m ich_tfrecords.synthetic --output data/tiny --patients 6 "
        "--slices_per_study 5 --test_patients 1 --every_label",
    )
    parser.add_argument("--output", type=local_path, required=True, help="directory to make; it must be empty")
    parser.add_argument("--patients", type=int, help="train patients, 1 or 2 studies each (%(default)s)")
    parser.add_argument("--test_patients", type=int, help="patients of the unlabelled test set (%(default)s)")
    parser.add_argument("--slices_per_study", type=int, help="give or take an eighth (%(default)s)")
    parser.add_argument("--seed", type=int, help="another seed, other heads (%(default)s)")
    parser.add_argument(
        "--positive_fraction",
        type=float,
        help="part of the studies that bleed; %(default)s has about the prevalences of RSNA",
    )
    parser.add_argument("--every_label", action="store_true", help="let the five labels go round, so each occurs")
    parser.add_argument(
        "--context",
        action="store_true",
        help="add what fools a reader of one slice: bleeds fade at both ends, and calcified plexus and falx, streaks "
        "at the base and bone at the vertex, all unlabelled, are as dense as blood in one slice or two; needs "
        f"{FEWEST_SLICES} slices a study",
    )
    parser.add_argument(
        "--hospital",
        action="store_true",
        help="write another hospital's export instead: ct/STUDY/SERIES/*.dcm with thick slices, a tilted gantry and "
        "other noise, a plain series, a bone kernel, one after contrast and a localizer a study, and studies.csv with "
        "labels of studies alone; the test patients lie in ct_unlabelled",
    )
    parser.add_argument("--zip", dest="zip_archive", action="store_true", help=f"write one {ZIP_NAME} instead")
    parser.add_argument(
        "--defects",
        action="store_true",
        help="plant each defect known of the RSNA data; defects.csv lists them",
    )
    options = inspect.signature(generate).parameters
    parser.set_defaults(**{name: options[name].default for name in options if name not in ("output", "progress")})
    return parser
