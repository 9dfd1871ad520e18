"""The defects known of the RSNA data, planted into a phantom data set on purpose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.synthetic.plan import Ids, Pose, Study, SyntheticError

_SPOILED = {
    "truncated": "PixelData holds 153,710 of 524,288 bytes",
    "noisy_rows": "noise from row 333 down",
    "constant": "every pixel has the same value",
    "wrapped_12bit": "12-bit unsigned, RescaleIntercept 0, stored values wrapped at 4096",
    "not_square": "462 rows by 512 columns",
}


@dataclasses.dataclass(frozen=True)
class Defect:
    """One planted defect: its name, the file or image it sits in, and what a reader will see."""

    name: str
    file: str
    detail: str


def spoiled(name: str, stored: np.ndarray, fields: SliceFields, explicit: bool, rng: np.random.Generator) -> bytes:
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
class DefectPlan:
    """Which slice, by its number in the plan, carries which defect.

    `twin` gets the pixels of `source`, a slice of another patient. The labels of `repeated` stand twice in
    the CSV, those of `unlabelled` not at all.
    """

    spoiled: dict[int, str]
    twin: int
    source: int
    repeated: tuple[int, ...]
    unlabelled: int


def plan_defects(studies: Sequence[Study], seed: int) -> DefectPlan:
    """A train slice for each defect, never one that a bleed is centred on: every label stays to be found.

    Raises `SyntheticError` when there are too few slices or patients.
    """
    free: list[int] = []
    centres: list[int] = []
    owner: dict[int, str] = {}
    for study in studies:
        middle = Pose(study, seed).centres if study.split == "train" else set()
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
    carried = dict(zip(free, _SPOILED))
    rest = free[len(carried) :]
    source = next((number for number in centres + free if owner[number] != owner[twin]), None)
    if source is None:
        raise SyntheticError("defects need slices of a second train patient: ask for more slices")
    return DefectPlan(carried, twin, source, tuple(rest[:4]), rest[4])


def plant_files(
    sops: Sequence[str], flaws: DefectPlan, seed: int
) -> tuple[dict[str, bytes], list[str], tuple[Defect, ...]]:
    """The two files that are no DICOM (name and content), three ids to be labelled besides, and every defect.

    `sops` are the ids of all slices in the order of the plan.
    """
    empty, text, absent = (Ids(seed).sop(len(sops) + extra) for extra in range(3))
    files = {f"stage_2_train/{empty}.dcm": b"", f"stage_2_train/{text}.dcm": b"This file is not DICOM.\n"}
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
    return files, [empty, text, absent], tuple(planted)
