"""Random flips, turns and moves of slices: drawn with numpy for a whole epoch, applied to batches in the graph.

Drawing needs no state and no TensorFlow random operation: what happens to the slice at a position of an epoch
follows from (seed, epoch, position), whatever the batch, the worker or the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data.sampling import random_words
from trainer.shell.problems import WrongUse

_DRAWS = 4  # flip, angle, right, down: four random words a position, whichever of them are in use


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may happen to a slice: a left-right flip in half of the cases, a turn, a move.

    `rotate_deg`: greatest angle, 0 to 180 degrees to either side; `shift`: greatest move along each axis as part
    of the side, 0 to below 1. Raises `WrongUse` for other values.
    """

    flip: bool
    rotate_deg: float
    shift: float

    def __post_init__(self) -> None:
        if not 0 <= self.rotate_deg <= 180:
            raise WrongUse(f"augmentation: rotate_deg is {self.rotate_deg}; use 0 to 180 degrees")
        if not 0 <= self.shift < 1:
            raise WrongUse(f"augmentation: shift is {self.shift}; it is a part of the side, from 0 to below 1")

    @property
    def on(self) -> bool:
        """Whether anything can happen to a slice."""
        return bool(self.flip or self.rotate_deg or self.shift)


def draw(augmentation: Augmentation, seed: int, epoch: int, size: int, size_px: int) -> npt.NDArray[np.float32]:
    """float32 [size, 8], a transform (see `compose`) for each position 0 .. `size` - 1 of the epoch.

    A function of (seed, epoch, position) alone: the first rows do not depend on `size`. `size_px`: side of the
    image. Angles are uniform within +-`rotate_deg`, moves within +-`shift` times the side.
    """
    words = random_words(f"augment:{epoch}", seed, 0, size * _DRAWS).reshape(size, _DRAWS)
    # the upper 53 bits as a number from 0 to below 1, then from -1 to below 1
    signed = (words >> np.uint64(11)) * 2.0**-52 - 1.0
    flip = augmentation.flip & (signed[:, 0] < 0)
    move_px = signed[:, 2:] * (augmentation.shift * size_px)
    return compose(flip, signed[:, 1] * augmentation.rotate_deg, move_px[:, 0], move_px[:, 1], size_px)


def compose(
    flip: npt.NDArray[np.bool_],
    turn_deg: npt.NDArray[np.floating],
    right_px: npt.NDArray[np.floating],
    down_px: npt.NDArray[np.floating],
    size_px: int,
) -> npt.NDArray[np.float32]:
    """float32 [n, 8], transforms that flip left-right, then turn counter-clockwise as seen, then move.

    Each argument but the last is [n]. Pixel centres have whole coordinates, x to the right and y down, and the
    turn is about the centre of the pixel grid, ((size_px - 1) / 2, (size_px - 1) / 2). A row a0 .. a7 says where
    in the input the output pixel (x, y) lies, as `tf.raw_ops.ImageProjectiveTransformV3` takes it:
    (a0 x + a1 y + a2, a3 x + a4 y + a5), with a6 = a7 = 0.
    """
    centre = (size_px - 1) / 2
    angle = np.deg2rad(turn_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    sign = np.where(flip, -1.0, 1.0)
    x, y = centre + right_px, centre + down_px  # where the centre of the input comes to lie
    rows = np.zeros((len(angle), 8))
    rows[:, 0], rows[:, 1] = sign * cos, -sign * sin
    rows[:, 2] = centre - sign * (cos * x - sin * y)
    rows[:, 3], rows[:, 4] = sin, cos
    rows[:, 5] = centre - (sin * x + cos * y)
    return rows.astype(np.float32)


def apply(images: Any, transforms: Any) -> Any:
    """uint8 [b, s, s, c], each image seen through its transform; a tensor operation for batches, on CPU or GPU.

    `images`: uint8 [b, s, s, c]; `transforms`: float32 [b, 8] as `compose` gives them. Bilinear, rounded to the
    nearest grey level; outside the image is 0 (air). Where the transform meets pixel centres, values stay as
    they are: identity returns the same bits, a flip the mirrored ones. XLA cannot compile the operation, so for a
    TPU, or with `jit_compile`, it belongs in the input pipeline.
    """
    images = tf.convert_to_tensor(images)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),  # on uint8 the operation cuts fractions off instead of rounding
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(tf.cast(tf.round(moved), tf.uint8), images.shape)
