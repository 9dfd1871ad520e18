"""The command from files to results: every output, mixed input, wrong use, and what an interruption leaves."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from dicom_files import JPEG_LOSSLESS_SV1, compressed_file, dicom_file, head_slice, slice_elements
from html_pages import Page
from PIL import Image

from ich_tfrecords.dataset import manifest as manifests
from ich_tfrecords.dataset import records
from ich_tfrecords.dicom.jpeg_compiled import ABSENT
from ich_tfrecords.volumes.reader import FrameReader
from trainer import predict
from trainer.models import explain, model_file
from trainer.models import networks as trained_networks
from trainer.models.model_file import About
from trainer.pages import triage_page
from trainer.prediction import picture_files, slice_outcomes, slice_picture, slice_stream, triage

pytestmark = pytest.mark.slow  # the whole command, again and again


@pytest.fixture
def run(export, tmp_path):
    """run(*inputs, flags) -> exit code and the folder of the results."""

    def predicted(*inputs: object, model: Path = export, output: str = "out", **flags: object) -> tuple[int, Path]:
        given = [part for one in inputs for part in ("--input", str(one))]
        given += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        out = tmp_path / output
        code = predict.main(["--model", str(model), "--output", str(out), "--pictures", "0", *given])
        return code, out

    return predicted


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def write_slice(folder: Path, name: str, uid: str, seed: int = 0, **changes: bytes | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    elements = slice_elements(head_slice(64, seed), SOPInstanceUID=uid.encode(), **changes)
    path.write_bytes(dicom_file(elements))
    return path


def test_every_output_of_a_folder(run, synthetic_set, rsna_spec, capsys):
    made = [one for one in synthetic_set.slices if one.split == "test"]
    code, out = run(synthetic_set.output / "stage_2_test", pictures=3)
    assert code == 0
    names = rsna_spec.labels.names
    slices, studies = rows(out / "predictions.csv"), rows(out / "triage.csv")
    assert list(slices[0]) == ["input", "file", "sop_uid", "study_uid", "series_uid", "position_mm", *names]
    assert {row["sop_uid"]: row["study_uid"] for row in slices} == {one.sop_uid: one.study_uid for one in made}
    assert [row["file"] for row in slices] == sorted(f"{one.sop_uid}.dcm" for one in made)
    assert sum(int(row["slices"]) for row in studies) == len(made)
    for rank, row in enumerate(studies, 1):
        own = [one for one in slices if one["study_uid"] == row["study_uid"]]
        assert int(row["rank"]) == rank
        assert [float(row[name]) for name in names] == [max(float(one[name]) for one in own) for name in names]
        (driver,) = [one for one in own if one["sop_uid"] == row["driven_by"]]
        assert driver[rsna_spec.labels.any] == row[rsna_spec.labels.any]
        assert (driver["file"], driver["position_mm"]) == (row["file"], row["position_mm"])
    urgency = [float(row[rsna_spec.labels.any]) for row in studies]
    assert urgency == sorted(urgency, reverse=True)
    assert rows(out / "rejects.csv") == []
    assert facts(out)["finished"] is True
    assert facts(out)["slices"] == len(made)
    assert facts(out)["input"]["ignored"] == {}
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert [name.partition("_")[0] for name in pictures] == ["001", "002", "003"]
    assert facts(out)["pictures"] == pictures
    assert pictures[0] == f"001_{studies[0]['driven_by']}.png"
    with Image.open(out / "pictures" / pictures[0]) as picture:
        assert min(picture.size) > 128
    told = capsys.readouterr().out
    assert told.count("Not a medical device") == 1
    page = Page((out / "triage.html").read_text())
    assert page.tags.count("svg") == len(studies)
    found = [page.words.find(row["study_uid"]) for row in studies]
    assert found == sorted(found)
    assert min(found) > 0
    assert [value for name, value in page.attributes if name == "alt"].count("brain 40/80 of the driving slice") == 2
    assert f"{out / 'triage.html'}\n" in told
    assert studies[0]["driven_by"] in told
    assert "probabilities of epidural are not calibrated, but for the shift: no positive slice" in told
    assert "left aside" not in told


def promising(export: Path, place: Path, patients: int) -> Path:
    """The model with so many patients to promise by, whose positives and negatives say the same."""
    shutil.copytree(export, place)
    about = model_file.read_about(export)
    scores = [round(0.3 + 0.4 * at / patients, 6) for at in range(patients)]
    of_label = {"positive": scores, "negative": scores}
    facts = {**about.facts, "conformal": dict.fromkeys(about.spec.labels.names, of_label)}
    model_file.write_about(place, dataclasses.replace(about, facts=facts))
    return place


def test_studies_are_called_by_a_promise(run, export, synthetic_set, rsna_spec, tmp_path, capsys):
    model = promising(export, tmp_path / "model", 60)
    code, out = run(synthetic_set.output / "stage_2_test", model=model, alpha=0.05)
    assert code == 0
    names = rsna_spec.labels.names
    limits = {"low": 0.3 + 0.4 * 2 / 60, "high": 0.3 + 0.4 * 57 / 60}  # the 3rd of 60 from either end
    for row in rows(out / "triage.csv"):
        for name in names:
            shown = float(row[name])
            expected = "negative" if shown < limits["low"] else "positive" if shown > limits["high"] else "uncertain"
            assert row[f"{name}_group"] == expected
    told = capsys.readouterr().out
    assert "at most 5 of 100 are called negative for it" in told
    assert facts(out)["flags"]["alpha"] == 0.05
    assert "at most 5 of 100 are called negative for it" in (out / "triage.html").read_text()


def another(about: About, place: Path, seed: int = 4, even: float = 0.5, **changes: Any) -> Path:
    """A model of other weights that takes the same slices, but for `changes` of its settings; `even`: its threshold."""
    keras.utils.set_random_seed(seed)
    shape = (*about.spec.image.shape[:2], about.spec.image.shape[2] * (1 + 2 * changes.get("context_slices", 0)))
    names, size = about.spec.labels.names, {"filters": [4, 4], "dense": [8]}
    model = trained_networks.build("cnn", shape, len(names), "none", size)
    chosen = {name: {"even": even} for name in names}
    known = dataclasses.replace(about, settings={**about.settings, **changes}, study_thresholds=chosen)
    model_file.write(place, model, known)
    return place


def test_several_models_say_their_mean_and_where_they_disagree(run, export, about, synthetic_set, tmp_path, capsys):
    models = [export, another(about, tmp_path / "b"), another(about, tmp_path / "c", 5, 0.3)]
    given = synthetic_set.output / "stage_2_test"
    alone = []
    for number, model in enumerate(models):
        assert run(given, model=model, output=f"alone{number}")[0] == 0
        alone.append([tmp_path / f"alone{number}" / name for name in ("predictions.csv", "triage.csv")])
    flags = [part for model in models for part in ("--model", str(model))]
    out = tmp_path / "all"
    capsys.readouterr()
    assert predict.main([*flags, "--input", str(given), "--output", str(out), "--pictures", "1"]) == 0
    names = about.spec.labels.names
    slices = [rows(path) for path, _ in alone]
    for mean, *own in zip(rows(out / "predictions.csv"), *slices, strict=True):
        for name in names:
            assert float(mean[name]) == pytest.approx(np.mean([float(one[name]) for one in own]), rel=1e-5)
    studies = [{row["study_uid"]: row for row in rows(path)} for _, path in alone]
    apart = 0
    for row in rows(out / "triage.csv"):
        opinions = np.array([[float(one[row["study_uid"]][name]) for name in names] for one in studies])
        spreads = [float(row[f"{name}_spread"]) for name in names]
        np.testing.assert_allclose(spreads, np.ptp(opinions, axis=0), atol=2e-6)
        called = opinions >= [[0.5], [0.5], [0.3]]
        expected = [name for name, some in zip(names, called.sum(axis=0), strict=True) if 0 < some < 3]
        assert row["disagreed"].split() == expected
        apart += bool(expected)
    assert apart > 0
    told = capsys.readouterr().out
    assert "mean of 3 models; they disagree about " in told
    page = Page((out / "triage.html").read_text())
    assert "The numbers are the mean of 3 models" in page.words
    assert "The models disagree about" in page.words
    assert [one["sha256"] for one in facts(out)["model"]["others"]] == [model_file.digest(one) for one in models[1:]]


def test_models_that_cannot_judge_together_are_refused(run, export, about, synthetic_set, tmp_path, capsys):
    given = ["--input", str(synthetic_set.output / "stage_2_test"), "--output", str(tmp_path / "out")]
    same, context = tmp_path / "same", another(about, tmp_path / "context", context_slices=1)
    shutil.copytree(export, same)
    other = another(about, tmp_path / "b")
    for model, flags, line in (
        (same, [], f"{same} has the weights of {export}; name each model once"),
        (export, [], f"{export} has the weights of {export}; name each model once"),
        (context, [], f"{context} sees 1 neighbours and {export} sees 0 (context_slices)"),
        (other, ["--alpha", "0.1"], "--alpha promises by the validation patients of one model"),
    ):
        assert predict.main(["--model", str(export), "--model", str(model), *flags, *given]) == 2
        assert line in capsys.readouterr().err
    assert not (tmp_path / "out" / "triage.csv").exists()


@pytest.mark.parametrize(("patients", "alpha", "line"), [(0, 0.05, "--recalibrate"), (18, 0.05, "needs 19")])
def test_a_promise_that_cannot_be_made_is_refused(run, export, synthetic_set, tmp_path, capsys, patients, alpha, line):
    model = promising(export, tmp_path / "model", patients) if patients else export
    code, out = run(synthetic_set.output / "stage_2_test", model=model, alpha=alpha)
    assert code == 2
    assert line in capsys.readouterr().err
    assert not (out / "triage.csv").exists()


def written(out: Path) -> dict[str, str]:
    """Name -> text of every file but the pictures, which cannot be searched."""
    return {path.name: path.read_text() for path in out.iterdir() if path.is_file()}


def test_no_patient_id_gets_out(run, synthetic_set, capsys):
    folder = synthetic_set.output / "stage_2_train"
    _, out = run(folder, pictures=1)
    told = capsys.readouterr()
    texts = [told.out, told.err, *written(out).values()]
    patients = {one.patient_id for one in synthetic_set.slices}
    assert patients
    assert not [patient for patient in patients for text in texts if patient in text]
    assert str(synthetic_set.output) not in "".join(texts)  # a folder may be called after a patient


def test_names_below_the_input_are_written_to_find_the_slice_and_nothing_else_of_a_person(run, tmp_path, capsys):
    folder = tmp_path / "ROE^JOHN"
    for number in range(2):
        write_slice(folder / "DOE^JANE_19500101", f"{number}.dcm", f"1.2.{number}", number, PatientID=b"MRN-0815")
    write_slice(folder / "other", "3.dcm", "1.2.3", PatientID=b"MRN-4711")
    (folder / "DOE^JANE_19500101" / "2.dcm").write_bytes(b"nonsense")
    code, out = run(folder, include="*DOE*", pictures=1)
    assert code == 0
    told, files = capsys.readouterr(), written(out)
    assert [name for name, text in files.items() if "DOE" in text] == [
        name for name in files if name in ("predictions.csv", "triage.csv", "triage.html", "rejects.csv")
    ]
    assert rows(out / "triage.csv")[0]["file"].startswith("DOE^JANE_19500101/")
    for secret in ("MRN-", "ROE^JOHN"):
        assert secret not in "".join([told.out, told.err, *files.values()])
    assert "DOE" not in told.out + told.err
    assert [path.name for path in (out / "pictures").iterdir()] == facts(out)["pictures"]
    assert facts(out)["pictures"][0].startswith("001_1.2.")
    assert facts(out)["flags"]["include_given"] is True
    assert run(folder, output="all")[0] == 0
    assert facts(tmp_path / "all")["flags"]["include_given"] is False


def test_deidentified_slices_without_a_patient_id_are_predicted(run, tmp_path):
    for number, patient in enumerate((b"", None)):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}", number, PatientID=patient)
    code, out = run(tmp_path / "in")
    assert (code, len(rows(out / "predictions.csv")), rows(out / "rejects.csv")) == (0, 2, [])


def test_files_of_other_kinds_are_told(run, tmp_path, capsys):
    write_slice(tmp_path / "in", "a.dcm", "1.2")
    for name in ("notes.txt", "report.pdf", "more.zip", "one.dcm.gz", "DOE.JANE"):
        (tmp_path / "in" / name).write_text("x")
    _, out = run(tmp_path / "in")
    told = capsys.readouterr().out
    assert "\n5 files with other suffixes left aside: 1 .dcm.gz, 1 .pdf, 1 .txt, 1 .zip, 1 other\n" in told
    assert "\nNOT READ: 1 .dcm.gz, 1 .zip, which may hold slices; add --input 'FOLDER/**/*.zip'" in told
    assert facts(out)["input"]["ignored"] == {".dcm.gz": 1, ".pdf": 1, ".txt": 1, ".zip": 1, "other": 1}


def test_files_that_never_were_slices_are_told_apart_from_lost_ones(run, tmp_path, capsys):
    write_slice(tmp_path / "in", "IM1", "1.2")
    write_slice(tmp_path / "in", "IM2", "1.3", ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER")
    write_slice(tmp_path / "in", "IM3", "1.4", RescaleSlope=None)
    for name in ("LICENSE", "IM4"):
        (tmp_path / "in" / name).write_text("not DICOM")
    code, out = run(tmp_path / "in")
    told = capsys.readouterr().out
    assert (code, len(rows(out / "rejects.csv"))) == (0, 4)
    assert "\n2 files of other kinds than axial CT slices: 1 localizer, 1 not_dicom\n" in told.replace(
        "1 not_dicom, 1 localizer", "1 localizer, 1 not_dicom"
    )
    assert "\n2 files without a prediction: 1 no_rescale, 1 not_dicom\n" in told.replace(
        "1 not_dicom, 1 no_rescale", "1 no_rescale, 1 not_dicom"
    )


def test_a_packed_input_is_one_line_that_says_how_to_go_on(run, tmp_path, capsys):
    (tmp_path / "scans.tar.gz").write_bytes(gzip.compress(b"x"))
    code, out = run(tmp_path / "scans.tar.gz")
    assert code == 2
    err = capsys.readouterr().err
    assert err.endswith(f"unpack it and give the folder: tar xf {tmp_path / 'scans.tar.gz'}\n")
    assert err.count("\n") == 1
    assert not out.exists()


def test_two_inputs_with_files_of_one_name(run, tmp_path):
    for number, place in enumerate("ab"):
        write_slice(tmp_path / place, "1.dcm", f"1.{number}", number)
        (tmp_path / place / "2.dcm").write_bytes(b"nonsense")
    _, out = run(tmp_path / "b", tmp_path / "a")
    told = [(row["input"], row["file"], row["sop_uid"]) for row in rows(out / "predictions.csv")]
    assert told == [("1", "1.dcm", "1.0"), ("2", "1.dcm", "1.1")]
    assert [(row["input"], row["file"]) for row in rows(out / "rejects.csv")] == [("1", "2.dcm"), ("2", "2.dcm")]
    (study,) = rows(out / "triage.csv")
    assert (study["input"], study["file"], study["driven_by"]) in told
    assert facts(out)["input"]["inputs"] == 2


def test_studies_that_cannot_be_read_in_part_or_at_all_are_seen(run, tmp_path, capsys, rsna_spec):
    for number in range(2):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}", number, StudyInstanceUID=b"1.5")
    for name, study in (("3", b"1.5"), ("4", b"1.6"), ("5", b"1.6")):
        path = write_slice(tmp_path / "in", f"{name}.dcm", f"1.2.{name}", StudyInstanceUID=study)
        path.write_bytes(path.read_bytes()[:-100])
    code, out = run(tmp_path / "in")
    assert code == 0
    assert [row["study_uid"] for row in rows(out / "rejects.csv")] == ["1.5", "1.6", "1.6"]
    partly, unread = rows(out / "triage.csv")
    assert [partly[name] for name in ("rank", "study_uid", "slices", "rejected")] == ["1", "1.5", "2", "1"]
    assert [unread[name] for name in ("rank", "study_uid", "slices", "rejected")] == ["", "1.6", "0", "2"]
    assert (partly["partial"], unread["partial"]) == (
        "2 of 3 slices (missing: 1 truncated)",
        "0 of 2 slices (missing: 2 truncated)",
    )
    assert {unread[name] for name in rsna_spec.labels.names} == {""}
    assert "\n1 study without any prediction, at the end of triage.csv\n" in capsys.readouterr().out
    assert facts(out)["studies_without_slices"] == 1


@pytest.fixture
def one_uid(tmp_path) -> Path:
    """Six slices of a study with one SOP UID, as a bad anonymiser leaves them (dcm2niix#211), and its scout."""
    for number in range(6):
        write_slice(tmp_path / "in", f"{number}.dcm", "1.2", number, StudyInstanceUID=b"1.5")
    kind = b"ORIGINAL\\PRIMARY\\LOCALIZER"
    write_slice(tmp_path / "in", "scout.dcm", "1.3", ImageType=kind, StudyInstanceUID=b"1.5")
    return tmp_path / "in"


def test_a_study_of_one_uid_is_ranked_by_one_slice_and_says_so(run, one_uid, capsys):
    code, out = run(one_uid, pictures=1)
    assert code == 0
    assert [row["reason"] for row in rows(out / "rejects.csv")] == ["localizer"] + ["uid_conflict"] * 5
    (study,) = rows(out / "triage.csv")
    told = "1 of 6 slices (missing: 5 uid_conflict)"
    assert [study[name] for name in ("slices", "rejected", "partial")] == ["1", "6", told]
    assert facts(out)["studies_partial"] == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"PARTIAL: this is {told}" in lines
    assert "1 study is ranked by a part of the slices (triage.csv: partial); what is missing may be worse" in lines


def test_partial_studies_stand_out_in_the_table_and_on_their_pictures(run, one_uid, capsys):
    write_slice(one_uid, "whole.dcm", "1.4", StudyInstanceUID=b"1.6")
    (one_uid / "empty.dcm").write_bytes(b"")
    code, out = run(one_uid, pictures=2)
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.endswith("  PARTIAL: 1 of 6 slices (missing: 5 uid_conflict)")]) == 1
    assert "1 file that tells no study could not be read; any study may lack them" in lines
    heights = {}
    for name in facts(out)["pictures"]:
        with Image.open(out / "pictures" / name) as picture:
            heights[name[4:-4]] = picture.height
    assert heights["1.2"] > heights["1.4"]


