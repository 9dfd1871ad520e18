"""The command that writes a submission: every slice once, by the calibrated model; and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_runs import train

from ich_tfrecords.dataset import manifest as manifests
from ich_tfrecords.dataset import records
from trainer import score, submit
from trainer.data.dataset import open_dataset
from trainer.models import model_file
from trainer.results import competition
from trainer.shell.problems import WrongUse
from trainer.training import scoring


@pytest.fixture(scope="module")
def run(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run that has ended, trained on a skewed draw, so that there is a shift to undo."""
    folder = tmp_path_factory.mktemp("runs") / "cnn"
    assert train(tiny_dataset, folder, sampling="balanced") == 0
    return folder


@pytest.fixture(scope="module")
def unlabelled(tiny_dataset: Path, synthetic_set, tmp_path_factory: pytest.TempPathFactory, convert) -> Path:
    """Kaggle's test slices as they are converted: without labels, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("unlabelled")
    slices = shutil.copytree(synthetic_set.output / "stage_2_test", folder / "stage_2_test")
    (slices / "ID_broken.dcm").write_bytes(b"nothing")
    spec, output = tiny_dataset.parent / "tiny.yaml", folder / "tiny_ich"
    given = ("--input", slices, "--labels", "none", "--max_reject_fraction", "0.5")
    assert convert("--spec", spec, *given, "--output", output) == 0
    return output


def flags(run: Path, data: Path, output: Path) -> list[str]:
    return ["--job_dir", str(run), "--data_dir", str(data), "--output", str(output)]


def read(path: Path, sop_uids: list[str]) -> np.ndarray:
    """The probabilities of a submission, float64 [n, L] in the order of the spec."""
    labels = competition.label_spec()
    keys, values = competition.read_submission(path)
    assert len(keys) == 6 * len(sop_uids)
    return values[competition.rows_of(keys, pa.array(sop_uids), labels.names)]


def expected(run: Path, data: Path, flip: bool = False) -> tuple[list[str], np.ndarray]:
    """Ids and calibrated probabilities of all slices, from the records of the shards and the model itself."""
    folder = run / "export"
    about = model_file.read_about(folder)
    model = model_file.load_model(folder, about)
    done = manifests.read(data)
    found = [_decoded(data / shard["name"], done.spec) for shard in done.shards if shard["slices"]]
    images = np.concatenate([images for _, images in found])
    logits = np.asarray(model(images))
    if flip:
        logits = (logits + np.asarray(model(images[:, :, ::-1]))) / 2
    return [uid for uids, _ in found for uid in uids], about.probabilities(logits)


def _decoded(path: Path, spec) -> tuple[list[str], np.ndarray]:
    import tensorflow as tf

    serialized = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    batch = records.decode_batch(tf.constant(serialized), spec)
    return [uid.decode() for uid in batch["sop_uid"].numpy()], batch["image"].numpy()


def test_every_slice_of_the_data_set_once(run, tiny_dataset, tmp_path, capsys):
    output = tmp_path / "submission.csv"
    assert submit.main(flags(run, tiny_dataset, output)) == 0
    said = capsys.readouterr()
    assert said.err == ""
    sop_uids, probabilities = expected(run, tiny_dataset)
    assert said.out.splitlines()[-1] == f"submission of 264 slices, 1,584 rows: {output}"
    assert len(sop_uids) == 264
    np.testing.assert_allclose(read(output, sop_uids), probabilities, rtol=1e-4)
    rows = output.read_text().splitlines()[1:]
    assert [row.rpartition("_")[0] for row in rows[::6]] == sorted(sop_uids)
    assert list(tmp_path.iterdir()) == [output]


def test_slices_without_labels_are_scored_too_and_rejected_ones_told(run, unlabelled, tmp_path, capsys):
    output = tmp_path / "submission.csv"
    assert submit.main(flags(run, unlabelled, output)) == 0
    told = f"1 more were left out when {unlabelled} was converted; the competition asks for every slice"
    assert capsys.readouterr().out.splitlines()[-1] == told
    sop_uids, probabilities = expected(run, unlabelled)
    assert len(sop_uids) == sum(shard["slices"] for shard in manifests.read(unlabelled).shards) > 0
    assert (open_dataset(str(unlabelled)).slices["any"].to_numpy() == -1).all()
    np.testing.assert_allclose(read(output, sop_uids), probabilities, rtol=1e-4)


def test_the_splits_that_are_named(run, tiny_dataset, tmp_path, capsys):
    output = tmp_path / "submission.csv"
    assert submit.main([*flags(run, tiny_dataset, output), "--split", "test", "validation", "test"]) == 0
    data = open_dataset(str(tiny_dataset))
    sop_uids = [uid for name in ("test", "validation") for uid in data.split(name).table["sop_uid"].to_pylist()]
    assert len(sop_uids) == 126
    every, probabilities = expected(run, tiny_dataset)
    rows = [every.index(uid) for uid in sop_uids]
    np.testing.assert_allclose(read(output, sop_uids), probabilities[rows], rtol=1e-4)


def test_flip_is_the_mean_of_the_logits_of_both_sides(run, tiny_dataset, tmp_path):
    output = tmp_path / "submission.csv"
    assert submit.main([*flags(run, tiny_dataset, output), "--flip", "--split", "test"]) == 0
    sop_uids = open_dataset(str(tiny_dataset)).split("test").table["sop_uid"].to_pylist()
    every, probabilities = expected(run, tiny_dataset, flip=True)
    plain = expected(run, tiny_dataset)[1]
    rows = [every.index(uid) for uid in sop_uids]
    np.testing.assert_allclose(read(output, sop_uids), probabilities[rows], rtol=1e-4)
    assert np.abs(probabilities - plain)[rows].max() > 1e-3


def test_the_score_of_a_submission_is_the_log_loss_of_the_run(run, tiny_dataset, tmp_path, capsys):
    """From the model to the competition's number by way of the two files."""
    output, labels = tmp_path / "submission.csv", tmp_path / "labels.csv"
    assert submit.main([*flags(run, tiny_dataset, output), "--split", "test"]) == 0
    slices = open_dataset(str(tiny_dataset)).split("test")
    names = slices.spec.labels.names
    sop_uids = slices.table["sop_uid"].to_pylist()
    rows = [f"{uid}_{name},{y}" for uid, row in zip(sop_uids, slices.labels) for name, y in zip(names, row)]
    labels.write_text("\n".join(["ID,Label", *rows]))
    capsys.readouterr()
    assert score.main(["--submission", str(output), "--labels", str(labels)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    every, probabilities = expected(run, tiny_dataset)
    taken = [every.index(uid) for uid in sop_uids]
    loss = competition.loss(slices.labels, probabilities[taken], names, slices.spec.labels.any)
    assert float(first.split()[-1]) == pytest.approx(loss, rel=1e-5)


# refused


def one_line(capsys) -> str:
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("submit: ")
    return line


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "the following arguments are required: --job_dir, --output"),
        ("--job_dir nowhere --output a.csv", "nowhere does not exist; give the folder of a run"),
        ("--job_dir nowhere --output a.csv --flips", "unknown flag --flips; did you mean '--flip'?"),
        ("--job_dir nowhere --output gs://b/s.csv", "--output gs:/b/s.csv is in a bucket; name a local folder"),
        ("--job_dir nowhere --output .", "--output . is a folder; name a file in it, such as submission.csv"),
        ("--job_dir nowhere --output no/a.csv", "--output no/a.csv lies in no folder that is there; make no first"),
        ("--job_dir . --output a.csv", ". holds no model.keras with its about.json"),
    ],
)
def test_wrong_words_are_one_line(given, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert submit.main(given.split()) == 2
    assert words in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_splits_and_data_sets(run, tiny_dataset, tmp_path, capsys):
    output = tmp_path / "submission.csv"
    assert submit.main([*flags(run, tiny_dataset, output), "--split", "tests"]) == 2
    assert "'tests' is not a split; the splits with slices are" in one_line(capsys)
    assert submit.main(flags(run, tmp_path, output)) == 2
    assert "holds no manifest.json" in one_line(capsys)
    assert not output.exists()


def test_a_data_set_without_slices(tiny_dataset):
    data = open_dataset(str(tiny_dataset))
    empty = {name: {**entry, "slices": 0} for name, entry in data.manifest.splits.items()}
    with pytest.raises(WrongUse, match="holds no slices; convert some first"):
        dataclasses.replace(data, manifest=dataclasses.replace(data.manifest, splits=empty)).named([])


def test_a_data_set_of_another_definition(run, dataset, tmp_path, capsys):
    assert submit.main(flags(run, dataset, tmp_path / "submission.csv")) == 2
    line = one_line(capsys)
    assert "(image.size_px: 32, now 128)" in line
    assert "labels." not in line.partition("(")[2]
    assert list(tmp_path.iterdir()) == []


def test_the_environment_names_the_data_set(run, unlabelled, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ICH_DATA_DIR", str(unlabelled))
    assert submit.main(["--job_dir", str(run), "--output", str(tmp_path / "a.csv")]) == 0
    assert f"when {unlabelled} was converted" in capsys.readouterr().out


def test_a_failure_on_the_way_leaves_the_old_file(run, tiny_dataset, tmp_path, capsys):
    damaged = Path(shutil.copytree(tiny_dataset, tmp_path / "damaged"))
    shard = max(damaged.glob("*.tfrecord*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    output = tmp_path / "submission.csv"
    output.write_text("what was there")
    assert submit.main(flags(run, damaged, output)) == 1
    assert shard.name in one_line(capsys)
    assert output.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "submission.csv"]


def test_a_slice_that_is_there_twice(run, tiny_dataset, tmp_path, monkeypatch, capsys):
    predict_split = scoring.predict_split

    def twice(*args):
        found = predict_split(*args)
        return found.take(np.r_[np.arange(len(found)), 0])

    monkeypatch.setattr(scoring, "predict_split", twice)
    assert submit.main([*flags(run, tiny_dataset, tmp_path / "a.csv"), "--split", "test"]) == 2
    assert "is there twice" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


# progress
