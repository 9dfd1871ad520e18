"""The command line: help, precedence, places, and one line with exit code 2 for wrong words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_runs import SMALL, main, one_line, train

from trainer import task
from trainer.shell import vertex
from trainer.training import hparams, session
from trainer.training.scalars import Scalars

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def help_text() -> str:
    """`--help` at 80 columns, from a process that fails when it imports TensorFlow."""
    code = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None; from trainer import task; task.main()"
    environ = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_help_is_grouped_and_fits_80_columns(help_text):
    assert max(map(len, help_text.splitlines())) <= 80
    heads = [line for line in help_text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["options:", "what to train:", "where:", "how:", "exit codes:"]


@pytest.mark.slow
def test_help_names_every_flag_default_and_exit_code(help_text):
    for flag in (
        "--model",
        "--config",
        "--set",
        "--data_dir",
        "--cache_dir",
        "--job_dir",
        *map("--{}".format, task.FLAGS),
    ):
        assert f"  {flag} " in help_text
    plain = " ".join(help_text.split())
    for words in (
        "(default: cnn 32, densenet121 32, xception 32, series 256, others 32)",
        "cnn 0.001, densenet121 0.0001, xception 0.0005, series 0.0003, others 0.0001",
        "$ICH_DATA_DIR or data/rsna_ich",
    ):
        assert words in plain
    for code in (0, 1, 2, 130, 143):
        assert any(line.split()[:1] == [str(code)] for line in help_text.splitlines())
    for name in (*hparams.MODELS, *hparams.config_names(), *hparams.STRATEGIES, *hparams.PRECISIONS):
        assert name in plain


def test_the_flags_are_settings():
    assert set(task.FLAGS) <= {*hparams.HParams.__dataclass_fields__}


@pytest.mark.slow
def test_without_a_data_set_one_line_says_how_to_make_one(tmp_path):
    """As a user meets it, in a process of its own."""
    environ = {key: value for key, value in os.environ.items() if key != "ICH_DATA_DIR"}
    command = [sys.executable, "-m", "trainer.task", "--model", "cnn"]
    environ["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("train: data/rsna_ich holds no manifest.json")
    assert line.endswith("python -m beam_pipelines.convert --input ... --labels ... --output data/rsna_ich")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "name a model: --model {cnn,densenet121,xception,series}, or another one of --help"),
        ("--model cnnn", "model is 'cnnn'; did you mean 'cnn'?"),
        ("--model cnn --epochs many", "epochs is 'many'; it must be a whole number"),
        ("--model cnn --epochs 0", "epochs is 0; use 1"),
        ("--model cnn --learning_rate -1", "learning_rate is -1"),
        ("--model cnn --batch_size 2.5", "batch_size is 2.5; it must be a whole number"),
        ("--model cnn --sampling fair", "sampling is 'fair'; known are natural, balanced, sqrt, explicit"),
        ("--model cnn --precision mixed_floa16", "did you mean 'mixed_float16'"),
        ("--model cnn --strategy miror", "did you mean 'mirrored'"),
        ("--model cnn --set batch_sise=8", "unknown setting 'batch_sise'; did you mean 'batch_size'"),
        ("--model cnn --set epochs", "write KEY=VALUE"),
        ("--model cnn --config modern", "did you mean 'modern_"),
        ("--model cnn --config nowhere.yaml", "cannot read the config nowhere.yaml: No such file or directory"),
        ("--model cnn --epochz 3", "unknown flag --epochz; did you mean '--epochs'?"),
        ("--model cnn --job-dir x", "unknown flag --job-dir; did you mean '--job_dir'?"),
        ("--model cnn --epoch 3", "unknown flag --epoch; did you mean '--epochs'?"),
        ("--model cnn --monitor=auc", "unknown flag --monitor; write --set monitor=VALUE"),
        ("cnn", "cnn follows no flag"),
        ("--model", "argument --model: expected one argument"),
        ("--model cnn --set jit_compile=true", "set deterministic to false"),
    ],
)
def test_wrong_words_are_one_line(flags, words, capsys):
    assert task.main(flags.split()) == 2
    assert words in one_line(capsys)


def test_an_unknown_key_in_a_config_names_the_nearest(tmp_path, capsys):
    config = tmp_path / "mine.yaml"
    config.write_text("model: cnn\nlearning_rat: 1\n")
    assert task.main(["--config", str(config)]) == 2
    line = one_line(capsys)
    assert str(config) in line
    assert "unknown setting 'learning_rat'; did you mean 'learning_rate'?" in line


# a run as it was asked for


@pytest.fixture
def asked(monkeypatch):
    """Settings and places of runs that are not made."""
    made: list[tuple] = []

    def run(settings, data, job_dir, environ, signals, note, kind):
        made.append((settings, (*data, job_dir)))

    monkeypatch.setattr(session, "run", run)
    monkeypatch.setattr(task, "open_datasets", lambda places, cache_dir, note: (*places, cache_dir))
    return made


def test_config_then_set_then_flags(tmp_path, asked):
    config = tmp_path / "mine.yaml"
    config.write_text("model: cnn\nepochs: 3\nbatch_size: 8\nseed: 3\narchitecture: {dense: [5]}\n")
    sets = ["--set", "epochs=4", "--set", "batch_size=4", "--set", "architecture.filters=[2]"]
    assert main(["--config", str(config), "--epochs", "5", *sets]) == 0
    [(settings, _)] = asked
    assert (settings.epochs, settings.batch_size, settings.seed, settings.keep) == (5, 4, 3, 3)
    assert {key: settings.architecture[key] for key in ("filters", "dense")} == {"filters": [2], "dense": [5]}


def test_every_flag_reaches_its_setting(asked):
    values = {
        "epochs": 7, "steps_per_epoch": 9, "batch_size": 6, "sampling": "sqrt", "weights": "w.keras",
        "learning_rate": 0.5, "folds": 5, "fold": 3, "seed": 11, "precision": "mixed_bfloat16", "strategy": "mirrored",
    }  # fmt: skip
    of_series = {**values, "batch_size": 8, "slice_run": "runs/slices"}
    assert set(of_series) == set(task.FLAGS)
    for model, given in (("xception", values), ("series", of_series)):
        assert main(["--model", model, *(f"--{key}={value}" for key, value in given.items())]) == 0
        settings, _ = asked.pop()
        assert {key: getattr(settings, key) for key in given} == given


def test_places(asked, monkeypatch):
    monkeypatch.setenv("ICH_DATA_DIR", "/from/environment")
    assert main(["--model", "cnn"]) == 0
    assert main(["--model", "cnn", "--data_dir", "/given", "--job_dir", "j", "--cache_dir", "c"]) == 0
    monkeypatch.delenv("ICH_DATA_DIR")
    assert main(["--model", "cnn"]) == 0
    assert [places for _, places in asked] == [
        ("/from/environment", None, None),
        ("/given", Path("c"), "j"),
        ("data/rsna_ich", None, None),
    ]


def test_the_settings_are_printed_and_kept(tiny_dataset, tmp_path, monkeypatch, capsys):
    """Without --job_dir the run lies in runs/<model>, and the data set is the one of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ICH_DATA_DIR", str(tiny_dataset))
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    assert main(["--model", "cnn", *sets, "--epochs", "1", "--set", "focal_gamma=2"]) == 0
    text = Path("runs/cnn/config.yaml").read_text()
    kept = hparams.from_dict(yaml.safe_load(text))
    assert (kept.epochs, kept.focal_gamma, kept.batch_size) == (1, 2.0, 16)
    out = capsys.readouterr().out
    assert out.startswith(text)
    assert "tiny_ich: 264 slices, 32x32x3, fingerprint " in out
    assert "held-out result, split test, 60 slices of 9 patients: log loss " in out
    assert re.search(r"log loss \d\.\d{4} \(\d\.\d{4} of the prevalence alone\), AUC ", out)


