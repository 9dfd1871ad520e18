"""Batches of images and labels as `tf.data` datasets: of records read by number, and of records that come as streams.

Many batches are read in one call into Python, and changed there where numba is installed: a call waits for Python's
lock, up to a millisecond, and most of what it does needs no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ich_tfrecords.dataset import records
from trainer.data import augment, warp
from trainer.data.dataset import Slices

# AUTOTUNE began with one at a time and ended no faster (benchmarks/bench_reader.py)
PARALLEL_BATCHES = 4
READY_BATCHES = 4
READERS = 2  # calls at once that only read: more would wait for Python's lock
READ_TOGETHER, MOST_TOGETHER_BYTES = 16, 32 << 20  # batches of a call

Columns = Mapping[str, npt.NDArray[Any]]
Positions = Sequence[npt.NDArray[np.int64]]


def inputs_of(
    columns: Columns, parts: Positions, then: Callable[[tf.data.Dataset], tf.data.Dataset] = lambda inputs: inputs
) -> tf.data.Dataset:
    """The rows of `columns` at the positions of each replica batch, one batch an element.

    `then` is done to the full batches and to the short ones, each of one shape.
    """
    chosen = [{name: column[part] for name, column in columns.items()} for part in parts or [np.empty((0, 1), int)]]
    full, *short = (then(tf.data.Dataset.from_tensor_slices(part)) for part in chosen)
    return full.concatenate(short[0]) if short else full


def by_number(slices: Slices, columns: Columns, parts: Positions, in_step: bool = False) -> tf.data.Dataset:
    """Batches of the slices at `row` of `columns`; see `of_records`."""
    fused = "changes" in columns and not in_step and warp.installed()
    threads = PARALLEL_BATCHES if fused else READERS
    image, shape, labels_shape = slices.spec.image, slices.image_shape, (len(slices.spec.labels.names),)

    def read(row: npt.NDArray[np.int64], *changes: npt.NDArray[np.float32]) -> tuple[Any, Any]:
        return slices.read(row, *(rows.reshape(-1, augment.WIDTH) for rows in changes))

    def drawn(given: dict[str, Any]) -> dict[str, Any]:
        changes = [given.pop("changes")] if fused else []
        images, labels = tf.numpy_function(read, [given["row"], *changes], (image.dtype, tf.int64), stateful=False)
        of_calls = given["row"].shape
        return _kept(given, tf.ensure_shape(images, of_calls + shape), tf.ensure_shape(labels, of_calls + labels_shape))

    def several(inputs: tf.data.Dataset) -> tf.data.Dataset:
        size = inputs.element_spec["row"].shape[0] * int(np.prod(shape)) * np.dtype(image.dtype).itemsize
        calls = inputs.batch(max(1, min(READ_TOGETHER, MOST_TOGETHER_BYTES // size)))
        read_calls = calls.map(drawn, num_parallel_calls=threads, deterministic=True)
        return read_calls.flat_map(tf.data.Dataset.from_tensor_slices)  # `unbatch` would copy each batch

    return _finished(inputs_of(columns, parts, several), in_step)


def of_records(slices: Slices, pairs: tf.data.Dataset, in_step: bool = False) -> tf.data.Dataset:
    """`image` [b, size, size, channels] and `labels` int64 [b, L] of pairs of columns and serialized records.

    With `weight` in the columns, also `row` and `weight`. With `changes`, the images are changed so (`augment`), or,
    with `in_step`, the changes go with them.
    """

    def parsed(given: dict[str, Any], serialized: Any) -> dict[str, Any]:
        record = records.decode_batch(serialized, slices.spec)
        return _kept(given, record["image"], record["labels"])

    return _finished(pairs.map(parsed, num_parallel_calls=PARALLEL_BATCHES, deterministic=True), in_step)


def _kept(given: Mapping[str, Any], images: Any, labels: Any) -> dict[str, Any]:
    names = ("row", "weight", "changes") if "weight" in given else ("changes",)
    return {"image": images, "labels": labels, **{name: given[name] for name in names if name in given}}


def _finished(batches: tf.data.Dataset, in_step: bool) -> tf.data.Dataset:
    """The same, changed as far as that is left to the host, and some of them ready."""

    def changed(batch: dict[str, Any]) -> dict[str, Any]:
        return {"image": augment.on_host(batch["image"], batch["changes"]), "labels": batch["labels"]}

    if "changes" in batches.element_spec and not in_step:
        batches = batches.map(changed, num_parallel_calls=PARALLEL_BATCHES, deterministic=True)
    return read_ahead(batches)


def read_ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """The same, some of them ready before they are wanted."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = PARALLEL_BATCHES  # a step that is deterministic leaves it no other
    options.autotune.enabled = False  # nothing is left to it, and closing its iterator waits for up to a minute
    return batches.prefetch(READY_BATCHES).with_options(options)
