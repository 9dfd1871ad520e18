"""Files to what a slice model says of them: slice by slice, or each among its neighbours."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import numpy as np

from trainer.models.model_file import About
from trainer.prediction import neighbour_stream, slice_stream, triage
from trainer.prediction.heads import Heads
from trainer.prediction.looking import Looker
from trainer.prediction.panel import Say
from trainer.prediction.slice_stream import Batch
from trainer.prediction.thumbnails import of_images
from trainer.prediction.triage import Outcome

NOT_FINITE = "no_probability"
NO_NUMBER = "the model gives a number that is not finite"


def alone(
    batches: Generator[Batch, None, None], about: About, say: Say, looker: Looker | None
) -> Generator[Outcome, None, None]:
    """What the model, or the mean of several, says of each batch."""
    with contextlib.closing(batches):
        for batch in batches:
            yield scored(batch, about, say, looker)


def among_neighbours(
    heads: Heads, about: About, say: Say, looker: Looker | None, context: int, batch_size: int
) -> Generator[Outcome, None, None]:
    """What a model that sees `context` neighbours on either side says of the files that `heads` has read.

    Slices come by study, series and position. Close the iterator (`contextlib.closing`) to end its thread early.
    """
    for rejects in heads.settle(about.spec, batch_size):
        yield triage.without_slices(rejects, len(rejects))
    with contextlib.closing(slice_stream.decoded(heads.refs(), about.spec, batch_size, heads.inputs)) as batches:
        for batch in neighbour_stream.batches(batches, context, batch_size):
            yield scored(batch, about, say, looker)


def scored(batch: Batch, about: About, say: Say, looker: Looker | None) -> Outcome:
    """What the model says of a batch, and what that looks like."""
    if not batch.slices:
        return triage.without_slices(batch.rejects, batch.files)
    opinions, vectors = say(batch.images)
    good = np.isfinite(opinions).all(axis=(1, 2))
    bad = [batch.slices[row] for row in np.flatnonzero(~good)]
    rejects = [*batch.rejects, *(slice_stream.refused(found, NOT_FINITE, NO_NUMBER) for found in bad)]
    slices = [batch.slices[row] for row in np.flatnonzero(good)]
    images, kept = batch.images if good.all() else batch.images[good], opinions[good]
    looked = looker.looked(looker.grey(images), vectors[good], kept[:, 0]) if looker and slices else None
    small = of_images(images, about.shown.image)
    return Outcome(slices, kept.mean(axis=1), rejects, batch.files, thumbnails=small, opinions=kept, looked=looked)
