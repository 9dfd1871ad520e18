"""Beam steps: numbers and names piped into the transforms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.environments import EmbeddedPythonEnvironment, SubprocessSDKEnvironment

from beam_pipelines import launch, transforms
from beam_pipelines.convert import build
from ich_tfrecords.conversion import job, plan, steps
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.patient_key import patient_key
from ich_tfrecords.storage import atomic, buckets, sources

KEY = patient_key("salt", None)


@pytest.fixture
def listed(synthetic_set, tmp_path, monkeypatch) -> tuple[WorkDir, int, int]:
    """A work directory with a listing in parts of ten slices: (work, parts, slices)."""
    work = WorkDir(tmp_path / "out")
    work.create()
    monkeypatch.setattr(job, "LISTING_ROWS", 10)
    table = sources.list_inputs([str(synthetic_set.output / "stage_2_train")]).table
    assert job.begin_index(work, table) == {}
    return work, len(job.missing_index(table.num_rows, ())), table.num_rows


def counters(result) -> Counter[str]:
    tally: Counter[str] = Counter()
    assert launch._add_counters(result, tally) == []
    return tally


def run(elements, step, finished) -> Counter[str]:
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    assert_that(build(pipeline, elements, step), equal_to(finished))
    result = pipeline.run()
    result.wait_until_finish()
    return counters(result)


def test_index_parts_then_write_shards(listed, rsna_spec):
    work, parts, slices = listed
    tally = run(list(range(parts)), transforms.IndexParts(work, KEY, ("original",)), list(range(parts)))
    assert tally["indexed"] == slices
    index = job.joined(job.read_index(work, range(parts)))
    assert index.num_rows == slices
    assert set(index["reason"].to_pylist()) == {""}
    planned = plan.build_plan(index, [], rsna_spec)
    names = job.write_plan(work, planned, rsna_spec)
    tally = run(names, transforms.WriteShards(work, rsna_spec), names)
    assert (tally["read"], tally["written"]) == (slices, slices)
    assert not [name for name in tally if name.startswith("rejected_")]
    assert tally["written_bytes"] == sum((work.output / name).stat().st_size for name in names)
    assert all(tally[f"{stage}_us"] > 0 for stage in ("read", "decode", "window", "encode"))
    assert job.write_plan(work, planned, rsna_spec) == [], "nothing is pending after all shards are written"


def test_the_steps_equal_their_plain_functions(listed, tmp_path):
    work, _, _ = listed
    run([0], transforms.IndexParts(work, KEY, ("original",)), [0])
    by_beam = work.index(0).read_bytes()
    with sources.SliceReader() as reader:
        steps.index_part(work, 0, (KEY, ("original",)), reader, Counter())
    assert work.index(0).read_bytes() == by_beam


def test_what_cannot_be_written_is_counted_by_its_words(listed, monkeypatch):
    work, _, _ = listed

    def full(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "replacing", full)
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    assert_that(build(pipeline, [0], transforms.IndexParts(work, KEY, ("original",))), equal_to([]))
    result = pipeline.run()
    result.wait_until_finish()
    assert launch._add_counters(result, Counter()) == [f"No space left on device: {work.index(0)}"]


def test_a_bucket_without_answer_ends_the_step(listed):
    """Counted like a full disk, it would leave every other element to wait as long for nothing."""
    work, _, _ = listed

    def silent(*_: object) -> None:
        raise buckets.NoAnswer(5, "no answer from Cloud Storage: 503", "gs://bucket/slices")

    function = transforms._WorkDoFn(silent, work, KEY)
    function.setup()
    with pytest.raises(buckets.NoAnswer):
        list(function.process(0))
    function.teardown()


@pytest.mark.parametrize(
    ("flags", "slices", "environment", "workers"),
    [
        ([], 10, EmbeddedPythonEnvironment, 1),
        ([], launch.SMALL_SLICES + 1, SubprocessSDKEnvironment, 0),
        (["--runner=DirectRunner"], 10_000_000, EmbeddedPythonEnvironment, 1),  # named: as Beam's flags say
        (["--direct_num_workers=3"], 10, SubprocessSDKEnvironment, 3),
        (["--direct_running_mode=multi_processing"], 10, SubprocessSDKEnvironment, 1),
        (["--direct_num_workers=1", "--direct_running_mode=multi_threading"], 99_999, EmbeddedPythonEnvironment, 1),
    ],
)
def test_the_local_runner_is_named(flags, slices, environment, workers, tmp_path):
    options = PipelineOptions(flags)
    runner = launch._runner(options, slices, tmp_path / "a b.log")
    assert isinstance(runner, FnApiRunner)
    assert isinstance(runner._default_environment, environment)
    assert options.view_as(DirectOptions).direct_num_workers == workers


def test_other_runners_are_left_to_beam():
    assert launch._runner(PipelineOptions(["--runner=DataflowRunner"]), 10, Path("log")) == "DataflowRunner"
