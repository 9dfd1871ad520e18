"""Explained pictures of the slices that predict finds most urgent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

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
from trainer.prediction import slice_stream, thumbnails, triage
from trainer.prediction.folder import PredictFolder
from trainer.prediction.networks import Networks
from trainer.prediction.triage import ScoredSlice

if TYPE_CHECKING:
    from trainer.prediction.slice_picture import Explanation

METHODS = {"hirescam": "HiResCAM", "gradcam": "Grad-CAM"}  # of `explain`, which takes TensorFlow to import
DEFAULT = "hirescam"

PANEL_PX = 192  # of a panel on a page

Maps = Callable[[Tensor, int], npt.NDArray[np.float32]]


class Pictured(NamedTuple):
    """A picture that was written, of the slice `sop_uid`.

    `panels` for a page: what stands above each, and a JPEG file of `PANEL_PX`; none where no page shows them.
    """

    path: Path
    sop_uid: str
    panels: list[tuple[str, bytes]]


def draw(
    output: PredictFolder,
    chosen: Sequence[ScoredSlice],
    warnings: Mapping[str, str],
    about: About,
    maps: Maps | None,
    method: str,
    paged: Collection[str],
) -> list[Pictured]:
    """Draw pictures of `chosen` slices, which are read again; one that changed meanwhile is told.

    `warnings`: `Triage.warnings`; `maps`: `maps_of` the slice model by `method`; what a series model looks at stands
    below its map. `paged`: SOP UIDs of slices whose panels a page shows.
    """
    drawn: list[Pictured] = []
    if not chosen:
        return drawn
    names = [f"{number:03d}_{safe_stem(scored.found.sop_uid)}.png" for number, scored in enumerate(chosen, 1)]
    output.plan_pictures(names)
    output.pictures.mkdir(exist_ok=True)
    if maps is None:
        print("a forest has no gradient, so the pictures show no map")
    with sources.SliceReader() as reader, FrameReader(reader, about.spec.accept) as frames:
        for name, scored in zip(names, chosen, strict=True):
            try:
                image = seen(scored.found, frames, about)
            except Problem as problem:
                called = shortened(slice_name(scored.found.ref), 70)
                print(f"predict: no picture of {called}: {problem}", file=sys.stderr)
                continue
            explanation = None if maps is None else explained(image, scored, about, maps, method)
            warning = warnings.get(scored.found.study_uid, "")
            png = png_bytes(picture(image, scored, warning, about, explanation))
            atomic.write_bytes(output.pictures / name, png)
            panels = _panels(image, about, explanation) if scored.found.sop_uid in paged else []
            drawn.append(Pictured(output.pictures / name, scored.found.sop_uid, panels))
    return drawn


def seen(found: slice_stream.FoundSlice, frames: FrameReader, about: About) -> Tensor:
    """What the slice model sees of a slice, [size, size, channels]. Raises `Problem`."""
    refs = found.beside or (found.ref,)
    return neighbours.stacked(np.stack([slice_stream.read_image(ref, frames, about.spec.image)[1] for ref in refs]))


def _shown(image: Tensor, about: About) -> npt.NDArray[np.uint8]:
    """The windows of the slice itself, uint8 [size, size, windows], of what the model sees."""
    return pixels.shown(neighbours.own(image, about.spec.image.shape[2]), about.shown.image)


def maps_of(networks: Networks, method: str) -> Maps | None:
    """What explains slices by their images and a label; None where the model has no gradient."""
    from trainer.models import classical, explain

    return explain.explainer(networks.slice_model, method) if classical.has_gradient(networks.slice_model) else None


def explained(image: Tensor, scored: ScoredSlice, about: About, maps: Maps, method: str) -> Explanation:
    """Where the model finds what speaks for the leading label of a slice; `image`: `seen`."""
    from trainer.prediction.slice_picture import Explanation

    leading = triage.leading_label(scored.probabilities, about.spec.labels, about.calibration.refused)
    (cam,) = maps(image[None], leading)
    return Explanation(cam, about.spec.labels.names[leading], METHODS[method])


def _panels(image: Tensor, about: About, explanation: Explanation | None) -> list[tuple[str, bytes]]:
    from trainer.prediction import slice_picture

    heads = slice_picture.heads(about.shown, None)
    if explanation:
        heads.append(f"what speaks for {explanation.label}, by {explanation.method}")
    drawn = map(thumbnails.jpeg_bytes, slice_picture.panels(_shown(image, about), explanation, PANEL_PX))
    return list(zip(heads, drawn, strict=True))


def picture(
    image: Tensor, scored: ScoredSlice, warning: str, about: About, explanation: Explanation | None
) -> Image.Image:
    """RGB picture of a slice, its probabilities, and its `explanation`; None where the model has no gradient.

    `image`: `seen`; `warning`: of its study, see `Study.warning`.
    """
    from trainer.prediction import attention_strip, slice_picture

    names, refused = about.spec.labels.names, about.calibration.refused
    title = f"slice {shortened(scored.found.sop_uid, 30)}, study {shortened(scored.found.study_uid, 30)}"
    shown = (names, scored.probabilities, explanation, refused, warning)
    drawn = slice_picture.picture(_shown(image, about), about.shown, title, *shown)
    if scored.attention is not None and about.blend is not None:
        label = scored.attention.label
        drawn = attention_strip.below(drawn, scored.attention, names[label], float(about.blend.studies.part[label]))
    return drawn
