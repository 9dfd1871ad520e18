"""What an exported model answers, held against Keras and numpy before the export counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords import pixels
from ich_tfrecords.pixels import Tensor
from trainer.data import neighbours, series
from trainer.data.series import Series
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.series import scoring
from trainer.serving.pieces import PIECE
from trainer.shell.problems import WorkFailed

if TYPE_CHECKING:
    import keras

CHECKED = (3, 200, 181)  # random slices, rows, columns
MORE = PIECE + 3  # slices of the series that is checked: more than the graph encodes at once
APART_MM = (0.6, 7.0)
# tolerances of probabilities in a series; of slices by themselves it is that of the format
AMONG_NEIGHBOURS = 1e-5  # slices are encoded in other batches than Keras has, which some processors sum otherwise
OVER_VECTORS = 1e-4  # of a series model: a vector's last bit of float16 may fall to the other side

Int16 = npt.NDArray[np.int16]
Float32 = npt.NDArray[np.float32]
Ask = Callable[..., Mapping[str, npt.NDArray[Any]]]


class Served(NamedTuple):
    """A model that was written and opened: its kind, signature -> what it gives of arrays by names.

    `tolerance`: of probabilities of slices by themselves, between Keras and what was written.
    """

    kind: str
    signatures: Mapping[str, Ask]
    tolerance: float


def check(served: Served, model: keras.Model, about: About) -> None:
    """Compare what was written makes of random slices with `model` in Keras. Raises `WorkFailed`."""
    hu, images = _slices(CHECKED, about)
    wanted = about.probabilities(model_file.scorer(model)(images))
    _require_pixels(served, hu, images)
    _require_close(served, served.signatures["hu"](hu=hu)["probabilities"], wanted, served.tolerance)


def check_neighbours(served: Served, model: keras.Model, about: About) -> None:
    """`check` of a slice model that sees neighbours: random slices as one series, in no order and then in another."""

    def said(images: Tensor, position_mm: Float32) -> dict[str, Any]:
        seen = _seen(images, position_mm, about.context_slices)
        return {"probabilities": about.probabilities(model_file.scorer(model)(seen))}

    _check_in_series(served, about, said, AMONG_NEIGHBOURS)


def check_series(served: Served, slice_model: keras.Model, context: keras.Model, about: About, beside: int = 0) -> None:
    """`check` of a series model; `beside`: neighbours on either side that the slice model sees a slice with."""

    def said(images: Tensor, position_mm: Float32) -> dict[str, Any]:
        seen = _seen(images, position_mm, beside)
        slices, study = _said(slice_model, context, about, seen, position_mm)
        return {"probabilities": slices, "study_probabilities": study}

    _check_in_series(served, about, said, OVER_VECTORS)


def _check_in_series(served: Served, about: About, said: Callable[..., dict[str, Any]], tolerance: float) -> None:
    """Compare what the signature `series` gives with what is `said` of the images and positions, by names.

    Of a study there is one row; of slices as many as there are, in the order of the images.
    """
    hu, images = _slices((MORE, *CHECKED[1:]), about)
    _require_pixels(served, hu, images)
    rng = np.random.default_rng(1)
    position_mm = rng.permutation(rng.uniform(*APART_MM, MORE).cumsum()).astype(np.float32)
    wanted = said(images, position_mm)
    for order in (np.arange(MORE), rng.permutation(MORE)):
        found = served.signatures["series"](hu=hu[order], position_mm=position_mm[order])
        for name, values in wanted.items():
            _require_close(served, found[name], values[order] if values.ndim == 2 else values, tolerance)


def _seen(images: Tensor, position_mm: Float32, context: int) -> Tensor:
    """What a slice model sees of each slice of a series that is in any order."""
    order = np.argsort(position_mm, kind="stable")
    whole = Series(order, np.array([0, len(order)]))
    return neighbours.stacked(images[neighbours.rows_beside(whole, context)])


def _slices(shape: tuple[int, ...], about: About) -> tuple[Int16, Tensor]:
    """Random HU, and their pixels by the data set's own code."""
    hu = np.random.default_rng(0).integers(-1100, 2000, shape, np.int16)
    return hu, np.stack([pixels.image_of(one, about.spec.image) for one in hu])


def _require_pixels(served: Served, hu: Int16, images: Tensor) -> None:
    if not np.array_equal(served.signatures["image"](hu=hu)["image"], images):
        raise WorkFailed(
            f"the pixels of the {served.kind} differ from those of the data set; nothing was kept, report this"
        )


def _said(
    slice_model: keras.Model,
    context: keras.Model,
    about: About,
    images: Tensor,
    position_mm: Float32,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Probabilities float64 [n, L] of the slices of a series in any order, and [L] of it as a study."""
    blend = about.blend
    assert blend is not None  # `about` is of a series model
    vectors, logits = model_file.embedder(slice_model)(images)
    order = np.argsort(position_mm, kind="stable")
    place = series.place(position_mm[order].astype(np.float64))
    inputs: dict[str, Any] = {"vectors": vectors[order], "place": place, "mask": np.ones(len(order), bool)}
    slices, heads = scoring.scorer(context)({name: value[None] for name, value in inputs.items()})
    mixed = blend.slice_log_odds(logits, slices[0][np.argsort(order)])
    study = blend.study_log_odds(mixed.max(axis=0, keepdims=True), heads)
    return about.probabilities(mixed), blend.study_probabilities(study)[0]


def _require_close(served: Served, found: npt.NDArray[Any], wanted: npt.NDArray[np.float64], tolerance: float) -> None:
    off = float(np.abs(found - wanted).max())
    if not off <= tolerance:  # nan too
        raise WorkFailed(
            f"the {served.kind} is off by {off:.2g}, more than {tolerance:g}; nothing was kept, report this"
        )
