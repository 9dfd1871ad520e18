"""A trained model run over the slices of a converted data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords import spec as specs
from ich_tfrecords.dataset.manifest import Manifest
from trainer.data import input_pipeline
from trainer.data.dataset import Slices
from trainer.data.input_pipeline import Share
from trainer.models.model_file import About
from trainer.results.predictions import IDS, Predictions
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.training.metrics import Scores

STREAMED = 64  # slices at a time


def check_spec(about: About, manifest: Manifest, place: str) -> None:
    """Refuse a data set whose pixels or labels are defined otherwise than the model's. Raises `WrongUse`."""
    differs = [line for line in specs.differences(about.spec, manifest.spec) if line.startswith(("image.", "labels."))]
    if differs:
        raise WrongUse(
            f"the model was trained on another definition than that of {place} ({'; '.join(differs)}); convert the "
            "slices with the model's spec, or take another model"
        )


def predict_split(
    score: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    about: About,
    slices: Slices,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> Predictions:
    """`Predictions` for every slice of a split, in the order of its table.

    `score`: as `model_file.scorer` makes it. `tell(done, total)` is called after each batch with numbers of
    slices. Raises `TrainerError` for records that cannot be read and for logits that are not finite.
    """
    scores = Scores()
    for batch in _batches(slices, batch_size):
        scores.add(batch["labels"], score(batch["image"]), batch["weight"], batch["row"])
        tell(len(scores), len(slices))
    rows, labels, logits = scores.arrays()
    if len(rows) != len(slices):
        raise WorkFailed(f"{slices.place}: {len(rows):,} of the {len(slices):,} slices of {slices.split} were read")
    ids, names = slices.table.select(list(IDS)), about.spec.labels
    return Predictions(names.names, names.any, ids, labels.astype(np.int8), logits, about.probabilities(logits))


def _batches(slices: Slices, batch_size: int) -> Iterator[dict[str, Any]]:
    import tensorflow as tf

    try:
        yield from input_pipeline.evaluation_batches(slices, batch_size, Share.whole()).as_numpy_iterator()
    except tf.errors.OpError as error:
        problem = input_pipeline.problem(slices, error)
        if problem is None:
            raise
        raise problem from error


def images(slices: Slices, rows: Sequence[int]) -> dict[int, npt.NDArray[np.uint8]]:
    """Row -> image uint8 [size, size, windows] of these rows of a split; one more pass where they come as streams."""
    if not rows:
        return {}
    if slices.random_access:
        found, _ = slices.reader.read(np.array(rows, np.int64))
        return dict(zip(rows, np.array(found)))
    wanted, kept = set(rows), dict[int, npt.NDArray[np.uint8]]()
    for batch in _batches(slices, STREAMED):
        kept |= {row: image for row, image in zip(batch["row"].tolist(), batch["image"]) if row in wanted}
    return kept
