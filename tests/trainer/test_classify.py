"""`python -m trainer.classify` from end to end: it equals scikit-learn called by hand, and is a model like others."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.preprocessing import StandardScaler
from small_runs import train

from trainer import classify, compare, embed, evaluate, export, predict
from trainer.classical import estimators
from trainer.classical import run as classical_run
from trainer.data.dataset import Slices, open_dataset
from trainer.models import model_file
from trainer.models.model_file import About
from trainer.results import joint, predictions
from trainer.training import assembly, fitting, scoring

KINDS = ("forest", "svm", "logistic")
SMALL = {"forest": ("--trees", 20, "--depth", 6), "svm": ("--c", 0.1), "logistic": ("--c", 0.1)}


def run(*flags: object) -> int:
    return classify.main([*map(str, flags)])


def one_line(capsys) -> str:
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("classify: ")
    return line


@pytest.fixture(scope="module")
def runs(blob_run, tmp_path_factory) -> Path:
    """A folder with a slice run, `run`, and a classifier of each kind beside it; not to be changed."""
    folder = tmp_path_factory.mktemp("classified")
    shutil.copytree(blob_run, folder / "run")
    for kind, flags in SMALL.items():
        assert run("--job_dir", folder / "run", "--with", kind, *flags) == 0
    assert embed.main(["--job_dir", str(folder / "run"), "--split", "test"]) == 0  # of the tests alone
    return folder


@pytest.fixture(scope="module")
def evaluated(runs) -> Path:
    """The same, evaluated on the test split."""
    for name in ("run", *(f"run-{kind}" for kind in KINDS)):
        assert evaluate.main(["--job_dir", str(runs / name), "--resamples", "100"]) == 0
    return runs


@pytest.fixture
def copy(runs, tmp_path) -> Path:
    """A copy of the slice run, with vectors."""
    return Path(shutil.copytree(runs / "run", tmp_path / "run"))


def about_of(folder: Path) -> About:
    return model_file.read_about(model_file.find(str(folder)))


def vectors_of(runs: Path, slices: Slices) -> np.ndarray:
    """float16 [n, dim]."""
    job_dir, data = str(runs / "run"), open_dataset(slices.place)
    (found,) = scoring.views(job_dir, about_of(runs / "run"), data, slices, False)
    return found.rows(np.arange(len(found)))


def last_of(folder: Path):
    return model_file.load_model(folder, about_of(folder)).layers[-1]


# --- what it fits ---


def test_a_forest_equals_scikit_learn_called_by_hand(runs, blobs):
    data = open_dataset(str(blobs))
    trained, tested = data.split("train"), data.split("test")
    known, new = vectors_of(runs, trained).astype(np.float32), vectors_of(runs, tested)
    shares = last_of(runs / "run-forest").shares(new).numpy().reshape(len(new), 6, 20)
    for at in range(6):
        forest = RandomForestClassifier(20, max_depth=6, min_samples_leaf=5, random_state=0, n_jobs=1)
        wanted = forest.fit(known, trained.labels[:, at] == 1).predict_proba(new.astype(np.float32))[:, 1]
        np.testing.assert_array_equal(np.cumsum(shares[:, at], 1)[:, -1] / 20, wanted)


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_linear_classifiers_equal_scikit_learn_called_by_hand(kind, runs, blobs):
    data = open_dataset(str(blobs))
    trained, tested = data.split("train"), data.split("test")
    scaler = StandardScaler().fit(vectors_of(runs, trained).astype(np.float32))
    known = scaler.transform(vectors_of(runs, trained).astype(np.float32))
    new = vectors_of(runs, tested)
    logits = last_of(runs / f"run-{kind}")(new).numpy().astype(np.float64)
    for at in range(6):
        truth = trained.labels[:, at] == 1
        if kind == "logistic":
            found = LogisticRegression(C=0.1, max_iter=1000, random_state=0).fit(known, truth)
        else:
            how = {"loss": "hinge", "average": True, "max_iter": 1064, "tol": None, "class_weight": "balanced"}
            found = SGDClassifier(alpha=1 / (0.1 * 940), random_state=0, **how).fit(known, truth)
        wanted = found.decision_function(scaler.transform(new.astype(np.float32))).astype(np.float64)
        if kind == "svm":  # margins become log odds by a line, whose probabilities are as many as the positives
            slope, offset = np.polyfit(wanted, logits[:, at], 1)
            assert slope > 0
            shown = expit(slope * found.decision_function(known) + offset)
            assert shown.mean() == pytest.approx(truth.mean(), rel=0.02)
            wanted = slope * wanted + offset
        np.testing.assert_allclose(logits[:, at], wanted, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_sees_images_as_it_saw_vectors(kind, evaluated, blobs):
    """What is calibrated on vectors is what evaluates images; a forest may step where a number is rounded otherwise."""
    slices = open_dataset(str(blobs)).split("test")
    found = predictions.read(evaluated / f"run-{kind}" / "evaluation" / "test" / "predictions.parquet")
    wanted = last_of(evaluated / f"run-{kind}")(vectors_of(evaluated, slices)).numpy()
    assert found.ids["sop_uid"].to_pylist() == slices.table["sop_uid"].to_pylist()
    far = np.abs(found.logits - wanted) > 1e-3 * np.maximum(1, np.abs(wanted))
    assert far.mean() < (0.01 if kind == "forest" else 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_calibrated_on_the_validation_split_by_nature(kind, runs, blobs):
    data, about = open_dataset(str(blobs)), about_of(runs / f"run-{kind}")
    held, labels = data.split("validation"), about.spec.labels
    logits = last_of(runs / f"run-{kind}")(vectors_of(runs, held)).numpy()
    odds, ids = joint.unchanged(labels.names, labels.any), held.table.select(list(predictions.IDS))
    shares = np.array(list(about.facts["prevalence"].values()))
    wanted = fitting.fit(odds, ids, held.labels, logits, shares)
    np.testing.assert_allclose(about.calibration.slope, wanted.calibration.slope, rtol=1e-6)
    np.testing.assert_allclose(about.calibration.intercept, wanted.calibration.intercept, atol=1e-6)
    assert about.thresholds == wanted.thresholds
    # the slice run was balanced; what undoes that is gone
    assert (about.settings["sampling"], len(about.odds.drawn)) == ("natural", 0)
    assert len(about_of(runs / "run").odds.drawn) > 0
    assert fitting.own_settings(about, data).sampling == "natural"


def test_a_run_of_a_fold_is_fitted_on_its_fold(tiny_dataset, tmp_path, monkeypatch):
    folder, seen = tmp_path / "cnn-fold1", []
    flags = ("--folds", "3", "--fold", "1")
    assert train(tiny_dataset, folder, *flags, sampling="balanced", absent_labels=True) == 0
    fit = estimators.fit
    monkeypatch.setattr(estimators, "fit", lambda wanted, *given: seen.append(given[:2]) or fit(wanted, *given))
    assert run("--job_dir", folder, "--with", "logistic") == 0
    about, data = about_of(tmp_path / "cnn-logistic-fold1"), open_dataset(str(tiny_dataset))
    trained = assembly.split(data, fitting.own_settings(about, data), "train")
    assert len(trained) < sum(len(data.split(name)) for name in ("train", "validation"))
    ((vectors, labels),) = seen
    np.testing.assert_array_equal(labels, trained.labels)
    assert vectors.shape == (len(trained), 8)


def test_it_makes_the_vectors_that_lack(blob_run_copy, blobs, capsys):
    assert run("--job_dir", blob_run_copy, "--with", "logistic", "--output", blob_run_copy.parent / "made") == 0
    out = capsys.readouterr().out
    slices = len(open_dataset(str(blobs)).split("train"))
    assert f"{blob_run_copy}/vectors/train: {slices} vectors of 32 numbers, 0 of them already there" in out
    assert "logistic [########################] 6/6 labels" in out
    command = f"evaluate it with: python -m trainer.evaluate --job_dir {blob_run_copy.parent}/made"
    assert out.splitlines()[-1] == command
    assert sorted(path.name for path in (blob_run_copy / "vectors").iterdir()) == ["lock", "train", "validation"]


# --- a model like every other ---


def test_its_row_stands_in_compare(evaluated, tmp_path, capsys):
    places = [str(evaluated / name) for name in ("run", *(f"run-{kind}" for kind in KINDS))]
    assert compare.main([*places, "--output", str(tmp_path / "page.html"), "--resamples", "100"]) == 0
    with (tmp_path / "page.csv").open(newline="") as file:
        rows = {row["run"] for row in csv.DictReader(file)}
    assert rows >= {"run", "run-forest", "run-svm", "run-logistic"}
    page = (tmp_path / "page.html").read_text()
    assert all(f"cnn, {kind}" in page for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_knows_something(kind, evaluated):
    result = json.loads((evaluated / f"run-{kind}" / "evaluation" / "test" / "metrics.json").read_text())
    assert result["measures"]["skill"]["overall"]["skill"]["low"] > 0
    what = result["what"]
    assert what["model"] == f"cnn, {kind}"
    slice_model = model_file.digest(evaluated / "run" / "export")
    assert what["settings"]["classifier"]["slice_model"] == slice_model
    assert what["settings"]["classifier"]["kind"] == kind


@pytest.mark.parametrize("kind", ["forest", "svm"])
def test_predict_takes_it(kind, evaluated, blobs, tmp_path, capsys):
    files, some = blobs.parent / f"{blobs.name}-dicom", tmp_path / "in"
    found = predictions.read(evaluated / f"run-{kind}" / "evaluation" / "test" / "predictions.parquet")
    some.mkdir()
    uids = found.ids["sop_uid"].to_pylist()[:24]
    for uid in uids:
        shutil.copy(files / f"{uid}.dcm", some)
    flags = ["--model", str(evaluated / f"run-{kind}"), "--input", str(some), "--output", str(tmp_path / "out")]
    assert predict.main([*flags, "--pictures", "2"]) == 0
    assert ("a forest has no gradient, so the pictures show no map" in capsys.readouterr().out) is (kind == "forest")
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"]["kind"] == f"cnn, {kind}"
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        said = {row["sop_uid"]: float(row["any"]) for row in csv.DictReader(file)}
    off = [abs(said[uid] - found.probabilities[row, 0]) for row, uid in enumerate(uids)]
    assert np.median(off) < 1e-5
    assert max(off) < (0.05 if kind == "forest" else 1e-4)


@pytest.mark.parametrize("kind", ["forest", "logistic"])
def test_an_export_serves_it(kind, evaluated, tmp_path, capsys):
    assert export.main(["--job_dir", str(evaluated / f"run-{kind}"), "--output", str(tmp_path / "served")]) == 0
    card = (tmp_path / "served" / "MODEL_CARD.md").read_text()
    assert f"\n# cnn, {kind}, trained on blobs" in card
    assert "scikit-learn" in card
    assert "has no results of these weights" not in capsys.readouterr().out


def test_it_can_be_recalibrated(runs, tmp_path):
    folder = Path(shutil.copytree(runs / "run-forest", tmp_path / "forest"))
    assert evaluate.main(["--job_dir", str(folder), "--recalibrate", "--resamples", "100"]) == 0
    before, after = about_of(runs / "run-forest"), about_of(folder)
    np.testing.assert_allclose(after.calibration.slope, before.calibration.slope, atol=0.02)
    assert len(after.odds.drawn) == 0


@pytest.mark.parametrize(
    ("place", "wanted"),
    [("runs/cnn", "runs/cnn-svm"), ("runs/cnn-fold3", "runs/cnn-svm-fold3"), ("cnn", "cnn-svm"), (".", "/in/here-svm")],
)
def test_where_it_goes_by_itself(place, wanted, monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda self: Path("/in/here"))
    assert classify._beside(Path(place), "svm") == wanted


# --- once more, and stopped ---


def test_the_same_command_does_nothing(runs, capsys):
    before = {path: path.stat().st_mtime_ns for path in (runs / "run-forest").iterdir()}
    assert run("--job_dir", runs / "run", "--with", "forest", *SMALL["forest"]) == 0
    assert capsys.readouterr().out == f"{runs}/run-forest holds this classifier already; nothing was done\n"
    assert {path: path.stat().st_mtime_ns for path in (runs / "run-forest").iterdir()} == before


@pytest.mark.parametrize("kind", ["forest", "svm"])
def test_the_seed_decides_what_is_drawn(kind, runs, copy, tmp_path):
    made = {}
    for seed in (0, 1):
        output = tmp_path / f"seed{seed}"
        assert run("--job_dir", copy, "--with", kind, *SMALL[kind], "--seed", seed, "--output", output) == 0
        made[seed] = [weight.numpy() for weight in last_of(output).weights]
    for one, other in zip(made[0], [weight.numpy() for weight in last_of(runs / f"run-{kind}").weights], strict=True):
        np.testing.assert_array_equal(one, other)
    assert any(one.shape != other.shape or (one != other).any() for one, other in zip(made[0], made[1], strict=True))


def test_stopped_it_leaves_nothing_that_passes_for_a_model(copy, runs, monkeypatch, capsys):
    fit, flags = estimators.fit, ("--job_dir", copy, "--with", "logistic", *SMALL["logistic"])

    def stopped(wanted, vectors, labels, tell):
        def told(done: int, total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        return fit(wanted, vectors, labels, told)

    monkeypatch.setattr(estimators, "fit", stopped)
    assert run(*flags) == 130
    assert one_line(capsys) == "classify: interrupted; vectors that are whole stay, and the same command fits anew"
    output = copy.parent / "run-logistic"
    assert [path.name for path in output.iterdir()] == ["lock"]
    monkeypatch.setattr(estimators, "fit", fit)
    assert run(*flags) == 0
    for one, other in zip(last_of(output).weights, last_of(runs / "run-logistic").weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_damaged_forest_is_refused_in_one_line(runs, tmp_path, capsys):
    folder = Path(shutil.copytree(runs / "run-forest", tmp_path / "forest"))
    about = about_of(folder)
    model = model_file.load_model(folder, about)
    child = model.layers[-1].child
    child.assign(np.full(child.shape, 10**6, child.dtype))
    model_file.write(folder, model, about)
    assert evaluate.main(["--job_dir", str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"cannot read {folder}/model.keras (its trees lead out of the forest)" in line


# --- what is drawn, and what did not converge ---


def test_more_than_the_memory_takes_is_drawn_by_ids(copy, blobs, monkeypatch, capsys):
    monkeypatch.setattr(classical_run, "MOST_NUMBERS", 32 * 500)
    assert run("--job_dir", copy, "--with", "logistic") == 0
    slices = open_dataset(str(blobs)).split("train")
    said = f"fitted on 500 of {len(slices):,} slices, drawn by their ids: more would not fit in memory"
    assert said in capsys.readouterr().out
    rows = classical_run.drawn(slices, 500, seed=0)
    assert (len(rows), len(np.unique(rows))) == (500, 500)
    assert (np.diff(rows) > 0).all()
    taken = np.isin(np.arange(len(slices)), rows)
    some = slices.take(taken | (np.arange(len(slices)) % 2 == 0), "train")  # who else is there changes nothing
    again = classical_run.drawn(some, 500, seed=0)
    assert some.table["sop_uid"].take(again).to_pylist() == slices.table["sop_uid"].take(rows).to_pylist()
    assert set(classical_run.drawn(slices, 500, seed=1)) != set(rows)


def test_a_fit_that_had_not_converged_is_told(copy, monkeypatch, capsys):
    monkeypatch.setattr(estimators, "MOST_STEPS", 1)
    assert run("--job_dir", copy, "--with", "logistic") == 0
    out, err = capsys.readouterr()
    assert "logistic of any had not converged when its steps ran out; a smaller --c converges sooner" in out
    assert err == ""


# --- refused ---


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--with", "boosting"), "argument --with: invalid choice: 'boosting'"),
        (("--with", "svm", "--trees", "3"), "--trees does not belong to --with svm, which takes --c; leave it out"),
        (
            ("--with", "forest", "--c", "3"),
            "--c does not belong to --with forest, which takes --trees and --depth; leave it out",
        ),
        (("--with", "forest", "--trees", "0"), "'0' is no whole number from 1 to 1,000"),
        (("--with", "forest", "--depth", "25"), "'25' is no whole number from 1 to 24"),
        (("--with", "svm", "--c", "0"), "'0' is no number above 0, 1,000,000 at most"),
        (("--with", "svm", "--c", "nan"), "'nan' is no number above 0, 1,000,000 at most"),
        (("--with", "svm", "--seed", "-1"), "'-1' is no whole number from 0 to"),
    ],
)
def test_wrong_flags(flags, told, blob_run, capsys):
    assert run("--job_dir", blob_run, *flags) == 2
    assert told in one_line(capsys)


def test_a_series_run_is_refused(series_run, capsys):
    assert run("--job_dir", series_run, "--with", "svm") == 2
    line = one_line(capsys)
    assert line == f"classify: {series_run} is a series model, which takes vectors; name the run of its slice model"


def test_a_classifier_is_refused(runs, capsys):
    assert run("--job_dir", runs / "run-forest", "--with", "svm") == 2
    told = f"{runs}/run-forest is a cnn, forest already; name the run whose vectors it was fitted on"
    assert one_line(capsys) == f"classify: {told}"


def test_a_run_without_validation_is_refused(blob_run_copy, capsys):
    folder = blob_run_copy / "export"
    about = model_file.read_about(folder)
    settings = {**about.settings, "validation_split": "", "patience": 0}
    model_file.write_about(folder, dataclasses.replace(about, settings=settings))
    assert run("--job_dir", blob_run_copy, "--with", "svm") == 2
    told = "the run had no validation split, so there is nothing to fit a calibration on"
    assert one_line(capsys) == f"classify: {told}"
    assert not (blob_run_copy.parent / "blob_run-svm").exists()


@pytest.mark.parametrize(("value", "word"), [(0, "positive"), (1, "negative"), (-1, "positive")])
def test_a_label_with_one_value_is_refused(value, word, blob_run_copy, monkeypatch, capsys):
    split = assembly.split

    def one_valued(data, settings, name):
        found = split(data, settings, name)
        if name == "train":
            found.labels[:, 1] = value
        return found

    monkeypatch.setattr(assembly, "split", one_valued)
    assert run("--job_dir", blob_run_copy, "--with", "forest") == 2
    told = f"no slice of split train is {word} for epidural, so no classifier can tell it"
    assert one_line(capsys) == f"classify: {told}; train the slice run on more data"
    assert not (blob_run_copy.parent / "blob_run-forest").exists()
    assert not (blob_run_copy / "vectors").exists()


def test_another_data_set_is_refused(blob_run, runs_of_blobs, capsys):
    assert run("--job_dir", blob_run, "--with", "svm", "--data_dir", runs_of_blobs) == 2
    assert "is not the data set that the model was trained on" in one_line(capsys)


def test_a_folder_that_holds_something_else_is_refused(copy, runs, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert run("--job_dir", copy, "--with", "svm", "--output", tmp_path / "file") == 2
    assert one_line(capsys) == f"classify: {tmp_path}/file is a file, not a folder; choose another --output"
    assert run("--job_dir", copy, "--with", "svm", "--output", copy) == 2
    told = f"{copy} is not empty and holds no classifier of this command; choose another --output"
    assert one_line(capsys) == f"classify: {told}"
    assert run("--job_dir", runs / "run", "--with", "svm", "--c", 9, "--output", runs / "run-svm") == 2
    told = f"{runs}/run-svm holds another model (c 0.1, now 9.0); choose another --output"
    assert one_line(capsys) == f"classify: {told}"


def test_a_second_command_waits_for_the_first(copy, capsys):
    from trainer.shell import folder_lock

    held = folder_lock.take(copy.parent / "run-svm", "--output")
    try:
        assert run("--job_dir", copy, "--with", "svm") == 2
    finally:
        held.close()
    assert "run-svm is in use by " in one_line(capsys)


def test_end_to_end_training_begins_with_no_classifier(runs, blobs, tmp_path, capsys):
    given = ("--config", "series_end_to_end", "--slice_run", str(runs / "run-forest"))
    assert train(blobs, tmp_path / "both", *given, model="series") == 2
    told = "is a cnn, forest, whose last layer end_to_end cannot train; name the run that it was fitted on"
    assert told in capsys.readouterr().err
