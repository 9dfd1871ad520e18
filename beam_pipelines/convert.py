"""CT slices -> a verified TFRecord data set, with one command.

    python -m beam_pipelines.convert --input rsna.zip --labels stage_2_train.csv --output data/rsna_ich

The launcher lists and plans; Beam indexes the headers and writes the shards. Payloads are never shuffled.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from beam_pipelines import dataflow, inputs, launch, reject_limit, transforms
from beam_pipelines.progress import Progress
from ich_tfrecords import spec
from ich_tfrecords.command_line import Parser, WrongUse
from ich_tfrecords.conversion import commit, job, plan, steps
from ich_tfrecords.conversion.job import Identity, WorkDir
from ich_tfrecords.conversion.patient_key import PatientKey
from ich_tfrecords.conversion.sidecar_file import Sidecar
from ich_tfrecords.dataset import card, manifest, records, series_choice, splits
from ich_tfrecords.dataset.manifest import Manifest
from ich_tfrecords.labels import csv_file
from ich_tfrecords.labels.csv_file import LabelError
from ich_tfrecords.labels.fixes import Fixes
from ich_tfrecords.labels.table import LabelTable
from ich_tfrecords.plural import counted
from ich_tfrecords.storage import buckets, file_lock, packed, sources
from ich_tfrecords.storage.bucket_path import AnyPath, BucketPath, any_path

WRONG_USE = (
    spec.SpecError,
    sources.SourceError,
    LabelError,
    job.JobError,
    plan.PlanError,
    splits.SubsetError,
    manifest.DatasetError,
    file_lock.Held,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the work failed, 2 wrong use or input."""
    launch.quiet_libraries()
    pa.set_memory_pool(pa.system_memory_pool())  # gives memory back after each stage; Arrow's own pool keeps it
    try:
        args, beam_flags = _parser().parse_known_args(argv)
        options = launch.beam_options(args.runner, beam_flags)
        run(args, options)
    except (*WRONG_USE, WrongUse) as error:
        return _complain(error, 2)
    except dataflow.TemplateStaged as staged:
        print(staged)
    except launch.ConversionFailed as error:
        return _complain(error, 1)
    except buckets.NoAnswer as error:
        return _complain(f"{error.strerror}: {error.filename}; {launch.GOES_ON}", 1)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or args.output}", 2)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {launch.GOES_ON}", 130)
    return 0


