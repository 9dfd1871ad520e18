"""`python -m trainer.embed` from end to end: every slice's vector and logits, kills, damage, and what is refused."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import blob_dataset
import keras
import numpy as np
import pytest
from small_runs import train
from training_runs import Run, contents

from trainer import embed
from trainer.data import series
from trainer.data.dataset import Dataset, Slices, open_dataset
from trainer.models import model_file, networks
from trainer.results import vectors
from trainer.shell import folder_lock
from trainer.shell.problems import WrongUse
from trainer.training import assembly, hparams, scoring

SPLITS = ("test", "train", "validation")
EACH = 7


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(vectors, "PART_SLICES", 192)  # three batches


@pytest.fixture(scope="module")
def embedded(blob_run, tmp_path_factory) -> Path:
    """A run with all its vectors; not to be changed."""
    folder = Path(shutil.copytree(blob_run, tmp_path_factory.mktemp("embedded") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PART_SLICES", 192)
        assert run("--job_dir", folder, "--flip") == 0
    return folder


@pytest.fixture
def copy(embedded, tmp_path) -> Path:
    return Path(shutil.copytree(embedded, tmp_path / "run"))


def run(*flags: object) -> int:
    return embed.main([*map(str, flags)])


def one_line(capsys) -> str:
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("embed: ")
    return line


def read(job_dir: Path, data, slices: Slices, mirrored: bool = False) -> vectors.Vectors:
    about = model_file.read_about(model_file.find(str(job_dir)))
    return vectors.read([scoring.source(str(job_dir), about, data, mirrored)], data, slices)


def every(found: vectors.Vectors) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(len(found))
    return found.rows(numbers), found.logits(numbers)


def plain(job_dir: Path, slices: Slices, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of all slices by numpy, from what the layer before gives, and logits of each `EACH`th, one at a time."""
    model = model_file.load_model(job_dir / "export", model_file.read_about(job_dir / "export"))
    flat = keras.Model(model.input, model.get_layer("flatten").output)
    kernel, bias = (weight.numpy().astype(np.float64) for weight in model.get_layer("dense_1").weights)
    images = np.concatenate([np.array(slices.reader.read(np.array([row]))[0]) for row in range(len(slices))])
    images = images[:, :, ::-1] if mirrored else images
    dense = np.maximum(flat(images).numpy().astype(np.float64) @ kernel + bias, 0)
    return dense, np.concatenate([model(images[row : row + 1]).numpy() for row in range(0, len(images), EACH)])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_the_vectors_of_all_slices(embedded, blobs, split, mirrored):
    data = open_dataset(str(blobs))
    slices = data.split(split)
    found, logits = every(read(embedded, data, slices, mirrored))
    wanted, wanted_logits = plain(embedded, slices, mirrored)
    assert (found.dtype, found.shape) == (np.float16, (len(slices), 32))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits[::EACH], wanted_logits, atol=1e-5)
    assert found.std(axis=0, dtype=np.float64).max() > 0.02


def test_the_logits_are_those_of_the_scorer(embedded, blobs):
    data = open_dataset(str(blobs))
    slices, numbers = data.split("test"), np.arange(64)
    model = model_file.load_model(embedded / "export", model_file.read_about(embedded / "export"))
    images = np.array(slices.reader.read(numbers)[0])
    both = [read(embedded, data, slices, mirrored).logits(numbers) for mirrored in (False, True)]
    np.testing.assert_allclose(both[0], model_file.scorer(model)(images), atol=1e-6)
    np.testing.assert_allclose(sum(both) / 2, model_file.scorer(model, flip=True)(images), atol=1e-6)


def test_logits_follow_from_vectors(embedded, blobs):
    """What is kept is what the layer of the logits takes."""
    data = open_dataset(str(blobs))
    found, logits = every(read(embedded, data, data.split("train")))
    about = model_file.read_about(embedded / "export")
    layer = model_file.load_model(embedded / "export", about).get_layer("logits")
    np.testing.assert_allclose(layer(found.astype(np.float32)).numpy(), logits, atol=0.02)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "densenet121", "xception"])
def test_vectors_of_every_architecture(name):
    architecture = {"filters": [4], "dense": [], "dropout": 0.5} if name == "cnn" else {"dropout": 0.5}
    model = networks.build(name, (32, 32, 3), 6, "none", architecture)
    dim = {"cnn": 16 * 16 * 4, "densenet121": 1024, "xception": 2048}[name]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    found, logits = model_file.embedder(model)(images)
    assert (model_file.vector_dim(model), found.shape, found.dtype) == (dim, (5, dim), np.float16)
    np.testing.assert_allclose(logits, model_file.scorer(model)(images), atol=1e-6)
    mirrored, _ = model_file.embedder(model, mirrored=True)(images)
    np.testing.assert_array_equal(mirrored, model_file.embedder(model)(images[:, :, ::-1])[0])
    if name != "cnn":
        places = keras.Model(model.input, model.get_layer("mean").input)(images, training=False).numpy()
        np.testing.assert_allclose(found, places.mean((1, 2)), rtol=2e-3, atol=1e-4)


