"""Series models that were never trained, and what they say by Keras and numpy alone."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from ich_tfrecords import pixels, spec
from trainer.data import series
from trainer.models import context, model_file, networks
from trainer.models.model_file import About
from trainer.results import joint
from trainer.results.blend import Blend, Mix
from trainer.results.calibration import Calibration
from trainer.results.joint import Odds
from trainer.series import scoring

RSNA = spec.load("rsna_ich")
SMALL = dataclasses.replace(RSNA, image=dataclasses.replace(RSNA.image, size_px=16))
LABELS = RSNA.labels.names
HOME = "/home/a_person"  # where everything lay, which must not go out
GRU = {"kind": "gru", "width": 24, "units": 12, "layers": 2, "dropout": 0.5}
TRANSFORMER = {"kind": "transformer", "width": 16, "units": 24, "layers": 2, "dropout": 0.5}


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """A slice model and a context over its vectors, with what is known of both."""

    slice_model: keras.Model
    slice_about: About
    context: keras.Model
    about: About

    def says(self, hu: np.ndarray, position_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities float64 [n, L] and of the study [L]: pixels.py, `embedder`, `scorer` and numpy."""
        images = np.stack([pixels.image_of(one, self.about.spec.image) for one in hu])
        vectors, logits = model_file.embedder(self.slice_model)(images)
        order = np.argsort(position_mm, kind="stable")
        place = series.place(np.asarray(position_mm, np.float64)[order])
        inputs = {"vectors": vectors[order][None], "place": place[None], "mask": np.ones((1, len(hu)), bool)}
        slices, heads = scoring.scorer(self.context)(inputs)
        seen = np.empty_like(slices[0])
        seen[order] = slices[0]
        blend = self.about.blend
        mixed = blend.slice_log_odds(logits, seen)
        study = blend.study_probabilities(blend.study_log_odds(mixed.max(0, keepdims=True), heads))
        return self.about.probabilities(mixed), study[0]


def made(architecture: dict[str, object], data: spec.DatasetSpec = SMALL) -> Made:
    """A cnn of 8-number vectors and a context; weights unlike those of new networks, so that every part counts."""
    keras.utils.set_random_seed(1)
    small = {"filters": [4, 8], "dense": [8], "dropout": 0.5}
    slice_model = networks.build("cnn", data.image.shape, len(LABELS), "none", small)
    network = context.build(8, len(LABELS), architecture)
    for variable in network.trainable_variables:
        variable.assign(variable + keras.random.uniform(variable.shape, -0.3, 0.3))
    slice_about = about_of("cnn", data, odds_of(LABELS), None)
    about = about_of("series", data, joint.unchanged(LABELS, "any"), blend_of(slice_about.odds))
    return Made(slice_model, slice_about, network, about)


def about_of(model: str, data: spec.DatasetSpec, odds: Odds, blend: Blend | None) -> About:
    fitted, even = calibration_of(0.5), {name: {"even": 0.5} for name in LABELS}
    facts = {"data_dir": f"{HOME}/data", "parameters": 1, "epoch": 1, "step": 7, "versions": {}, "vector_dim": 8}
    settings = {"model": model, "train_split": "train", "weights": "none" if blend else f"{HOME}/first.weights.h5"}
    if blend is not None:
        settings["slice_run"] = f"{HOME}/runs/slices"
    return About(data, "f" * 64, settings, fitted, even, even, facts, odds, blend)


def calibration_of(slope: float) -> Calibration:
    return Calibration(LABELS, np.zeros(6), np.linspace(slope, 1, 6), np.linspace(0.4, 0.9, 6), {})


def blend_of(slice_odds: Odds) -> Blend:
    """Labels that keep the slice model, that take the context alone, and that take some of both."""
    slices, studies = (
        Mix(calibration_of(slope), calibration_of(1.5 - slope), np.array(part))
        for slope, part in ((0.6, [0.3, 0, 1, 0.5, 0.9, 0.1]), (0.9, [0.6, 1, 0, 0.2, 0.5, 1]))
    )
    thresholds = {name: {"even": 0.5, "f1": 0.25} for name in LABELS}
    odds = joint.unchanged(LABELS, "any", 0.01, 0.5)
    return Blend(slice_odds, odds, slices, studies, calibration_of(0.8), thresholds)


def odds_of(names: tuple[str, ...]) -> Odds:
    """Of a draw that shows each number of kinds as often, after a loss with smoothed labels and focus."""
    kinds = joint.combinations(names, "any").sum(axis=1)
    drawn = 1 / np.bincount(kinds)[kinds]
    natural = drawn * 1.5**-kinds
    return Odds(names, "any", 0.02, 1.5, natural / natural.sum(), drawn / drawn.sum(), np.zeros(len(names)))


def head(slices: int, seed: int = 0, shape: tuple[int, int] = (40, 31)) -> tuple[np.ndarray, np.ndarray]:
    """HU int16 [n, *shape] and positions float32 [n] of slices in no order, some darker than others, unevenly apart."""
    rng = np.random.default_rng(seed)
    level_hu = rng.integers(-60, 120, (slices, 1, 1))
    hu = (level_hu + rng.integers(-100, 100, (slices, *shape))).astype(np.int16)
    position_mm = -120 + np.cumsum(rng.uniform(0.6, 7, slices))
    return hu, rng.permutation(position_mm).astype(np.float32)
