"""Phantom head-CT studies in the layout of the RSNA 2019 intracranial-hemorrhage data: DICOM, CSV, zip.

    python -m ich_tfrecords.synthetic --output data/phantom --patients 40

Every byte is a function of the arguments. The layout, the 22 elements of a header and the planted defects
follow the stage-2 download of the Kaggle competition; the images come from `phantom`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import inspect
import math
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ich_tfrecords.phantom import (
    SIDE_PX,
    Array,
    Head,
    Phantom,
    Textures,
    draw_bleed,
    draw_head,
    draw_textures,
)

RSNA_LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
ZIP_NAME = "rsna-intracranial-hemorrhage-detection.zip"
_PREFIX = "rsna-intracranial-hemorrhage-detection/"
_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_IMPLEMENTATION = "2.25.196420071895321104227803"


class SyntheticError(ValueError):
    """Arguments that give no data set; the message names the value and what to do."""


@dataclasses.dataclass(frozen=True)
class SliceFields:
    """Header values of one slice. Rows, columns and pixels come from the array beside it.

    `position_mm` and `orientation` are ImagePositionPatient and ImageOrientationPatient (PS3.3 C.7.6.2.1.1),
    `spacing_mm` is PixelSpacing: between rows, then between columns.
    """

    sop_uid: str = "ID_000000001"
    patient_id: str = "ID_00000001"
    study_uid: str = "ID_0000000001"
    series_uid: str = "ID_0000000002"
    study_id: str = ""
    modality: str = "CT"
    photometric: str = "MONOCHROME2"
    position_mm: tuple[float, float, float] = (-125.0, -125.0, 0.0)
    orientation: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    spacing_mm: tuple[float, float] = (0.488281, 0.488281)
    bits_stored: int = 16
    signed: bool = True
    window_center: tuple[float, ...] = (40.0,)
    window_width: tuple[float, ...] = (80.0,)
    intercept: float = -1024.0
    slope: float = 1.0


def dicom_bytes(stored: np.ndarray, header: SliceFields, explicit_vr: bool = True) -> bytes:
    """One DICOM file (PS3.10 section 7.1) with the 22 elements of an RSNA slice, little endian.

    `stored` is int16 or uint16 [rows, columns] and is written as it is, bits above `bits_stored` included.
    The file meta group is explicit VR either way. Raises `ValueError` for another shape or dtype.
    """
    if stored.ndim != 2 or stored.dtype not in (np.int16, np.uint16):
        raise ValueError(f"stored is {stored.dtype}{list(stored.shape)}; give int16 or uint16 [rows, columns]")
    meta = _file_meta(header.sop_uid, explicit_vr)
    pixels = stored.astype("<u2" if stored.dtype == np.uint16 else "<i2", copy=False).tobytes()
    elements = _elements(header, stored.shape, pixels)
    return b"".join([meta, *(part for element in elements for part in _encoded(*element, explicit_vr))])


_Value = str | int | bytes | Sequence[float]


def _elements(header: SliceFields, shape: tuple[int, ...], pixels: bytes) -> list[tuple[int, str, _Value]]:
    return [
        (0x00080018, "UI", header.sop_uid),
        (0x00080060, "CS", header.modality),
        (0x00100020, "LO", header.patient_id),
        (0x0020000D, "UI", header.study_uid),
        (0x0020000E, "UI", header.series_uid),
        (0x00200010, "SH", header.study_id),
        (0x00200032, "DS", header.position_mm),
        (0x00200037, "DS", header.orientation),
        (0x00280002, "US", 1),
        (0x00280004, "CS", header.photometric),
        (0x00280010, "US", shape[0]),
        (0x00280011, "US", shape[1]),
        (0x00280030, "DS", header.spacing_mm),
        (0x00280100, "US", 16),
        (0x00280101, "US", header.bits_stored),
        (0x00280102, "US", header.bits_stored - 1),
        (0x00280103, "US", int(header.signed)),
        (0x00281050, "DS", header.window_center),
        (0x00281051, "DS", header.window_width),
        (0x00281052, "DS", (header.intercept,)),
        (0x00281053, "DS", (header.slope,)),
        (0x7FE00010, "OW", pixels),
    ]


def _encoded(tag: int, vr: str, value: _Value, explicit_vr: bool) -> tuple[bytes, bytes]:
    """Head and padded value of one element (PS3.5 section 7.1)."""
    content = _value_bytes(vr, value)
    place = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit_vr:
        return place + struct.pack("<I", len(content)), content
    if vr in ("OB", "OW"):
        return place + vr.encode() + struct.pack("<HI", 0, len(content)), content
    return place + vr.encode() + struct.pack("<H", len(content)), content


def _value_bytes(vr: str, value: _Value) -> bytes:
    """Little-endian bytes of even length: UIDs are padded with NUL, other text with a space."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return struct.pack("<H" if vr == "US" else "<I", value)
    text = value if isinstance(value, str) else "\\".join(_decimal(number) for number in value)
    return (text + ("\0" if vr == "UI" else " ") * (len(text) % 2)).encode("ascii")


