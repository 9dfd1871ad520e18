"""From HU or records to probabilities in TensorFlow ops alone: the graph of an exported model.

The pixels are those of `ich_tfrecords.pixels`, bit for bit and for every size of slice: whole numbers throughout, in
int64, or in float64 where products and sums stay below 2**53 and so are exact in any order and on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from ich_tfrecords import crop, pixels
from ich_tfrecords.dataset import records
from ich_tfrecords.spec import HEAD, HU, STEPS_A_HU, DatasetSpec, ImageSpec
from trainer.results import joint

if TYPE_CHECKING:
    import keras

    from trainer.models.model_file import About
    from trainer.results.calibration import Calibration
    from trainer.results.joint import Odds

_SERIES = 1e-5  # below it log(1 + x) loses more digits than three terms of its series
PARALLEL_SLICES = 8  # windowed at once; each takes about 15 MB at 512 x 512


def image_of_hu(hu: Any, image: ImageSpec) -> Any:
    """[n, size_px, size_px, channels] of slices `hu` int16 [n, rows, columns]: `pixels.image_of` of each.

    Slice by slice, so that a batch of any length needs the memory of a few slices. Raises
    `tf.errors.InvalidArgumentError` for slices without rows or columns.
    """
    return tf.map_fn(
        lambda one: _image(one, image),
        hu,
        fn_output_signature=tf.TensorSpec(image.shape, image.dtype),
        parallel_iterations=PARALLEL_SLICES,
    )


def image_of_records(serialized: Any, spec: DatasetSpec) -> Any:
    """[n, size_px, size_px, channels] of serialized records, strings [n]; only their feature `image` is read.

    Raises `tf.errors.InvalidArgumentError` for what is no record, or one of another image size. TensorFlow quotes a
    damaged record, so that in Python it may be a UnicodeDecodeError.
    """
    feature = {"image": records.parsing_features(spec)["image"]}
    raw = tf.io.parse_example(serialized, feature)["image"]
    size_bytes, dtype = spec.image.size_bytes, spec.image.dtype
    shape = "x".join(map(str, spec.image.shape))
    same = tf.debugging.assert_equal(
        tf.strings.length(raw), size_bytes, f"image of a record must hold {size_bytes} bytes, {dtype} {shape}"
    )
    with tf.control_dependencies([same]):
        return tf.reshape(tf.io.decode_raw(raw, dtype), (-1, *spec.image.shape))


def probabilities_of(model: keras.Model, about: About) -> Callable[[Any], Any]:
    """A function: `image` [n, size_px, size_px, channels] -> probabilities float32 [n, labels], as of `about`."""

    def probabilities(image: Any) -> Any:
        slices = tf.shape(image)[0]
        # oneDNN's convolution gives a wrong shape for no slices, so it gets a blank one
        blank = tf.cast(tf.equal(slices, 0), tf.int32)
        filled = tf.pad(image, [[0, blank], [0, 0], [0, 0], [0, 0]])
        return probabilities_of_logits(tf.cast(model(filled, training=False), tf.float64)[:slices], about)

    return probabilities


def probabilities_of_logits(logits: Any, about: About) -> Any:
    """float32 [n, L], `About.probabilities` of `logits` float64 [n, L]."""
    natural = logits if about.odds is None else log_odds(logits, about.odds)
    labels = about.spec.labels
    return calibrated(natural, about.calibration, labels.names.index(labels.any))


def calibrated(natural: Any, calibration: Calibration, any_index: int) -> Any:
    """float32 [n, L], of natural log odds float64 [n, L]; no kind above `any`."""
    scale, offset = calibration.scale_offset()
    found = tf.sigmoid(scale * natural + offset)
    return tf.cast(tf.minimum(found, found[:, any_index : any_index + 1]), tf.float32)


def log_odds(logits: Any, odds: Odds) -> Any:
    """float64 [n, L], natural ones, of `logits` float64 [n, L] of the model: `Odds.log_odds`, to 1e-9."""
    found = _unsmoothed(_unfocused(logits, odds.gamma), odds.smoothing)
    return _undrawn(found, odds) if len(odds.drawn) else found - odds.shift


def _unfocused(logits: Any, gamma: float) -> Any:
    """`joint.unfocused`."""
    if gamma == 0:
        return logits
    logits = tf.clip_by_value(logits, -joint.GREATEST_FOCAL, joint.GREATEST_FOCAL)

    def odds(side: Any) -> Any:
        one, other = side, np.log(gamma) + tf.math.log(_softplus(side))
        return tf.maximum(one, other) + _softplus(-tf.abs(one - other))

    return (gamma - 1) * logits + odds(logits) - odds(-logits)


def _softplus(values: Any) -> Any:
    """log(1 + exp(values)) to 1e-11 of it, float64, in operators that other runtimes have in float64 too."""
    small = tf.exp(-tf.abs(values))
    rest = tf.where(small < _SERIES, small * (1 - small * (1 / 2 - small / 3)), tf.math.log(1 + small))
    return tf.maximum(values, 0) + rest


def _sigmoid(values: Any) -> Any:
    """float64 to 1e-15 of it; others that take this graph lose the digits of small ones. Not below -700."""
    return 1 / (1 + tf.exp(-values))


def _unsmoothed(logits: Any, smoothing: float) -> Any:
    """`joint.unsmoothed`."""
    if smoothing == 0:
        return logits
    end = joint.smooth_end(smoothing)
    held = tf.clip_by_value(logits, -end, end)
    up, down = (_sigmoid(side) - smoothing / 2 for side in (held, -held))
    return tf.math.log(up) - tf.math.log(down) + (logits - held)


def _undrawn(logits: Any, odds: Odds) -> Any:
    """The correction of the joint, as `joint.Odds.log_odds` does it."""
    how = joint.plan(odds)
    shown, hidden = (_sigmoid(side * tf.clip_by_value(logits, -joint.GREATEST, joint.GREATEST)) for side in (1, -1))
    found = tf.tile(tf.constant(odds.drawn[None]), (tf.shape(logits)[0], 1))
    for sweep in how.sweeps:
        for at in sweep:
            inside = how.member[:, at]
            ones, zeros = (tf.maximum(tf.linalg.matvec(found, part), joint.LEAST) for part in (inside, 1 - inside))
            found *= inside * (shown[:, at] / ones)[:, None] + (1 - inside) * (hidden[:, at] / zeros)[:, None]
        found = tf.maximum(found, how.least)
    found *= how.factor
    found *= (1 - how.outside.sum()) / tf.maximum(tf.reduce_sum(found, 1, keepdims=True), joint.LEAST)
    found += how.outside
    ones, zeros = (tf.maximum(tf.matmul(found, part), joint.LEAST) for part in (how.member, 1 - how.member))
    return tf.where(how.settled, tf.math.log(ones) - tf.math.log(zeros), logits)


def _image(hu: Any, image: ImageSpec) -> Any:
    """[size_px, size_px, channels] of one slice `hu` int16 [rows, columns]."""
    # padded as float64, which holds any HU: other runtimes that take this graph cannot pad int16
    square = _pad_square(tf.cast(hu, tf.float64), image.pad_hu)
    if image.crop == HEAD:
        square = _head(square)
    return _mean_steps(square, image.size_px) if image.kind == HU else _windowed(square, image)


def _mean_steps(square: Any, size_px: int) -> Any:
    """int16 [size_px, size_px, 1], as `pixels.mean_steps`."""
    weight = tf.shape(square, tf.int64)[0] ** 2
    sums = tf.cast(_box_sums(square[None], size_px), tf.int64)
    # divided above zero: other runtimes that take this graph round towards it
    least = STEPS_A_HU * pixels.INT16_MIN
    steps = (2 * STEPS_A_HU * sums + weight - 2 * weight * least) // (2 * weight) + least
    held = tf.clip_by_value(steps, pixels.INT16_MIN, pixels.INT16_MAX)
    return tf.cast(tf.transpose(held, (1, 2, 0)), tf.int16)


def _windowed(square: Any, image: ImageSpec) -> Any:
    """uint8 [size_px, size_px, windows]."""
    # doubled, because a window of odd width ends on halves
    low = np.array([2 * window.level_hu - window.width_hu for window in image.windows]).reshape(-1, 1, 1)
    width = np.array([2 * window.width_hu for window in image.windows]).reshape(-1, 1, 1)
    doubled = 2 * square
    sums = _box_sums(tf.clip_by_value(doubled - low, 0.0, width.astype(float)), image.size_px)
    weight = width * tf.shape(square, tf.int64)[0] ** 2
    levels = (510 * tf.cast(sums, tf.int64) + weight) // (2 * weight)
    return tf.transpose(tf.cast(levels, tf.uint8), (1, 2, 0))


def _pad_square(hu: Any, pad_hu: int) -> Any:
    """`hu` float64 [rows, columns] centred in a square of the longer side; an odd spare line goes last."""
    shape = tf.shape(hu)
    filled = tf.debugging.assert_positive(shape, "a slice must have rows and columns")
    with tf.control_dependencies([filled]):
        spare = tf.reduce_max(shape) - shape
        before = spare // 2
        return tf.pad(hu, tf.stack([before, spare - before], axis=1), constant_values=pad_hu)


def _head(hu: Any) -> Any:
    """The square of `hu` [H, H] that `crop.head_square` finds."""
    height = tf.shape(hu)[0]
    found = tf.cond(height < crop.BLOCKS, lambda: tf.stack([0, 0, height]), lambda: _head_square(hu, height))
    top, left, side = tf.unstack(found)
    return hu[top : top + side, left : left + side]


def _head_square(hu: Any, height: Any) -> Any:
    """int32 [3]: first row and column, and the side."""
    tissue, block = tf.cast(hu >= crop.TISSUE_HU, tf.int32), height // crop.BLOCKS
    blocks = height // block
    whole = tissue[: blocks * block, : blocks * block]
    counts = tf.reduce_sum(tf.reshape(whole, (blocks, block, blocks, block)), axis=(1, 3))
    filled = tf.cast(crop.FILLED[1] * counts >= crop.FILLED[0] * block**2, tf.int32)
    top, bottom = _longest(tf.reduce_sum(filled, axis=1))
    left, right = _longest(tf.reduce_sum(filled[top:bottom], axis=0))
    most = tf.maximum(bottom - top, right - left)
    side = tf.minimum(tf.maximum((most + 2 * crop.MARGIN) * block, height // crop.SMALLEST), height)
    ends = tf.stack([top + bottom, left + right])
    corner = tf.minimum(tf.maximum(ends * block - side, 0) // 2, height - side)
    inside = tissue[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    kept = crop.KEPT[1] * tf.reduce_sum(inside) >= crop.KEPT[0] * tf.reduce_sum(tissue)
    found = tf.concat([corner, side[None]], 0)
    return tf.where((most > 0) & kept, found, tf.stack([0, 0, height]))


def _longest(counts: Any) -> tuple[Any, Any]:
    """Begin and end of the run that `crop` takes."""
    kept = tf.where(counts >= crop.LEAST, counts, 0)
    run = tf.cumsum(tf.cast(kept == 0, tf.int32))
    sums = tf.math.unsorted_segment_sum(kept, run, tf.shape(counts)[0] + 1)
    best = tf.argmax(sums, output_type=tf.int32)
    at = tf.where((run == best) & (kept > 0))[:, 0]
    ends = tf.cast(tf.concat([at, [-1]], 0), tf.int32)  # an empty run is 0 to 0
    return tf.maximum(ends[0], 0), tf.reduce_max(ends) + 1


def _box_sums(values: Any, size: int) -> Any:
    """Weighted sums float64 [windows, size, size] of squares [windows, H, H], as `pixels.box_sums`."""
    by_row = _box_sums_rows(values, size)
    return tf.linalg.matrix_transpose(_box_sums_rows(tf.linalg.matrix_transpose(by_row), size))


def _box_sums_rows(values: Any, size: int) -> Any:
    """float64 [windows, size, columns] of [windows, H, columns]: output i sums the rows [i*H/size, (i+1)*H/size).

    Overlaps are counted in units of 1/size of a row, so that they are whole. Only the few rows that an output
    meets are gathered: much faster than a matrix [size, H], and than cumulative sums.
    """
    height = tf.shape(values, tf.int64)[1]
    start = tf.range(size, dtype=tf.int64)[:, None] * height
    end = start + height
    first = start // size
    most = tf.reduce_max((end + size - 1) // size - first)
    row = first + tf.range(most)
    overlap = tf.maximum(tf.minimum(end, (row + 1) * size) - tf.maximum(start, row * size), 0)
    rows = tf.gather(values, tf.minimum(row, height - 1), axis=1)
    return tf.squeeze(tf.matmul(tf.cast(overlap, tf.float64)[None, :, None, :], rows), 2)
