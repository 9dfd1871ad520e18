"""CT slices -> a verified TFRecord data set, with one command.

    python -m beam_pipelines.convert --input rsna.zip --labels stage_2_train.csv --output data/rsna_ich

The launcher lists and plans; Beam indexes the headers and writes the shards. Payloads are never shuffled.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import logging
import os
import secrets
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam_pipelines import transforms
from beam_pipelines.progress import Progress
from ich_tfrecords import job, labels, manifest, plan, records, sources, spec, splits
from ich_tfrecords.job import Identity, WorkDir
from ich_tfrecords.manifest import Manifest, Sidecar

SMALL_SLICES = 6000  # fewer are converted in this process: starting worker processes costs about 4 s a step
LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")
WRONG_USE = (
    spec.SpecError,
    sources.SourceError,
    labels.LabelError,
    job.JobError,
    plan.PlanError,
    splits.SubsetError,
    manifest.DatasetError,
)


class ConversionFailed(Exception):
    """The work failed; the message is for the user."""


class WrongUse(Exception):
    """A flag or a place that cannot be used; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the work failed, 2 wrong use or input."""
    _quiet_libraries()
    args, beam_flags = _parse(argv)
    try:
        options = _beam_options(args.runner, beam_flags)
        run(args, options)
    except (*WRONG_USE, WrongUse) as error:
        return _complain(error, 2)
    except ConversionFailed as error:
        return _complain(error, 1)
    except OSError as error:
        return _complain(f"{error.strerror or error}: {error.filename or args.output}", 2)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on where this one stopped", 130)
    return 0


def _complain(error: object, code: int) -> int:
    print(f"convert: {error}", file=sys.stderr)
    return code


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m beam_pipelines.convert",
        description="Convert CT slices (DICOM) to a TFRecord data set. The same command resumes what it began.",
        epilog="Every other flag goes to Beam: --runner DataflowRunner --project P --region R --temp_location gs://..., "
        "or --direct_num_workers N (0: all cores) --direct_running_mode multi_processing. Without them the job runs "
        "here: in this process when the input is small, else on all cores. "
        "Exit codes: 0 done, 1 the work failed, 2 wrong use or input.",
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to convert")
    what.add_argument(
        "--input", action="append", required=True, metavar="PATH",
        help="folder (with its sub-folders), glob, one file, or a zip read in place; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--include", action="append", default=[], metavar="GLOB",
        help="take only names that match, such as '*/stage_2_train/*'; may be given several times",
    )  # fmt: skip
    what.add_argument(
        "--labels", required=True, metavar="CSV|none",
        help="label file (RSNA's long form, or one row a slice), by path or by its name inside an input zip; "
        "none: labels are unknown (-1)",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument(
        "--spec", default="rsna_ich", metavar="NAME|YAML",
        help=f"data-set spec: {', '.join(spec.config_names())}, or a YAML file (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--subset", metavar="SPLIT=N,...", help="draw N slices of a split, such as train=50000,test=5000 (seeded)"
    )
    how.add_argument(
        "--max_reject_fraction", type=_fraction, default=0.01, metavar="F",
        help="fail when more than this part of the files gives no record (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--patient_key_file", type=Path, metavar="FILE",
        help="secret that keys the hash of patient ids; made (mode 0600) when missing. Use it when the patient ids "
        "are not pseudonyms already; without it the key comes from the spec's salt",
    )  # fmt: skip
    where = parser.add_argument_group("where")
    where.add_argument("--output", type=Path, required=True, metavar="DIR", help="new, empty or unfinished folder")
    where.add_argument("--runner", metavar="NAME", help="Beam runner (default: this machine, chosen by input size)")
    return parser.parse_known_args(argv)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _beam_options(runner: str | None, flags: Sequence[str]) -> PipelineOptions:
    """Beam's options; raises `WrongUse` for a flag that neither this command nor Beam knows."""
    options = PipelineOptions([*flags, *([f"--runner={runner}"] if runner else [])])
    known: list[argparse.ArgumentParser] = []
    options.get_all_options(add_extra_args_fn=known.append)
    strangers = [flag for flag in known[0].parse_known_args(list(flags))[1] if flag.startswith("-")]
    if strangers or any(not flag.startswith("-") for flag in flags[:1]):
        raise WrongUse(f"unknown flag {(strangers or list(flags))[0]}; --help lists this command's own")
    return options


