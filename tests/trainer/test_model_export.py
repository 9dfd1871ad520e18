"""`python -m trainer.export`: what it writes, what it replaces, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_runs import train

from ich_tfrecords import pixels
from trainer import evaluate, export
from trainer.models import model_file
from trainer.serving import saved_model

MODEL = {"model.keras", "about.json", "scope.npz", "MODEL_CARD.md"}
PARTS = {"saved_model.pb", "variables", "assets", "fingerprint.pb", *MODEL}
ONNX_PARTS = {"hu.onnx", "image.onnx", *MODEL}
HU = np.random.default_rng(1).integers(-1100, 2000, (2, 60, 47), np.int16)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(tiny_dataset, folder) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def main(*flags: object) -> int:
    return export.main([str(flag) for flag in flags])


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.startswith("export: "), text
    assert text.count("\n") == 1, text
    return text


def probabilities(folder: Path) -> np.ndarray:
    loaded = tf.saved_model.load(str(folder))
    return loaded.signatures["hu"](hu=tf.constant(HU))["probabilities"].numpy()


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob("*.tmp"))


def test_a_run_becomes_a_folder_that_others_can_use(run, capsys):
    assert main("--job_dir", run) == 0
    folder = run / "saved_model"
    assert {path.name for path in folder.iterdir()} == PARTS
    assert leftovers(run) == []
    assert (folder / "model.keras").read_bytes() == (run / "export" / "model.keras").read_bytes()
    before, after = (json.loads((place / "about.json").read_text()) for place in (run / "export", folder))
    assert before["facts"].pop("data_dir")  # where the data lay is nobody else's business
    assert after == before
    assert (folder / "assets" / "about.json").read_bytes() == (folder / "about.json").read_bytes()
    assert model_file.find(str(folder)) == folder
    told, _, lines = capsys.readouterr().out.partition("use it with\n")
    for words in (str(folder), "hu, serving_default", "records", "image", "MODEL_CARD.md has no results of these"):
        assert words in told
    names = {"hu": HU}
    *before, last = lines.splitlines()
    exec(textwrap.dedent("\n".join(before)), names)
    np.testing.assert_array_equal(eval(last.strip(), names)["probabilities"], probabilities(folder))


def test_results_of_the_test_split_stand_in_the_card(run, tmp_path, capsys):
    assert evaluate.main(["--job_dir", str(run), "--resamples", "100"]) == 0
    capsys.readouterr()
    (tmp_path / "out").mkdir()  # an empty one is as good as none
    assert main("--job_dir", run, "--output", tmp_path / "out") == 0
    assert "no results" not in capsys.readouterr().out
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "Tested on split test of the same data set: 60 slices" in card
    # of other weights: an evaluation from before the training went on
    about = model_file.read_about(run / "export")
    model = model_file.load_model(run / "export", about)
    model.get_layer("logits").bias.assign(np.full(6, 0.5))
    model_file.write(run / "export", model, about)
    assert main("--job_dir", run) == 0
    assert "has no results of these weights" in capsys.readouterr().out
    assert "Not evaluated yet" in (run / "saved_model" / "MODEL_CARD.md").read_text()


def test_an_older_export_is_replaced(run):
    assert main("--job_dir", run) == 0
    folder = run / "saved_model"
    (folder / "of_the_old_one").write_text("x")
    assert main("--job_dir", run, "--output", folder) == 0
    assert {path.name for path in folder.iterdir()} == PARTS
    assert leftovers(run) == []


def test_a_failed_write_leaves_the_older_export(run, monkeypatch, capsys):
    assert main("--job_dir", run) == 0
    before = probabilities(run / "saved_model")
    capsys.readouterr()

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(saved_model, "write", full)
    assert main("--job_dir", run) == 1
    assert "saved_model: No space left on device; what was there before is whole" in one_line(capsys)
    np.testing.assert_array_equal(probabilities(run / "saved_model"), before)
    assert leftovers(run) == []


def test_a_failed_rename_brings_the_older_export_back(run, monkeypatch, capsys):
    assert main("--job_dir", run) == 0
    capsys.readouterr()
    folder, moved = run / "saved_model", []
    replace = Path.replace

    def second_fails(self: Path, target: Path) -> Path:
        moved.append(target)
        if len(moved) == 2:
            raise OSError(5, os.strerror(5))
        return replace(self, target)

    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(export, "_fill", lambda new, *_: (new / "saved_model.pb").write_text("new"))
    monkeypatch.setattr(Path, "replace", second_fails)
    assert main("--job_dir", run) == 1
    assert "Input/output error" in one_line(capsys)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert leftovers(run) == []


@pytest.mark.parametrize("off", [1e-4, float("nan")])
def test_a_saved_model_that_answers_otherwise_is_not_kept(run, monkeypatch, capsys, off):
    right = model_file.scorer
    monkeypatch.setattr(model_file, "scorer", lambda model: lambda images: right(model)(images) + np.float32(off))
    assert main("--job_dir", run) == 1
    assert "the SavedModel is off by" in one_line(capsys)
    assert not (run / "saved_model").exists()
    assert leftovers(run) == []


# --- wrong use: exit code 2, and nothing is touched -----------------------------------------------------------


def test_a_folder_of_other_things_is_refused(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "saved_model.pb").write_text("x")
    assert main("--job_dir", run, "--output", tmp_path / "mine") == 2
    assert "is not empty and no export of this command (it has no about.json)" in one_line(capsys)
    assert main("--job_dir", run, "--output", run) == 2
    assert "it has no saved_model.pb" in one_line(capsys)
    assert main("--job_dir", run, "--output", run / "export") == 2
    assert "it has no saved_model.pb" in one_line(capsys)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["saved_model.pb"]


def test_a_file_is_refused(run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main("--job_dir", run, "--output", tmp_path / "file") == 2
    assert "is a file, not a folder; choose another --output" in one_line(capsys)


def test_a_place_below_a_file_is_refused(run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main("--job_dir", run, "--output", tmp_path / "file" / "out") == 1
    assert "cannot write" in one_line(capsys)


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    assert main("--job_dir", tmp_path / "nowhere") == 2
    assert "nowhere does not exist" in one_line(capsys)
    shutil.rmtree(run / "export")
    assert main("--job_dir", run) == 2
    assert "is a run whose training has not ended" in one_line(capsys)


@pytest.mark.parametrize("mark", ["saved_model.pb", "image.onnx"])
def test_an_export_is_no_run(run, capsys, mark):
    (run / "export" / mark).write_text("x")  # beside model.keras and about.json
    assert main("--job_dir", run / "export") == 2
    assert "export is an export already; give the folder of the run" in one_line(capsys)
    before = (run / "export" / "about.json").read_bytes()
    assert evaluate.main(["--job_dir", str(run / "export"), "--recalibrate"]) == 2
    assert "is an export, whose graph keeps its calibration; give the folder of its run" in capsys.readouterr().err
    assert (run / "export" / "about.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "null", json.dumps({"what": {}, "calibration": {}})])
def test_a_damaged_evaluation_is_refused(run, capsys, text):
    place = run / "evaluation" / "test"
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(text)
    assert main("--job_dir", run) == 2
    assert "run python -m trainer.evaluate again, or delete it" in one_line(capsys)
    assert not (run / "saved_model").exists()


def test_wrong_flags(capsys):
    assert main("--job_dirs", "x") == 2
    assert "--job_dir" in one_line(capsys)
    assert main() == 2
    assert "--job_dir" in one_line(capsys)


# --- onnx -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_onnx(trained, tmp_path_factory) -> Path:
    """A run with an export to ONNX in it; not to be changed."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("onnx") / "run"))
    assert main("--job_dir", folder, "--format", "onnx") == 0
    return folder