def test_any_rows_in_any_order(embedded, blobs):
    data = open_dataset(str(blobs))
    found = read(embedded, data, data.split("train"))
    rows, logits = every(found)
    numbers = np.random.default_rng(0).integers(0, len(found), 500)
    np.testing.assert_array_equal(found.rows(numbers), rows[numbers])
    np.testing.assert_array_equal(found.logits(numbers), logits[numbers])
    assert found.rows(np.zeros(0, np.int64)).shape == (0, found.dim)


def test_folds_and_series_find_their_slices(embedded, blobs):
    data = open_dataset(str(blobs))
    every_row = {}
    for split in ("train", "validation"):
        slices = data.split(split)
        rows, _ = every(read(embedded, data, slices))
        every_row |= dict(zip(slices.table["sop_uid"].to_pylist(), rows.tolist()))
    for slices in data.fold(["train", "validation"], 1, 3):
        found = read(embedded, data, slices)
        uids = slices.table["sop_uid"].to_pylist()
        for rows in series.plan(slices.table):
            assert found.rows(rows).tolist() == [every_row[uids[row]] for row in rows]


def test_a_run_of_a_fold(tiny_dataset, tmp_path):
    folder = tmp_path / "fold"
    assert train(tiny_dataset, folder, "--folds", "3", "--fold", "1", sampling="balanced") == 0
    assert run("--job_dir", folder, "--split", "train", "validation") == 0
    data = open_dataset(str(tiny_dataset))
    about = model_file.read_about(folder / "export")
    slices = assembly.split(data, hparams.of_run(about.settings), "validation")
    images = np.array(slices.reader.read(np.arange(len(slices)))[0])
    wanted, _ = model_file.embedder(model_file.load_model(folder / "export", about))(images)
    np.testing.assert_allclose(read(folder, data, slices).rows(np.arange(len(slices))), wanted, rtol=2e-3, atol=1e-4)


# stopped, damaged, changed


def test_a_run_again_changes_nothing(copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("part-*")}
    assert run("--job_dir", copy) == 0
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("part-*")} == before
    said = capsys.readouterr().out
    assert f"{copy}/vectors/test: 900 vectors of 32 numbers, 900 of them already there" in said


def test_stopped_between_parts_it_goes_on_to_the_same_bytes(embedded, blob_run_copy, monkeypatch, capsys):
    put, made = vectors.Store.put, []

    def stopped(store, number, rows):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(number)
        put(store, number, rows)

    monkeypatch.setattr(vectors.Store, "put", stopped)
    assert run("--job_dir", blob_run_copy, "--split", "train") == 130
    assert one_line(capsys) == "embed: interrupted; whole parts stay, and the same command goes on"
    monkeypatch.setattr(vectors.Store, "put", put)
    assert run("--job_dir", blob_run_copy, "--split", "train") == 0
    assert "576 of them already there" in capsys.readouterr().out
    assert contents(blob_run_copy / "vectors") == {
        name: data for name, data in contents(embedded / "vectors").items() if name.startswith("train/")
    }


KILLED = """
import os, signal, sys
from trainer import embed
from trainer.results import vectors
from trainer.training import scoring

vectors.PART_SLICES = 192
batches, seen = scoring._batches, []

def killing(*given):
    for batch in batches(*given):
        seen.append(batch)
        if len(seen) == 8:  # in the middle of the third part
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

scoring._batches = killing
embed.main(sys.argv[1:])
"""


def test_killed_inside_a_part_it_goes_on_to_the_same_bytes(embedded, blob_run_copy, tmp_path):
    flags = ["--job_dir", str(blob_run_copy), "--split", "train"]
    assert Run(flags, tmp_path / "log", ("-c", KILLED)).wait() == -9
    (blob_run_copy / "vectors" / "train" / f"part-00002.npy.{'0' * 32}.tmp").write_bytes(b"half")
    assert len(json.loads((blob_run_copy / "vectors" / "train" / "index.json").read_text())["parts"]) == 2
    assert run(*flags) == 0
    wanted = {name: data for name, data in contents(embedded / "vectors").items() if name.startswith("train/")}
    assert contents(blob_run_copy / "vectors") == wanted


