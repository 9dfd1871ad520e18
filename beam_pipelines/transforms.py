"""Beam steps: labels and counters around the plain functions of `ich_tfrecords.conversion`.

As little logic as possible lives here. An element is small (a number or a name); what it stands for lies in
the work directory, so that no payload and no list of references ever passes through a shuffle.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam.metrics import Metrics

from ich_tfrecords.conversion import steps
from ich_tfrecords.conversion.job import WorkDir
from ich_tfrecords.conversion.patient_key import PatientKey
from ich_tfrecords.spec import DatasetSpec
from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.sources import SliceReader

COUNTERS = "ich"
FAILURES = "ich.failures"


class _WorkDoFn(beam.DoFn):
    """Calls `function(work, element, detail, reader, tally)`; what it cannot write is counted under its own words.

    A counter is how words reach the launcher on every runner that has counters; on the others (Dask) the launcher
    sees what was left unwritten. Such an element is not among the outputs.
    The reader is the worker's own and stays open between elements. A bucket without an answer ends the step, or makes
    the engine try elsewhere: every other element here would wait as long for nothing.
    """

    def __init__(self, function: Callable[..., None], work: WorkDir, detail: Any) -> None:
        self._function, self._work, self._detail = function, work, detail

    def setup(self) -> None:
        self._reader = SliceReader()

    def teardown(self) -> None:
        self._reader.close()

    def process(self, element: Any) -> Iterator[Any]:
        tally: Counter[str] = Counter()
        try:
            self._function(self._work, element, self._detail, self._reader, tally)
            yield element
        except buckets.NoAnswer:
            raise
        except OSError as error:
            Metrics.counter(FAILURES, f"{error.strerror or error}: {error.filename or element}").inc()
        for name, count in tally.items():
            Metrics.counter(COUNTERS, name).inc(count)


def _spread(elements: beam.PCollection, label: str, work: _WorkDoFn) -> beam.PCollection:
    """Elements that were worked on; the reshuffle keeps the runner from fusing them all into one worker."""
    return elements | "Spread" >> beam.Reshuffle() | label >> beam.ParDo(work)


@dataclasses.dataclass
class IndexParts(beam.PTransform):
    """Numbers of listing parts -> numbers of the index parts written."""

    step: ClassVar[str] = "index"  # as jobs are named after it
    work: WorkDir
    key: PatientKey
    accept: tuple[str, ...]

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        """Graph of the step."""
        return _spread(numbers, "IndexPart", _WorkDoFn(steps.index_part, self.work, (self.key, self.accept)))


@dataclasses.dataclass
class WriteShards(beam.PTransform):
    """Names of planned shards -> names of the shards written."""

    step: ClassVar[str] = "convert"
    work: WorkDir
    spec: DatasetSpec

    def expand(self, names: beam.PCollection) -> beam.PCollection:
        """Graph of the step."""
        return _spread(names, "WriteShard", _WorkDoFn(steps.write_shard, self.work, self.spec))
