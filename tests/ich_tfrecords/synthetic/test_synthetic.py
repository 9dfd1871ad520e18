"""Tests of the phantom data set: file format, layout, labels, defects, command line.

`tiny` is one set for all tests that only read: 6 patients, 5 slices a study, every label, every defect.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.synthetic import command, defects, phantom, plan, rsna_layout
from ich_tfrecords.synthetic import textures as noise
from ich_tfrecords.synthetic.plan import SyntheticError
from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS, Summary, generate

KEYWORDS = [
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    output = tmp_path_factory.mktemp("tiny") / "set"
    return generate(output, patients=6, test_patients=2, slices_per_study=5, every_label=True, defects=True)


def read(source: Path | bytes) -> pydicom.FileDataset:
    """Dataset of a file; the ids of RSNA are no valid UIDs, which pydicom says of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(source) if isinstance(source, bytes) else source)
        list(dataset)
        return dataset


def path_of(summary: Summary, made: rsna_layout.MadeSlice) -> Path:
    return summary.output / f"stage_2_{made.split}" / f"{made.sop_uid}.dcm"


def planted(summary: Summary, name: str) -> list[Path]:
    return [summary.output / "stage_2_train" / each.file for each in summary.defects if each.name == name]


def label_rows(summary: Summary) -> list[tuple[str, str]]:
    with open(summary.output / "stage_2_train.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ID", "Label"]
    return [(name, value) for name, value in rows]


def digests(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# dicom_bytes


FULL = SliceFields(
    sop_uid="ID_0123456ab",
    patient_id="ID_89abcdef",
    study_uid="ID_0011223344",
    series_uid="ID_5566778899",
    study_id="7",
    position_mm=(-125.5, 17.25, -0.125),
    orientation=(1.0, 0.0, 0.0, 0.0, 0.927184, -0.374607),
    spacing_mm=(0.5, 0.25),
    bits_stored=12,
    signed=False,
    window_center=(36.0, 600.0),
    window_width=(80.0, 2800.0),
    intercept=-1000.0,
    slope=2.0,
)


@pytest.mark.parametrize("explicit_vr", [True, False])
def test_every_header_value_and_pixel_reads_back(explicit_vr: bool) -> None:
    stored = np.arange(15, dtype=np.uint16).reshape(3, 5) * 4369  # up to 0xEEEE: bits above BitsStored stay
    dataset = read(dicom_bytes(stored, FULL, explicit_vr))
    assert [element.keyword for element in dataset] == KEYWORDS
    assert (dataset.SOPInstanceUID, dataset.PatientID) == (FULL.sop_uid, FULL.patient_id)
    assert (dataset.StudyInstanceUID, dataset.SeriesInstanceUID) == (FULL.study_uid, FULL.series_uid)
    assert (dataset.StudyID, dataset.Modality, dataset.PhotometricInterpretation) == (
        "7",
        "CT",
        "MONOCHROME2",
    )
    assert tuple(dataset.ImagePositionPatient) == FULL.position_mm
    assert tuple(dataset.ImageOrientationPatient) == FULL.orientation
    assert tuple(dataset.PixelSpacing) == FULL.spacing_mm
    assert (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel) == (3, 5, 1)
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
    assert dataset.PixelRepresentation == 0
    assert tuple(dataset.WindowCenter) == FULL.window_center
    assert tuple(dataset.WindowWidth) == FULL.window_width
    assert (dataset.RescaleIntercept, dataset.RescaleSlope) == (-1000, 2)
    assert dataset.PixelData == stored.tobytes()


@pytest.mark.parametrize(("explicit_vr", "uid"), [(True, "1.2.840.10008.1.2.1"), (False, "1.2.840.10008.1.2")])
def test_file_meta_names_the_syntax_and_another_sop_uid(explicit_vr: bool, uid: str) -> None:
    content = dicom_bytes(np.zeros((2, 2), np.int16), FULL, explicit_vr)
    assert content[:128] == bytes(128)
    assert content[128:132] == b"DICM"
    meta = read(content).file_meta
    assert meta.TransferSyntaxUID == uid
    assert meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
    assert meta.MediaStorageSOPInstanceUID != FULL.sop_uid
    assert meta.MediaStorageSOPInstanceUID.is_valid
    pydicom.filewriter.validate_file_meta(meta)


def test_a_scalar_window_and_an_empty_study_id_read_back() -> None:
    dataset = read(dicom_bytes(np.zeros((2, 2), np.int16), SliceFields()))
    assert (dataset.WindowCenter, dataset.WindowWidth, dataset.StudyID) == (40, 80, "")


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([np.int16, np.uint16]),
    st.booleans(),
    st.floats(-1e6, 1e6),
    st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_reads_back(rows: int, columns: int, dtype: type, explicit: bool, x_mm: float, seed: int) -> None:
    stored = np.random.default_rng(seed).integers(0, 1 << 16, (rows, columns)).astype(np.uint16).view(dtype)
    fields = SliceFields(signed=dtype is np.int16, position_mm=(x_mm, 0.0, 0.0))
    dataset = read(dicom_bytes(stored, fields, explicit))
    np.testing.assert_array_equal(dataset.pixel_array, stored)
    assert dataset.ImagePositionPatient[0] == pytest.approx(x_mm, abs=1e-6)


@pytest.mark.parametrize("stored", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.int16), np.zeros(4, np.int16)])
def test_other_arrays_are_refused(stored: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"give int16 or uint16 \[rows, columns\]"):
        dicom_bytes(stored, SliceFields())


