"""Phantom studies as another hospital exports them: several series a study, headers that tell them apart, study labels.

The heads and bleeds are those of the RSNA-like plan; the scanner is another: thick slices, a tilted gantry, its own
noise and kernels. Every byte is a function of the arguments.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ich_tfrecords.dicom.header import CT_IMAGE
from ich_tfrecords.dicom.writer import Element, SliceFields, dicom_bytes
from ich_tfrecords.synthetic.phantom import Phantom
from ich_tfrecords.synthetic.plan import Ids, Pose, Study, plan_studies
from ich_tfrecords.synthetic.rsna_layout import (
    RSNA_LABELS,
    MadeSlice,
    Summary,
    check_arguments,
    make_empty,
    stored_values,
)
from ich_tfrecords.synthetic.textures import SIDE_PX, Textures, draw_textures, rolled
from ich_tfrecords.synthetic.tissue import Array

FOLDERS = {"train": "ct", "test": "ct_unlabelled"}  # split of the plan -> folder of its studies
STUDIES = "studies.csv"
_NOISE_HU, _BONE_NOISE_HU = 5.0, 12.0
_VESSELS_MM = ((0.0, 62.0), (0.0, -34.0), (-14.0, -22.0), (14.0, -22.0), (-24.0, -18.0), (24.0, -18.0))


class Series(NamedTuple):
    """A series of every study: its description, kernel, and what its header says of an agent."""

    word: str
    kernel: str
    agent: str


PLAIN, BONE = Series("plain", "H31s", ""), Series("bone", "H60s", "")
CONTRAST, LOCALIZER = Series("contrast", "H31s", "IOMEPROL"), Series("localizer", "T20s", "")


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
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Write a second hospital below `output` and return what it holds; the slices of all series but localizers.

    `ct/STUDY/SERIES/IM0001.dcm`, `studies.csv` (study_uid and the labels of `RSNA_LABELS`, 0 or 1), and below
    `ct_unlabelled` the studies of `test_patients`, which that file leaves out. Each study has a plain series, one with
    a bone kernel, one after contrast, and a localizer. Raises `SyntheticError` as `rsna_layout.generate` does.
    """
    check_arguments(patients, test_patients, slices_per_study, seed, positive_fraction, every_label, context)
    studies = plan_studies(patients, test_patients, slices_per_study, seed, positive_fraction, every_label, context)
    output = Path(output)
    make_empty(output)
    slices: list[MadeSlice] = []
    textures = draw_textures(np.random.default_rng([seed, 0]))
    total = sum(3 * study.slices for study in studies)
    for study in studies:
        for name, content, made in _study_files(study, seed, textures):
            path = output / FOLDERS[study.split] / study.study_uid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            slices += [made] if made else []
        if progress is not None:
            progress(len(slices), total)
    (output / STUDIES).write_bytes(_study_labels([made for made in slices if made.split == "train"]))
    return Summary(output, tuple(slices), ())