@pytest.mark.parametrize("harm", ["a bit", "half", "gone", "of another split"])
def test_a_damaged_part_is_refused_by_the_reader_and_made_again(harm, embedded, copy, blobs, capsys):
    folder = copy / "vectors" / "test"
    part = folder / "part-00001.npy"
    data = bytearray(part.read_bytes())
    if harm == "gone":
        part.unlink()
    elif harm == "of another split":
        shutil.copyfile(copy / "vectors" / "train" / part.name, part)
    else:
        data[len(data) // 2] ^= harm == "a bit"
        part.write_bytes(data if harm == "a bit" else data[: len(data) // 2])
    opened = open_dataset(str(blobs))
    with pytest.raises(WrongUse, match=r"part-00001.npy does not have the bytes that were written; make them with: "):
        read(copy, opened, opened.split("test"))
    assert run("--job_dir", copy) == 0
    said = capsys.readouterr().out
    assert f"{folder}: 1 part damaged or lost; made anew" in said
    assert f"{folder}: 900 vectors of 32 numbers, 708 of them already there" in said
    assert contents(copy / "vectors") == contents(embedded / "vectors")


@pytest.mark.parametrize("lost", [(0,), (0, 1, 3), (1, 2, 4), (4,)])
@pytest.mark.parametrize("stream", [False, True])
def test_whichever_parts_are_lost_the_bytes_are_the_same(lost, stream, blob_run_copy, monkeypatch, capsys):
    """Parts in a row are read in one go; those of streams are not, for their slices come out of order."""
    split = Dataset.split
    monkeypatch.setattr(Dataset, "split", lambda self, name: split(self, name, stream=stream))
    flags = ("--job_dir", blob_run_copy, "--split", "test")
    assert run(*flags) == 0
    before = contents(blob_run_copy / "vectors")
    for number in lost:
        (blob_run_copy / "vectors" / "test" / f"part-{number:05d}.npy").unlink()
    assert run(*flags) == 0
    assert f"{len(lost)} part" in capsys.readouterr().out
    assert contents(blob_run_copy / "vectors") == before


def test_no_batch_holds_slices_of_two_parts(monkeypatch):
    monkeypatch.undo()
    assert vectors.PART_SLICES % scoring.EMBEDDED == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parts": [], "part_slices": 192, "slices": 900}'])
def test_an_index_that_cannot_be_read_counts_as_none(text, embedded, copy, blobs):
    (copy / "vectors" / "test" / "index.json").write_text(text)
    opened = open_dataset(str(blobs))
    with pytest.raises(WrongUse, match=r"vectors/test holds no vectors; make them with: python -m trainer.embed"):
        read(copy, opened, opened.split("test"))
    assert run("--job_dir", copy) == 0
    assert contents(copy / "vectors") == contents(embedded / "vectors")


def test_vectors_of_other_weights_are_refused_and_made_anew(copy, blobs, capsys):
    about = model_file.read_about(copy / "export")
    model = model_file.load_model(copy / "export", about)
    model.get_layer("dense_1").bias.assign_add(np.ones(32))
    model_file.write(copy / "export", model, about)
    data = open_dataset(str(blobs))
    slices = data.split("test")
    with pytest.raises(WrongUse, match=r"the vectors in .*test are of other weights; make them with: "):
        read(copy, data, slices)
    assert run("--job_dir", copy) == 0
    assert f"{copy}/vectors/test holds vectors of other weights or another data set; all are made anew" in (
        capsys.readouterr().out
    )
    found, logits = every(read(copy, data, slices))
    wanted, wanted_logits = plain(copy, slices, mirrored=False)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits[::EACH], wanted_logits, atol=1e-5)
    with pytest.raises(WrongUse, match=r"are of other weights; .* --split test --flip$"):
        read(copy, data, slices, mirrored=True)


def test_another_data_set_has_its_own_folders(embedded, copy, blobs, tmp_path):
    other = blob_dataset.make(tmp_path / "other", patients=14, seed=1)
    data = open_dataset(str(other))
    with pytest.raises(WrongUse, match=r"holds no vectors; make them with: .* --data_dir .*other --split test$"):
        read(copy, data, data.split("test"))
    assert run("--job_dir", copy, "--data_dir", other) == 0
    short = data.manifest.fingerprint[:8]
    made = {path.name for path in (copy / "vectors").iterdir()}
    assert made == {"lock", *SPLITS, *(f"{name}-flip" for name in SPLITS), *(f"{name}-{short}" for name in SPLITS)}
    found, _ = every(read(copy, data, data.split("test")))
    np.testing.assert_allclose(found, plain(copy, data.split("test"), False)[0], rtol=1e-3, atol=1e-4)
    kept = {name: held for name, held in contents(copy / "vectors").items() if short not in name}
    assert kept == contents(embedded / "vectors")


def test_parts_of_another_size_are_read_too(copy, blobs, monkeypatch):
    """Those of an earlier version, say."""
    data = open_dataset(str(blobs))
    before = every(read(copy, data, data.split("test")))
    monkeypatch.setattr(vectors, "PART_SLICES", 4096)
    for one, other in zip(before, every(read(copy, data, data.split("test")))):
        np.testing.assert_array_equal(one, other)


def test_streams_give_the_same(blob_run_copy, embedded, blobs, monkeypatch):
    """As a data set in a bucket is read."""
    split = type(open_dataset(str(blobs))).split
    monkeypatch.setattr("trainer.data.dataset.Dataset.split", lambda self, name: split(self, name, stream=True))
    assert run("--job_dir", blob_run_copy) == 0
    monkeypatch.undo()
    data = open_dataset(str(blobs))
    for name in SPLITS:
        pairs = zip(*(every(read(folder, data, data.split(name))) for folder in (blob_run_copy, embedded)))
        for (one, other), tolerance in zip(pairs, (1e-3, 1e-5)):
            np.testing.assert_allclose(one, other, atol=tolerance)


# refused


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "the following arguments are required: --job_dir"),
        ("--job_dir nowhere", "nowhere does not exist; give the folder of a run"),
        ("--job_dir nowhere --flips", "unknown flag --flips; did you mean '--flip'?"),
        ("--job_dir .", ". holds no model.keras with its about.json"),
    ],
)
def test_wrong_words_are_one_line(given, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*given.split()) == 2
    assert words in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_wrong_splits_and_data_sets(blob_run_copy, dataset, tmp_path, capsys):
    for flags, words in (
        (("--split", "tests"), "'tests' is not a split; the splits with slices are"),
        (("--data_dir", tmp_path), "holds no manifest.json"),
        (("--data_dir", dataset), "the model was trained on another definition than that of"),
    ):
        assert run("--job_dir", blob_run_copy, *flags) == 2
        assert words in one_line(capsys)
    assert not (blob_run_copy / "vectors").exists()