def _decimal(number: float) -> str:
    """Decimal string of at most 16 characters (PS3.5 table 6.2-1), with six places at most."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _file_meta(sop_uid: str, explicit_vr: bool) -> bytes:
    """Preamble, prefix and group 0002. Its SOP UID differs from the dataset's, as in the RSNA files."""
    instance = "2.25." + str(int.from_bytes(hashlib.blake2b(sop_uid.encode(), digest_size=15).digest(), "big"))
    elements: list[tuple[int, str, _Value]] = [
        (0x00020001, "OB", b"\0\1"),
        (0x00020002, "UI", _CT_IMAGE),
        (0x00020003, "UI", instance),
        (0x00020010, "UI", _EXPLICIT if explicit_vr else _IMPLICIT),
        (0x00020012, "UI", _IMPLEMENTATION),
        (0x00020013, "SH", "ICH_TFRECORDS"),
    ]
    group = b"".join(part for element in elements for part in _encoded(*element, True))
    return b"".join([bytes(128), b"DICM", *_encoded(0x00020000, "UL", len(group), True), group])


@dataclasses.dataclass(frozen=True)
class Defect:
    """One planted defect: its name, the file or image it sits in, and what a reader will see."""

    name: str
    file: str
    detail: str


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


@dataclasses.dataclass(frozen=True)
class _Scanner:
    """How a scanner stores its slices; `ring` if it marks what lies outside the scan circle."""

    bits_stored: int
    signed: bool
    intercept: int
    ring: bool
    window_center: tuple[float, ...]
    window_width: tuple[float, ...]


_RING = _Scanner(16, True, -1024, True, (30.0,), (80.0,))
_PLAIN = _Scanner(16, True, -1024, False, (40.0,), (100.0,))
_UNSIGNED = _Scanner(12, False, -1024, False, (36.0, 36.0), (80.0, 80.0))
_UNSIGNED_1000 = _Scanner(12, False, -1000, False, (40.0, 600.0), (80.0, 2800.0))
_SIGNED = _Scanner(12, True, 0, False, (40.0, 40.0), (80.0, 80.0))
_RING_STORED = -2000


@dataclasses.dataclass(frozen=True)
class _Study:
    number: int
    split: str
    patient_id: str
    study_uid: str
    series_uid: str
    first_slice: int
    slices: int
    scanner: _Scanner
    explicit_vr: bool
    labels: tuple[str, ...]


