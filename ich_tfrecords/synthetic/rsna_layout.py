"""Phantom head-CT studies in the layout of the RSNA 2019 intracranial-hemorrhage data: DICOM, CSV, zip.

Every byte is a function of the arguments. The layout, the 22 elements of a header and the planted defects
follow the stage-2 download of the Kaggle competition; the images come from `phantom`.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.synthetic.confounders import FEWEST_SLICES
from ich_tfrecords.synthetic.defects import Defect, DefectPlan, plan_defects, plant_files, spoiled
from ich_tfrecords.synthetic.phantom import Phantom
from ich_tfrecords.synthetic.plan import Pose, Scanner, Study, SyntheticError, plan_studies
from ich_tfrecords.synthetic.textures import SIDE_PX, Textures, draw_textures
from ich_tfrecords.synthetic.tissue import Array

RSNA_LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
ZIP_NAME = "rsna-intracranial-hemorrhage-detection.zip"
_PREFIX = "rsna-intracranial-hemorrhage-detection/"


@dataclasses.dataclass(frozen=True)
class MadeSlice:
    """One slice file: its ids, split ("train" or "test"), and its labels (0 or 1 in `RSNA_LABELS` order)."""

    sop_uid: str
    patient_id: str
    study_uid: str
    split: str
    labels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `generate` wrote. `slices` leaves out the two planted files that hold no slice."""

    output: Path
    slices: tuple[MadeSlice, ...]
    defects: tuple[Defect, ...]

    def count(self, split: str) -> int:
        """Slices of a split."""
        return sum(made.split == split for made in self.slices)

    def fraction(self, label: str) -> float:
        """Part of all slices that is positive for `label`."""
        column = RSNA_LABELS.index(label)
        return sum(made.labels[column] for made in self.slices) / max(len(self.slices), 1)


_RING_STORED = -2000


class _Artist:
    """Draws the slices of a study; each slice depends on its own number only."""

    def __init__(self, study: Study, seed: int, textures: Textures) -> None:
        self.study, self.seed, self.pose = study, seed, Pose(study, seed)
        self.phantom = Phantom(self.pose.head, textures, self.pose.context)
        self.outside = _outside_circle()

    def draw(self, index: int) -> tuple[np.ndarray, SliceFields, tuple[int, ...]]:
        """Stored values int16 or uint16 [512, 512], header, and labels of a slice, counted from below."""
        rng = np.random.default_rng([self.seed, 3, self.study.first_slice + index])
        hu, found = self.phantom.render(float(self.pose.heights_mm[index]), self.pose.bleeds, rng)
        labels = tuple(int(name in found or (name == "any" and bool(found))) for name in RSNA_LABELS)
        stored = stored_values(hu, self.study.scanner)
        if self.study.scanner.ring:
            stored[self.outside] = _RING_STORED
        return stored, self.pose.fields(index), labels


def stored_values(hu: Array, scanner: Scanner) -> np.ndarray:
    """Stored values of `hu` float32[512,512], limited to what the scanner's bits hold."""
    least = -(1 << scanner.bits_stored - 1) if scanner.signed else 0
    most = least + (1 << scanner.bits_stored) - 1
    values = hu - np.float32(scanner.intercept)
    np.clip(values, max(least, -1024 - scanner.intercept), most, out=values)
    return np.rint(values, out=values).astype(np.int16 if scanner.signed else np.uint16)


def _outside_circle() -> npt.NDArray[np.bool_]:
    """bool[512,512]: pixels outside the scan circle that touches the four edges."""
    away = np.square(np.arange(SIDE_PX, dtype=np.float32) - np.float32((SIDE_PX - 1) / 2))
    return away[:, None] + away[None, :] > np.float32((SIDE_PX / 2) ** 2)


class _Folder:
    """Writes the files of the data set below a directory."""

    def __init__(self, output: Path) -> None:
        self.output = output
        for name in ("stage_2_train", "stage_2_test"):
            (output / name).mkdir(parents=True)

    def write(self, name: str, content: bytes) -> None:
        (self.output / name).write_bytes(content)

    def close(self) -> None:
        """Nothing is held open."""