def test_the_same_slice_converted_and_predicted_gives_the_same_probabilities(
    run, export, about, dataset, synthetic_set
):
    """The record through the model and the calibration, beside the file through the command."""
    _, out = run(synthetic_set.output / "stage_2_train", batch_size=5)
    told = {row["sop_uid"]: row for row in rows(out / "predictions.csv")}
    table = records.features(about.spec)
    score = model_file.scorer(model_file.load_model(export, about))
    compared = 0
    for shard in sorted(dataset.glob("*.tfrecord-*")):
        with shard.open("rb") as file:
            parsed = [records.parse(payload, table) for _, payload in records.read_records(file)]
        wanted = about.probabilities(score(np.stack([one["image"] for one in parsed])))
        for one, values in zip(parsed, wanted, strict=True):
            row = told[one["sop_uid"].decode()]
            np.testing.assert_allclose([float(row[name]) for name in about.spec.labels.names], values, rtol=3e-6)
            assert float(row["position_mm"]) == pytest.approx(one["position_mm"], abs=1e-3)
            compared += 1
    assert compared == pq.read_table(dataset / "slices.parquet").num_rows == manifests.read(dataset).slices


def test_a_zip_gives_what_its_folder_gives(run, synthetic_set, synthetic_zip):
    _, one = run(synthetic_set.output / "stage_2_test")
    code, other = run(synthetic_zip, output="zipped", include="*/stage_2_test/*")
    assert code == 0
    plain, zipped = rows(one / "predictions.csv"), rows(other / "predictions.csv")
    assert [row["file"].rpartition("/")[2] for row in zipped] == [row["file"] for row in plain]
    assert [{**row, "file": ""} for row in zipped] == [{**row, "file": ""} for row in plain]


