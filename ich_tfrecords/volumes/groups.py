"""Functional groups of enhanced CT (PS3.3 C.7.6.16) -> the elements that a single-frame slice would have."""

from __future__ import annotations

from typing import Any

from ich_tfrecords.dicom import by_pydicom
from ich_tfrecords.dicom.ct_slice import UnreadableSlice, UnsupportedSlice
from ich_tfrecords.dicom.header import CT_IMAGE, numbers
from ich_tfrecords.volumes import volume

SHARED, PER_FRAME = 0x52009229, 0x52009230
_FRAME_TYPE, _RESCALE_TYPE, _CONCATENATION = 0x00089007, 0x00281054, 0x00209161
_RESCALE = 0x00289145
# PixelMeasures, PlanePosition, PlaneOrientation, PixelValueTransformation, CTImageFrameType, CTReconstruction,
# CTXRayDetails: the groups (C.7.6.16.2, C.8.15.3) whose elements a single-frame slice has at the top
_GROUPS = (0x00289110, 0x00209113, 0x00209116, _RESCALE, 0x00189329, 0x00189314, 0x00189325)
# at the top of an enhanced file these speak of no frame
_OF_FRAMES = ("ImagePositionPatient", "ImageOrientationPatient", "RescaleIntercept", "RescaleSlope")
_AXIAL = "1\\0\\0\\0\\1\\0"
_MAX_UID = 64  # characters (PS3.5 6.2)


class Frames:
    """The frames that a data set declares, 1 to `count`; `fields` gives what `header.checked` takes of each.

    `top`: the elements at the top of the data set, by keyword, which pydicom changes once it opens a sequence.
    """

    def __init__(self, dataset: Any, top: dict[str, Any]) -> None:
        if _CONCATENATION in dataset:
            raise UnsupportedSlice(
                "concatenation", "the file is a part of a concatenation (PS3.3 C.7.6.16.2.2.4); export it as one file"
            )
        self.count = _count(top)
        shared, self._own = _items(dataset, SHARED), _items(dataset, PER_FRAME)
        if len(shared) > 1:
            raise _contradiction(f"SharedFunctionalGroupsSequence has {len(shared):,} items, not one")
        if len(self._own) != self.count and not (self.count == 1 and not self._own and shared):
            raise _contradiction(
                f"NumberOfFrames is {self.count:,}, PerFrameFunctionalGroupsSequence has {len(self._own):,} items"
            )
        self._sop_uid = top.get("SOPInstanceUID", "").strip()
        kept = {keyword: value for keyword, value in top.items() if keyword not in _OF_FRAMES}
        self._same = kept | {"SOPClassUID": CT_IMAGE, "NumberOfFrames": "1"}
        self._shared = _elements(shared[0]) if shared else {}

    def fields(self, frame: int) -> dict[str, Any]:
        """Elements of a frame by keyword; its own groups come before the shared ones. Raises `SliceProblem`."""
        parts = [self._same, self._shared, _elements(self._own[frame - 1]) if self._own else {}]
        found = parts[0] | parts[1] | parts[2]
        found["facts"] = {name: value for part in parts for name, value in part.get("facts", {}).items()}
        if self._sop_uid:
            found["SOPInstanceUID"] = frame_uid(self._sop_uid, frame, self.count)
        kind = found.get("ImageType", "").upper().split("\\")
        if "ImageOrientationPatient" not in found and "AXIAL" in kind[2:3]:
            found["ImageOrientationPatient"] = _AXIAL  # PS3.3 C.8.2.1.1.1
        return found


def frame_uid(sop_uid: str, frame: int, count: int) -> str:
    """What stands for the SOP Instance UID of a frame: the file's own where it is the only one."""
    if count == 1:
        return sop_uid
    uid = f"{sop_uid}.{frame}"
    return uid if len(uid) <= _MAX_UID else volume.hashed_uid(sop_uid, frame)


def _count(top: dict[str, Any]) -> int:
    values = numbers(top.get("NumberOfFrames", "").strip() or "1")
    if len(values) != 1 or values[0] != int(values[0]):
        raise UnreadableSlice("bad_frames", "NumberOfFrames is no whole number")
    volume.require_frames(int(values[0]), "NumberOfFrames")
    return int(values[0])


def _items(dataset: Any, tag: int) -> list[Any]:
    if tag not in dataset:
        return []
    with by_pydicom.quiet():
        value = dataset[tag].value
    return list(value) if value is not None and not isinstance(value, (bytes, str)) else []


def _elements(item: Any) -> dict[str, Any]:
    """Elements of the groups of one item. Raises `UnreadableSlice` for a group that is there twice."""
    found: dict[str, Any] = {"facts": {}}
    for tag in _GROUPS:
        groups = _items(item, tag)
        if len(groups) > 1:
            raise _contradiction(f"the group ({tag >> 16:04X},{tag & 0xFFFF:04X}) has {len(groups):,} items, not one")
        for group in groups:
            found |= by_pydicom.texts_of(group)
            found["facts"] |= by_pydicom.facts_of(group)
            if _FRAME_TYPE in group:
                found["ImageType"] = by_pydicom.text_of(group, _FRAME_TYPE)
            if tag == _RESCALE:
                _check_unit(group)
    return found


def _check_unit(group: Any) -> None:
    """Refuse values of another unit than HU, such as the densities of a multi-energy scan (PS3.3 C.11.1.1.2)."""
    unit = by_pydicom.text_of(group, _RESCALE_TYPE).strip().upper() if _RESCALE_TYPE in group else ""
    if unit not in ("", "HU", "US"):  # US: unspecified
        shown = unit if len(unit) <= 16 and unit.replace("_", "").isalnum() else f"of {len(unit):,} characters"
        raise UnsupportedSlice("no_rescale", f"RescaleType is {shown}, so stored values give no HU (PS3.3 C.11.1.1.2)")


def _contradiction(fact: str) -> UnreadableSlice:
    return UnreadableSlice("bad_frames", f"{fact} (PS3.3 C.7.6.16)")