class _Zip:
    """Writes the files into the Kaggle zip, with one fixed time so that equal sets have equal bytes."""

    def __init__(self, output: Path) -> None:
        self.archive = zipfile.ZipFile(output / ZIP_NAME, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

    def write(self, name: str, content: bytes) -> None:
        entry = zipfile.ZipInfo(_PREFIX + name, (2019, 11, 12, 0, 0, 0))
        entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
        self.archive.writestr(entry, content, compresslevel=1)

    def close(self) -> None:
        self.archive.close()


def check_arguments(
    patients: int,
    test_patients: int,
    slices_per_study: int,
    seed: int,
    positive_fraction: float,
    every_label: bool,
    context: bool,
) -> None:
    """Raise `SyntheticError` where the arguments give no data set."""
    if patients < 1 or slices_per_study < 1:
        raise SyntheticError(f"patients is {patients}, slices_per_study {slices_per_study}: each must be 1 or more")
    if test_patients < 0 or seed < 0:
        raise SyntheticError(f"test_patients is {test_patients}, seed {seed}: neither may be negative")
    if not 0 <= positive_fraction <= 1:
        raise SyntheticError(f"positive_fraction is {positive_fraction}: it must lie between 0 and 1")
    if every_label and positive_fraction == 0:
        raise SyntheticError("every_label needs studies that bleed, and positive_fraction is 0: raise it")
    if context and slices_per_study < FEWEST_SLICES:
        raise SyntheticError(
            f"context needs slices_per_study {FEWEST_SLICES} or more, so that a bleed goes through three, and it is"
            f" {slices_per_study}: raise it"
        )


def make_empty(output: Path) -> None:
    """Make the directory. Raises `SyntheticError` where something is there."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SyntheticError(f"{output} exists and is not an empty directory: name another or remove it")
    output.mkdir(parents=True, exist_ok=True)


def _write_slices(
    sink: _Folder | _Zip,
    studies: Sequence[Study],
    seed: int,
    flaws: DefectPlan | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[MadeSlice]:
    """Write every slice file, in the order of the plan, and yield what each holds."""
    textures = draw_textures(np.random.default_rng([seed, 0]))
    total = sum(study.slices for study in studies)
    for study in studies:
        artist = _Artist(study, seed, textures)
        for index in range(study.slices):
            number = study.first_slice + index
            stored, fields, labels = artist.draw(index)
            if flaws is not None and number == flaws.twin:
                stored, fields, labels = _draw_twin(studies, flaws.source, seed, textures, fields)
            content = dicom_bytes(stored, fields, study.explicit_vr)
            if flaws is not None and number in flaws.spoiled:
                rng = np.random.default_rng([seed, 5, number])
                content = spoiled(flaws.spoiled[number], stored, fields, study.explicit_vr, rng)
            sink.write(f"stage_2_{study.split}/{fields.sop_uid}.dcm", content)
            yield MadeSlice(fields.sop_uid, study.patient_id, study.study_uid, study.split, labels)
            if progress is not None:
                progress(number + 1, total)


def _draw_twin(
    studies: Sequence[Study], source: int, seed: int, textures: Textures, twin: SliceFields
) -> tuple[np.ndarray, SliceFields, tuple[int, ...]]:
    """Pixels and header of `source` under the ids and place of `twin`, with labels that contradict it."""
    study = next(study for study in studies if source < study.first_slice + study.slices)
    stored, fields, labels = _Artist(study, seed, textures).draw(source - study.first_slice)
    names = ("sop_uid", "patient_id", "study_uid", "series_uid", "position_mm", "orientation")
    own = {name: getattr(twin, name) for name in names}
    conflicting = (0,) * 6 if labels[-1] else tuple(int(name in ("subdural", "any")) for name in RSNA_LABELS)
    return stored, dataclasses.replace(fields, **own), conflicting


def _write_tables(
    sink: _Folder | _Zip, slices: Sequence[MadeSlice], flaws: DefectPlan | None, seed: int
) -> tuple[Defect, ...]:
    """Write the labels and the sample submission, sorted by id; returns the planted defects."""
    left_out = flaws.unlabelled if flaws else None
    train = [made for number, made in enumerate(slices) if made.split == "train" and number != left_out]
    labelled = sorted((made.sop_uid, made.labels) for made in train)
    planted: tuple[Defect, ...] = ()
    if flaws is not None:
        files, names, planted = plant_files([made.sop_uid for made in slices], flaws, seed)
        for name, content in files.items():
            sink.write(name, content)
        repeated = [(slices[number].sop_uid, slices[number].labels) for number in flaws.repeated]
        labelled = sorted([*labelled, *((name, (0,) * 6) for name in names)]) + repeated
    rows = [f"{sop}_{name},{value}" for sop, labels in labelled for name, value in zip(RSNA_LABELS, labels)]
    test = sorted(made.sop_uid for made in slices if made.split == "test")
    sink.write("stage_2_train.csv", _lines(["ID,Label", *rows]))
    asked = [f"{sop}_{name},0.5" for sop in test for name in RSNA_LABELS]
    sink.write("stage_2_sample_submission.csv", _lines(["ID,Label", *asked]))
    return planted


def _lines(rows: Sequence[str]) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def generate(
    output: Path | str,
    *,
    patients: int = 40,
    test_patients: int = 6,
    slices_per_study: int = 32,
    seed: int = 0,
    positive_fraction: float = 0.39,
    every_label: bool = False,
    context: bool = False,
    zip_archive: bool = False,
    defects: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a phantom data set in RSNA layout under `output` and return what it holds.

    `positive_fraction` of the studies bleed; with `every_label` the five labels go round, so each occurs in
    train and in test. With `context` slices show what only their neighbours tell from blood. With `zip_archive`
    everything but defects.csv lies in one zip. `progress` is called with the slices done and to do. Raises
    `SyntheticError` for arguments that give no data set and when `output` is not empty.
    """
    check_arguments(patients, test_patients, slices_per_study, seed, positive_fraction, every_label, context)
    studies = plan_studies(patients, test_patients, slices_per_study, seed, positive_fraction, every_label, context)
    flaws = plan_defects(studies, seed) if defects else None
    output = Path(output)
    make_empty(output)
    sink = _Zip(output) if zip_archive else _Folder(output)
    try:
        slices = tuple(_write_slices(sink, studies, seed, flaws, progress))
        planted = _write_tables(sink, slices, flaws, seed)
    finally:
        sink.close()
    if planted:
        rows = [f'{defect.name},{defect.file},"{defect.detail}"' for defect in planted]
        (output / "defects.csv").write_bytes(_lines(["defect,file,detail", *rows]))
    return Summary(output, slices, planted)