@pytest.mark.long
def test_a_run_becomes_onnx_files_and_the_screen_says_how_to_ask_them(run, capfd):
    assert main("--job_dir", run, "--format", "onnx") == 0
    folder = run / "onnx"
    assert {path.name for path in folder.iterdir()} == ONNX_PARTS
    assert leftovers(run) == []
    out, err = capfd.readouterr()
    assert err == ""
    told, _, lines = out.partition("use it with\n")
    assert "(no records: ONNX has no operator that reads serialized examples; a SavedModel has)" in told
    card = (folder / "MODEL_CARD.md").read_text()
    assert "It needs an ONNX runtime alone" in card
    assert "`records`" not in card
    *before, last = lines.splitlines()
    names = {"hu": HU}
    exec(textwrap.dedent("\n".join(before)), names)
    found = eval(last.strip(), names)["probabilities"]
    about = model_file.read_about(run / "export")
    images = np.stack([pixels.image_of(one, about.spec.image) for one in HU])
    wanted = about.probabilities(model_file.scorer(model_file.load_model(run / "export", about))(images))
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.long
def test_an_older_onnx_is_replaced_and_another_format_is_not(as_onnx, capsys):
    assert main("--job_dir", as_onnx, "--output", as_onnx / "onnx") == 2
    assert "is not empty and no export of this command (it has no saved_model.pb)" in one_line(capsys)
    (as_onnx / "onnx" / "of_the_old_one").write_text("x")
    assert main("--job_dir", as_onnx, "--format", "onnx") == 0
    assert {path.name for path in (as_onnx / "onnx").iterdir()} == ONNX_PARTS
    assert main("--job_dir", as_onnx / "onnx") == 2
    assert "is an export already" in one_line(capsys)


def test_no_path_of_this_machine_goes_out_with_onnx(as_onnx):
    for path in (path for path in (as_onnx / "onnx").rglob("*") if path.is_file()):
        assert str(as_onnx).encode() not in path.read_bytes(), path
        assert str(Path(export.__file__).parents[1]).encode() not in path.read_bytes(), path


def test_what_onnx_lacks_is_told_in_one_line_and_nothing_is_kept(run, monkeypatch, capfd):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32, name="hu")])
    def of_bessel(hu):
        return {"y": tf.math.bessel_i0e(hu)}

    monkeypatch.setattr(saved_model, "signatures_of", lambda *_: {"hu": of_bessel})
    assert main("--job_dir", run, "--format", "onnx") == 2
    assert "ONNX has no operator for what cnn needs: BesselI0e (1); leave out --format" in one_line(capfd)
    assert not (run / "onnx").exists()
    assert leftovers(run) == []


def test_without_the_extra_it_says_what_to_install(run, monkeypatch, capsys):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else there(name))
    assert main("--job_dir", run, "--format", "onnx") == 2
    assert "--format onnx needs tf2onnx, not installed; pip install 'ich-tfrecords[onnx]'" in one_line(capsys)


def test_an_unknown_format_is_refused(run, capsys):
    assert main("--job_dir", run, "--format", "onx") == 2
    assert "'onx'" in one_line(capsys)