# Share of the first bleed among the studies that bleed, and the chance of each companion; set so that the
# prevalences of the RSNA labels come out at the default positive fraction.
_FIRST = {
    "epidural": 0.04,
    "subdural": 0.31,
    "intraparenchymal": 0.38,
    "subarachnoid": 0.22,
    "intraventricular": 0.05,
}
_COMPANIONS = {
    "subdural": {"subarachnoid": 0.25, "intraparenchymal": 0.15},
    "intraparenchymal": {"intraventricular": 0.6, "subarachnoid": 0.2},
    "subarachnoid": {"intraventricular": 0.3, "subdural": 0.2},
    "intraventricular": {},
    "epidural": {"subarachnoid": 0.2},
}


@dataclasses.dataclass(frozen=True)
class _Ids:
    """Ids that look random and never repeat: a seeded odd step through all numbers of so many digits."""

    seed: int

    def make(self, kind: str, digits: int, number: int) -> str:
        seed_bytes = hashlib.blake2b(f"{self.seed}/{kind}".encode(), digest_size=16).digest()
        step, start = int.from_bytes(seed_bytes[:8], "big") | 1, int.from_bytes(seed_bytes[8:], "big")
        return f"ID_{(start + step * number) % 16**digits:0{digits}x}"

    def sop(self, number: int) -> str:
        return self.make("sop", 9, number)


def _plan(
    patients: int,
    test_patients: int,
    slices_per_study: int,
    seed: int,
    positive_fraction: float,
    every_label: bool,
) -> list[_Study]:
    """Every study, train before test, with its ids, scanner and bleeds; nothing is drawn yet."""
    rng, ids = np.random.default_rng([seed, 1]), _Ids(seed)
    studies: list[_Study] = []
    for split, first, count in (("train", 0, patients), ("test", patients, test_patients)):
        owners = [first + patient for patient in range(count) for _ in range(1 + int(rng.random() < 0.15))]
        labels = _deal_labels(len(owners), rng, positive_fraction, every_label)
        scanners = _deal_scanners(len(owners), rng)
        for owner, bleeds, (scanner, explicit) in zip(owners, labels, scanners):
            number = len(studies)
            spread = slices_per_study // 8
            study = _Study(
                number,
                split,
                ids.make("patient", 8, owner),
                ids.make("study", 10, number),
                ids.make("series", 10, number),
                first_slice=studies[-1].first_slice + studies[-1].slices if studies else 0,
                slices=slices_per_study + int(rng.integers(-spread, spread + 1)),
                scanner=scanner,
                explicit_vr=explicit,
                labels=bleeds,
            )
            studies.append(study)
    return studies


def _deal_labels(
    studies: int, rng: np.random.Generator, positive_fraction: float, every_label: bool
) -> list[tuple[str, ...]]:
    """Labels of the bleeds of each study; quotas, not luck, so that small sets keep the proportions."""
    dealt: list[dict[str, None]] = [{} for _ in range(studies)]
    positives = min(studies, max(round(positive_fraction * studies), int(every_label)))
    where = rng.permutation(studies)[:positives]
    for turn, label in enumerate(_first_labels(positives, every_label)):
        bleeds = dealt[where[turn % positives]]
        bleeds[label] = None
        for companion, chance in _COMPANIONS[label].items():
            if rng.random() < chance:
                bleeds[companion] = None
    return [tuple(bleeds) for bleeds in dealt]


def _first_labels(positives: int, every_label: bool) -> list[str]:
    """First label of each study that bleeds, in the proportions of `_FIRST` or, with `every_label`, in turn."""
    names = list(_FIRST)
    if every_label and positives:
        return [names[turn % len(names)] for turn in range(max(positives, len(names)))]
    points = (np.arange(positives) + 0.5) / max(positives, 1)
    return [names[place] for place in np.searchsorted(np.cumsum(list(_FIRST.values()))[:-1], points)]