def run(args: argparse.Namespace, options: PipelineOptions) -> Manifest:
    """Convert as the arguments say; raises what `main` turns into exit codes."""
    clock = _Clock()
    data_spec = _spec(args)
    secret = _secret(args.patient_key_file, data_spec)
    with clock.stage("list"):
        listing = sources.list_inputs(args.input, args.include)
        input_facts = _input_facts(listing)
    _tell(f"{listing.table.num_rows:,} files to read" + _ignored(listing))
    with clock.stage("labels"):
        label_bytes, label_name = _label_source(args.labels, args.input)
        table = labels.read_labels(io.BytesIO(label_bytes), data_spec.labels, label_name) if label_bytes else None
        _check_stems(listing, table, args.max_reject_fraction)
    for note in table.notes() if table else ["no labels: every label is unknown (-1)"]:
        _tell(note)
    made_from = {
        "input": input_facts,
        "labels": {"sha256": _sha256(label_bytes)} if label_bytes else None,
        "patient_key": {"check": splits.patient_key("check", secret)},
    }
    identity = Identity(data_spec, made_from)
    lock = job.claim(args.output)
    try:
        return _convert(args, options, identity, secret, listing, table, clock)
    finally:
        os.close(lock)


def _convert(
    args: argparse.Namespace,
    options: PipelineOptions,
    identity: Identity,
    secret: bytes,
    listing: sources.Listing,
    table: labels.LabelTable | None,
    clock: _Clock,
) -> Manifest:
    work = WorkDir(args.output.absolute())
    if (work.output / manifest.MANIFEST).exists():
        done = manifest.read(work.output)
        job.refuse_difference(args.output, Identity(done.spec, done.made_from), identity)
        job.clear(work)
        print(f"{args.output} is complete already; nothing was written\n{describe(args.output, done)}")
        return done
    job.check_identity(work, identity)
    tally: Counter[str] = Counter()
    with clock.stage("index"):
        index = _index(work, listing, secret, options, tally)
    with clock.stage("plan"):
        planned = plan.build_plan(index, table, identity.spec)
        _check_rejects(planned.rejects.num_rows, index.num_rows, args, plan.top_reasons(planned.rejects))
        del index
        pending = job.write_plan(work, planned, identity.spec)
    with clock.stage("convert"):
        _write_shards(work, planned, pending, identity.spec, options, tally)
    with clock.stage("commit"):
        finished = _finished(work, planned, identity.spec, args, listing.table.num_rows)
        result = manifest.commit(work.output, identity.spec, planned, finished, identity.made_from)
        job.clear(work)
    print(describe(args.output, result))
    print(describe_work(tally, clock.seconds))
    print(f"next: python -m ich_tfrecords.inspect verify {args.output}")
    return result


def _spec(args: argparse.Namespace) -> spec.DatasetSpec:
    loaded = spec.load(args.spec)
    if args.subset is None:
        return loaded
    try:
        subset = {name: int(count) for name, count in (part.split("=") for part in args.subset.split(","))}
    except ValueError as error:
        raise WrongUse(f"--subset {args.subset}: write SPLIT=N,SPLIT=N, such as train=50000,test=5000") from error
    return dataclasses.replace(loaded, split=dataclasses.replace(loaded.split, subset=subset))


def _secret(path: Path | None, data_spec: spec.DatasetSpec) -> bytes:
    """The key of the patient hash: from a file (made when missing, never shown), or from the public salt."""
    if path is None:
        return splits.public_secret(data_spec.split.salt)
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        _tell(f"made the patient key {path}; keep it, a later conversion needs it to give patients the same keys")
    key = path.read_text(encoding="utf-8").strip().encode()
    if not 16 <= len(key) <= 64:
        raise WrongUse(f"{path} holds {len(key)} bytes; a patient key has 16 to 64")
    return key


def _input_facts(listing: sources.Listing) -> dict[str, Any]:
    sizes = listing.table["size_bytes"].to_numpy()
    return {"files": len(sizes), "bytes": int(sizes.sum()), "sha256": sources.listing_digest(listing.table)}


