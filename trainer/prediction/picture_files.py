"""Explained pictures of the slices that predict finds most urgent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_tfrecords import pixels
from ich_tfrecords.pixels import Tensor
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.storage.slice_reader import slice_name
from ich_tfrecords.views.export import safe_stem
from ich_tfrecords.views.montage import png_bytes, shortened
from ich_tfrecords.volumes.reader import FrameReader
from trainer.data import neighbours
from trainer.models.model_file import About
from trainer.prediction import slice_stream, triage
from trainer.prediction.folder import PredictFolder
from trainer.prediction.networks import Networks
from trainer.prediction.triage import ScoredSlice

METHODS = {"hirescam": "HiResCAM", "gradcam": "Grad-CAM"}  # of `explain`, which takes TensorFlow to import
DEFAULT = "hirescam"

Maps = Callable[[Tensor, int], npt.NDArray[np.float32]]


def draw(
    output: PredictFolder,
    chosen: Sequence[ScoredSlice],
    partial: Mapping[str, str],
    networks: Networks,
    method: str,
) -> list[Path]:
    """Paths of the pictures of `chosen` slices, which are read again; one that changed meanwhile is told.

    `partial`: `Triage.partial`. The map is of the slice model, none where that has no gradient; what a series model
    looks at stands below it.
    """
    from trainer.models import classical, explain

    about = networks.about
    paths: list[Path] = []
    if not chosen:
        return paths
    names = [f"{number:03d}_{safe_stem(scored.found.sop_uid)}.png" for number, scored in enumerate(chosen, 1)]
    output.plan_pictures(names)
    output.pictures.mkdir(exist_ok=True)
    maps = None
    if classical.has_gradient(networks.slice_model):
        maps = explain.explainer(networks.slice_model, method)
    else:
        print("a forest has no gradient, so the pictures show no map")
    with sources.SliceReader() as reader, FrameReader(reader, about.spec.accept) as frames:
        for name, scored in zip(names, chosen, strict=True):
            try:
                seen = _seen(scored.found, frames, about)
            except Problem as problem:
                called = shortened(slice_name(scored.found.ref), 70)
                print(f"predict: no picture of {called}: {problem}", file=sys.stderr)
                continue
            warning = partial.get(scored.found.study_uid, "")
            atomic.write_bytes(output.pictures / name, _picture(seen, scored, warning, about, maps, METHODS[method]))
            paths.append(output.pictures / name)
    return paths


def _seen(found: slice_stream.FoundSlice, frames: FrameReader, about: About) -> Tensor:
    """What the slice model sees of a slice, [size, size, channels]. Raises `Problem`."""
    refs = found.beside or (found.ref,)
    return neighbours.stacked(np.stack([slice_stream.read_image(ref, frames, about.spec.image)[1] for ref in refs]))


def _picture(seen: Tensor, scored: ScoredSlice, partial: str, about: About, maps: Maps | None, method: str) -> bytes:
    """PNG of a slice, its probabilities, and where the model finds what speaks for the leading label.

    `seen`: see `_seen`. `maps`: None where the model has no gradient.
    """
    from trainer.prediction import attention_strip, slice_picture

    names, refused = about.spec.labels.names, about.calibration.refused
    leading = triage.leading_label(scored.probabilities, about.spec.labels, refused)
    explanation = None
    if maps is not None:
        (cam,) = maps(seen[None], leading)
        explanation = slice_picture.Explanation(cam, names[leading], method)
    title = f"slice {shortened(scored.found.sop_uid, 30)}, study {shortened(scored.found.study_uid, 30)}"
    warning = f"PARTIAL: the study was judged by {partial}" if partial else ""
    shown = (names, scored.probabilities, explanation, refused, warning)
    looks, image = about.shown, neighbours.own(seen, about.spec.image.shape[2])
    drawn = slice_picture.picture(pixels.shown(image, looks.image), looks, title, *shown)
    if scored.attention is not None and about.blend is not None:
        label = scored.attention.label
        drawn = attention_strip.below(drawn, scored.attention, names[label], float(about.blend.studies.part[label]))
    return png_bytes(drawn)
