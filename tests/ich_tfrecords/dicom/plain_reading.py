"""HU of a file as pydicom reads it by itself, to hold ours against: its own parser, decoders and bit rules.

Nothing here repairs or refuses anything but RSNA's wrapped slices, which every correct reader must repair.
"""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np

from ich_tfrecords.dicom.ct_slice import CtSlice


def readings(data: bytes, plugin: str = "") -> list[tuple[np.ndarray, np.ndarray]]:
    """Stored values and HU [rows, columns], with the bits above BitsStored dropped, and with them.

    Raises what pydicom raises.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        found = []
        for drop in (True, False):
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            dataset.pixel_array_options(decoding_plugin=plugin, correct_unused_bits=drop)
            may_wrap = dataset.BitsStored == 12 and dataset.PixelRepresentation == 0
            if not drop and dataset.file_meta.TransferSyntaxUID.is_compressed:  # gdcm drops them by itself
                dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
            stored = dataset.pixel_array.astype(np.int64)
            found.append((stored, _hu(stored, dataset, may_wrap)))
        return found


def _hu(stored: np.ndarray, dataset, may_wrap: bool) -> np.ndarray:
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if may_wrap and intercept > -100:
        stored, intercept = (stored + 1000) % 4096, -1000.0
    with np.errstate(over="ignore"):
        return np.clip(np.rint(stored * slope + intercept), -32768, 32767)


def differs(ours: CtSlice, data: bytes, plugin: str = "") -> np.ndarray:
    """Where our HU are those of neither reading, and no padding that became air either: bool [rows, columns]."""
    both = readings(data, plugin)
    excused = np.zeros(ours.hu.shape, bool)
    if ours.header.padding is not None:
        low, high = ours.header.padding
        for stored, hu in both:
            excused |= (stored >= low) & (stored <= high) & ((ours.hu == -1000) | (ours.hu == hu))
    return min(((ours.hu != hu) & ~excused for _, hu in both), key=np.count_nonzero)