def _label_source(name: str, inputs: Sequence[str]) -> tuple[bytes, str]:
    """Bytes and name of the label file: a path, else a member of an input zip; no bytes for `none`."""
    if name == "none":
        return b"", name
    if Path(name).exists():
        return Path(name).read_bytes(), name
    for place in inputs:
        if Path(place).suffix.lower() == ".zip":
            return sources.read_member(place, name), f"{place}: {name}"
    raise WrongUse(f"--labels {name}: no such file; write its path, or none for slices without labels")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check_stems(listing: sources.Listing, table: labels.LabelTable | None, limit: float) -> None:
    """Where files are named after their slice, as RSNA's are, missing labels show before any file is read."""
    if table is None:
        return
    stems = plan.stems(listing.table["name"])
    known = plan.known_ids(stems, table)
    lacking = int((~known).sum())
    if not known.any() or lacking <= limit * len(known):
        return
    first = listing.table["name"][int((~known).argmax())].as_py()
    raise WrongUse(
        f"{lacking:,} of {len(known):,} files have no label in {table.name} (first: {first}); choose the labelled "
        f"ones with --include, such as --include '*/stage_2_train/*', or raise --max_reject_fraction"
    )


def _index(
    work: WorkDir, listing: sources.Listing, secret: bytes, options: PipelineOptions, tally: Counter[str]
) -> Any:
    parts = job.write_listing(work, listing.table)
    total = listing.table.num_rows

    def done() -> int:
        return min(total, job.LISTING_ROWS * len(list((work.path / "index").glob("*.parquet"))))

    step = transforms.IndexParts(work, secret)
    _run_beam(
        work, job.missing_index(work, parts), step, options, total, tally, Progress("index", total, done, sys.stderr)
    )
    if job.missing_index(work, parts):
        raise ConversionFailed(f"the index step left parts unwritten; {_log_hint(work)}")
    return job.read_index(work, parts)


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
    complete = [shard for shard in plan.planned_shards(planned, data_spec) if shard.name not in set(pending)]
    resumed = sum(shard.slices.num_rows for shard in complete)
    if resumed:
        _tell(f"{len(complete):,} shards with {resumed:,} slices were written before and stay as they are")

    def done() -> int:
        grown = [work.output / name for name in pending] + list(work.temporary.iterdir())
        return resumed + sum(job.size_bytes(path) for path in grown) // slice_bytes

    for stale in work.temporary.iterdir():
        stale.unlink()
    step = transforms.WriteShards(work, data_spec)
    _run_beam(work, pending, step, options, total, tally, Progress("convert", total, done, sys.stderr))


def _run_beam(
    work: WorkDir,
    elements: Sequence[Any],
    step: beam.PTransform,
    options: PipelineOptions,
    slices: int,
    tally: Counter[str],
    progress: Progress,
) -> None:
    """Run one step over its elements and add its counters to `tally`; raises `ConversionFailed`, `WrongUse`."""
    if not elements:
        return
    pipeline = beam.Pipeline(runner=_runner(options, slices), options=options)
    build(pipeline, elements, step)
    try:
        with progress:
            result = pipeline.run()
            result.wait_until_finish()
    except Exception as error:
        (work.path / "error.log").write_text(traceback.format_exc(), encoding="utf-8")
        last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ConversionFailed(f"Beam stopped: {last[0]}; {_log_hint(work)}") from error
    failures = _add_counters(result, tally)
    if failures:
        raise WrongUse(f"{failures[0]}; mend that and run the same command again, it goes on where this one stopped")


def build(pipeline: beam.Pipeline, elements: Sequence[Any], step: beam.PTransform) -> beam.PCollection:
    """The graph of one step: `elements` (numbers or names) into `step`; returns what it finished."""
    return pipeline | "Elements" >> beam.Create(elements) | step


def _runner(options: PipelineOptions, slices: int) -> Any:
    """FnApiRunner by name for local work (Beam's DirectRunner may fetch Prism), else the runner asked for."""
    name = options.view_as(StandardOptions).runner
    if name is not None and name.rsplit(".", 1)[-1] not in LOCAL_RUNNERS:
        return name
    direct = options.view_as(DirectOptions)
    chosen = direct.direct_num_workers != 1 or direct.direct_running_mode != "in_memory"
    if not chosen and name is None and slices > SMALL_SLICES:
        direct.direct_num_workers = 0
    if direct.direct_num_workers != 1 and direct.direct_running_mode == "in_memory":
        direct.direct_running_mode = "multi_processing"
    return FnApiRunner()