def _complain(error: object, code: int) -> int:
    print(f"convert: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m beam_pipelines.convert",
        description="Convert CT slices (DICOM) to a TFRecord data set. The same command resumes what it began.",
        epilog="Every other flag goes to Beam, such as "
        "--direct_num_workers N (0: all cores) --direct_running_mode multi_processing. Without them the job runs "
        "here: in this process when the input is small, else on all cores. "
        "Exit codes: 0 done, 1 the work failed, 2 wrong use or input, 130 interrupted.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to convert")
    what.add_argument(
        "--input", action="append", required=True, type=_place, metavar="PATH",
        help="folder (with its sub-folders), glob, one file, or a zip read in place, here or on gs://; "
        "may be given several times. Other archives are to be unpacked first",
    )  # fmt: skip
    what.add_argument(
        "--include", action="append", default=[], metavar="GLOB",
        help="take only names that match, such as '*/stage_2_train/*'; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--labels", action="append", required=True, metavar="CSV|none",
        help="label file (RSNA's long form; or one row a slice, series, study, patient or folder; or CQ500's "
        "reads.csv), by path or by its name inside an input zip; may be given several times; "
        "none: labels are unknown (-1)",
    )  # fmt: skip
    what.add_argument(
        "--label_fixes", type=any_path, metavar="CSV",
        help="corrections of single slices: sop_uid,label,value, as trainer.audit proposes; 'any' follows",
    )  # fmt: skip
    what.add_argument(
        csv_file.MAY_MISS, action="store_true",
        help="labels that the files leave open are unknown (-1): blank or -1 in a cell, a missing row or column",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument(
        "--spec", default="rsna_ich", metavar="NAME|YAML",
        help=f"data-set spec: {', '.join(spec.config_names())}, or a YAML file (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--subset", metavar="SPLIT=N,...", help="draw N slices of a split, such as train=50000,test=5000 (seeded)"
    )
    how.add_argument("--series", choices=(series_choice.ALL, series_choice.BEST), help=series_choice.HELP)
    how.add_argument(
        "--max_reject_fraction", type=_fraction, default=0.01, metavar="F",
        help="fail when more than this part of the slices gives no record (default: %(default)s); files that never "
        "were axial CT slices, such as localizers, reports and what is not DICOM, are not held against it",
    )  # fmt: skip
    how.add_argument(
        "--patient_key_file", type=any_path, metavar="FILE",
        help="secret that keys the hash of patient ids; made (mode 0600) when missing. Use it when the patient ids "
        "are not pseudonyms already; without it the key comes from the spec's salt",
    )  # fmt: skip
    where = parser.add_argument_group("where")
    where.add_argument(
        "--output", type=any_path, required=True, metavar="DIR",
        help="new, empty or unfinished folder, here or on gs://",
    )  # fmt: skip
    where.add_argument("--runner", metavar="NAME", help="Beam runner (default: this machine, chosen by input size)")
    return parser


def _place(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no number between 0 and 1, such as 0.01")
    return value


def run(args: argparse.Namespace, options: PipelineOptions) -> Manifest:
    """Convert as the arguments say; raises what `main` turns into exit codes."""
    clock = _Clock()
    data_spec = inputs.data_spec(args)
    inputs.check_places(args, launch.is_far(options))
    launch.check_output(options, args.output)
    key, key_note = inputs.patient_key(args, data_spec.split.salt)
    with clock.stage("list"):
        listing = sources.list_inputs(args.input, args.include)
        input_facts = inputs.input_facts(listing)
    _tell(f"{counted(listing.table.num_rows, 'file')} to read" + _ignored(listing))
    _tell(packed.unread(listing.ignored))
    with clock.stage("labels"):
        tables, label_facts = inputs.labels_given(args.labels, args.labels_may_miss, listing, data_spec.labels, key)
        fixes = inputs.label_fixes(args, data_spec.labels)
        if not args.labels_may_miss:
            inputs.check_stems(listing, tables, args.max_reject_fraction, data_spec.accept)
    label_notes = [note for table in tables for note in table.notes()]
    for note in [key_note, *(label_notes or ["no labels: every label is unknown (-1)"])]:
        _tell(note)
    made_from = {
        "input": input_facts,
        "labels": label_facts,
        "patient_key": {"check": key.check},
    }
    if args.series:  # what is not asked for does not name the data set, as in those from before there was a choice
        made_from["series"] = args.series
    if fixes:
        made_from["label_fixes"] = fixes.facts()
    identity = Identity(data_spec, made_from)
    if (args.output / manifest.MANIFEST).exists():
        return _already_done(args.output, identity)
    with contextlib.closing(job.claim(args.output)) as lock:
        if (args.output / manifest.MANIFEST).exists():  # another process has just finished here
            return _already_done(args.output, identity)
        work = WorkDir(args.output.absolute())
        job.check_identity(work, identity)
        with clock.stage("index"):
            parts = job.begin_index(work, listing.table)
        del listing  # workers read its parts; the launcher stays small
        return _convert(args, options, work, identity, key, tables, fixes, parts, clock, lock)


def _already_done(output: AnyPath, identity: Identity) -> Manifest:
    """Manifest of a finished directory, which must be of the same job; nothing is written."""
    done = manifest.read(output)
    job.refuse_difference(output, Identity(done.spec, done.made_from), identity)
    there = job.contents(output)
    damaged = [shard["name"] for shard in done.shards if _length(there, shard["name"]) != shard["bytes"]]
    if damaged:
        raise launch.WrongUse(
            f"{output} is damaged: {damaged[0]} has not the length that {manifest.MANIFEST} tells; "
            "inspect verify says more; delete that folder to begin anew"
        )
    if WorkDir(output).path.exists():  # a run that ended between the manifest and the tidying
        job.clear(WorkDir(output))
    print(f"{output} is complete already; nothing was written\n{card.describe(output, done)}")
    return done


def _length(there: dict[str, job.Content], name: str) -> int:
    return there[name].size_bytes if name in there else 0


def _convert(
    args: argparse.Namespace,
    options: PipelineOptions,
    work: WorkDir,
    identity: Identity,
    key: PatientKey,
    tables: list[LabelTable],
    fixes: Fixes | None,
    parts: dict[int, pa.Table],
    clock: _Clock,
    lock: job.Lock,
) -> Manifest:
    files = identity.made_from["input"]["files"]
    tally: Counter[str] = Counter()
    with clock.stage("index"):
        _index(work, files, parts, transforms.IndexParts(work, key, identity.spec.accept), options, tally)
        if not launch.is_far(options):
            _tell(steps.prepare_decoding(tally))
    with clock.stage("plan"):
        mode = args.series or series_choice.TOLD
        planned = plan.build_plan(job.joined(parts), tables, identity.spec, args.labels_may_miss, mode, fixes)
        for note in [*planned.notes, reject_limit.by_nature(planned.rejects)]:
            _tell(note)
        reject_limit.check(plan.foreseen(planned), planned.indexed, args.max_reject_fraction)
        pending = job.write_plan(work, planned, identity.spec)
    with clock.stage("convert"):
        _write_shards(work, planned, pending, identity.spec, options, tally)
    with clock.stage("commit"):
        finished, lost = _finished(work, planned, identity.spec, args)
        result = commit.commit(work.output, identity.spec, planned, finished, lost, identity.made_from, lock.require)
        job.clear(work)
    print(card.describe(args.output, result))
    print(describe_work(tally, clock.seconds))
    print(f"next: python -m ich_tfrecords.inspect verify {args.output}")
    return result


def _index(
    work: WorkDir,
    files: int,
    parts: dict[int, pa.Table],
    step: transforms.IndexParts,
    options: PipelineOptions,
    tally: Counter[str],
) -> None:
    """Have workers index what is missing among `parts`, and add it."""

    def done() -> int:
        return min(files, job.LISTING_ROWS * job.indexed(work))

    if missing := job.missing_index(files, parts):
        progress = Progress("index", files, done, sys.stderr, isinstance(work.output, BucketPath))
        _run(work, missing, step, options, tally, progress)
        parts |= job.read_index(work, missing)
    if job.missing_index(files, parts):
        raise launch.ConversionFailed(f"the index step left parts unwritten (see {work.path})")


def _write_shards(
    work: WorkDir,
    planned: plan.Plan,
    pending: list[str],
    data_spec: spec.DatasetSpec,
    options: PipelineOptions,
    tally: Counter[str],
) -> None:
    total = planned.slices.num_rows
    slice_bytes = records.slice_bytes(data_spec)
    unwritten = set(pending)
    complete = [shard for shard in plan.planned_shards(planned, data_spec) if shard.name not in unwritten]
    resumed = sum(shard.slices.num_rows for shard in complete)
    if resumed:
        one, many = "was written before and stays as it is", "were written before and stay as they are"
        shards, slices = counted(len(complete), "shard"), counted(resumed, "slice")
        _tell(f"{shards} with {slices} {one if len(complete) == 1 else many}")

    def done() -> int:
        there = job.contents(work.output)
        growing = sum(content.size_bytes for content in job.contents(work.temporary).values())
        return resumed + (growing + sum(_length(there, name) for name in pending)) // slice_bytes

    job.sweep(work)
    is_far = isinstance(work.output, BucketPath)
    step = transforms.WriteShards(work, data_spec)
    _run(work, pending, step, options, tally, Progress("convert", total, done, sys.stderr, is_far))


def _run(
    work: WorkDir,
    elements: Sequence[Any],
    step: beam.PTransform,
    options: PipelineOptions,
    tally: Counter[str],
    progress: Progress,
) -> None:
    if elements:
        with launch.log_file(work.path) as log:
            own = launch.step_options(options, step.step, work.output)
            launch.run_step(
                lambda p: build(p, elements, step), own, len(elements), progress.total, tally, progress, log
            )


def build(pipeline: beam.Pipeline, elements: Sequence[Any], step: beam.PTransform) -> beam.PCollection:
    """The graph of one step: `elements` (numbers or names) into `step`; returns what it finished."""
    return pipeline | "Elements" >> beam.Create(elements) | step


def _finished(
    work: WorkDir, planned: plan.Plan, data_spec: spec.DatasetSpec, args: argparse.Namespace
) -> tuple[dict[str, Sidecar], pa.Table]:
    """The sidecar of each shard by name, and the rejects, no more than may be."""
    names = [shard.name for shard in plan.planned_shards(planned, data_spec)]
    found = dict(job.sidecars(work, names))
    missing = [name for name in names if name not in found]
    if missing:
        shards = counted(len(missing), "shard is", "shards are")
        raise launch.ConversionFailed(f"{shards} not written (first: {missing[0]}); run the command again")
    changed = job.changed_shards(work.output, found.values())
    if changed:
        shards = counted(len(changed), "shard is not what its worker", "shards are not what their workers")
        raise launch.ConversionFailed(f"{shards} wrote (first: {changed[0]}); run the command again")
    lost = commit.all_rejects(data_spec, planned, found)
    reject_limit.check(lost, planned.indexed, args.max_reject_fraction)
    if not any(sidecar.slices for sidecar in found.values()):
        raise plan.PlanError(f"no slice could be converted: {plan.top_reasons(lost)}")
    return found, lost


def describe_work(tally: Counter[str], seconds: dict[str, float]) -> str:
    """Lines that say what this run did, from Beam's counters, and where its time went."""
    if not tally:  # nothing was left to do, or a runner without counters did it
        return "seconds  " + ", ".join(f"{stage} {time_s:.1f}" for stage, time_s in seconds.items())
    rejected = {name.removeprefix("rejected_"): count for name, count in tally.items() if name.startswith("rejected_")}
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(rejected.items())) or "none"
    headers, slices = counted(tally["indexed"], "header"), counted(tally["read"], "slice")
    lines = [
        f"read     {headers}, {slices} ({tally['read_bytes'] / 1e6:,.1f} MB)",
        f"wrote    {counted(tally['written'], 'record')} ({tally['written_bytes'] / 1e6:,.1f} MB)",
        f"unusable {reasons}",
        "seconds  " + ", ".join(f"{stage} {time_s:.1f}" for stage, time_s in seconds.items()),
    ]
    if tally["read"]:
        stages = ("read", "decode", "window", "encode")
        parts = ", ".join(f"{stage} {tally[f'{stage}_us'] / tally['read'] / 1000:.2f}" for stage in stages)
        lines.append(
            f"ms a slice in one worker: {parts}; header {tally['index_us'] / max(tally['indexed'], 1) / 1000:.2f}"
        )
    return "\n".join(lines)


def _tell(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)


def _ignored(listing: sources.Listing) -> str:
    if not listing.ignored:
        return ""
    return f" ({listing.ignored.total():,} with other suffixes left aside: {packed.counted(listing.ignored)})"


class _Clock:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin


if __name__ == "__main__":
    sys.exit(main())
