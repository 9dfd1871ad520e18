"""Beam steps: labels, counters and error routing around the plain functions of `ich_tfrecords.conversion`.

As little logic as possible lives here. An element is small (a number or a name); what it stands for lies in
the work directory, so that no payload and no list of references ever passes through a shuffle.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics

from ich_tfrecords import conversion
from ich_tfrecords.job import WorkDir
from ich_tfrecords.sources import SliceReader
from ich_tfrecords.spec import DatasetSpec

COUNTERS = "ich"
FAILURES = "ich.failures"
FAILED = "failed"


class _ReadingDoFn(beam.DoFn):
    """Keeps one reader a worker and turns what cannot be written into a tagged output."""

    def setup(self) -> None:
        self._reader = SliceReader()

    def teardown(self) -> None:
        self._reader.close()

    def process(self, element: Any) -> Iterator[Any]:
        tally: Counter[str] = Counter()
        try:
            self.work_on(element, self._reader, tally)
            yield element
        except OSError as error:
            yield beam.pvalue.TaggedOutput(FAILED, f"{error.strerror or error}: {error.filename or element}")
        for name, count in tally.items():
            Metrics.counter(COUNTERS, name).inc(count)

    def work_on(self, element: Any, reader: SliceReader, tally: Counter[str]) -> None:
        """The work of one element; may raise `OSError` for what cannot be written."""
        raise NotImplementedError


class _IndexDoFn(_ReadingDoFn):
    def __init__(self, work: WorkDir, secret: bytes) -> None:
        self._work, self._secret = work, secret

    def work_on(self, element: int, reader: SliceReader, tally: Counter[str]) -> None:
        conversion.index_part(self._work, element, reader, self._secret, tally)


class _ConvertDoFn(_ReadingDoFn):
    def __init__(self, work: WorkDir, spec: DatasetSpec) -> None:
        self._work, self._spec = work, spec

    def work_on(self, element: str, reader: SliceReader, tally: Counter[str]) -> None:
        conversion.write_shard(self._work, element, self._spec, reader, tally)


def count_failure(message: str) -> str:
    """Count a failure under its own words, which is how they reach the launcher on every runner."""
    Metrics.counter(FAILURES, message).inc()
    return message


@dataclasses.dataclass
class IndexParts(beam.PTransform):
    """Numbers of listing parts -> numbers of the index parts written."""

    work: WorkDir
    secret: bytes = dataclasses.field(repr=False)

    def expand(self, numbers: beam.PCollection) -> beam.PCollection:
        """The reshuffle keeps the runner from fusing the parts into one worker."""
        done = (
            numbers
            | "SpreadParts" >> beam.Reshuffle()
            | "IndexPart" >> beam.ParDo(_IndexDoFn(self.work, self.secret)).with_outputs(FAILED, main="done")
        )
        _ = done[FAILED] | "CountFailure" >> beam.Map(count_failure)
        return done["done"]


@dataclasses.dataclass
class WriteShards(beam.PTransform):
    """Names of planned shards -> names of the shards written."""

    work: WorkDir
    spec: DatasetSpec

    def expand(self, names: beam.PCollection) -> beam.PCollection:
        """The reshuffle keeps the runner from fusing the shards into one worker."""
        done = (
            names
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShard" >> beam.ParDo(_ConvertDoFn(self.work, self.spec)).with_outputs(FAILED, main="done")
        )
        _ = done[FAILED] | "CountFailure" >> beam.Map(count_failure)
        return done["done"]