# layout


def test_labels_stand_six_a_slice_in_the_rsna_order(tmp_path: Path) -> None:
    summary = generate(tmp_path / "set", patients=2, test_patients=1, slices_per_study=2)
    rows = label_rows(summary)
    wanted = {made.sop_uid: made.labels for made in summary.slices if made.split == "train"}
    assert rows == [
        (f"{sop}_{name}", str(value)) for sop in sorted(wanted) for name, value in zip(RSNA_LABELS, wanted[sop])
    ]
    assert sorted(path.stem for path in (summary.output / "stage_2_train").iterdir()) == sorted(wanted)
    submission = (summary.output / "stage_2_sample_submission.csv").read_text().splitlines()
    test = sorted(path.stem for path in (summary.output / "stage_2_test").iterdir())
    assert submission == ["ID,Label", *(f"{sop}_{name},0.5" for sop in test for name in RSNA_LABELS)]
    assert (summary.count("train"), summary.count("test")) == (len(wanted), len(test))
    assert not (summary.output / "defects.csv").exists()


def test_headers_agree_with_the_summary_and_within_a_series(tiny: Summary) -> None:
    odd = {each.file for each in tiny.defects if each.name not in ("repeated_labels", "no_labels")}
    heights: dict[str, list[float]] = {}
    for made in tiny.slices:
        if f"{made.sop_uid}.dcm" in odd:
            continue
        dataset = read(path_of(tiny, made))
        assert [element.keyword for element in dataset] == KEYWORDS
        ids = (dataset.SOPInstanceUID, dataset.PatientID, dataset.StudyInstanceUID)
        assert ids == (made.sop_uid, made.patient_id, made.study_uid)
        assert [len(text) for text in (*ids, dataset.SeriesInstanceUID)] == [12, 11, 13, 13]
        assert dataset.pixel_array.shape == (512, 512)
        normal = np.cross(dataset.ImageOrientationPatient[:3], dataset.ImageOrientationPatient[3:])
        heights.setdefault(made.study_uid, []).append(float(normal @ np.array(dataset.ImagePositionPatient)))
    assert all(np.all(np.diff(position) > 0) for position in heights.values())


def test_any_is_the_maximum_and_every_label_occurs_in_both_splits(tiny: Summary) -> None:
    assert all(made.labels[5] == max(made.labels[:5]) for made in tiny.slices)
    for split in ("train", "test"):
        table = [made.labels for made in tiny.slices if made.split == split]
        assert min(np.max(table, axis=0)) == 1


def test_scanners_hold_true_hu_and_each_kind_occurs(tiny: Summary) -> None:
    kinds = Counter()
    odd = {path.stem for name in ("truncated", "wrapped_12bit") for path in planted(tiny, name)}
    for made in tiny.slices:
        if made.sop_uid in odd or made.split == "test":
            continue
        dataset = read(path_of(tiny, made))
        stored = dataset.pixel_array
        kinds[dataset.BitsStored, dataset.PixelRepresentation, int(dataset.RescaleIntercept)] += 1
        kinds["padded"] += int(stored.min() == -2000 and dataset.RescaleIntercept == -1024)
        kinds[dataset.file_meta.TransferSyntaxUID.is_implicit_VR] += 1
        kinds["multi"] += dataset["WindowCenter"].VM > 1
        assert (dataset["WindowCenter"].VM > 1) == (dataset.BitsStored == 12)
    for kind in ((16, 1, -1024), (12, 0, -1024), (12, 1, 0), "padded", True, False):
        assert kinds[kind] > 0, f"{kind} is missing among {kinds}"