def _study_files(study: Study, seed: int, textures: Textures) -> Iterator[tuple[str, bytes, MadeSlice | None]]:
    """Name below the folder of the study, bytes, and what is made, of each file; None for the localizer."""
    pose = Pose(study, seed)
    pose.tilt_rad = math.radians((-18.0, -12.0, 0.0)[study.number % 3])
    phantom = Phantom(pose.head, textures, pose.context)
    columns: list[Array] = []
    for index in range(study.slices):
        hu, labels = _thick(phantom, pose, index, seed)
        rng = np.random.default_rng([seed, 8, study.first_slice + index])
        noise = rolled(textures.grain[study.number % len(textures.grain)], rng)
        soft = hu + np.float32(_NOISE_HU) * noise
        columns.append(soft.max(axis=0))
        looks = {
            PLAIN: _blurred(soft),
            BONE: soft + 2 * (soft - _blurred(soft)) + np.float32(_BONE_NOISE_HU) * noise,
            CONTRAST: _blurred(_enhanced(soft, pose.head.pixel_mm)),
        }
        for at, (series, look) in enumerate(looks.items()):
            fields = _fields(pose, index, at, series)
            content = dicom_bytes(stored_values(look, study.scanner), fields, study.explicit_vr)
            made = MadeSlice(fields.sop_uid, study.patient_id, study.study_uid, study.split, labels)
            yield f"{series.word}/IM{index + 1:04d}.dcm", content, made
    fields = _fields(pose, 0, 3, LOCALIZER)
    scout = np.repeat(np.stack(columns)[::-1], -(-SIDE_PX // study.slices), axis=0)[:SIDE_PX]
    yield f"{LOCALIZER.word}/IM0001.dcm", dicom_bytes(stored_values(scout, study.scanner), fields), None


def _thick(phantom: Phantom, pose: Pose, index: int, seed: int) -> tuple[Array, tuple[int, ...]]:
    """HU float32 [512, 512] of a slice as thick as the step, of two planes in it, and its labels."""
    found: set[str] = set()
    planes = []
    for at, part in enumerate((-0.25, 0.25)):
        rng = np.random.default_rng([seed, 7, pose.study.first_slice + index, at])
        hu, seen = phantom.render(float(pose.heights_mm[index]) + part * pose.step_mm, pose.bleeds, rng)
        planes.append(hu)
        found |= set(seen)
    labels = tuple(int(name in found or (name == "any" and bool(found))) for name in RSNA_LABELS)
    return (planes[0] + planes[1]) / 2, labels


def _blurred(hu: Array) -> Array:
    """`hu` with each pixel shared with its neighbours (1 2 1 across and down)."""
    for axis in (0, 1):
        hu = (np.roll(hu, 1, axis) + 2 * hu + np.roll(hu, -1, axis)) / 4
    return hu


def _enhanced(hu: Array, pixel_mm: float) -> Array:
    """`hu` after contrast: the brain a little brighter, and vessels as bright as blood never is."""
    steps = (np.arange(SIDE_PX, dtype=np.float32) - (SIDE_PX - 1) / 2) * np.float32(pixel_mm)
    soft = (hu > 15) & (hu < 100)
    hu = np.where(soft, hu + np.float32(9), hu)
    for x_mm, y_mm in _VESSELS_MM:
        near = np.hypot(steps[None, :] - np.float32(x_mm), steps[:, None] - np.float32(y_mm)) < 2.5
        hu[near & soft] = 190
    return hu


def _fields(pose: Pose, index: int, at: int, series: Series) -> SliceFields:
    """Header of a slice of the series number `at` of a study."""
    study, ids = pose.study, Ids(pose.ids.seed)
    kind = "LOCALIZER" if series is LOCALIZER else "AXIAL"
    extra: list[Element] = [
        (0x00080008, "CS", f"ORIGINAL\\PRIMARY\\{kind}"),
        (0x00080016, "UI", CT_IMAGE),
        (0x00080070, "LO", "SYNTHETIC"),
        (0x00081090, "LO", "Phantom 2"),
        (0x00180050, "DS", (pose.step_mm,)),
        (0x00180060, "DS", (130.0,)),
        (0x00181120, "DS", (math.degrees(pose.tilt_rad),)),
        (0x00181210, "SH", series.kernel),
    ]
    if series.agent:
        extra.append((0x00180010, "LO", series.agent))
    return dataclasses.replace(
        pose.fields(index),
        sop_uid=ids.make("hospital_sop", 9, 4 * (study.first_slice + index) + at),
        series_uid=ids.make("hospital_series", 10, 4 * study.number + at),
        extra=tuple(extra),
    )


def _study_labels(slices: list[MadeSlice]) -> bytes:
    """The text of studies.csv: a study has a label where one of its slices has."""
    found: dict[str, np.ndarray] = {}
    for made in slices:
        found[made.study_uid] = np.maximum(found.get(made.study_uid, np.zeros(len(RSNA_LABELS), int)), made.labels)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study_uid", *RSNA_LABELS])
    writer.writerows([uid, *values.tolist()] for uid, values in sorted(found.items()))
    return text.getvalue().encode()