def test_the_printed_config_makes_the_same_run(tmp_path, asked):
    assert main(["--model", "xception", "--set", "ema=0.9", "--set", "deterministic=false"]) == 0
    config = tmp_path / "config.yaml"
    config.write_text(hparams.to_yaml(asked[0][0]))
    assert main(["--config", str(config)]) == 0
    assert asked[0][0] == asked[1][0]


JOB = {"MODEL_DIR": "model", "CHECKPOINT_DIR": "checkpoints", "TENSORBOARD_LOG_DIR": "logs"}


def test_places_of_vertex(tiny_dataset, tmp_path, monkeypatch):
    """Buckets show as folders below a mount; what the job asks for lies side by side there."""
    logs = []
    monkeypatch.setattr(session, "Scalars", lambda place: logs.append(place) or Scalars(tmp_path / "logs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vertex.mounted, "__defaults__", (tmp_path / "gcs",))
    base = tmp_path / "gcs" / "bucket" / "job"
    base.mkdir(parents=True)
    for name, leaf in JOB.items():
        monkeypatch.setenv(f"AIP_{name}", f"gs://bucket/job/{leaf}/")
    sets = [f"--set={key}={value}" for key, value in SMALL.items()]
    assert main(["--model", "cnn", "--data_dir", str(tiny_dataset), *sets]) == 0
    assert {path.name for path in base.iterdir()} >= {"config.yaml", "history.csv", "result.json", "inputs.png", "lock"}
    assert (base / "model" / "model.keras").is_file()
    assert sorted(path.name for path in (base / "checkpoints").iterdir())[-1] == "step-000000006.npz"
    assert logs == ["gs://bucket/job/logs"]  # which TensorFlow writes itself
    assert not (base / "tensorboard").exists()
    assert not Path("runs").exists()


def test_a_bucket_needs_a_mount(tiny_dataset, monkeypatch, capsys):
    monkeypatch.setattr(vertex.mounted, "__defaults__", (Path("/nowhere"),))
    assert train(tiny_dataset, Path("x"), "--job_dir", "gs://bucket/run") == 2
    assert "gs://bucket/run: no bucket is mounted at /nowhere" in one_line(capsys)