def _deal_scanners(studies: int, rng: np.random.Generator) -> list[tuple[_Scanner, bool]]:
    """Scanner and explicit VR of each study: about 4% are 12-bit; from four studies on, each kind occurs."""
    least = int(studies >= 4)
    unsigned = max(round(0.035 * studies), least)
    signed = max(round(0.005 * studies), least)
    kinds = [_UNSIGNED_1000 if turn % 2 else _UNSIGNED for turn in range(unsigned)] + [_SIGNED] * signed
    kinds += [_PLAIN if turn % 3 == 0 else _RING for turn in range(studies - len(kinds))]
    implicit = set(rng.permutation(studies)[: max(round(0.2 * studies), least)].tolist())
    return [(kinds[place], int(place) not in implicit) for place in rng.permutation(studies)]


class _Pose:
    """Where the slices and bleeds of one study lie."""

    def __init__(self, study: _Study, seed: int) -> None:
        rng = np.random.default_rng([seed, 2, study.number])
        self.study, self.ids = study, _Ids(seed)
        self.head: Head = draw_head(rng)
        self.step_mm = min(150.0 / study.slices, 12.0)
        places = np.arange(study.slices) - (study.slices - 1) / 2
        self.heights_mm: Array = (50 + rng.uniform(-2, 2) + self.step_mm * places).astype(np.float32)
        self.bleeds = tuple(draw_bleed(label, self.heights_mm, rng) for label in study.labels)
        self.tilt_rad = math.radians(float(rng.choice([0.0, 0.0, rng.uniform(-22, 5)])))
        self.origin_mm = rng.uniform(-150, 50, 3)

    @property
    def centres(self) -> set[int]:
        """Indices of the slices on which a bleed is centred, so surely positive."""
        return {int(np.argmin(np.abs(self.heights_mm - bleed.centre_mm[2]))) for bleed in self.bleeds}

    def fields(self, index: int) -> SliceFields:
        """Header of a slice, counted from below."""
        study, scanner = self.study, self.study.scanner
        cos, sin = math.cos(self.tilt_rad), math.sin(self.tilt_rad)
        x, y, z = self.origin_mm + index * self.step_mm * np.array([0, sin, cos])
        return SliceFields(
            sop_uid=self.ids.sop(study.first_slice + index),
            patient_id=study.patient_id,
            study_uid=study.study_uid,
            series_uid=study.series_uid,
            position_mm=(float(x), float(y), float(z)),
            orientation=(1.0, 0.0, 0.0, 0.0, cos, -sin),
            spacing_mm=(self.head.pixel_mm, self.head.pixel_mm),
            bits_stored=scanner.bits_stored,
            signed=scanner.signed,
            window_center=scanner.window_center,
            window_width=scanner.window_width,
            intercept=float(scanner.intercept),
        )


class _Artist:
    """Draws the slices of a study; each slice depends on its own number only."""

    def __init__(self, study: _Study, seed: int, textures: Textures) -> None:
        self.study, self.seed, self.pose = study, seed, _Pose(study, seed)
        self.phantom = Phantom(self.pose.head, textures)
        self.outside = _outside_circle()

    def draw(self, index: int) -> tuple[np.ndarray, SliceFields, tuple[int, ...]]:
        """Stored values int16 or uint16 [512, 512], header, and labels of a slice, counted from below."""
        rng = np.random.default_rng([self.seed, 3, self.study.first_slice + index])
        hu, found = self.phantom.render(float(self.pose.heights_mm[index]), self.pose.bleeds, rng)
        labels = tuple(int(name in found or (name == "any" and bool(found))) for name in RSNA_LABELS)
        stored = _stored(hu, self.study.scanner)
        if self.study.scanner.ring:
            stored[self.outside] = _RING_STORED
        return stored, self.pose.fields(index), labels


def _stored(hu: Array, scanner: _Scanner) -> np.ndarray:
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


_SPOILED = {
    "truncated": "PixelData holds 153,710 of 524,288 bytes",
    "noisy_rows": "noise from row 333 down",
    "constant": "every pixel has the same value",
    "wrapped_12bit": "12-bit unsigned, RescaleIntercept 0, stored values wrapped at 4096",
    "not_square": "462 rows by 512 columns",
}


