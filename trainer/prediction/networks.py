"""The networks that predict asks: the slice model, and of a series model the context as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ich_tfrecords.pixels import Tensor
from ich_tfrecords.plural import counted
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.shell.problems import WorkFailed

if TYPE_CHECKING:
    import keras

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Embed = Callable[[Tensor], tuple[Float16, Float32]]
Inputs = dict[str, npt.NDArray[Any]]
Given = TypeVar("Given")
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, eq=False)
class InSeries:
    """How a series model is asked, compiled. Both raise `WorkFailed` where the memory does not suffice.

    `views`: from images [b, size, size, channels] to vectors float16 [b, dim] and logits float32 [b, L] of the
    slice model, of the slices and perhaps of their mirror images. `context`: from the context's inputs to logits of
    slices [b, T, L] and of series [b, L], and attention [b, T, L], float32. `beside`: neighbours on either side that
    the slice model sees a slice with.
    """

    views: list[Embed]
    context: Callable[[Inputs], tuple[Float32, ...]]
    beside: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
    """The models of a folder, `model_file.find`'s. `context`: None of a slice model.

    `beside`: neighbours on either side that the slice model sees a slice with. `slice_about`: of the slice model.
    """

    about: About
    slice_model: keras.Model
    context: keras.Model | None
    beside: int
    slice_about: About

    def seer(self, flip: bool) -> Embed:
        """From images [b, size, size, channels] to vectors float16 [b, dim] and logits float32 [b, L], compiled.

        Of the slice model; `flip`: the logits are the mean over each slice and its mirror image. It raises
        `WorkFailed` where the memory does not suffice.
        """
        embed = model_file.embedder(self.slice_model)
        turned = model_file.embedder(self.slice_model, mirrored=True) if flip else None

        def see(images: Tensor) -> tuple[Float16, Float32]:
            vectors, logits = embed(images)
            return vectors, logits if turned is None else np.mean([logits, turned(images)[1]], 0, np.float32)

        see(self._no_image())
        return _guarded(see, _images_told)

    def in_series(self, flip: bool) -> InSeries:
        """How a series model is asked; `flip`: about the mirror images as well."""
        import keras

        from trainer.models import context
        from trainer.series import scoring

        assert self.context is not None
        looking = self.context.get_layer(context.ATTENTION).output
        score = scoring.scorer(keras.Model(self.context.input, [*self.context.outputs, looking]))
        embedders = [model_file.embedder(self.slice_model, mirrored) for mirrored in (False, True)[: 1 + flip]]
        for embed in embedders:
            vectors, _ = embed(self._no_image())
        place, mask = np.zeros((1, 1, 3), np.float32), np.ones((1, 1), bool)
        score({"vectors": vectors[None], "place": place, "mask": mask})
        views = [_guarded(embed, _images_told) for embed in embedders]
        return InSeries(views, _guarded(score, _inputs_told), self.beside)

    def _no_image(self) -> Tensor:
        return np.zeros((1, *self.slice_model.input_shape[1:]), self.about.spec.image.dtype)


def load(folder: Path, about: About) -> Networks:
    """The networks of a folder. Raises `WrongUse` where one is damaged, or they are of two models."""
    if about.blend is None:
        return Networks(about, model_file.load_model(folder, about), None, about.context_slices, about)
    slice_model, known = model_file.load_slice_model(folder, about)
    return Networks(about, slice_model, model_file.load_model(folder, about), known.context_slices, known)


def _guarded(ask: Callable[[Given], Found], told: Callable[[Given], str]) -> Callable[[Given], Found]:
    """`ask`, but where the memory does not suffice it raises `WorkFailed` in the words of `told`."""
    import tensorflow as tf

    def asked(given: Given) -> Found:
        try:
            return ask(given)
        except tf.errors.ResourceExhaustedError as error:
            raise WorkFailed(told(given)) from error

    return asked


def _images_told(images: Tensor) -> str:
    return f"{counted(len(images), 'slice')} at once need more memory than there is; lower --batch_size"


def _inputs_told(inputs: Inputs) -> str:
    slices = counted(inputs["mask"].shape[1], "slice")
    return f"a series of {slices} needs more memory than there is; a model of single slices takes less"
