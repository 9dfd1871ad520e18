"""Files of many slices for tests, and the single-frame files that they are made from: enhanced CT, NIfTI.

A head is HU int16 [slices, rows, columns] from feet to head, rows from front to back, columns from the patient's right.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"
SPACING_MM, STEP_MM = (0.5, 0.7), 5.0
CORNER_MM = (-110.0, -130.0, 20.0)

Hu = npt.NDArray[np.int16]


def head(slices: int = 6, rows: int = 40, columns: int = 48, seed: int = 0) -> Hu:
    """A made-up head, not alike in any direction: air, a ramp of tissue, a bright corner, noise."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.arange(rows), 2 * np.arange(columns)) * 1200 // (rows + 2 * columns)
    hu = ramp[None] + 17 * np.arange(slices)[:, None, None] + rng.integers(-15, 16, (slices, rows, columns))
    hu[:, :6], hu[:, :, -5:], hu[:, 8:12, 6:10] = -1000, -1000, 1900
    return hu.astype(np.int16)


def place_mm(number: int) -> tuple[float, float, float]:
    """ImagePositionPatient of a slice of `head`."""
    return (*CORNER_MM[:2], CORNER_MM[2] + STEP_MM * number)


def single_files(hu: Hu, name: str = "1.2.3.77", **fields: Any) -> list[bytes]:
    """One plain DICOM file a slice of `head`, as they are made into a volume."""
    ids = {"patient_id": "someone", "study_uid": f"{name}.1", "series_uid": f"{name}.2"} | fields
    made = []
    for number, one in enumerate(hu):
        header = SliceFields(
            f"{name}.3.{number + 1}", position_mm=place_mm(number), spacing_mm=SPACING_MM, intercept=0.0, **ids
        )
        made.append(dicom_bytes(one, header))
    return made


def enhanced(
    hu: Hu,
    *,
    rescale: Sequence[tuple[float, float]] = ((1.0, -1024.0),),
    order: Sequence[int] = (),
    uid: str = "1.2.3.77.3",
    shared: Sequence[str] = ("orientation", "measures"),
    **changes: Any,
) -> Dataset:
    """Enhanced CT of a head; a frame for each slice in `order`, its rescale (slope, intercept) by turns.

    `shared`: which groups stand once for all frames. `changes`: elements at the top.
    """
    order = order or range(len(hu))
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = ENHANCED, uid, "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.AccessionNumber = "someone", "Doe^Jane", "19700101", "A77"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.77.1", "1.2.3.77.2"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.NumberOfFrames = 1, "MONOCHROME2", len(order)
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = *hu.shape[1:], 16, 16, 15
    ds.PixelRepresentation = 1
    one, frames, cells = Dataset(), [Dataset() for _ in order], []
    for at, number in enumerate(order):
        slope, intercept = rescale[at % len(rescale)]
        groups: dict[str, tuple[str, dict[str, Any]]] = {
            "measures": ("PixelMeasuresSequence", {"PixelSpacing": list(SPACING_MM), "SliceThickness": STEP_MM}),
            "position": ("PlanePositionSequence", {"ImagePositionPatient": list(place_mm(number))}),
            "orientation": ("PlaneOrientationSequence", {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}),
            "rescale": (
                "PixelValueTransformationSequence",
                {"RescaleIntercept": intercept, "RescaleSlope": slope, "RescaleType": "HU"},
            ),
        }
        for kind, (keyword, values) in groups.items():
            setattr(one if kind in shared else frames[at], keyword, [_item(values)])
        cells.append(np.rint((hu[number].astype(np.float64) - intercept) / slope).astype(np.int16))
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [one], frames
    ds.PixelData = np.stack(cells).astype("<i2").tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    return ds


def _item(values: dict[str, Any]) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def written(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The file of an enhanced data set in a native transfer syntax."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ENHANCED, ds.SOPInstanceUID
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def compressed(ds: Dataset, syntax: str, streams: Sequence[bytes], table: str = "basic") -> bytes:
    """The same, with a codestream a frame; `table`: basic, extended, or none."""
    if table == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(list(streams))
    else:
        ds.PixelData = encapsulate(list(streams), has_bot=table == "basic")
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return written(ds, syntax)


def frames_of(ds: Dataset) -> Hu:
    """Stored values [frames, rows, columns] of a native data set in little endian."""
    return np.frombuffer(ds.PixelData, "<i2").reshape(ds.NumberOfFrames, ds.Rows, ds.Columns)


def nifti(
    hu: Hu, axes: str = "RAS", kind: str = "int16", packed: bool = False, scale: tuple[float, float] | None = None,
    turn: npt.NDArray[np.float64] | None = None,
) -> bytes:  # fmt: skip
    """A NIfTI volume of a head, stored along these axes; `turn` [3, 3] turns it all (of mm in NIfTI's axes).

    `scale`: scl_slope and scl_inter.
    """
    import nibabel
    from nibabel import orientations

    # [columns, rows, slices] of DICOM run to L, P, S; mm in NIfTI's axes are those of DICOM with x and y turned round
    voxels = hu.transpose(2, 1, 0)
    affine = np.diag([-SPACING_MM[1], -SPACING_MM[0], STEP_MM, 1.0])
    affine[:3, 3] = [-CORNER_MM[0], -CORNER_MM[1], CORNER_MM[2]]
    if turn is not None:
        affine[:3] = turn @ affine[:3]
    change = orientations.ornt_transform(orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt(tuple(axes)))
    affine = affine @ orientations.inv_ornt_aff(change, voxels.shape)
    stored = orientations.apply_orientation(voxels, change).astype(np.float64)
    slope, inter = scale or (1.0, 0.0)
    if scale:
        stored = (stored - inter) / slope
    cells = stored.astype(kind) if np.dtype(kind).kind == "f" else np.rint(stored).astype(kind)
    made = nibabel.Nifti1Image(cells, affine)
    made.header.set_xyzt_units("mm")
    if scale:
        made.header["scl_slope"], made.header["scl_inter"] = scale
        raw = made.header.copy()
        raw.set_data_offset(352)
        data = raw.binaryblock + bytes(4) + cells.tobytes(order="F")
    else:
        data = made.to_bytes()
    return _gzipped(data) if packed else data


def _gzipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, 1, mtime=0)


DEFLATED, BIG, LITTLE = DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