def test_a_slice_listed_under_two_inputs_counts_once(run, tmp_path):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    code, out = run(path.parent, path, str(path.parent / "*.dcm"))
    assert (code, len(rows(out / "predictions.csv")), rows(out / "rejects.csv")) == (0, 1, [])


def test_jpeg_lossless_without_numba_is_told_and_gives_the_same_probabilities(run, tmp_path, lose_numba, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(compressed_file(head_slice(64), JPEG_LOSSLESS_SV1, 16, tmp_path))
    found, told = {}, f"JPEG Lossless is decoded by numpy alone: {ABSENT}\n"
    for name in ("fast", "plain"):
        code, out = run(tmp_path / "in", output=name)
        assert (code, capsys.readouterr().out.count(told)) == (0, name == "plain")
        found[name] = (out / "predictions.csv").read_bytes()
        lose_numba()
    assert found["fast"] == found["plain"]


def test_good_and_broken_files_mixed(run, tmp_path, capsys):
    folder = tmp_path / "in"
    for number in range(5):
        write_slice(folder, f"{number}.dcm", f"1.2.{number}", number)
    write_slice(folder, "5.dcm", "1.2.0")
    write_slice(folder, "6.dcm", "1.2.6", Modality=b"MR")
    write_slice(folder, "7.dcm", "1.2.7", ImageOrientationPatient=b"0\\1\\0\\0\\0\\1")
    (folder / "8.dcm").write_bytes(b"nonsense")
    (folder / "9.dcm").symlink_to("nowhere")
    code, out = run(folder, batch_size=2)
    assert code == 0
    assert [row["file"] for row in rows(out / "predictions.csv")] == [f"{number}.dcm" for number in range(5)]
    reasons = {row["file"]: row["reason"] for row in rows(out / "rejects.csv")}
    assert reasons == {
        "5.dcm": "duplicate_slice",
        "6.dcm": "not_ct",
        "7.dcm": "not_axial",
        "8.dcm": "not_dicom",
        "9.dcm": "unreadable_file",
    }
    assert facts(out)["rejects"] == dict.fromkeys(sorted(reasons.values()), 1)
    told = capsys.readouterr().out
    assert "\n2 files of other kinds than axial CT slices: 1 not_" in told
    assert "\n3 files without a prediction: 1 " in told


def test_a_set_with_every_known_defect(run, defective_set):
    code, out = run(defective_set.output / "stage_2_train")
    assert code == 0
    files = len(list((defective_set.output / "stage_2_train").iterdir()))
    slices, rejects = rows(out / "predictions.csv"), rows(out / "rejects.csv")
    assert len(slices) + len(rejects) == files
    assert "truncated" in {row["reason"] for row in rejects}


def test_files_of_which_none_is_a_slice(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.dcm").write_bytes(b"nonsense")
    code, out = run(tmp_path / "in", pictures=2)
    assert code == 1
    assert [row["reason"] for row in rows(out / "rejects.csv")] == ["not_dicom", "not_dicom"]
    assert rows(out / "triage.csv") == rows(out / "predictions.csv") == []
    assert "predict: no file gave a prediction (2 not_dicom); " in capsys.readouterr().err


def test_a_single_slice_is_told_in_sentences(run, tmp_path, capsys, rsna_spec):
    path = write_slice(tmp_path / "in", "ID_005381fc2.dcm", "ID_005381fc2")
    (tmp_path / "in" / "broken.dcm").write_bytes(b"")
    code, out = run(path.parent)
    assert code == 0
    (row,) = rows(out / "predictions.csv")
    told = capsys.readouterr().out.splitlines()
    for name in rsna_spec.labels.names:
        article = {"any": "any type", "subarachnoid": "a 'subarachnoid' type", "subdural": "a 'subdural' type"}
        what = article.get(name, f"an '{name}' type")
        shown = triage.probability_text(float(row[name]))
        assert f"ID_005381fc2 has a probability {shown} for {what} of hemorrhage" in told


def test_names_from_outside_stay_text(run, tmp_path, capsys):
    folder = tmp_path / "in"
    write_slice(folder, "=1+1.dcm", "1.2.1", 1, StudyInstanceUID=b"=cmd()")
    write_slice(folder, "b.dcm", "../../x", 2, StudyInstanceUID=b"<script>")
    write_slice(folder, "c.dcm", "1.2.3", 3, StudyInstanceUID=b'a,"b\nc')
    write_slice(folder, "d.dcm", "1.2.4", 4, StudyInstanceUID=b"\x1b[2J")
    code, out = run(folder, pictures=9)
    assert code == 0
    assert {row["study_uid"] for row in rows(out / "triage.csv")} == {"'=cmd()", "<script>", 'a,"b\nc', "\x1b[2J"}
    assert rows(out / "predictions.csv")[0]["file"] == "'=1+1.dcm"
    pictures = sorted(path.name[4:] for path in (out / "pictures").iterdir())
    assert pictures == sorted(["1.2.1.png", "%2E./..%2Fx.png".replace("/", "%2F"), "1.2.3.png", "1.2.4.png"])
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert "\x1b" not in capsys.readouterr().out
    text = (out / "triage.html").read_text()
    assert "<script" not in text
    assert {"<script>", "=cmd()", 'a,"b?c', "?[2J"} <= set(
        re.findall(r"=cmd\(\)|<script>|a,\"b\?c|\?\[2J", Page(text).words)
    )


def test_strips_show_the_series_of_the_driving_slice_however_files_are_mixed(run, tmp_path, monkeypatch):
    """Two studies of two series each, in files whose names mix them."""
    for number in range(40):
        study, series = f"1.{number % 2}", f"1.{number % 2}.{number // 2 % 2}"
        write_slice(
            tmp_path / "in", f"{number:02d}.dcm", f"1.2.{number}", number, StudyInstanceUID=study.encode(),
            SeriesInstanceUID=series.encode(), ImagePositionPatient=f"0\\0\\{100 - number}".encode(),
        )  # fmt: skip
    shown, strip = [], triage_page._strip
    monkeypatch.setattr(
        triage_page, "_strip", lambda series, at: shown.append((series.copy(), at)) or strip(series, at)
    )
    code, out = run(tmp_path / "in", series="all", batch_size=3)
    assert code == 0
    slices = rows(out / "predictions.csv")
    for study, (series, at) in zip(rows(out / "triage.csv"), shown, strict=True):
        (driver,) = [row for row in slices if row["sop_uid"] == study["driven_by"]]
        own = sorted(
            (row for row in slices if row["series_uid"] == driver["series_uid"]), key=lambda r: float(r["position_mm"])
        )
        assert len(own) == 10
        assert own[at] == driver
        np.testing.assert_allclose(series["position_mm"], [float(row["position_mm"]) for row in own])
        np.testing.assert_allclose(series["probabilities"][:, 0], [float(row["any"]) for row in own], rtol=1e-5)


def test_flip_is_the_mean_of_a_slice_and_its_mirror_image(run, tmp_path, export, about):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    args = ["--model", str(export), "--input", str(path), "--output", str(tmp_path / "out"), "--pictures", "0"]
    assert predict.main([*args, "--flip"]) == 0
    model = model_file.load_model(export, about)
    with slice_stream.sources.SliceReader() as reader:
        (ref,) = slice_stream.sources.refs(slice_stream.sources.list_inputs([str(path)]).table)
        _, image = slice_stream.read_image(ref, FrameReader(reader), about.spec.image)
    logits = (np.asarray(model(image[None])) + np.asarray(model(image[None, :, ::-1]))) / 2
    (row,) = rows(tmp_path / "out" / "predictions.csv")
    told = [float(row[name]) for name in about.spec.labels.names]
    np.testing.assert_allclose(told, about.probabilities(logits)[0], rtol=3e-6)
    assert facts(tmp_path / "out")["flags"]["flip"] is True


def test_batch_size_changes_nothing(run, synthetic_set):
    found = [run(synthetic_set.output / "stage_2_test", output=f"out{size}", batch_size=size)[1] for size in (1, 5, 64)]
    tables = [rows(out / "predictions.csv") for out in found]
    for row, *others in zip(*tables, strict=True):
        for other in others:
            assert row["sop_uid"] == other["sop_uid"]
            assert float(row["any"]) == pytest.approx(float(other["any"]), rel=1e-5)


def spoiled(export: Path, about: About, folder: Path) -> Path:
    """The export with a weight that is no number, as diverged training leaves it."""
    model = model_file.load_model(export, about)
    model.layers[-1].bias.assign(np.full(model.layers[-1].bias.shape, np.nan))
    model_file.write(folder, model, about)
    return folder


def test_a_model_that_gives_nan_is_told(run, tmp_path, export, about, capsys):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    code, out = run(path, model=spoiled(export, about, tmp_path / "model"))
    assert code == 1
    line = capsys.readouterr().err
    assert line.startswith("predict: the model gives no finite number for 1 slice; ")
    assert line.count("\n") == 1
    assert [row["reason"] for row in rows(out / "rejects.csv")] == ["no_probability"]


def test_one_slice_without_a_number_leaves_the_others(run, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    for number in range(5):
        write_slice(folder, f"{number}.dcm", f"1.2.{number}", number)
    embedder = model_file.embedder

    def sometimes(model):
        embed = embedder(model)

        def embedded(images):
            vectors, logits = embed(images)
            logits = logits.copy()
            if len(images) == 3:
                logits[1, 2] = np.inf
            return vectors, logits

        return embedded

    monkeypatch.setattr(model_file, "embedder", sometimes)
    code, out = run(folder, batch_size=3)
    assert code == 1
    assert [row["file"] for row in rows(out / "predictions.csv")] == ["0.dcm", "2.dcm", "3.dcm", "4.dcm"]
    assert [row["file"] for row in rows(out / "rejects.csv")] == ["1.dcm"]
    assert len(rows(out / "triage.csv")) == 1


def test_too_large_a_batch_is_told_with_the_way_out(run, tmp_path, monkeypatch, capsys):
    def embedder(model):
        def embed(images):
            if len(images) > 1:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return np.zeros((1, 8), np.float16), np.zeros((1, 6), np.float32)

        return embed

    for number in range(2):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}")
    monkeypatch.setattr(model_file, "embedder", embedder)
    assert run(tmp_path / "in")[0] == 1
    line = capsys.readouterr().err
    assert line == "predict: 2 slices at once need more memory than there is; lower --batch_size\n"
    assert run(tmp_path / "in", batch_size=1)[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": "nowhere"}, "nowhere"),
        ({"input": "empty"}, "no slice among 0 files"),
        ({"model": "empty"}, "holds no model.keras"),
        ({"model": "nowhere"}, "does not exist"),
        ({"include": "*.nothing"}, "matches none"),
        ({"output": "in/a.dcm"}, "is a file, not a folder"),
        ({"output": "in"}, "holds a.dcm, which predict did not write"),
        ({"output": "gs://bucket/out"}, "is in a bucket"),
        ({"batch_size": "0"}, "--batch_size: '0' is no whole number from 1 to 4,096"),
        ({"batch_size": "4097"}, "--batch_size: '4097' is no whole number from 1 to 4,096"),
        ({"batch_size": str(10**20)}, "--batch_size: '100000000000000000000' is no whole number from 1 to 4,096"),
        ({"batch_size": "٣"}, "is no whole number from 1 to 4,096"),
        ({"pictures": "-1"}, "--pictures: '-1' is no whole number from 0 to 1,000"),
        ({"pictures": "9" * 5000}, f"--pictures: '999999...{'9' * 13}' is no whole number from 0 to 1,000"),
        ({"map": "lime"}, "--map: invalid choice: 'lime'"),
        ({"input": ""}, "--input: the path is empty"),
        ({"model": ""}, "--model: the path is empty"),
        ({"output": ""}, "--output: the path is empty"),
        ({"picture": "1"}, "unknown flag --picture; did you mean '--pictures'?"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(change, words, export, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_slice(tmp_path / "in", "a.dcm", "1.2")
    (tmp_path / "empty").mkdir()
    flags = {"model": str(export), "input": "in", "output": "out", **change}
    assert predict.main([part for name, value in flags.items() for part in (f"--{name}", value)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("predict: ")
    assert words in line
    assert line.count("\n") == 1
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["empty", "in", "in/a.dcm"]


def test_a_run_stands_for_its_export(run, tmp_path, export):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    assert run(path, model=export.parent)[0] == 0


def test_results_of_an_earlier_predict_are_replaced_and_nothing_else(run, tmp_path):
    for number in range(2):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}", StudyInstanceUID=f"1.{number}".encode())
    _, out = run(tmp_path / "in", pictures=2)
    (out / "notes.txt").write_text("mine")
    for name in ("own.png", "001_own.png"):
        (out / "pictures" / name).write_bytes(b"mine")
    assert run(tmp_path / "in" / "1.dcm", pictures=1)[0] == 0
    assert [row["file"] for row in rows(out / "predictions.csv")] == ["1.dcm"]
    assert [row["study_uid"] for row in rows(out / "triage.csv")] == ["1.1"]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["001_1.2.1.png", "001_own.png", "own.png"]
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("named", [["../../notes.png", "001_../../../notes.png"], "notes.png", 3, [None, 1]])
def test_a_run_json_that_names_other_files_deletes_none(run, tmp_path, named):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    _, out = run(path)
    (tmp_path / "notes.png").write_text("mine")
    (out / "run.json").write_text(json.dumps({**facts(out), "pictures": named}))
    assert run(path)[0] == 0
    assert (tmp_path / "notes.png").read_text() == "mine"


GOES_ON = 'results count only where run.json says "finished": true; the same command makes them anew'


@pytest.mark.parametrize("again", [False, True])
def test_an_interruption_leaves_nothing_half_written(run, tmp_path, monkeypatch, capsys, again):
    for number in range(6):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}")
    if again:
        run(tmp_path / "in")
    monkeypatch.setattr(slice_outcomes, "scored", interrupted_at(2, slice_outcomes.scored))
    code, out = run(tmp_path / "in", batch_size=1)
    assert code == 130
    assert capsys.readouterr().err == f"predict: interrupted; {GOES_ON}\n"
    assert facts(out)["finished"] is again
    results = ["predictions.csv", "rejects.csv", "run.json", "triage.csv", "triage.html"]
    kept = ["lock", *results] if again else ["lock", "run.json"]
    assert sorted(path.name for path in out.iterdir()) == kept
    monkeypatch.undo()
    assert run(tmp_path / "in")[0] == 0
    assert facts(out)["finished"] is True


def test_an_interruption_while_pictures_are_drawn_is_marked_and_mended(run, tmp_path, monkeypatch, capsys):
    for number in range(3):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}", number)
    _, out = run(tmp_path / "in", pictures=1)
    (earlier,) = facts(out)["pictures"]
    monkeypatch.setattr(picture_files, "picture", interrupted_at(3, picture_files.picture))
    assert run(tmp_path / "in", pictures=3)[0] == 130
    assert capsys.readouterr().err == f"predict: interrupted; {GOES_ON}\n"
    assert facts(out)["finished"] is False
    half = {path.name for path in (out / "pictures").iterdir()}
    assert (len(half), half < set(facts(out)["pictures"])) == (2, True)
    assert earlier in half
    monkeypatch.undo()
    assert run(tmp_path / "in", pictures=1)[0] == 0
    assert [path.name for path in (out / "pictures").iterdir()] == facts(out)["pictures"] == [earlier]


def test_an_interruption_while_the_page_is_made_is_marked_and_mended(run, tmp_path, monkeypatch):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    monkeypatch.setattr(triage_page, "page", interrupted_at(1, triage_page.page))
    code, out = run(path)
    assert (code, facts(out)["finished"]) == (130, False)
    assert sorted(path.name for path in out.iterdir()) == [
        "lock",
        "predictions.csv",
        "rejects.csv",
        "run.json",
        "triage.csv",
    ]
    monkeypatch.undo()
    assert run(path)[0] == 0
    assert (out / "triage.html").exists()


def test_a_second_predict_into_the_folder_of_one_that_runs(run, tmp_path, monkeypatch, capsys):
    path, codes = write_slice(tmp_path / "in", "a.dcm", "1.2"), []
    scored = slice_outcomes.scored

    def meanwhile(*args):
        if not codes:
            codes.append(0)
            codes.append(run(path)[0])
        return scored(*args)

    monkeypatch.setattr(slice_outcomes, "scored", meanwhile)
    code, out = run(path)
    assert (code, codes) == (0, [0, 2])
    line = capsys.readouterr().err
    assert f"predict: {out} is in use by process {os.getpid()} on " in line
    assert "; wait for it, or choose another --output\n" in line
    assert len(rows(out / "predictions.csv")) == 1
    assert not list(out.glob("*.tmp"))


def interrupted_at(call: int, function):
    calls = []

    def wrapped(*args):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*args)

    return wrapped


def test_a_killed_run_leaves_no_litter_behind(run, tmp_path):
    path = write_slice(tmp_path / "in", "a.dcm", "1.2")
    _, out = run(path)
    (out / "pictures").mkdir()
    for name in ("predictions.csv", "triage.csv", "triage.html", "run.json", "pictures/001_1.2.png"):
        (out / f"{name}.0123.tmp").write_text("half")
    (out / "notes.tmp").write_text("mine")
    run(path)
    assert [path.name for path in out.rglob("*.tmp")] == ["notes.tmp"]


def test_a_file_that_changes_before_its_picture_costs_the_picture_alone(run, tmp_path, monkeypatch, capsys):
    for number in range(2):
        write_slice(tmp_path / "in", f"{number}.dcm", f"1.2.{number}", StudyInstanceUID=f"1.{number}".encode())
    explainer = explain.explainer

    def spoiling(model, method):
        def maps(*args):
            (tmp_path / "in" / "0.dcm").write_bytes(b"")
            (tmp_path / "in" / "1.dcm").write_bytes(b"")
            return explainer(model, method)(*args)

        return maps

    monkeypatch.setattr(explain, "explainer", spoiling)
    code, out = run(tmp_path / "in", pictures=2)
    assert code == 0
    assert [path.name for path in (out / "pictures").iterdir()] == facts(out)["pictures"]
    assert len(facts(out)["pictures"]) == 1
    assert "predict: no picture of " in capsys.readouterr().err


def explained(monkeypatch) -> list[tuple[np.ndarray, slice_picture.Explanation, tuple[str, ...]]]:
    """Grows by image, explanation and labels without calibration of every picture that is drawn."""
    drawn, picture = [], slice_picture.picture

    def noting(image, spec, title, names, probabilities, explanation, uncalibrated, warning):
        drawn.append((image, explanation, tuple(uncalibrated)))
        return picture(image, spec, title, names, probabilities, explanation, uncalibrated, warning)

    monkeypatch.setattr(slice_picture, "picture", noting)
    return drawn


def test_the_pictures_are_explained_by_the_chosen_method(run, tmp_path, monkeypatch, export, about):
    assert list(picture_files.METHODS) == list(explain.METHODS)
    assert picture_files.DEFAULT == explain.DEFAULT
    path, drawn = write_slice(tmp_path / "in", "a.dcm", "1.2"), explained(monkeypatch)
    model = model_file.load_model(export, about)
    for flags in ({}, {"map": "hirescam"}, {"map": "gradcam"}):
        _, out = run(path, pictures=1, **flags)
        method = facts(out)["flags"]["map"]
        assert method == flags.get("map", "hirescam")
        image, explanation, uncalibrated = drawn[-1]
        assert explanation.method == {"hirescam": "HiResCAM", "gradcam": "Grad-CAM"}[method]
        assert uncalibrated == ("epidural",)
        assert explanation.label != "epidural"
        label = about.spec.labels.names.index(explanation.label)
        np.testing.assert_allclose(explanation.cam, explain.explainer(model, method)(image[None], label)[0], atol=1e-5)


def test_help_tells_of_globs_and_of_what_may_name_a_person(capsys):
    with pytest.raises(SystemExit):
        predict.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "quote the glob, or repeat --input" in told
    assert "PatientID is never written, but by --dicom." in told
