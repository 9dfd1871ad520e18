"""Several slice models that judge together, as those of all folds: their mean, and where they disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.pixels import Tensor
from ich_tfrecords.spec import sample_differences
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.prediction.networks import Networks
from trainer.results import thresholds
from trainer.shell.problems import WrongUse

Opinions = npt.NDArray[np.float64]  # [..., M, L]: probabilities of each of M models
Vectors = npt.NDArray[np.float16]
# of images [b, size, size, channels] -> [b, M, L], nan where a logit is not finite, and vectors [b, dim] of the first
Say = Callable[[Tensor], tuple[Opinions, Vectors]]


class Panel(NamedTuple):
    """What is known of several models.

    `thresholds` float64 [M, L]: from which on each calls a study positive; nan where it knows nothing of a label.
    `refused`: the labels that none could calibrate. `notes`: for people, what each says in place of calibrated.
    """

    labels: tuple[str, ...]
    thresholds: npt.NDArray[np.float64]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def disagreed(self, opinions: Opinions) -> list[str]:
        """The labels of a study that some models call positive and others not; `opinions` [M, L] of it."""
        callers = np.count_nonzero(opinions >= self.thresholds, axis=0)
        asked = np.count_nonzero(~np.isnan(self.thresholds), axis=0)
        return [name for name, some, all_ in zip(self.labels, callers, asked, strict=True) if 0 < some < all_]


def spread(opinions: Opinions) -> npt.NDArray[np.float64]:
    """float64 [L], by how much the highest of `opinions` [M, L] is above the lowest."""
    found: npt.NDArray[np.float64] = np.ptp(opinions, axis=0)
    return found


def panel_of(abouts: Sequence[About]) -> Panel:
    """Of models with the same labels."""
    names = abouts[0].spec.labels.names
    chosen = [[thresholds.headline(about.study_thresholds[name])[1] for name in names] for about in abouts]
    knows = np.array([about.calibration.slope != 0 for about in abouts])
    told = [
        f"model {number} of {len(abouts)}: {line}"
        for number, about in enumerate(abouts, 1)
        for line in about.calibration.told()
    ]
    refused = tuple(name for name in names if all(name in about.calibration.refused for about in abouts))
    return Panel(names, np.where(knows, np.array(chosen, np.float64), np.nan), refused, tuple(told))


def require_alike(places: Sequence[str], abouts: Sequence[About]) -> None:
    """Raises `WrongUse` where the models cannot judge together: they take other slices, or one sees whole series."""
    for place, about in zip(places, abouts, strict=True):
        if about.blend is not None:
            raise WrongUse(f"{place} is a series model, and several models judge single slices together; give it alone")
        if lines := sample_differences(abouts[0].spec, about.spec):
            raise WrongUse(f"{place} takes other slices than {places[0]} ({lines[0]}); give models of one data set")
        if about.context_slices != abouts[0].context_slices:
            raise WrongUse(
                f"{place} sees {about.context_slices} neighbours and {places[0]} sees {abouts[0].context_slices} "
                "(context_slices); give models that see the same"
            )
    digests = {place: model_file.digest(model_file.find(place)) for place in places}
    for place, digest in digests.items():
        first = next(other for other, same in digests.items() if same == digest)
        if first != place or places.count(place) > 1:
            raise WrongUse(f"{place} has the weights of {first}; name each model once")


def say(members: Sequence[Networks], flip: bool) -> Say:
    """What the models make of slices, compiled; `flip`: mean of each over a slice and its mirror image.

    It raises `WorkFailed` where the memory does not suffice.
    """
    ways = [(member.seer(flip), member.about) for member in members]

    def say_all(images: Tensor) -> tuple[Opinions, Vectors]:
        vectors, logits = zip(*(see(images) for see, _ in ways))
        said = [_probabilities(about, one) for one, (_, about) in zip(logits, ways, strict=True)]
        return np.stack(said, axis=1), vectors[0]

    return say_all


def _probabilities(about: About, logits: npt.NDArray[np.float32]) -> Opinions:
    good = np.isfinite(logits).all(axis=1)
    found = np.full(logits.shape, np.nan)
    found[good] = about.probabilities(logits[good])
    return found
