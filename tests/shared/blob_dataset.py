"""A data set whose labels can be learned in seconds: a noisy disc for each kind of hemorrhage, at RSNA's rates.

Slices are 32 px DICOM files converted to 16 px, without Beam. The discs are faint, so no model is ever sure.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dicom_files import dicom_file, slice_elements
from odd_dataset import convert

from ich_tfrecords import spec
from ich_tfrecords.labels.table import LabelTable, read_labels

SIDE_PX = 32
RATES = (0.03, 0.05, 0.04, 0.05, 0.06)  # of the labels other than any; epidural is rarer at RSNA
BRAIN_HU, NOISE_HU, BLEED_HU = 30, 6, 16


Found = npt.NDArray[np.bool_]
Draw = Callable[[np.random.Generator, int], tuple[Found, Found]]


def one_by_one(rng: np.random.Generator, slices: int) -> tuple[Found, Found]:
    """What is shown and what is true in the slices of a patient, bool [slices, kinds] both: each slice by itself."""
    found = rng.random((slices, len(RATES))) < RATES
    return found, found


def in_runs(rng: np.random.Generator, slices: int) -> tuple[Found, Found]:
    """Bleeds go through three slices, and discs of one slice alone are none: only the neighbours tell them apart."""
    starts = rng.random((slices, len(RATES))) < np.array(RATES) / 2
    true = starts | np.roll(starts, 1, 0) | np.roll(starts, 2, 0)
    near = true | np.roll(true, 1, 0) | np.roll(true, -1, 0)
    return true | ((rng.random(true.shape) < 2 * np.array(RATES)) & ~near), true


def make(
    output: Path, patients: int, slices_a_patient: int = 20, seed: int = 0, draw: Draw = one_by_one, first: int = 0
) -> Path:
    """A converted data set, and beside it `<name>-dicom` with the files it was made from; patients from `first` on."""
    rng = np.random.default_rng(seed)
    data_spec = small_spec()
    source = output.parent / f"{output.name}-dicom"
    source.mkdir(parents=True)
    rows = []
    for patient in range(first, first + patients):
        shown, true = draw(rng, slices_a_patient)
        for number in range(slices_a_patient):
            uid = f"ID_{patient:04d}{number:02d}"
            rows.append((uid, true[number]))
            (source / f"{uid}.dcm").write_bytes(dicom(uid, patient, number, image_hu(shown[number], rng)))
    return convert(source, output, data_spec, label_table(rows, data_spec))


def second_hospital(output: Path, blobs: Path, kept: int = 10**6) -> Path:
    """The slices of a data set of `make` once more, of the first `kept` patients; known of each study alone.

    Made without Beam, as the converter leaves a data set whose labels are those of studies: each was read by three, who
    are of one mind but in every fifth study.
    """
    known = pq.read_table(blobs / "slices.parquet")
    source = output.parent / f"{output.name}-dicom"
    source.mkdir()
    for file in sorted((blobs.parent / f"{blobs.name}-dicom").iterdir()):
        if int(file.stem[3:7]) < kept:
            shutil.copy(file, source / file.name)
    convert(source, output, small_spec(), None)
    here = set(pq.read_table(output / "slices.parquet")["study_uid"].to_pylist())
    names = small_spec().labels.names
    studies = known.group_by("study_uid").aggregate([(name, "max") for name in names]).sort_by("study_uid")
    studies = studies.filter(pc.is_in(studies["study_uid"], value_set=pa.array(sorted(here))))
    table = pa.table({"study_uid": studies["study_uid"], **{name: studies[f"{name}_max"] for name in names}})
    table = table.append_column("readers", pa.array([3] * len(table), pa.int8()))
    for name in names:
        votes = [3 * value - (value * 2 - 1) * (row % 5 == 0) for row, value in enumerate(table[name].to_pylist())]
        table = table.append_column(f"{name}_votes", pa.array(votes, pa.int8()))
    add_studies(output, table)
    return output


def add_studies(dataset: Path, table: pa.Table) -> None:
    """Put `studies.parquet` into a data set that has none."""
    pq.write_table(table, dataset / "studies.parquet")
    digest = hashlib.sha256((dataset / "studies.parquet").read_bytes()).hexdigest()
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["files"]["studies.parquet"] = digest
    (dataset / "manifest.json").write_text(json.dumps(manifest))


def small_spec() -> spec.DatasetSpec:
    """The packaged spec at 16 px, with a third of the patients each for validation and test."""
    packaged = spec.load("rsna_ich")
    image = dataclasses.replace(packaged.image, size_px=16)
    weights = {"train": 3, "validation": 2, "test": 2}
    shards = dataclasses.replace(packaged.shards, min_shards=1)
    return dataclasses.replace(
        packaged, name="blobs", image=image, split=dataclasses.replace(packaged.split, weights=weights), shards=shards
    )


def image_hu(found: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """int16 [32, 32]: noise, and a disc at the place of each kind that is found."""
    rows, columns = np.mgrid[:SIDE_PX, :SIDE_PX]
    hu = rng.normal(BRAIN_HU, NOISE_HU, (SIDE_PX, SIDE_PX))
    for kind in np.flatnonzero(found):
        row, column = place_px(int(kind))
        hu += rng.normal(BLEED_HU, 5) * ((rows - row) ** 2 + (columns - column) ** 2 <= 9)
    return np.rint(hu).astype(np.int16)


def place_px(kind: int) -> tuple[int, int]:
    """Row and column of the middle of the disc of a kind, in the 32 px slice."""
    return (6, 16, 26, 6, 26)[kind], (6, 16, 26, 26, 6)[kind]


def dicom(uid: str, patient: int, number: int, hu: npt.NDArray[np.int16]) -> bytes:
    elements = slice_elements(
        hu + np.int16(1024),
        SOPInstanceUID=uid.encode(),
        PatientID=f"patient {patient}".encode(),
        StudyInstanceUID=f"study {patient}".encode(),
        SeriesInstanceUID=f"series {patient}".encode(),
        ImagePositionPatient=f"-125\\-120\\{number * 5}".encode(),
    )
    return dicom_file(elements)


def label_table(rows: list[tuple[str, npt.NDArray[np.bool_]]], data_spec: spec.DatasetSpec) -> LabelTable:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["ID", "Label"])
    for uid, found in rows:
        values = [found.any(), *found]
        writer.writerows([f"{uid}_{name}", int(value)] for name, value in zip(data_spec.labels.names, values))
    return read_labels(io.BytesIO(out.getvalue().encode()), data_spec.labels, "labels.csv")