def test_a_full_disk_is_told_before_any_work(blob_run_copy, capsys, monkeypatch):
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100_200_000))
    assert run("--job_dir", blob_run_copy, "--flip") == 2
    place = blob_run_copy / "vectors"
    told = "has 100 MB free, and the vectors of 4,800 slices take 0 MB, with 100 MB to spare; make room"
    assert one_line(capsys).startswith(f"embed: {place} {told}")
    assert [path.name for path in place.iterdir()] == ["lock"]


def test_no_space_on_the_way(blob_run_copy, capsys, monkeypatch):
    def full(store, number, rows):
        raise OSError(28, "No space left on device", str(store.folder))

    monkeypatch.setattr(vectors.Store, "put", full)
    assert run("--job_dir", blob_run_copy) == 1
    place = blob_run_copy / "vectors" / "test"
    words = f"embed: No space left on device: {place}; whole parts stay, and the same command goes on"
    assert one_line(capsys) == words


def test_one_process_at_a_time(blob_run_copy, capsys):
    lock = folder_lock.take(blob_run_copy / "vectors", "--job_dir")
    assert run("--job_dir", blob_run_copy) == 2
    assert f"{blob_run_copy}/vectors is in use by process" in one_line(capsys)
    lock.close()


def test_a_run_that_cannot_be_written_to(blob_run_copy, capsys):
    (blob_run_copy / "vectors").write_text("in the way")
    assert run("--job_dir", blob_run_copy) == 2
    assert "vectors: File exists; give a run that can be written to" in one_line(capsys)


def test_a_damaged_record_is_named_and_whole_parts_stay(blob_run_copy, blobs, tmp_path, capsys):
    damaged = Path(shutil.copytree(blobs, tmp_path / "damaged"))
    shard = max(damaged.glob("*-train.tfrecord*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-100] ^= 1
    shard.write_bytes(data)
    assert run("--job_dir", blob_run_copy, "--data_dir", damaged) == 1
    assert shard.name in one_line(capsys)
    assert run("--job_dir", blob_run_copy, "--data_dir", blobs) == 0
    assert "train: 940 vectors of 32 numbers, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layer", "value", "words"),
    [
        ("dense_1", 1e6, "a vector with values that float16 cannot hold (65,504 at most)"),
        ("logits", np.nan, "logits that are not finite"),
    ],
)
def test_values_that_are_no_finite_numbers_are_refused(layer, value, words, blob_run_copy, capsys):
    about = model_file.read_about(blob_run_copy / "export")
    model = model_file.load_model(blob_run_copy / "export", about)
    model.get_layer(layer).bias.assign(np.full(model.get_layer(layer).bias.shape, value))
    model_file.write(blob_run_copy / "export", model, about)
    assert run("--job_dir", blob_run_copy) == 1
    line = one_line(capsys)
    assert line.startswith("embed: slice ID_")
    assert line.endswith(f": the model gives {words}; the model is broken, train again")
    assert not list((blob_run_copy / "vectors").rglob("part-*"))