def _add_counters(result: Any, tally: Counter[str]) -> list[str]:
    """Add counters to `tally` by name (step names differ by runner); returns the failures' messages."""
    failures = []
    for counter in result.metrics().query()["counters"]:
        metric, value = counter.key.metric, counter.committed or counter.attempted or 0
        if metric.namespace == transforms.COUNTERS:
            tally[metric.name] += value
        elif metric.namespace == transforms.FAILURES and value:
            failures.append(metric.name)
    return sorted(failures)


def _log_hint(work: WorkDir) -> str:
    return f"details are in {work.path / 'error.log'}"


def _check_rejects(rejects: int, files: int, args: argparse.Namespace, reasons: str) -> None:
    if rejects > args.max_reject_fraction * files:
        raise ConversionFailed(
            f"{rejects:,} of {files:,} files ({rejects / files:.1%}) give no record, more than --max_reject_fraction "
            f"{args.max_reject_fraction:g} allows: {reasons}; nothing was committed"
        )


def _finished(
    work: WorkDir, planned: plan.Plan, data_spec: spec.DatasetSpec, args: argparse.Namespace, files: int
) -> dict[str, Sidecar]:
    names = [shard.name for shard in plan.planned_shards(planned, data_spec)]
    found = dict(job.sidecars(work, names))
    missing = [name for name in names if name not in found]
    if missing:
        raise ConversionFailed(f"{len(missing):,} shards are not written (first: {missing[0]}); run the command again")
    rows = manifest.reject_rows(data_spec, planned, found)
    reasons = ", ".join(
        f"{count:,} {reason}" for reason, count in Counter(row["reason"] for row in rows).most_common(4)
    )
    _check_rejects(len(rows), files, args, reasons)
    if not any(sidecar.slices for sidecar in found.values()):
        raise plan.PlanError(f"no slice could be converted: {reasons}")
    return found


def describe(directory: Path, done: Manifest) -> str:
    """Lines that say what a data set holds."""
    lines = [f"{directory}: {done.slices:,} slices in {len(done.shards):,} shards, fingerprint {done.fingerprint[:16]}"]
    for name, values in done.splits.items():
        positive = ", ".join(f"{label} {counts['positive']:,}" for label, counts in values["labels"].items())
        lines.append(f"  {name}: {values['slices']:,} slices of {values['patients']:,} patients; positive: {positive}")
    if done.rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(done.rejects.items()))
        lines.append(f"  no record: {sum(done.rejects.values()):,} files ({reasons}); see {manifest.REJECTS}")
    if done.not_drawn:
        lines.append(f"  outside the subset: {done.not_drawn:,} slices")
    if done.labels_unused:
        lines.append(f"  labels of slices that are not in the input: {done.labels_unused:,}")
    return "\n".join(lines)


def describe_work(tally: Counter[str], seconds: dict[str, float]) -> str:
    """Lines that say what this run did and where its time went."""
    lines = [f"read {tally['read']:,} slices ({tally['read_bytes'] / 1e6:,.1f} MB), wrote {tally['written']:,} records "
             f"({tally['written_bytes'] / 1e6:,.1f} MB), rejected {tally['rejected']:,} while reading"]  # fmt: skip
    if tally["read"]:
        stages = ("read", "decode", "window", "encode")
        parts = ", ".join(f"{stage} {tally[f'{stage}_us'] / tally['read'] / 1000:.2f}" for stage in stages)
        lines.append(f"ms a slice: {parts}")
    return "\n".join([*lines, "seconds: " + ", ".join(f"{stage} {time_s:.1f}" for stage, time_s in seconds.items())])


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ignored(listing: sources.Listing) -> str:
    return f" ({listing.ignored:,} with other suffixes left aside)" if listing.ignored else ""


class _Clock:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - begin


def _quiet_libraries() -> None:
    """Keep warnings that repeat for every file or worker off the screen."""
    warnings.filterwarnings("ignore", module="pydicom")
    warnings.filterwarnings("ignore", module="apache_beam")
    for name in ("apache_beam", "pydicom", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