def test_12_bit_scanners_clip_and_both_intercepts_are_dealt() -> None:
    hu = np.full((512, 512), -3000, np.float32)
    hu[256] = 9000.0
    wanted = {
        plan.UNSIGNED: (0, 4095),
        plan.UNSIGNED_1000: (0, 4095),
        plan.SIGNED: (-1024, 2047),
    }
    for scanner, limits in wanted.items():
        stored = rsna_layout.stored_values(hu, scanner)
        assert (stored.min(), stored.max()) == limits
    dealt = Counter(scanner for scanner, _ in plan.deal_scanners(400, np.random.default_rng(0)))
    assert dealt[plan.UNSIGNED] == dealt[plan.UNSIGNED_1000] == 7
    assert dealt[plan.SIGNED] == 2
    assert dealt[plan.RING] > dealt[plan.PLAIN] > 100


# the phantom


@pytest.fixture(scope="module")
def textures() -> noise.Textures:
    return noise.draw_textures(np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.parametrize("label", RSNA_LABELS[:5])
@pytest.mark.parametrize("slices", [1, 2, 5, 32])
def test_the_slice_a_bleed_is_centred_on_is_positive(label: str, slices: int, textures: noise.Textures) -> None:
    for number in range(6):
        study = plan.plan_studies(1, 0, slices, number, 0, False)[0]
        pose = plan.Pose(dataclasses.replace(study, slices=slices, labels=(label,)), number)
        (index,) = pose.centres
        rng = np.random.default_rng(number)
        _, found = phantom.Phantom(pose.head, textures).render(float(pose.heights_mm[index]), pose.bleeds, rng)
        assert found == {label}, f"seed {number}"


def test_a_bleed_is_bright_where_it_is_and_nothing_changes_elsewhere(textures: noise.Textures) -> None:
    head = phantom.draw_head(np.random.default_rng(3))
    body = phantom.Phantom(head, textures)
    clot = phantom.Bleed("intraparenchymal", (30, 10, 60), 15, 0, 12, 15, 70)
    without, none = body.render(60, (), np.random.default_rng(1))
    with_clot, found = body.render(60, (clot,), np.random.default_rng(1))
    far, none_far = body.render(90, (clot,), np.random.default_rng(1))
    changed = np.abs(with_clot - without) > 1
    assert (none, found, none_far) == (frozenset(), {"intraparenchymal"}, frozenset())
    assert 60 < np.median(with_clot[with_clot - without > 25]) < 80
    assert 0.005 < changed.mean() < 0.05
    assert with_clot.dtype == far.dtype == np.float32
    assert with_clot.shape == (512, 512)


def test_a_mid_brain_slice_has_the_densities_of_a_head(textures: noise.Textures) -> None:
    hu, _ = phantom.Phantom(phantom.draw_head(np.random.default_rng(1)), textures).render(
        50, (), np.random.default_rng(1)
    )
    assert np.median(hu[:20]) == pytest.approx(-1000, abs=5)
    brain = (hu > 15) & (hu < 55)
    assert 0.12 < brain.mean() < 0.35
    assert 25 < hu[brain].mean() < 40
    assert 0.03 < (hu > 500).mean() < 0.15
    assert hu.max() < 2000


@pytest.mark.parametrize("z_mm", [-60.0, -25.0, 125.0, 160.0])
def test_slices_beyond_the_brain_draw_without_labels(z_mm: float, textures: noise.Textures) -> None:
    body = phantom.Phantom(phantom.draw_head(np.random.default_rng(2)), textures)
    hu, found = body.render(z_mm, (), np.random.default_rng(0))
    assert np.isfinite(hu).all()
    assert found == frozenset()


# the plan


@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_as_many_studies_bleed_as_asked(studies: int, fraction: float, seed: int) -> None:
    dealt = plan.deal_labels(studies, np.random.default_rng(seed), fraction, False)
    assert len(dealt) == studies
    assert sum(bool(labels) for labels in dealt) == round(fraction * studies)
    assert all(len(set(labels)) == len(labels) for labels in dealt)


@given(st.integers(1, 30), st.floats(0.01, 1), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_label_is_dealt_when_asked(studies: int, fraction: float, seed: int) -> None:
    dealt = plan.deal_labels(studies, np.random.default_rng(seed), fraction, True)
    assert {label for labels in dealt for label in labels} == set(RSNA_LABELS[:5])


def test_first_labels_keep_their_proportions_with_epidural_rarest() -> None:
    counts = Counter(plan.first_labels(1000, False))
    assert counts["epidural"] == 40
    assert min(counts, key=counts.__getitem__) == "epidural"
    assert set(plan.first_labels(13, False)) == set(RSNA_LABELS[:5])


def test_ids_never_repeat_and_depend_on_the_seed() -> None:
    ids = [plan.Ids(0).sop(number) for number in range(20_000)]
    assert len(set(ids)) == 20_000
    assert not set(ids) & {plan.Ids(1).sop(number) for number in range(1000)}


def test_some_patients_have_two_studies_and_none_is_in_both_splits() -> None:
    studies = plan.plan_studies(100, 20, 30, 0, 0.4, False)
    by_patient = Counter(study.patient_id for study in studies)
    assert set(by_patient.values()) == {1, 2}
    assert len(by_patient) == 120
    assert len({(study.patient_id, study.split) for study in studies}) == 120
    assert len({study.slices for study in studies}) > 3


# defects


def test_truncated_file_holds_153710_pixel_bytes(tiny: Summary) -> None:
    (path,) = planted(tiny, "truncated")
    content = path.read_bytes()
    head = content.index(b"\xe0\x7f\x10\x00") + (12 if b"OW\0\0" in content[:2000] else 8)
    assert len(content) - head == 153_710
    assert content[head - 4 : head] == (524_288).to_bytes(4, "little")


def test_noise_begins_at_row_333(tiny: Summary) -> None:
    (path,) = planted(tiny, "noisy_rows")
    stored = read(path).pixel_array.astype(float)
    assert np.abs(np.diff(stored[333:])).mean() > 5 * np.abs(np.diff(stored[:333])).mean()


def test_constant_and_not_square_slices(tiny: Summary) -> None:
    (constant,), (narrow,) = planted(tiny, "constant"), planted(tiny, "not_square")
    assert np.ptp(read(constant).pixel_array) == 0
    assert read(narrow).pixel_array.shape == (462, 512)


def test_the_wrapped_slice_is_repaired_to_its_true_hu(tiny: Summary) -> None:
    (path,) = planted(tiny, "wrapped_12bit")
    dataset = read(path)
    assert (dataset.BitsStored, dataset.PixelRepresentation, dataset.RescaleIntercept) == (12, 0, 0)
    wrapped = dataset.pixel_array.astype(int)
    repaired_hu = (wrapped + 1000) % 4096 - 1000
    assert wrapped.max() > 3000  # air, wrapped
    assert -1000 <= repaired_hu.min() < -900
    assert np.median(repaired_hu[:10]) < -900
    assert repaired_hu.max() < 3000


@pytest.mark.parametrize("hu", [-1000, -1, 0, 40, 3095])
def test_wrapping_is_the_inverse_of_the_repair(hu: int) -> None:
    stored = np.full((512, 512), hu + 1024, np.int16)
    content = defects.spoiled("wrapped_12bit", stored, SliceFields(), True, np.random.default_rng(0))
    assert (int(read(content).pixel_array[0, 0]) + 1000) % 4096 - 1000 == hu


def test_identical_pixels_contradict_under_two_patients(tiny: Summary) -> None:
    one, other = (read(path) for path in planted(tiny, "identical_pixels"))
    assert one.PixelData == other.PixelData
    assert one.PatientID != other.PatientID
    labels = dict(label_rows(tiny))
    assert labels[f"{one.SOPInstanceUID}_any"] != labels[f"{other.SOPInstanceUID}_any"]


def test_label_rows_are_repeated_missing_and_left_over_as_listed(tiny: Summary) -> None:
    rows = Counter(name.rsplit("_", 1)[0] for name, _ in label_rows(tiny))
    repeated = {sop for sop, count in rows.items() if count == 12}
    assert repeated == {path.stem for path in planted(tiny, "repeated_labels")}
    assert len(repeated) == 4
    files = {path.stem for path in (tiny.output / "stage_2_train").iterdir()}
    assert files - set(rows) == {path.stem for path in planted(tiny, "no_labels")}
    assert set(rows) - files == {path.stem for path in planted(tiny, "no_slice")}


def test_files_that_are_no_dicom(tiny: Summary) -> None:
    (empty,), (text,) = planted(tiny, "empty_file"), planted(tiny, "text_file")
    assert empty.read_bytes() == b""
    assert text.read_bytes() == b"This file is not DICOM.\n"


def test_defects_csv_repeats_the_summary(tiny: Summary) -> None:
    with open(tiny.output / "defects.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [(each.name, each.file, each.detail) for each in tiny.defects]
    assert len({name for name, _, _ in rows}) == 11


def test_defects_are_refused_where_they_find_no_room(tmp_path: Path) -> None:
    with pytest.raises(SyntheticError, match="2 train patients and 11 slices"):
        generate(tmp_path / "set", patients=2, slices_per_study=4, defects=True)
    with pytest.raises(SyntheticError, match="2 train patients"):
        generate(tmp_path / "set", patients=1, slices_per_study=40, defects=True)
    assert not (tmp_path / "set").exists()


# bytes and command line


SMALL = {"patients": 3, "test_patients": 1, "slices_per_study": 6, "defects": True}


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        generate(tmp_path / name, seed=seed, **SMALL)
    assert digests(tmp_path / "one") == digests(tmp_path / "again")
    shared = set(digests(tmp_path / "one").values()) & set(digests(tmp_path / "other").values())
    assert shared == {hashlib.sha256(text).hexdigest() for text in (b"", b"This file is not DICOM.\n")}


@pytest.mark.slow
def test_the_zip_holds_the_folder_in_the_kaggle_layout(tmp_path: Path) -> None:
    folder, one, again = (tmp_path / name for name in ("folder", "one", "again"))
    generate(folder, **SMALL)
    for output in (one, again):
        generate(output, zip_archive=True, **SMALL)
    assert digests(one) == digests(again)
    assert sorted(path.name for path in one.iterdir()) == ["defects.csv", rsna_layout.ZIP_NAME]
    with zipfile.ZipFile(one / rsna_layout.ZIP_NAME) as archive:
        assert archive.testzip() is None
        assert all(entry.compress_type == zipfile.ZIP_DEFLATED for entry in archive.infolist())
        prefix = "rsna-intracranial-hemorrhage-detection/"
        inside = {name.removeprefix(prefix): archive.read(name) for name in archive.namelist()}
        assert all(name.startswith(prefix) for name in archive.namelist())
    wanted = digests(folder)
    del wanted["defects.csv"]
    assert {name: hashlib.sha256(content).hexdigest() for name, content in inside.items()} == wanted


def test_progress_counts_every_slice(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(
        tmp_path / "set",
        patients=2,
        test_patients=0,
        slices_per_study=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


@pytest.mark.slow
def test_command_writes_and_lists_the_defects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "set"
    words = ["--patients", "3", "--test_patients", "1", "--slices_per_study", "6", "--defects"]
    assert command.main(["--output", str(output), *words]) == 0
    out = capsys.readouterr().out
    assert f"test slices in {output}: epidural" in out
    assert out.count("planted ") == 15


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--patients 0", "patients is 0"),
        ("--slices_per_study -1", "slices_per_study -1"),
        ("--test_patients -1", "test_patients is -1"),
        ("--seed -1", "seed -1"),
        ("--positive_fraction 1.5", "positive_fraction is 1.5"),
        ("--positive_fraction nan", "positive_fraction is nan"),
        ("--positive_fraction 0 --every_label", "every_label needs studies that bleed"),
        ("--slices_per_study 15 --context", "context needs slices_per_study 16 or more"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--output", str(tmp_path / "set"), *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(("output", "words"), [("gs://b/x", "is an address"), ("", "the path is empty")])
def test_an_output_that_is_no_place_here(output, words, capsys):
    assert command.main(["--output", output]) == 2
    assert words in capsys.readouterr().err


def test_a_directory_with_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("keep")
    assert command.main(["--output", str(tmp_path)]) == 2
    assert "is not an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_ctrl_c_is_one_line_and_exit_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(rng: np.random.Generator) -> noise.Textures:
        raise KeyboardInterrupt

    monkeypatch.setattr(rsna_layout, "draw_textures", interrupted)
    assert command.main(["--output", str(tmp_path / "set")]) == 130
    assert "incomplete" in capsys.readouterr().err


def test_a_failing_disk_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert command.main(["--output", str(tmp_path / "file" / "set")]) == 1
    assert capsys.readouterr().err.startswith("synthetic: cannot write ")
