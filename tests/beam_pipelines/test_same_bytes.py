"""Data sets whose slices are read as ever keep their bytes: the sums are those of the version before rules of doubt.

Who trains on a data set, or cites its fingerprint, relies on them. The slices are whole numbers from a seed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG_LS,
    RLE,
    Elements,
    codestream,
    dicom_file,
    encapsulated,
    short,
    slice_elements,
)

HU_SUMS = "b0096087c12f24ea3d6280fb1a904c89032372216854de9c060d9a40a84080a3"
REAL_SUMS = "e47c76f5ebda6059f0f489119f1c4272f3e8e8e9d0daa431070895409ef50e20"


def whole_hu(seed: int, low: int, high: int) -> np.ndarray:
    """HU int64 [64, 64] with an edge of air: a ramp and noise, both of integers."""
    ramp = np.add.outer(np.arange(64), np.arange(64)) * (high - low) // 126 + low
    hu = np.clip(ramp + np.random.default_rng(seed).integers(-20, 21, ramp.shape), low, high)
    hu[:4] = -1000
    return hu


def named(stored: np.ndarray, number: int, bits: int = 16, **changes: bytes) -> Elements:
    ids = {"SOPInstanceUID": b"ID_%d" % number, "StudyInstanceUID": b"study%d" % (number // 2)}
    ids |= {"SeriesInstanceUID": b"series%d" % (number // 2), "PatientID": b"patient%d" % (number // 2)}
    place = b"-125\\-120\\%d" % (5 * number)
    return slice_elements(stored, bits, **ids, ImagePositionPatient=place, **changes)


def files() -> dict[str, bytes]:
    """Slices as they are usual: RSNA's two kinds, its wrapped defect, GE's padding, four encodings, compressed ones."""
    signed = (whole_hu(1, -1000, 2000) + 1024).astype(np.int16)
    signed[:4] = -2000
    unsigned = (whole_hu(2, -1000, 2000) + 1024).astype(np.uint16)
    wrapped = (whole_hu(3, -1000, 2000) % 4096).astype(np.uint16)
    valid = whole_hu(4, -1000, 1800).astype(np.int16)
    ge = whole_hu(5, -1000, 1800).astype(np.int16)
    ge[:4] = -1500
    padding = {0x00280120: ("SS", short(65536 - 1500))}
    overlaid = unsigned.copy()
    overlaid[20:30, 20:40] |= 0x1000
    hu = {"RescaleIntercept": b"0"}
    return {
        "signed": dicom_file(named(signed, 0)),
        "implicit": dicom_file(named(signed, 1), IMPLICIT),
        "deflated": dicom_file(named(signed, 2), DEFLATED),
        "big": dicom_file(named(unsigned, 3, 12), BIG),
        "unsigned": dicom_file(named(unsigned, 4, 12)),
        "wrapped": dicom_file(named(wrapped, 5, 12, **hu)),
        "valid": dicom_file(named(valid, 6, 12, **hu)),
        "ge": dicom_file(named(ge, 7, **hu) | padding, EXPLICIT),
        "overlaid": dicom_file(named(overlaid, 8, 12)),
        "packed": encapsulated(named(signed, 9), JPEG_LS, codestream(signed, JPEG_LS, 16)),
        "slope": dicom_file(named(unsigned, 10, RescaleSlope=b"0.5")),
        "rle": dicom_file(named(unsigned, 11), RLE),  # not encapsulated: a reject
    }


def sums(output: Path) -> str:
    """One sha256 over those of every shard, in order of their names."""
    shards = sorted(output.glob("*.tfrecord*"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in shards)).hexdigest()


def test_made_slices(convert, tmp_path):
    (tmp_path / "ct").mkdir()
    for name, data in files().items():
        (tmp_path / "ct" / f"{name}.dcm").write_bytes(data)
    flags = ("--labels", "none", "--max_reject_fraction", 0.2)
    assert convert("--input", tmp_path / "ct", *flags, "--output", tmp_path / "out") == 0
    assert sums(tmp_path / "out") == HU_SUMS


@pytest.mark.real
def test_real_slices(real_dicom_dir, convert, tmp_path):
    if not (real_dicom_dir / "ge_head").is_dir():
        pytest.skip("no folder ge_head/ below ICH_REAL_DICOM_DIR")
    assert convert("--input", real_dicom_dir / "ge_head", "--labels", "none", "--output", tmp_path / "out") == 0
    assert sums(tmp_path / "out") == REAL_SUMS
