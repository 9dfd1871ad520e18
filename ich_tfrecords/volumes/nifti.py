"""NIfTI: a volume of CT (.nii, .nii.gz), each slice with header and HU as an axial DICOM slice has them.

The voxels lie in a file, unpacked where it is a .gz. One slice is in memory, or 128 MiB where they lie across the
file. docs/decisions/0030 says what is taken.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from isal import igzip

from ich_tfrecords import pixels
from ich_tfrecords.dicom import header as dicom_header
from ich_tfrecords.dicom.ct_slice import CtSlice, SliceHeader, SliceProblem, UnreadableSlice, UnsupportedSlice
from ich_tfrecords.dicom.header import EXPLICIT_LITTLE
from ich_tfrecords.volumes import volume

MAX_VOXEL_BYTES = 4 << 30
AIR_BELOW_HU, LOWEST_HU, HIGHEST_HU = -500, -32768, 32767  # a head is seen with the air around it
_HEADS = {348: "Nifti1Header", 540: "Nifti2Header"}  # by sizeof_hdr
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}
_BLOCK_BYTES = 1 << 22
_SLAB_BYTES = 1 << 27  # of slices that lie across the file, read together
_GZIP = b"\x1f\x8b"
_MOST_IN_FRONT, _MOST_BEHIND = 1 << 24, 1 << 20  # bytes in front of the voxels and behind them

Affine = npt.NDArray[np.float64]


class _View(NamedTuple):
    """How axial slices lie in the voxels: the axes of columns, rows and slices, and which of the first two turn round.

    `affine` [3, 4]: of voxels [columns, rows, slices], turned, to mm in DICOM's axes (to the left, back and head).
    """

    axes: tuple[int, int, int]
    turned: tuple[bool, bool]
    affine: Affine


class Nifti:
    """The axial slices of an open file (`volume.Volume`), numbered from 1 along their axis in the file."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises `SliceProblem` for a file that gives no slice."""
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            self._digest = volume.digest(file)
            file.seek(0)
            packed = file.read(2) == _GZIP
            file.seek(0)
            self._head, self._file = _unpacked(file) if packed else (_header(file.read(1024)), file)
            stack.callback(self._file.close)
            with _damage():
                self._shape, self._kind, self._at = _shape(self._head), _kind(self._head), _offset(self._head)
                slope, inter = self._head.get_slope_inter()
                self._scale = (1.0, 0.0) if slope is None else (float(slope), float(inter))
                self._view = _view(self._head)
            _require_bytes(self._file, self._at, math.prod(self._shape) * self._kind.itemsize)
            columns, rows, self.frames = (self._shape[axis] for axis in self._view.axes)
            volume.require_sides(rows, columns)
            volume.require_frames(self.frames, "the number of slices")
            self._size = rows, columns
            self._check_values()
            self.header(1)
            self._slab: tuple[int, npt.NDArray[Any]] = 0, np.empty(0)
            stack.pop_all()

    def header(self, frame: int) -> SliceHeader:
        """The header of a slice; its ids are hashes of the file's bytes. Raises `UnsupportedSlice`."""
        key = self._digest.hex()
        affine, (rows, columns) = self._view.affine, self._size
        corner = affine @ [0, 0, frame - 1, 1]
        axes = [*_unit(affine[:, 0]), *_unit(affine[:, 1])]
        return SliceHeader(
            sop_uid=volume.hashed_uid(key, frame),
            patient_id=key,
            study_uid=volume.hashed_uid(key, "study"),
            series_uid=volume.hashed_uid(key, "series"),
            position_mm=dicom_header.along_normal(corner.tolist(), axes),
            rows=rows,
            columns=columns,
            bits_allocated=16,
            bits_stored=16,
            signed=True,
            slope=1.0,
            intercept=0.0,
            padding=None,
            transfer_syntax=EXPLICIT_LITTLE,
            pixel_offset=-1,
        )

    def slice(self, frame: int) -> CtSlice:
        """Header and HU of a slice, rows from front to back, columns from the patient's right to the left."""
        header, (column_axis, row_axis, _) = self.header(frame), self._view.axes
        plane = self._plane(frame - 1)  # [first axis, second axis] of those that are left
        found = plane.T if column_axis < row_axis else plane
        turn_columns, turn_rows = self._view.turned
        found = found[:: -1 if turn_rows else 1, :: -1 if turn_columns else 1]
        return CtSlice(header, _to_hu(np.ascontiguousarray(found), *self._scale))

    def digest(self) -> bytes:
        """128 bits that stand for the bytes of the file."""
        return self._digest

    def close(self) -> None:
        """Close the file."""
        self._slab = 0, np.empty(0)
        self._file.close()

    def _plane(self, index: int) -> npt.NDArray[Any]:
        """Voxels of a slice as they are stored, in order of their axes."""
        axis = self._view.axes[2]
        if axis == 2:  # planes lie one behind the other
            shape = self._shape[:2]
            size_bytes = math.prod(shape) * self._kind.itemsize
            self._file.seek(self._at + index * size_bytes)
            return np.frombuffer(self._file.read(size_bytes), self._kind).reshape(shape, order="F")
        begin, slab = self._slab
        if not begin <= index < begin + len(slab):
            size_bytes = math.prod(self._shape) // self.frames * self._kind.itemsize
            begin = index - index % max(1, _SLAB_BYTES // size_bytes)
            slab = self._read_slab(begin, min(self.frames, begin + max(1, _SLAB_BYTES // size_bytes)))
            self._slab = begin, slab
        return slab[index - begin]

    def _read_slab(self, begin: int, end: int) -> npt.NDArray[Any]:
        """Voxels of the slices `begin` to `end` [slices, ...], from one walk through the file that they lie across."""
        axis, (first, second, third) = self._view.axes[2], self._shape
        slab = np.empty((end - begin, first + second - self.frames, third), self._kind)
        self._file.seek(self._at)
        plane_bytes = first * second * self._kind.itemsize
        at_once = max(1, _BLOCK_BYTES // plane_bytes)
        for at in range(0, third, at_once):
            planes = min(at_once, third - at)
            block = np.frombuffer(self._file.read(planes * plane_bytes), self._kind)
            block = block.reshape((first, second, planes), order="F")
            part = block[begin:end] if axis == 0 else block[:, begin:end].swapaxes(0, 1)
            slab[:, :, at : at + planes] = part
        return slab

    def _check_values(self) -> None:
        """Refuse what is no CT in HU: values that are not finite, or without air, or beyond int16."""
        low, high = math.inf, -math.inf
        self._file.seek(self._at)
        left = math.prod(self._shape) * self._kind.itemsize
        while left:
            block = self._file.read(min(left, _BLOCK_BYTES))
            left -= len(block)
            values = np.frombuffer(block, self._kind)
            ends = float(values.min()), float(values.max())
            if not all(map(math.isfinite, ends)):
                raise UnsupportedSlice("not_finite", "the volume has voxels that are no finite numbers")
            low, high = min(low, ends[0]), max(high, ends[1])
        slope, inter = self._scale
        low, high = sorted((low * slope + inter, high * slope + inter))
        if not (LOWEST_HU <= low <= AIR_BELOW_HU and 0 <= high <= HIGHEST_HU):
            raise UnsupportedSlice(
                "not_ct",
                f"voxels run from {low:,.6g} to {high:,.6g}; a head CT in HU has air below {AIR_BELOW_HU} and tissue "
                "above 0",
            )


def _unpacked(file: BinaryIO) -> tuple[Any, BinaryIO]:
    """Header and nameless file of a gzipped volume, no larger than its header says."""
    with contextlib.ExitStack() as stack:
        whole = stack.enter_context(tempfile.TemporaryFile())
        try:
            with igzip.IGzipFile(fileobj=file, mode="rb") as packed:
                first = packed.read(1024)
                head = _header(first)
                with _damage():
                    left = _offset(head) + math.prod(_shape(head)) * _kind(head).itemsize
                left -= whole.write(first[:left])
                while left and (block := packed.read(min(left, _BLOCK_BYTES))):
                    left -= whole.write(block)
                # its checksum is looked at once the end is reached
                if not left and len(packed.read(_MOST_BEHIND + 1)) > _MOST_BEHIND:
                    raise UnreadableSlice("wrong_pixel_length", "the gzipped volume goes on behind its voxels")
        except EOFError as error:
            raise UnreadableSlice("truncated", f"the gzipped volume ends early: {error}") from error
        except (OSError, zlib.error, igzip.igzip_lib.IsalError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk's, not the stream's
            raise UnreadableSlice("inflate_failed", f"the gzipped volume is damaged: {error}") from error
        file.close()
        stack.pop_all()
    return head, whole


def _header(head: bytes) -> Any:
    """nibabel's header of a volume. Raises `SliceProblem`."""
    size_bytes = next((size for order in ("little", "big") if (size := int.from_bytes(head[:4], order)) in _HEADS), 0)
    at, magic = _MAGIC.get(size_bytes, (0, b"-"))
    if head[at : at + 4] != magic:
        raise UnreadableSlice("bad_nifti", "the file has no NIfTI header with its voxels behind it")
    if len(head) < size_bytes:
        raise UnreadableSlice("truncated", f"the NIfTI header has {len(head):,} of {size_bytes:,} bytes")
    try:
        import nibabel
    except ImportError as error:
        raise UnsupportedSlice(
            "no_nibabel", "NIfTI is read by nibabel, which is not installed: pip install 'ich-tfrecords[nifti]'"
        ) from error
    with _damage():
        return getattr(nibabel, _HEADS[size_bytes])(head[:size_bytes])


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turns what nibabel raises into a typed problem: a damaged header reaches many of its corners."""
    try:
        yield
    except (SliceProblem, OSError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableSlice("bad_nifti", f"the NIfTI header is damaged: {type(error).__name__}") from error


def _offset(head: Any) -> int:
    """Where the voxels begin."""
    at = int(head.get_data_offset())
    if not 0 < at <= _MOST_IN_FRONT:
        raise UnreadableSlice("bad_nifti", f"the voxels begin at byte {at:,}")
    return at


def _shape(head: Any) -> tuple[int, int, int]:
    """Voxels along each axis. Raises `SliceProblem` for what is no single volume, or too large, before any is read."""
    shape = tuple(int(side) for side in head.get_data_shape())
    first, more = shape[:3], shape[3:]
    if len(first) != 3 or any(side != 1 for side in more):
        shown = " x ".join(f"{side:,}" for side in shape)
        raise UnsupportedSlice("not_3d", f"the volume has {shown} voxels; one of three axes is read")
    if min(first) < 1:
        raise UnreadableSlice("bad_geometry", f"an axis of the volume has {min(first)} voxels")
    size_bytes = math.prod(first) * _kind(head).itemsize
    if size_bytes > MAX_VOXEL_BYTES or max(first) > volume.MAX_FRAMES:
        shown = " x ".join(f"{side:,}" for side in first)
        raise UnreadableSlice(
            "too_large", f"the volume has {shown} voxels, {size_bytes:,} bytes; the limit is {MAX_VOXEL_BYTES:,}"
        )
    return first[0], first[1], first[2]


def _kind(head: Any) -> np.dtype[Any]:
    kind = np.dtype(head.get_data_dtype())
    if kind.fields is not None:
        raise UnsupportedSlice("color", "the voxels are colours")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise UnsupportedSlice("bad_bits", f"voxels of kind {kind.name} give no HU")
    return kind


def _require_bytes(file: BinaryIO, at: int, size_bytes: int) -> None:
    there = file.seek(0, os.SEEK_END) - at
    if there < size_bytes:
        raise UnreadableSlice("truncated", f"the voxels have {max(there, 0):,} of {size_bytes:,} bytes")


def _view(head: Any) -> _View:
    """Where axial slices are. Raises `UnsupportedSlice` where nobody can tell, and for one that is no axial volume."""
    affine = _affine(head)
    length = np.linalg.norm(affine[:, :3], axis=0)
    unit = affine[:, :3] / length
    slices = int(np.abs(unit[2]).argmax())
    one, other = (axis for axis in range(3) if axis != slices)
    straight = abs(unit[0, one]) + abs(unit[1, other]) >= abs(unit[0, other]) + abs(unit[1, one])
    columns, rows = (one, other) if straight else (other, one)
    turned = bool(unit[0, columns] < 0), bool(unit[1, rows] < 0)
    shape = _shape(head)
    ordered = affine[:, [columns, rows, slices, 3]].copy()
    for at, axis in enumerate((columns, rows)):
        if turned[at]:
            ordered[:, 3] += ordered[:, at] * (shape[axis] - 1)
            ordered[:, at] *= -1
    return _View((columns, rows, slices), turned, ordered)


def _affine(head: Any) -> Affine:
    """Voxels to mm in DICOM's axes, [3, 4]: NIfTI's x and y run the other way."""
    if not (int(head["sform_code"]) or int(head["qform_code"])):
        raise UnsupportedSlice("no_position", "neither sform nor qform says how the volume lies, so left may be right")
    unit = head.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise UnsupportedSlice("no_position", f"distances are in {unit}; only mm are read")
    affine = np.asarray(head.get_best_affine(), np.float64)
    if not np.isfinite(affine).all() or np.abs(affine[:3]).max() > dicom_header.MAX_POSITION_MM:
        raise UnsupportedSlice("no_position", "the affine of the volume is not finite, or beyond every scanner")
    length = np.linalg.norm(affine[:3, :3], axis=0)
    if length.min() < 1e-3 or abs(np.linalg.det(affine[:3, :3] / np.maximum(length, 1e-3))) < 1e-3:
        raise UnsupportedSlice("no_position", "the affine of the volume is singular, so it has no axes")
    return np.diag([-1.0, -1.0, 1.0]) @ affine[:3]


def _unit(vector: Affine) -> list[float]:
    return [float(part) for part in vector / np.linalg.norm(vector)]


def _to_hu(voxels: npt.NDArray[Any], slope: float, inter: float) -> pixels.Int16:
    """HU int16 of voxels, which are known to fit: rounded half to even, as `pixels.to_hu` does it."""
    if voxels.dtype.kind == "i" and voxels.dtype.itemsize <= 2:
        return pixels.to_hu(voxels.astype(np.int16), 16, True, slope, inter)
    if (slope, inter) != (1.0, 0.0):
        voxels = voxels.astype(np.float64) * slope + inter
    return np.rint(voxels).astype(np.int16)
