"""Which patients, studies and slices a phantom data set has: ids, scanners and bleeds, dealt from a seed.

Nothing is drawn here: a plan is the same whether or not its pixels are ever made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

import numpy as np

from ich_tfrecords.dicom.writer import SliceFields
from ich_tfrecords.synthetic.bleeds import draw_bleed
from ich_tfrecords.synthetic.confounders import Context, draw_context
from ich_tfrecords.synthetic.phantom import Head, draw_head
from ich_tfrecords.synthetic.tissue import Array


class SyntheticError(ValueError):
    """Arguments that give no data set; the message names the value and what to do."""


@dataclasses.dataclass(frozen=True)
class Scanner:
    """How a scanner stores its slices; `ring` if it marks what lies outside the scan circle."""

    bits_stored: int
    signed: bool
    intercept: int
    ring: bool
    window_center: tuple[float, ...]
    window_width: tuple[float, ...]


RING = Scanner(16, True, -1024, True, (30.0,), (80.0,))
PLAIN = Scanner(16, True, -1024, False, (40.0,), (100.0,))
UNSIGNED = Scanner(12, False, -1024, False, (36.0, 36.0), (80.0, 80.0))
UNSIGNED_1000 = Scanner(12, False, -1000, False, (40.0, 600.0), (80.0, 2800.0))
SIGNED = Scanner(12, True, 0, False, (40.0, 40.0), (80.0, 80.0))


@dataclasses.dataclass(frozen=True)
class Study:
    """One study of the plan; `first_slice` counts the slices of all studies before it.

    `labels` are those of the bleeds to draw; a slice shows the ones that reach it. With `context` the head also
    has what only neighbouring slices tell from blood.
    """

    number: int
    split: str
    patient_id: str
    study_uid: str
    series_uid: str
    first_slice: int
    slices: int
    scanner: Scanner
    explicit_vr: bool
    labels: tuple[str, ...]
    context: bool


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
class Ids:
    """Ids that look random and never repeat: a seeded odd step through all numbers of so many digits."""

    seed: int

    def make(self, kind: str, digits: int, number: int) -> str:
        """Id `number` of a kind, with so many hexadecimal digits."""
        seed_bytes = hashlib.blake2b(f"{self.seed}/{kind}".encode(), digest_size=16).digest()
        step, start = int.from_bytes(seed_bytes[:8], "big") | 1, int.from_bytes(seed_bytes[8:], "big")
        return f"ID_{(start + step * number) % 16**digits:0{digits}x}"

    def sop(self, number: int) -> str:
        """Id of a slice by its number in the plan."""
        return self.make("sop", 9, number)


def plan_studies(
    patients: int,
    test_patients: int,
    slices_per_study: int,
    seed: int,
    positive_fraction: float,
    every_label: bool,
    context: bool = False,
) -> list[Study]:
    """Every study, train before test, with its ids, scanner and bleeds; nothing is drawn yet."""
    rng, ids = np.random.default_rng([seed, 1]), Ids(seed)
    studies: list[Study] = []
    for split, first, count in (("train", 0, patients), ("test", patients, test_patients)):
        owners = [first + patient for patient in range(count) for _ in range(1 + int(rng.random() < 0.15))]
        labels = deal_labels(len(owners), rng, positive_fraction, every_label)
        scanners = deal_scanners(len(owners), rng)
        for owner, bleeds, (scanner, explicit) in zip(owners, labels, scanners):
            number = len(studies)
            spread = slices_per_study // 8
            study = Study(
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
                context=context,
            )
            studies.append(study)
    return studies


def deal_labels(
    studies: int, rng: np.random.Generator, positive_fraction: float, every_label: bool
) -> list[tuple[str, ...]]:
    """Labels of the bleeds of each study; quotas, not luck, so that small sets keep the proportions."""
    dealt: list[dict[str, None]] = [{} for _ in range(studies)]
    positives = min(studies, max(round(positive_fraction * studies), int(every_label)))
    where = rng.permutation(studies)[:positives]
    for turn, label in enumerate(first_labels(positives, every_label)):
        bleeds = dealt[where[turn % positives]]
        bleeds[label] = None
        for companion, chance in _COMPANIONS[label].items():
            if rng.random() < chance:
                bleeds[companion] = None
    return [tuple(bleeds) for bleeds in dealt]


def first_labels(positives: int, every_label: bool) -> list[str]:
    """First label of each study that bleeds, in the proportions of `_FIRST` or, with `every_label`, in turn."""
    names = list(_FIRST)
    if every_label and positives:
        return [names[turn % len(names)] for turn in range(max(positives, len(names)))]
    points = (np.arange(positives) + 0.5) / max(positives, 1)
    return [names[place] for place in np.searchsorted(np.cumsum(list(_FIRST.values()))[:-1], points)]


def deal_scanners(studies: int, rng: np.random.Generator) -> list[tuple[Scanner, bool]]:
    """Scanner and explicit VR of each study: about 4% are 12-bit; from four studies on, each kind occurs."""
    least = int(studies >= 4)
    unsigned = max(round(0.035 * studies), least)
    signed = max(round(0.005 * studies), least)
    kinds = [UNSIGNED_1000 if turn % 2 else UNSIGNED for turn in range(unsigned)] + [SIGNED] * signed
    kinds += [PLAIN if turn % 3 == 0 else RING for turn in range(studies - len(kinds))]
    implicit = set(rng.permutation(studies)[: max(round(0.2 * studies), least)].tolist())
    return [(kinds[place], int(place) not in implicit) for place in rng.permutation(studies)]


class Pose:
    """Where the slices and bleeds of one study lie."""

    def __init__(self, study: Study, seed: int) -> None:
        rng = np.random.default_rng([seed, 2, study.number])
        self.study, self.ids = study, Ids(seed)
        self.head: Head = draw_head(rng)
        self.step_mm = min(150.0 / study.slices, 12.0)
        places = np.arange(study.slices) - (study.slices - 1) / 2
        self.heights_mm: Array = (50 + rng.uniform(-2, 2) + self.step_mm * places).astype(np.float32)
        self.bleeds = tuple(draw_bleed(label, self.heights_mm, rng) for label in study.labels)
        self.context: Context | None = None
        if study.context:
            own = np.random.default_rng([seed, 6, study.number])
            self.bleeds, self.context = draw_context(self.bleeds, self.heights_mm, self.step_mm, own)
        self.tilt_rad = math.radians(float(rng.choice([0.0, 0.0, rng.uniform(-22, 5)])))
        self.origin_mm = rng.uniform(-150, 50, 3)

    @property
    def centres(self) -> set[int]:
        """Indices of the slices on which a bleed is centred, so surely positive."""
        foci = self.context.foci if self.context else ()
        middles_mm = [bleed.centre_mm[2] for bleed in self.bleeds]
        middles_mm += [(focus.low_mm + focus.high_mm) / 2 for focus in foci if focus.bleeds]
        return {int(np.argmin(np.abs(self.heights_mm - middle_mm))) for middle_mm in middles_mm}

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
