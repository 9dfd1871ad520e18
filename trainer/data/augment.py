"""What happens to slices at random while training: drawn with numpy for a whole epoch, applied to batches.

Drawing needs no state and no TensorFlow random operation: what happens to the slice at a position of an epoch
follows from (seed, epoch, position), whatever the batch, the worker or the device. It is applied in the input pipeline
by `warp` where numba is installed, else by `apply`, with the same bits; or by `apply` in the compiled step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from trainer.data import warp
from trainer.data.sampling import random_words
from trainer.shell.problems import WrongUse

_MOVES = 4  # flip, angle, right, down: four random words a position, whichever of them are in use
_MORE = (
    10  # scale; part, right and down of the crop; contrast, brightness; width, height, left and top of what is erased
)
WIDTH = 15  # numbers of a change: eight of the transform, gain and bias of the grey levels, what is erased, and air

Floats = npt.NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may happen to a slice: a left-right flip in half of the cases, a turn, a move; and what recipes add.

    `rotate_deg`: greatest angle, 0 to 180 degrees to either side; `shift`: greatest move along each axis as part
    of the side, 0 to below 1. `scale`: by how much a slice grows or shrinks at most, as a part of its size; `crop`: the
    greatest part of the side that is cut off before the rest fills the picture; `contrast`: by how much the distance
    of grey levels from the middle one changes at most, as a part of it; `brightness`: by how much grey levels rise or
    fall at most, as a part of white; `erase`: greatest sides of a rectangle that becomes air, as a part of the side.
    Raises `WrongUse` for other values.
    """

    flip: bool
    rotate_deg: float
    shift: float
    scale: float = 0.0
    crop: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rotate_deg <= 180:
            raise WrongUse(f"augmentation: rotate_deg is {self.rotate_deg}; use 0 to 180 degrees")
        for name, of in (("shift", "the side"), *_PARTS.items()):
            if not 0 <= getattr(self, name) < 1:
                told = f"{name} is {getattr(self, name)}; it is a part of {of}, from 0 to below 1"
                raise WrongUse(f"augmentation: {told}")

    @property
    def on(self) -> bool:
        """Whether anything can happen to a slice."""
        return bool(self.flip or self.rotate_deg or self.shift or self.more)

    @property
    def more(self) -> bool:
        """Whether anything besides flips, turns and moves can happen."""
        return any(getattr(self, name) for name in _PARTS)


_PARTS = {
    "scale": "the size",
    "crop": "the side",
    "contrast": "the distance from the middle grey",
    "brightness": "white",
    "erase": "the side",
}


def draw(
    augmentation: Augmentation, seed: int, epoch: int, size: int, size_px: int, air: int = 0
) -> npt.NDArray[np.float32]:
    """float32 [size, 15], what happens at each position 0 .. `size` - 1 of the epoch, as `apply` takes it.

    A function of (seed, epoch, position) alone: the first rows do not depend on `size`. `size_px`: side of the
    image; `air`: what lies outside of it (`ImageSpec.air`). All draws are uniform: angles within +-`rotate_deg`, moves
    within +-`shift` times the side, and so on.
    """
    signed = _signed(f"augment:{epoch}", seed, size, _MOVES)
    flip = augmentation.flip & (signed[:, 0] < 0)
    move_px = signed[:, 2:] * (augmentation.shift * size_px)
    turn_deg = signed[:, 1] * augmentation.rotate_deg
    changes = np.zeros((size, WIDTH), np.float32)
    changes[:, 8], changes[:, 14] = 1, air
    if not augmentation.more:
        changes[:, :8] = compose(flip, turn_deg, move_px[:, 0], move_px[:, 1], size_px)
        return changes
    more = _signed(f"augment more:{epoch}", seed, size, _MORE)
    zoom, crop_px = _zoom(augmentation, more[:, :4], size_px)
    right_px, down_px = (move_px + zoom[:, None] * crop_px).T
    changes[:, :8] = compose(flip, turn_deg, right_px, down_px, size_px, zoom)
    changes[:, 8:10] = _levels(augmentation, more[:, 4:6])
    changes[:, 10:14] = _erased(augmentation, (more[:, 6:] + 1) / 2, size_px)
    return changes