def _spoiled(name: str, stored: np.ndarray, fields: SliceFields, explicit: bool, rng: np.random.Generator) -> bytes:
    """The DICOM file of a slice with the defect `name` of `_SPOILED`."""
    if name == "truncated":
        return dicom_bytes(stored, fields, explicit)[: 153_710 - 2 * stored.size]
    if name == "noisy_rows":
        bits = rng.integers(0, 1 << 16, stored[333:].shape, dtype=np.uint16)
        stored = np.concatenate([stored[:333], bits.view(stored.dtype)])
    elif name == "constant":
        stored = np.zeros_like(stored)
    elif name == "wrapped_12bit":
        hu = np.clip(stored.astype(np.int32) + int(fields.intercept), -1000, 3095)
        stored = (hu % 4096).astype(np.uint16)
        fields = dataclasses.replace(fields, bits_stored=12, signed=False, intercept=0.0)
    else:
        stored = stored[25:487]
    return dicom_bytes(stored, fields, explicit)


@dataclasses.dataclass(frozen=True)
class _DefectPlan:
    """Which slice, by its number in the plan, carries which defect.

    `twin` gets the pixels of `source`, a slice of another patient. The labels of `repeated` stand twice in
    the CSV, those of `unlabelled` not at all.
    """

    spoiled: dict[int, str]
    twin: int
    source: int
    repeated: tuple[int, ...]
    unlabelled: int


def _plan_defects(studies: Sequence[_Study], seed: int) -> _DefectPlan:
    """A train slice for each defect, never one that a bleed is centred on: every label stays to be found."""
    free: list[int] = []
    centres: list[int] = []
    owner: dict[int, str] = {}
    for study in studies:
        middle = _Pose(study, seed).centres if study.split == "train" else set()
        for index in range(study.slices if study.split == "train" else 0):
            owner[study.first_slice + index] = study.patient_id
            (centres if index in middle else free).append(study.first_slice + index)
    free = np.random.default_rng([seed, 4]).permutation(np.array(free, dtype=np.int64)).tolist()
    needed = len(_SPOILED) + 6
    if len(free) < needed or len(set(owner.values())) < 2:
        raise SyntheticError(
            f"defects need 2 train patients and {needed} slices that no bleed is centred on; here are"
            f" {len(set(owner.values()))} and {len(free)}: ask for more patients or slices"
        )
    twin, *free = free
    spoiled = dict(zip(free, _SPOILED))
    rest = free[len(spoiled) :]
    source = next((number for number in centres + free if owner[number] != owner[twin]), None)
    if source is None:
        raise SyntheticError("defects need slices of a second train patient: ask for more slices")
    return _DefectPlan(spoiled, twin, source, tuple(rest[:4]), rest[4])


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


def _check(
    patients: int,
    test_patients: int,
    slices_per_study: int,
    seed: int,
    positive_fraction: float,
    every_label: bool,
) -> None:
    if patients < 1 or slices_per_study < 1:
        raise SyntheticError(f"patients is {patients}, slices_per_study {slices_per_study}: each must be 1 or more")
    if test_patients < 0 or seed < 0:
        raise SyntheticError(f"test_patients is {test_patients}, seed {seed}: neither may be negative")
    if not 0 <= positive_fraction <= 1:
        raise SyntheticError(f"positive_fraction is {positive_fraction}: it must lie between 0 and 1")
    if every_label and positive_fraction == 0:
        raise SyntheticError("every_label needs studies that bleed, and positive_fraction is 0: raise it")


def _make_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SyntheticError(f"{output} exists and is not an empty directory: name another or remove it")
    output.mkdir(parents=True, exist_ok=True)


