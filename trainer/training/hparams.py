"""The settings of a training run: one flat frozen dataclass, read strictly from YAML and flags.

The dataclass has no defaults: every setting of a model stands in `configs/<model>.yaml`, or for most networks of
keras.applications in `configs/transfer.yaml`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ich_tfrecords.spec import config_dir
from trainer.data.sampling import POLICIES
from trainer.models import windows
from trainer.models.applications import APPLICATIONS, STEMS
from trainer.shell.problems import WrongUse, hint
from trainer.shell.setting_values import nested, require, typed
from trainer.tracking.log import LOGGERS

SERIES = "series"  # the model that sees a slice among its neighbours
OWN_CONFIG = ("cnn", "densenet121", "xception", SERIES)
TRANSFER = "transfer"  # the config of the other models
MODELS = (*OWN_CONFIG, *(name for name in APPLICATIONS if name not in OWN_CONFIG))
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("steps", "cosine")
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("auto", "default", "mirrored", "multi_worker", "tpu")
PLACES = ("auto", "host", "device")


@dataclasses.dataclass(frozen=True)
class HParams:
    """Everything that decides a run besides its data set. `configs/cnn.yaml` says what each setting means."""

    model: str
    architecture: dict[str, Any]
    weights: str
    stem: str
    windows: str
    window_form: str
    context_slices: int
    slice_run: str
    series: dict[str, Any]
    end_to_end: bool
    freeze_epochs: int
    epochs: int
    steps_per_epoch: int
    batch_size: int
    eval_batch_size: int
    sampling: str
    proportions: dict[str, float]
    data_shares: list[float]
    flip: bool
    rotate_deg: float
    shift: float
    scale: float
    crop: float
    contrast: float
    brightness: float
    erase: float
    augment_on: str
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_epochs: float
    decay_per_epoch: float
    weight_decay: float
    clip_norm: float
    accumulate: int
    ema: float
    any_weight: float
    label_smoothing: float
    focal_gamma: float
    monitor: str
    patience: int
    train_split: str
    validation_split: str
    test_split: str
    fold: int
    folds: int
    absent_labels: bool
    seed: int
    deterministic: bool
    precision: str
    strategy: str
    replicas: int
    jit_compile: bool
    steps_per_call: int
    wait_minutes: float
    checkpoint_minutes: float
    keep: int
    logger: str

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            _require_known(getattr(self, name), known, f"{name} is")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            require(low <= value <= high, f"{name} is {value}; use {low:g} to {high:g}")
        _check_pairs(self)


_CHOICES: dict[str, Sequence[str]] = {
    "model": MODELS,
    "stem": STEMS,
    "window_form": windows.FORMS,
    "sampling": POLICIES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "strategy": STRATEGIES,
    "augment_on": PLACES,
    "logger": LOGGERS,
}
_INF = float("inf")
_RANGES: dict[str, tuple[float, float]] = {
    "context_slices": (0, 8),
    "freeze_epochs": (0, _INF),
    "epochs": (1, _INF),
    "steps_per_epoch": (0, _INF),
    "batch_size": (1, _INF),
    "eval_batch_size": (1, _INF),
    "rotate_deg": (0, 180),
    "shift": (0, 1),
    "scale": (0, 1),
    "crop": (0, 1),
    "contrast": (0, 1),
    "brightness": (0, 1),
    "erase": (0, 1),
    "learning_rate": (0, 1e3),
    "warmup_epochs": (0, _INF),
    "decay_per_epoch": (1e-6, 1),
    "weight_decay": (0, 1),
    "clip_norm": (0, _INF),
    "accumulate": (1, _INF),
    "ema": (0, 0.999999),
    "any_weight": (0, _INF),
    "label_smoothing": (0, 0.5),
    "focal_gamma": (0, 10),
    "patience": (0, _INF),
    "fold": (0, _INF),
    "folds": (0, 1000),
    "seed": (0, 2**31 - 1),
    "replicas": (0, 1024),
    "steps_per_call": (0, 100_000),
    "wait_minutes": (0, _INF),
    "checkpoint_minutes": (0, _INF),
    "keep": (1, _INF),
}


def _check_pairs(hparams: HParams) -> None:
    """Refuse a setting that another one would leave without effect."""
    explicit = hparams.sampling == "explicit"
    require(
        explicit == bool(hparams.proportions),
        "proportions and sampling: explicit go together; write both, such as --sampling explicit "
        "--set 'proportions={none: 1, epidural: 1}'",
    )
    shares = hparams.data_shares
    require(
        not shares or (all(0 <= share < _INF for share in shares) and sum(shares) > 0),
        f"data_shares is {shares}; use numbers of 0 or more, one more than 0",
    )
    cosine_decays = hparams.schedule == "cosine" and hparams.decay_per_epoch != 1
    require(not cosine_decays, "decay_per_epoch belongs to schedule: steps; with cosine leave it at 1")
    decays = hparams.weight_decay > 0
    require(not decays or hparams.optimizer == "adamw", "weight_decay belongs to optimizer: adamw")
    require(
        hparams.batch_size % hparams.accumulate == 0,
        f"batch_size {hparams.batch_size} is no multiple of accumulate {hparams.accumulate}",
    )
    require(
        not (hparams.jit_compile and hparams.deterministic),
        "jit_compile has no deterministic gradient of max-pooling, which every model has; set deterministic to false",
    )
    require(hparams.learning_rate > 0, "learning_rate is 0, so nothing would be learned; use more than 0")
    require(
        hparams.warmup_epochs <= hparams.epochs,
        f"warmup_epochs is {hparams.warmup_epochs:g} and epochs is {hparams.epochs}, so the rate would never be "
        "reached; lower the one or raise the other",
    )
    require(hparams.train_split != "", "train_split is empty")
    require(
        hparams.validation_split != "" or hparams.patience == 0,
        "patience needs a validation_split; set it to 0 or name one",
    )
    splits = [hparams.train_split, hparams.validation_split, hparams.test_split]
    named = [name for name in splits if name]
    require(
        len(set(named)) == len(named),
        f"train_split, validation_split and test_split are {', '.join(splits)}; a split scored must not be one trained "
        "or chosen on: name three, or leave one empty",
    )
    require(hparams.folds != 1, "folds is 1; give 0 for none, or at least 2")
    require(
        hparams.fold < max(hparams.folds, 1),
        f"fold is {hparams.fold} and folds is {hparams.folds}; a fold is a number from 0 to folds - 1",
    )
    require(
        not hparams.folds or hparams.validation_split != "",
        "folds are drawn from train_split and validation_split together; name both",
    )
    require(
        hparams.replicas == 0 or hparams.strategy == "mirrored",
        f"replicas belongs to strategy: mirrored, not {hparams.strategy}",
    )
    belongs = hparams.model in APPLICATIONS or hparams.stem == STEMS[0]
    require(belongs, f"stem: {hparams.stem} belongs to networks of keras.applications, not to {hparams.model}")
    _check_series(hparams)


def _check_series(hparams: HParams) -> None:
    """Refuse what a model of slices has no use for, and what a model of series has none for."""
    for name in ("slice_run", "series", "end_to_end"):
        of_series = hparams.model == SERIES or not getattr(hparams, name)
        require(of_series, f"{name} belongs to --model {SERIES}, not to {hparams.model}; leave it out")
    if hparams.model != SERIES:
        return
    told = f"context_slices is {hparams.context_slices}; of model {SERIES} its slice run has it, so leave it at 0"
    require(not hparams.context_slices, told)
    require(hparams.weights != "imagenet", "weights is imagenet; a series model begins with none, or a series run")
    require(
        hparams.augment_on != "device",
        "augment_on is device, and whole series are changed where they are read; set it to host or auto",
    )
    require(
        not hparams.windows and hparams.window_form == windows.CLIPPED,
        "windows and window_form belong to the slice run of a series model; leave them out",
    )
    for name in ("rotate_deg", "shift", "scale", "crop", "contrast", "brightness", "erase", "freeze_epochs"):
        value = getattr(hparams, name)
        require(
            not value or hparams.end_to_end,
            f"{name} is {value:g}, and a series model sees vectors, not pixels; leave it at 0, or train both together "
            "with --set end_to_end=true",
        )


def _require_known(word: object, known: Collection[str], what: str) -> None:
    if word not in known:
        raise WrongUse(f"{what} {word!r}; {hint(word, known)}")


# May change when a run is resumed: they say how long and where it runs, not what it computes.
FREE_ON_RESUME = frozenset(
    [
        "epochs",
        "patience",
        "eval_batch_size",
        "test_split",
        "slice_run",
        "augment_on",
        "strategy",
        "replicas",
        "jit_compile",
        "steps_per_call",
        "wait_minutes",
        "checkpoint_minutes",
        "keep",
        "logger",
    ]
)


MERGED = ("architecture", "series")  # settings that hold settings


def resolve(model: str | None, config: str | None, sets: Mapping[str, Any]) -> HParams:
    """Settings of a run: `defaults`, then `config` (a packaged name or a YAML file), then `sets`.

    `sets`: dotted key -> value. `model` may be left out when the config names it. Raises `WrongUse`.
    """
    overlay = _read(config_path(config)) if config else {}
    name = model or overlay.get("model")
    require(name is not None, f"name a model: --model {{{','.join(OWN_CONFIG)}}}, or another one of --help")
    _require_known(name, MODELS, "model is")
    conflict = model is not None and overlay.get("model", model) != model
    require(not conflict, f"--model {model} and --config {config} (model: {overlay.get('model')}) disagree")
    require(sets.get("model", name) == name, f"--set model={sets.get('model')}: write --model {sets.get('model')}")
    values = _overlay(defaults(str(name)), overlay, str(config))
    for key, value in sets.items():
        # proportions as a whole are given anew, a stratum with a dot beside those that are there
        merged = (*MERGED, "proportions") if "." in key else MERGED
        values = _overlay(values, nested(key, value), f"--set {key}", merged)
    return from_dict(values)


def defaults(model: str) -> dict[str, Any]:
    """Plain values of the config of a model."""
    return {**_read(config_dir() / f"{model if model in OWN_CONFIG else TRANSFER}.yaml"), "model": model}


def from_dict(values: Mapping[str, Any]) -> HParams:
    """`HParams` of plain values. Raises `WrongUse` for unknown, missing or mistyped keys."""
    kinds = get_type_hints(HParams)
    missing = [key for key in kinds if key not in values]
    require(not missing, f"missing setting {', '.join(missing)}")
    return HParams(**{key: typed(key, values[key], kinds[key]) for key in kinds})


def of_run(values: Mapping[str, Any]) -> HParams:
    """`HParams` of an earlier run; a setting that is younger than the run is as its model's config has it."""
    return from_dict({**defaults(values["model"]), **values})


