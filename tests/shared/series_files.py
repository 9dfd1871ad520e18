"""Small studies of several series for tests: files by the name of their series."""

from __future__ import annotations

from pathlib import Path

from dicom_files import dicom_file, head_slice, slice_elements

from ich_tfrecords.dicom.header import FACTS

TAGS = {keyword: tag for tag, keyword in FACTS.items()}
NUMBERS = ("SliceThickness", "KVP", "GantryDetectorTilt")
IMAGE_TYPE = "ImageType"


def write_series(folder: Path, name: str, slices: int = 12, study: str = "study", **changes: bytes) -> None:
    """Write `FOLDER/STUDY_NAME_00.dcm` and so on; `changes`: elements by keyword, those of `FACTS` too."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {TAGS[key]: ("DS" if key in NUMBERS else "LO", value) for key, value in changes.items() if key in TAGS}
    others = {key: value for key, value in changes.items() if key not in TAGS}
    for index in range(slices):
        ids = {"SOPInstanceUID": f"{study}.{name}.{index}", "SeriesInstanceUID": name, "StudyInstanceUID": study}
        ids |= {"PatientID": f"patient of {study}", "ImagePositionPatient": f"0\\0\\{5 * index}"}
        values = {key: text.encode() for key, text in ids.items()} | others
        elements = slice_elements(head_slice(64, index), **values)
        (folder / f"{study}_{name}_{index:02d}.dcm").write_bytes(dicom_file(elements | own))