def _signed(name: str, seed: int, size: int, draws: int) -> Floats:
    """float64 [size, draws] from -1 to below 1: the upper 53 bits of each random word."""
    words = random_words(name, seed, 0, size * draws).reshape(size, draws)
    return (words >> np.uint64(11)) * 2.0**-52 - 1.0


def _zoom(augmentation: Augmentation, draws: Floats, size_px: int) -> tuple[Floats, Floats]:
    """How many times greater a slice is seen [n], and by how much the crop lies off the centre, in px [n, 2]."""
    cut = augmentation.crop * (draws[:, 1] + 1) / 2
    zoom = (1 + augmentation.scale * draws[:, 0]) / (1 - cut)
    return zoom, draws[:, 2:] * (cut / 2 * size_px)[:, None]


def _levels(augmentation: Augmentation, draws: Floats) -> Floats:
    """Gain and bias [n, 2] of grey levels: about the middle one, 127.5, then up or down."""
    gain = 1 + augmentation.contrast * draws[:, 0]
    return np.stack([gain, 127.5 * (1 - gain) + 255 * augmentation.brightness * draws[:, 1]], 1)


def _erased(augmentation: Augmentation, draws: Floats, size_px: int) -> Floats:
    """Left, top, right and bottom [n, 4] in whole px of what is erased; the last two lie outside of it."""
    sides = np.floor(draws[:, :2] * augmentation.erase * size_px + 0.5)
    corner = np.floor(draws[:, 2:] * (size_px - sides + 1)) * (sides > 0)
    return np.concatenate([corner, corner + sides], 1)


def compose(
    flip: npt.NDArray[np.bool_],
    turn_deg: npt.NDArray[np.floating],
    right_px: npt.NDArray[np.floating],
    down_px: npt.NDArray[np.floating],
    size_px: int,
    zoom: npt.NDArray[np.floating] | float = 1.0,
) -> npt.NDArray[np.float32]:
    """float32 [n, 8], transforms that flip left-right, then turn counter-clockwise as seen, grow, and move.

    Each argument but `size_px` is [n]; `zoom`: how many times greater. Pixel centres have whole coordinates, x to the
    right and y down, and the turn is about the centre of the pixel grid, ((size_px - 1) / 2, (size_px - 1) / 2). A row
    a0 .. a7 says where in the input the output pixel (x, y) lies, as `tf.raw_ops.ImageProjectiveTransformV3` takes it:
    (a0 x + a1 y + a2, a3 x + a4 y + a5), with a6 = a7 = 0.
    """
    centre = (size_px - 1) / 2
    angle = np.deg2rad(turn_deg)
    cos, sin = np.cos(angle), np.sin(angle)
    sign = np.where(flip, -1.0, 1.0)
    x, y = centre + right_px, centre + down_px  # where the centre of the input comes to lie
    cos, sin = cos / zoom, sin / zoom
    rows = np.zeros((len(angle), 8))
    rows[:, 0], rows[:, 1] = sign * cos, -sign * sin
    rows[:, 2] = centre - sign * (cos * x - sin * y)
    rows[:, 3], rows[:, 4] = sin, cos
    rows[:, 5] = centre - (sin * x + cos * y)
    return rows.astype(np.float32)


def on_host(images: Any, changes: Any) -> Any:
    """What `apply` gives, for a pipeline on the host: by `warp` where numba is installed."""
    if not warp.installed():
        return apply(images, changes)
    changed = tf.numpy_function(warp.changed, [images, changes], images.dtype, stateful=False)
    return tf.ensure_shape(changed, images.shape)