def to_yaml(hparams: HParams) -> str:
    """The settings as YAML, in the order of the dataclass; `from_dict` reads them back."""
    return yaml.safe_dump(dataclasses.asdict(hparams), sort_keys=False, allow_unicode=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs and may not on resume, as `seed: 0, now 1`.

    A setting that is younger than the run of `old` counts as its model's config has it.
    """
    old = {**defaults(new["model"]), **old}
    keys = [key for key in {**old, **new} if key not in FREE_ON_RESUME or _decides(key, new)]
    return [f"{key}: {old.get(key)}, now {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def _decides(key: str, values: Mapping[str, Any]) -> bool:
    """The number of epochs shapes a cosine schedule, so there it may not change."""
    return key == "epochs" and values.get("schedule") == "cosine"


def config_names() -> list[str]:
    """Names of the packaged training configs: those that name a model, which is seen without parsing all of them."""
    names_a_model = re.compile("^model:", re.MULTILINE)
    every = config_dir().glob("*.yaml")
    return sorted(path.stem for path in every if names_a_model.search(path.read_text(encoding="utf-8")))


def config_path(name_or_path: str) -> Path:
    """File of a packaged config or of a path that ends in .yaml. Raises `WrongUse`."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    _require_known(name_or_path, config_names(), "no file ending .yaml, and no packaged config:")
    return config_dir() / f"{name_or_path}.yaml"


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUse(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise WrongUse(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _read(path: Path) -> dict[str, Any]:
    values = _yaml(path)
    require(isinstance(values, dict), f"{path} holds no settings; write lines such as `batch_size: 32`")
    kinds = get_type_hints(HParams)
    for key in values:
        _require_known(key, kinds, f"{path}: unknown setting")
    return values


def _overlay(
    base: Mapping[str, Any], values: Mapping[str, Any], where: str, merges: Sequence[str] = MERGED
) -> dict[str, Any]:
    """`values` over `base`: those of `merges` key by key, everything else is replaced."""
    for key in values:
        _require_known(key, base, f"{where}: unknown setting")
    merged = {**base, **values}
    for key in merges:
        if isinstance(values.get(key), dict):
            merged[key] = {**base[key], **values[key]}
    return merged
