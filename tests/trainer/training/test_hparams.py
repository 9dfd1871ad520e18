"""Settings: precedence, strictness, round trip, what may change on resume."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

from trainer.models import context, networks
from trainer.shell import setting_values
from trainer.shell.problems import WrongUse
from trainer.training import hparams


def resolve(model="cnn", config=None, **sets):
    return hparams.resolve(model, config, sets)


def test_precedence_defaults_then_config_then_sets(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("batch_size: 64\nepochs: 3\narchitecture: {dense: [16]}\n")
    settings = resolve(config=str(config), epochs=5)
    assert (settings.batch_size, settings.epochs, settings.seed) == (64, 5, 0)
    assert settings.architecture == {"filters": [32, 64], "dense": [16], "dropout": 0.0}


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"batch_sise": 3}, "did you mean 'batch_size'"),
        ({"batch_size": 0}, "batch_size is 0; use 1"),
        ({"batch_size": "many"}, "batch_size is 'many'; it must be a whole number"),
        ({"batch_size": True}, "must be a whole number"),
        ({"batch_size": 2.5}, "must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"sampling": "balance"}, "did you mean 'balanced'"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"sampling": "explicit"}, "proportions and sampling: explicit go together"),
        ({"weight_decay": 0.1}, "weight_decay belongs to optimizer: adamw"),
        ({"schedule": "cosine", "decay_per_epoch": 0.9}, "decay_per_epoch belongs to schedule: steps"),
        ({"accumulate": 3}, "no multiple of accumulate 3"),
        ({"learning_rate": 0}, "learning_rate is 0, so nothing would be learned"),
        ({"warmup_epochs": 10.5}, "warmup_epochs is 10.5 and epochs is 10, so the rate would never be reached"),
        ({"wait_minutes": -1}, "wait_minutes is -1.0; use 0"),
        ({"replicas": 2}, "replicas belongs to strategy: mirrored"),
        ({"architecture": 3}, "must be a mapping"),
        ({"proportions.none": "abc"}, r"proportions\.none is 'abc'; it must be a number"),
        ({"validation_split": "", "patience": 2}, "patience needs a validation_split"),
        ({"flip": 1}, "must be true or false"),
        ({"erase": 1.5}, "erase is 1.5; use 0 to 1"),
        ({"contrast": -0.1}, "contrast is -0.1; use 0 to 1"),
        ({"augment_on": "gpu"}, "augment_on is 'gpu'"),
        ({"folds": 1}, "folds is 1; give 0 for none, or at least 2"),
        ({"fold": 1}, "fold is 1 and folds is 0; a fold is a number from 0 to folds - 1"),
        ({"fold": 5, "folds": 5}, "fold is 5 and folds is 5"),
        ({"folds": 5, "validation_split": ""}, "folds are drawn from train_split and validation_split together"),
        ({"validation_split": "train"}, "train_split, validation_split and test_split are train, train, test; a split"),
        ({"test_split": "validation"}, "a split scored must not be one trained or chosen on"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(sets, words):
    with pytest.raises(WrongUse, match=words):
        resolve(**sets)


def test_the_model_is_no_setting_beside_its_flag():
    assert hparams.resolve("cnn", None, {"model": "cnn"}).model == "cnn"
    with pytest.raises(WrongUse, match="--set model=xception: write --model xception"):
        hparams.resolve("cnn", None, {"model": "xception"})


def test_a_stratum_with_a_dot_stands_beside_the_others(tmp_path):
    dotted = {"sampling": "explicit", "proportions.epidural": 1, "proportions.none": 2}
    assert resolve(**dotted).proportions == {"epidural": 1.0, "none": 2.0}
    config = tmp_path / "explicit.yaml"
    config.write_text("model: cnn\nsampling: explicit\nproportions: {none: 1, subdural: 1}\n")
    assert resolve(config=str(config), **{"proportions.none": 3}).proportions == {"none": 3.0, "subdural": 1.0}
    assert resolve(config=str(config), proportions={"epidural": 1}).proportions == {"epidural": 1.0}


def test_a_config_names_the_model_and_must_not_contradict_the_flag(tmp_path):
    assert hparams.resolve(None, "modern_xception", {}).model == "xception"
    with pytest.raises(WrongUse, match="disagree"):
        hparams.resolve("cnn", "modern_xception", {})
    with pytest.raises(WrongUse, match="name a model"):
        hparams.resolve(None, None, {})
    with pytest.raises(WrongUse, match="did you mean 'modern_xception'"):
        hparams.resolve(None, "modern_xceptio", {})
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(WrongUse, match="is not YAML"):
        hparams.resolve("cnn", str(broken), {})
    with pytest.raises(WrongUse, match="cannot read the config"):
        hparams.resolve("cnn", str(tmp_path / "none.yaml"), {})
    broken.write_text("just words")
    with pytest.raises(WrongUse, match="holds no settings"):
        hparams.resolve("cnn", str(broken), {})


def test_set_values_are_yaml():
    assert setting_values.parse_set("learning_rate=1e-4") == ("learning_rate", 0.0001)
    assert setting_values.parse_set("architecture.dense=[8, 4]") == ("architecture.dense", [8, 4])
    assert setting_values.parse_set("test_split=") == ("test_split", "")
    assert setting_values.parse_set("weights=/a=b.h5") == ("weights", "/a=b.h5")
    for text in ("epochs", "=3", "x=["):
        with pytest.raises(WrongUse):
            setting_values.parse_set(text)


def test_to_yaml_reads_back():
    settings = resolve("xception", learning_rate=1e-7)
    assert hparams.from_dict(yaml.safe_load(hparams.to_yaml(settings))) == settings


def test_a_run_of_before_a_setting_has_its_default():
    old = dataclasses.asdict(resolve("xception", learning_rate=1e-7))
    del old["wait_minutes"]
    assert hparams.of_run(old) == resolve("xception", learning_rate=1e-7)


def test_what_may_change_on_resume():
    old = dataclasses.asdict(resolve())
    assert (
        hparams.differences(
            old, {**old, "epochs": 20, "steps_per_call": 5, "wait_minutes": 1.0, "strategy": "mirrored"}
        )
        == []
    )
    assert hparams.differences(old, {**old, "seed": 1}) == ["seed: 0, now 1"]
    cosine = {**old, "schedule": "cosine"}
    assert hparams.differences(cosine, {**cosine, "epochs": 20}) == ["epochs: 10, now 20"]


def test_every_config_fits_its_model_and_says_its_command():
    names = hparams.config_names()
    assert names == [
        "cnn",
        "densenet121",
        "modern_densenet121",
        "modern_xception",
        "series",
        "series_end_to_end",
        "xception",
    ]
    for name in names:
        settings = hparams.resolve(None, name, {})
        kind = context.KINDS.get(settings.architecture.get("kind"))
        builder = inspect.signature(kind or networks.BUILDERS[settings.model])
        assert settings.architecture.keys() - {"kind"} <= builder.parameters.keys(), name
        text = hparams.config_path(name).read_text()
        command = f"--config {name}" if name.startswith("modern") or name.endswith("end_to_end") else f"--model {name}"
        assert command in text.partition("\nmodel:")[0], name


def test_the_thesis_settings():
    """The figures of the thesis: batch 32, 10 epochs, Adam, rates 1e-4 and 5e-4, dropout 0.15."""
    dense, xception = resolve("densenet121"), resolve("xception")
    assert {(one.batch_size, one.epochs, one.optimizer) for one in (dense, xception, resolve())} == {(32, 10, "adam")}
    assert (dense.learning_rate, xception.learning_rate) == (1e-4, 5e-4)
    assert xception.architecture == {"dropout": 0.15}
    assert dense.weights == xception.weights == "imagenet"
    assert xception.decay_per_epoch < 1


def test_every_setting_is_read_somewhere():
    """A setting that no code asks for would be accepted and ignored."""
    code = "".join(path.read_text() for path in Path(hparams.__file__).parents[1].rglob("*.py"))
    for field in dataclasses.fields(hparams.HParams):
        assert f"settings.{field.name}" in code or f"hparams.{field.name}" in code, field.name