def apply(images: Any, changes: Any) -> Any:
    """[b, s, s, c], each image after its change; a tensor operation for batches, on CPU or GPU.

    `images`: grey levels uint8 or quarters of a HU int16 [b, s, s, c]; `changes`: float32 [b, 15] as `draw` gives
    them. Bilinear, rounded to the nearest level or quarter; outside the image is air. Where the transform meets pixel
    centres, values stay as they are: identity returns the same bits, a flip the mirrored ones. Then gain and bias of
    the grey levels, which HU have not, and what is erased is air. XLA cannot compile the operation; see `in_step`.
    """
    images = tf.convert_to_tensor(images)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        # on uint8 the operation cuts fractions off instead of rounding
        images=tf.cast(_above_air(images, changes), tf.float32),
        transforms=changes[:, :8],
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(_graded(moved, changes, images.dtype), images.shape)


def _above_air(images: Any, changes: Any) -> Any:
    """Whole numbers [b, s, s, c] that are 0 where there is air."""
    return images if images.dtype == tf.uint8 else tf.cast(images, tf.int32) - _air(changes)


def _air(changes: Any) -> Any:
    return tf.cast(changes[:, 14, None, None, None], tf.int32)


def in_step(images: Any, changes: Any) -> Any:
    """What `apply` gives, in operations that any device has and XLA compiles: for the compiled step.

    The arithmetic is the same; where a compiler joins multiplication and addition, which rounds once instead of twice,
    a level or quarter may differ by one.
    """
    batch, side, channels = tf.shape(images)[0], tf.shape(images)[1], images.shape[-1]
    wide = side + 2 * warp.BORDER
    place = tf.range(side, dtype=tf.float32)
    x, y = place[None, None, :], place[None, :, None]
    a = [changes[:, number, None, None] for number in range(6)]
    u, v = a[0] * x + a[1] * y + a[2], a[3] * x + a[4] * y + a[5]
    left, top = tf.floor(u), tf.floor(v)
    column, row = (tf.clip_by_value(one, -float(warp.BORDER), tf.cast(side, tf.float32)) for one in (left, top))
    column, row = (tf.cast(one, tf.int32) + warp.BORDER for one in (column, row))
    first = tf.reshape(row * wide + column, [batch, side * side])
    border = [warp.BORDER] * 2
    flat = tf.reshape(
        tf.pad(_above_air(images, changes), [[0, 0], border, border, [0, 0]]), [batch, wide * wide, channels]
    )

    def near(further: Any) -> Any:
        found = tf.gather(flat, first + further, batch_dims=1)
        return tf.cast(tf.reshape(found, [batch, side, side, channels]), tf.float32)

    after_x, before_x = ((left + 1.0) - u)[..., None], (u - left)[..., None]
    after_y, before_y = ((top + 1.0) - v)[..., None], (v - top)[..., None]
    upper = after_x * near(0) + before_x * near(1)
    lower = after_x * near(wide) + before_x * near(wide + 1)
    return tf.ensure_shape(_graded(after_y * upper + before_y * lower, changes, images.dtype), images.shape)


def _graded(moved: Any, changes: Any, dtype: Any) -> Any:
    """[b, s, s, c] of values above air float32, not yet rounded: gain, bias, and what is erased."""
    levels = tf.round(moved)
    if dtype == tf.uint8:
        gain, bias = changes[:, 8, None, None, None], changes[:, 9, None, None, None]
        levels = tf.round(tf.clip_by_value(levels * gain + bias, 0.0, 255.0))
    place = tf.range(tf.shape(moved)[1], dtype=tf.float32)
    across = (place >= changes[:, 10, None]) & (place < changes[:, 12, None])
    down = (place >= changes[:, 11, None]) & (place < changes[:, 13, None])
    kept = tf.where((down[:, :, None] & across[:, None, :])[..., None], 0.0, levels)
    return tf.cast(kept if dtype == tf.uint8 else tf.cast(kept, tf.int32) + _air(changes), dtype)