def _write_slices(
    sink: _Folder | _Zip,
    studies: Sequence[_Study],
    seed: int,
    flaws: _DefectPlan | None,
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
                content = _spoiled(flaws.spoiled[number], stored, fields, study.explicit_vr, rng)
            sink.write(f"stage_2_{study.split}/{fields.sop_uid}.dcm", content)
            yield MadeSlice(fields.sop_uid, study.patient_id, study.study_uid, study.split, labels)
            if progress is not None:
                progress(number + 1, total)


def _draw_twin(
    studies: Sequence[_Study], source: int, seed: int, textures: Textures, twin: SliceFields
) -> tuple[np.ndarray, SliceFields, tuple[int, ...]]:
    """Pixels and header of `source` under the ids and place of `twin`, with labels that contradict it."""
    study = next(study for study in studies if source < study.first_slice + study.slices)
    stored, fields, labels = _Artist(study, seed, textures).draw(source - study.first_slice)
    names = ("sop_uid", "patient_id", "study_uid", "series_uid", "position_mm", "orientation")
    own = {name: getattr(twin, name) for name in names}
    conflicting = (0,) * 6 if labels[-1] else tuple(int(name in ("subdural", "any")) for name in RSNA_LABELS)
    return stored, dataclasses.replace(fields, **own), conflicting


def _write_tables(
    sink: _Folder | _Zip, slices: Sequence[MadeSlice], flaws: _DefectPlan | None, seed: int
) -> tuple[Defect, ...]:
    """Write the labels and the sample submission, sorted by id; returns the planted defects."""
    left_out = flaws.unlabelled if flaws else None
    train = [made for number, made in enumerate(slices) if made.split == "train" and number != left_out]
    labelled = sorted((made.sop_uid, made.labels) for made in train)
    planted: tuple[Defect, ...] = ()
    if flaws is not None:
        names, planted = _plant_files(sink, slices, flaws, seed)
        repeated = [(slices[number].sop_uid, slices[number].labels) for number in flaws.repeated]
        labelled = sorted([*labelled, *((name, (0,) * 6) for name in names)]) + repeated
    rows = [f"{sop}_{name},{value}" for sop, labels in labelled for name, value in zip(RSNA_LABELS, labels)]
    test = sorted(made.sop_uid for made in slices if made.split == "test")
    sink.write("stage_2_train.csv", _lines(["ID,Label", *rows]))
    asked = [f"{sop}_{name},0.5" for sop in test for name in RSNA_LABELS]
    sink.write("stage_2_sample_submission.csv", _lines(["ID,Label", *asked]))
    return planted


def _plant_files(
    sink: _Folder | _Zip, slices: Sequence[MadeSlice], flaws: _DefectPlan, seed: int
) -> tuple[list[str], tuple[Defect, ...]]:
    """Write the two files that are no DICOM. Returns three ids to be labelled besides, and every defect."""
    empty, text, absent = (_Ids(seed).sop(len(slices) + extra) for extra in range(3))
    sink.write(f"stage_2_train/{empty}.dcm", b"")
    sink.write(f"stage_2_train/{text}.dcm", b"This file is not DICOM.\n")
    sops = [made.sop_uid for made in slices]
    source, twin = sops[flaws.source], sops[flaws.twin]
    planted = [Defect(name, f"{sops[number]}.dcm", _SPOILED[name]) for number, name in flaws.spoiled.items()]
    planted += [
        Defect("identical_pixels", f"{source}.dcm", f"same pixels as {twin}.dcm of another patient"),
        Defect("identical_pixels", f"{twin}.dcm", f"same pixels as {source}.dcm; its labels contradict"),
        *(Defect("repeated_labels", f"{sops[n]}.dcm", "its six label rows stand twice") for n in flaws.repeated),
        Defect("empty_file", f"{empty}.dcm", "0 bytes"),
        Defect("text_file", f"{text}.dcm", "text, not DICOM"),
        Defect("no_labels", f"{sops[flaws.unlabelled]}.dcm", "no label rows"),
        Defect("no_slice", f"{absent}.dcm", "label rows without a file"),
    ]
    return [empty, text, absent], tuple(planted)


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
    zip_archive: bool = False,
    defects: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a phantom data set in RSNA layout under `output` and return what it holds.

    `positive_fraction` of the studies bleed; with `every_label` the five labels go round, so each occurs in
    train and in test. With `zip_archive` everything but defects.csv lies in one zip. `progress` is
    called with the slices done and to do. Raises `SyntheticError` for arguments that give no data set and
    when `output` is not empty.
    """
    _check(patients, test_patients, slices_per_study, seed, positive_fraction, every_label)
    studies = _plan(patients, test_patients, slices_per_study, seed, positive_fraction, every_label)
    flaws = _plan_defects(studies, seed) if defects else None
    output = Path(output)
    _make_empty(output)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status of the command line: 0 done, 1 the disk failed, 2 wrong use, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    options = {name: value for name, value in vars(arguments).items() if name != "output"}
    try:
        summary = generate(arguments.output, **options, progress=_Progress(sys.stderr.isatty()))
    except SyntheticError as error:
        print(f"synthetic: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"synthetic: interrupted; {arguments.output} is incomplete, remove it", file=sys.stderr)
        return 130
    except OSError as error:
        print(
            f"synthetic: cannot write {arguments.output}: {error}; what is there is incomplete",
            file=sys.stderr,
        )
        return 1
    shares = ", ".join(f"{label} {100 * summary.fraction(label):.1f}%" for label in RSNA_LABELS)
    print(f"{summary.count('train')} train and {summary.count('test')} test slices in {summary.output}: {shares}")
    for defect in summary.defects:
        print(f"planted {defect.name}: {defect.file}: {defect.detail}")
    return 0


class _Progress:
    """One line on standard error, redrawn each second on a terminal and written every 30 s elsewhere."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.begun = terminal, time.monotonic()
        self.every_s = 1.0 if terminal else 30.0
        self.shown = self.begun

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.shown < self.every_s and not (self.terminal and done == total):
            return
        self.shown = now
        rate = done / (now - self.begun)
        line = f"{done:,} of {total:,} slices, {rate:.0f} slices/s, {(total - done) / rate:.0f} s left"
        print(f"\r{line:<70}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr)
        if self.terminal and done == total:
            print(file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ich_tfrecords.synthetic",
        description="Write phantom head-CT studies with labelled bleeds, in the layout of the RSNA 2019 data: "
        "stage_2_train/*.dcm, stage_2_test/*.dcm, stage_2_train.csv, stage_2_sample_submission.csv.",
        epilog="The same arguments give the same bytes. A slice takes 0.5 MB, about 0.2 MB with --zip; the "
        "defaults make some 1,700 slices. Example: --output data/tiny --patients 6 --slices_per_study 5 "
        "--test_patients 1 --every_label",
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make; it must be empty")
    parser.add_argument("--patients", type=int, help="train patients, 1 or 2 studies each (%(default)s)")
    parser.add_argument("--test_patients", type=int, help="patients of the unlabelled test set (%(default)s)")
    parser.add_argument("--slices_per_study", type=int, help="give or take an eighth (%(default)s)")
    parser.add_argument("--seed", type=int, help="another seed, other heads (%(default)s)")
    parser.add_argument(
        "--positive_fraction",
        type=float,
        help="part of the studies that bleed; %(default)s has about the prevalences of RSNA",
    )
    parser.add_argument("--every_label", action="store_true", help="let the five labels go round, so each occurs")
    parser.add_argument("--zip", dest="zip_archive", action="store_true", help=f"write one {ZIP_NAME} instead")
    parser.add_argument(
        "--defects",
        action="store_true",
        help="plant each defect known of the RSNA data; defects.csv lists them",
    )
    options = inspect.signature(generate).parameters
    parser.set_defaults(**{name: options[name].default for name in options if name not in ("output", "progress")})
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
