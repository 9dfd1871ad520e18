"""`python -m trainer.evaluate` from end to end: three files, honest numbers, and lines for what cannot be done."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import blob_dataset
import browser
import numpy as np
import odd_dataset
import pyarrow as pa
import pytest

from trainer import evaluate
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.results import predictions
from trainer.results.probability import prevalence
from trainer.training import assembly, scoring

LABELS = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


def run(*flags: object) -> int:
    return evaluate.main([*map(str, flags), "--resamples", "100"])


@pytest.fixture(scope="module")
def evaluated(blob_run, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "test"
    assert run("--job_dir", blob_run, "--output", output) == 0
    return output


@pytest.fixture(scope="module")
def result(evaluated) -> dict:
    return json.loads((evaluated / "metrics.json").read_text())


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("evaluate: "), text
    assert text.count("\n") == 1, text
    return text[:-1]


def test_a_balanced_run_is_calibrated(result):
    """What sampling by strata did to the probabilities is undone: lower log loss, at most half the error, per label."""
    measured = result["measures"]
    assert measured["log_loss"]["high"] < measured["log_loss_before"]["low"]
    for name in LABELS:
        found = measured["labels"][name]
        assert found["log_loss"]["value"] < found["log_loss_before"]["value"], name
        assert found["calibration_error"]["value"] <= found["calibration_error_before"]["value"] / 2, name
    assert result["calibration"]["refused"] == {}


def test_it_stands_beside_the_prevalence_of_the_training_split(result, blobs, blob_run):
    labels = open_dataset(str(blobs)).split("train").labels
    shares = dict(zip(LABELS, prevalence(labels).tolist()))
    assert result["measures"]["skill"]["prevalence"] == shares
    assert model_file.read_about(blob_run / "export").facts["prevalence"] == shares
    assert result["measures"]["skill"]["overall"]["skill"]["low"] > 0
    foreseen = result["what"]["foreseen"]["slices"]["any"]
    assert foreseen["positives"] == (open_dataset(str(blobs)).split("validation").labels[:, 0] == 1).sum()
    assert set(foreseen["rules"]) == set(model_file.read_about(blob_run / "export").thresholds["any"])


@pytest.mark.parametrize("other", [False, True])
def test_a_run_that_noted_no_prevalence_takes_that_of_the_data_set(blobs, blob_run, other):
    about = model_file.read_about(blob_run / "export")
    facts = {key: value for key, value in about.facts.items() if key != "prevalence"}
    settings = {key: value for key, value in about.settings.items() if key not in ("stem", "erase")}  # nor had it those
    fingerprint = "0" * 64 if other else about.fingerprint
    before = dataclasses.replace(about, facts=facts, settings=settings, fingerprint=fingerprint)
    data = open_dataset(str(blobs))
    names = data.manifest.splits if other else ["train"]
    labels = np.concatenate([data.split(name).labels for name in names])
    assert evaluate._prevalence(before, data) == dict(zip(LABELS, prevalence(labels).tolist()))


def test_every_slice_of_the_split_is_predicted_once(evaluated, blobs, blob_run):
    found = predictions.read(evaluated / "predictions.parquet")
    slices = open_dataset(str(blobs)).split("test")
    assert found.ids["sop_uid"].to_pylist() == slices.table["sop_uid"].to_pylist()
    np.testing.assert_array_equal(found.labels, slices.labels)
    about = model_file.read_about(blob_run / "export")
    images, _ = slices.reader.read(np.arange(40))
    logits = model_file.load_model(blob_run / "export", about)(np.array(images)).numpy()
    np.testing.assert_allclose(found.logits[:40], logits, atol=1e-5)
    np.testing.assert_array_equal(found.probabilities, about.probabilities(found.logits))
    assert (found.probabilities <= found.probabilities[:, :1]).all()  # any is the first


def test_the_promise_about_studies_rests_on_validation_and_is_tested_here(result, blobs, blob_run):
    scores = model_file.read_about(blob_run / "export").facts["conformal"]
    held = open_dataset(str(blobs)).split("validation")
    patients = {
        value: set(held.table["patient_key"].filter(pa.array(held.labels[:, 0] == value)).to_pylist())
        for value in (0, 1)
    }
    assert len(scores["any"]["positive"]) == len(patients[1])
    assert len(scores["any"]["negative"]) <= len(patients[0])  # of a study one slice is enough
    promise = result["promise"]
    assert promise["alpha"] == 0.05
    found = promise["labels"]["any"]
    wrong = found["wrong"]["positive"]
    assert wrong["value"] == wrong["called_wrongly"] / wrong["patients"]
    assert wrong["low"] <= wrong["value"] <= wrong["high"]
    known = result["measures"]["studies_level"]["any"]["known"]
    assert sum(found["studies"].values()) == known


def test_the_numbers_say_what_they_are_of(result, blobs):
    what = result["what"]
    manifest = open_dataset(str(blobs)).manifest
    assert what["dataset"] == {"name": "blobs", "version": "1.0.0", "fingerprint": manifest.fingerprint}
    assert (what["split"], what["model"], what["flip"], what["fold"]) == ("test", "cnn", False, None)
    assert what["trained_on"] == manifest.fingerprint
    assert what["train"]["epochs"] == 6
    assert what["train"]["seconds"] > 0
    assert what["settings"]["sampling"] == "balanced"
    assert set(what["versions"]) == {"ich_tfrecords", "python", "tensorflow", "keras"}
    measured = result["measures"]
    assert (measured["slices"], measured["resamples"]) == (len(open_dataset(str(blobs)).split("test")), 100)


@pytest.mark.slow
def test_the_page_is_clean_in_a_browser(evaluated, tmp_path):
    report = browser.render(evaluated / "report.html", tmp_path / "report.png")
    assert (report.console, report.requests, report.broken_images, report.scripts) == ([], [], 0, 0)
    assert report.images > 6
    assert not report.too_wide


def test_flipped_slices_are_scored_too(blob_run_copy):
    assert run("--job_dir", blob_run_copy, "--flip") == 0
    folder = blob_run_copy / "evaluation" / "test-flip"
    assert json.loads((folder / "metrics.json").read_text())["what"]["flip"] is True
    flipped = predictions.read(folder / "predictions.parquet")
    model = model_file.load_model(blob_run_copy / "export", model_file.read_about(blob_run_copy / "export"))
    slices = open_dataset(json.loads((blob_run_copy / "export" / "about.json").read_text())["facts"]["data_dir"])
    images = np.array(slices.split("test").reader.read(np.arange(20))[0])
    both = (model(images).numpy() + model(images[:, :, ::-1]).numpy()) / 2
    np.testing.assert_allclose(flipped.logits[:20], both, atol=1e-5)


def test_another_data_set_has_its_own_folder_and_is_told(blob_run_copy, tmp_path, capsys):
    other = blob_dataset.make(tmp_path / "other", patients=14, seed=1)
    assert run("--job_dir", blob_run_copy, "--data_dir", other) == 0
    assert "the model was trained on another data set than the one evaluated on; see to it" in capsys.readouterr().out
    fingerprint = open_dataset(str(other)).manifest.fingerprint
    assert (blob_run_copy / "evaluation" / f"test-{fingerprint[:8]}" / "report.html").is_file()


def test_streams_give_the_same(blob_run_copy, evaluated, monkeypatch):
    """A data set in a bucket is read as streams, and its worst slices in a pass of their own."""
    monkeypatch.setattr(evaluate, "_slices", lambda about, data, name: data.split(name, stream=True))
    assert run("--job_dir", blob_run_copy) == 0
    folder = blob_run_copy / "evaluation" / "test"
    np.testing.assert_allclose(
        predictions.read(folder / "predictions.parquet").logits,
        predictions.read(evaluated / "predictions.parquet").logits,
        atol=1e-6,
    )
    assert (folder / "report.html").stat().st_size == pytest.approx(
        (evaluated / "report.html").stat().st_size, rel=0.01
    )


def test_unknown_labels_are_left_out(blob_run_copy, monkeypatch):
    """A split whose labels are partly unknown (-1) is measured on what is known, and its page says how much that is."""
    whole = scoring.predict_split

    def partly(*given):
        found = whole(*given)
        labels = found.labels.copy()
        labels[::2], labels[:, 1] = -1, -1
        return dataclasses.replace(found, labels=labels)

    monkeypatch.setattr(scoring, "predict_split", partly)
    assert run("--job_dir", blob_run_copy) == 0
    measured = json.loads((blob_run_copy / "evaluation" / "test" / "metrics.json").read_text())["measures"]
    assert measured["labels"]["any"]["known"] == measured["slices"] // 2
    unknown = measured["labels"]["epidural"]
    assert (unknown["known"], unknown["auc"]["value"]) == (0, None)
    assert unknown["note"]
    assert (blob_run_copy / "evaluation" / "test" / "report.html").is_file()


# what cannot be done


def test_a_split_without_labels(blob_run_copy, capsys, monkeypatch):
    def unlabelled(data, settings, name):
        slices = data.split(name)
        stratum = np.full(len(slices), slices.spec.labels.strata.index("unlabelled"), np.int8)
        return dataclasses.replace(slices, stratum=stratum)

    monkeypatch.setattr(assembly, "split", unlabelled)
    assert run("--job_dir", blob_run_copy) == 2
    assert "no slice or study of split test in " in one_line(capsys)


def test_a_data_set_of_other_pixels(blob_run_copy, tmp_path, capsys):
    other = odd_dataset.make(tmp_path / "odd")
    assert run("--job_dir", blob_run_copy, "--data_dir", other) == 2
    assert "image.size_px: 16, now 32" in one_line(capsys)
    assert not (blob_run_copy / "evaluation").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--split", "dev"], "'dev' is not a split; the splits with slices are"),
        (["--resamples", "3"], "--resamples is 3; 100 to 100,000 give an interval"),
        (["--data_dir", "/nowhere"], "/nowhere holds no manifest.json"),
        (["--output", "/proc/version/x"], "/proc/version is a file, not a folder"),
        (["--spilt", "test"], "unknown flag --spilt; did you mean '--split'?"),
    ],
)
def test_wrong_use(blob_run, flags, words, capsys):
    assert evaluate.main(["--job_dir", str(blob_run), *flags]) == 2
    assert words in one_line(capsys)


def test_a_run_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: cnn\n")
    assert run("--job_dir", tmp_path) == 2
    assert "is a run without a checkpoint" in one_line(capsys)


def test_a_model_that_gives_nan(blob_run_copy, capsys):
    """Weights that left the numbers: told by slice, and nothing is written that looks like a result."""
    folder = blob_run_copy / "export"
    model = model_file.load_model(folder, model_file.read_about(folder))
    model.get_layer("logits").bias.assign([0, 0, np.nan, 0, 0, 0])
    model.save(folder / "model.keras")
    assert run("--job_dir", blob_run_copy) == 1
    assert "logit 2 is nan" in one_line(capsys)
    assert list((blob_run_copy / "evaluation" / "test").iterdir()) == []


def test_a_damaged_record(blob_run_copy, blobs, tmp_path, capsys):
    copy = Path(shutil.copytree(blobs, tmp_path / "damaged"))
    shard = max(copy.glob("*-test.tfrecord-*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[500] ^= 1
    shard.write_bytes(data)
    assert run("--job_dir", blob_run_copy, "--data_dir", copy) == 1
    assert f"shard {shard.name}, record " in one_line(capsys)
