"""The data, the model and the optimizer of a run, put together from the settings; wrong combinations are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels.table import stratum_indices
from ich_tfrecords.spec import HU, ImageSpec, LabelSpec
from trainer.data import neighbours, sampling
from trainer.data.augment import Augmentation
from trainer.data.dataset import Dataset, Slices
from trainer.data.feed import Feed, SliceFeed
from trainer.data.input_pipeline import EpochPlan
from trainer.models import backbones, networks, pretrained, windows
from trainer.models.windows import Windows
from trainer.results import joint
from trainer.results.joint import Odds
from trainer.shell.problems import WrongUse
from trainer.training import hparams, losses, metrics, optimizers, strategy
from trainer.training.averages import Averages
from trainer.training.hparams import HParams
from trainer.training.loop import Data, Network
from trainer.training.steps import Objective, Update
from trainer.training.strategy import Devices


def splits(data: Dataset, settings: HParams) -> dict[str, Slices]:
    """The slices of the splits that the run uses, by name. Raises `WrongUse`."""
    names = {settings.train_split, settings.validation_split, settings.test_split} - {""}
    _check_data_shares(settings, data)
    for setting, way_on in _ways_on(settings).items():
        if name := getattr(settings, setting):
            data.require_slices(name, way_on)
    slices = {name: _drawn(data, settings, name) for name in sorted(names)}
    held = [part for name, part in slices.items() if name != settings.train_split]
    slices[settings.train_split] = _without_twins(slices[settings.train_split], held)
    labels = data.manifest.spec.labels.names
    metrics.better(settings.monitor, labels)
    _check_labels(slices[settings.train_split], labels, settings)
    if settings.validation_split:
        _check_monitor(slices[settings.validation_split], settings)
    if settings.test_split and not slices[settings.test_split].labelled.any():
        raise WrongUse(
            f"no slice of split {settings.test_split} has labels, so nothing can be scored there; name another "
            "test_split, or go on without one with --set test_split="
        )
    return slices


def split(data: Dataset, settings: HParams, name: str) -> Slices:
    """The slices of a split as the run sees it.

    With folds, the two that it trains and validates on are drawn anew. Training leaves out its `twins`.
    """
    found = _drawn(data, settings, name)
    if name != settings.train_split:
        return found
    held = {settings.validation_split, settings.test_split} - {""}
    return _without_twins(found, [_drawn(data, settings, other) for other in sorted(held)])


def left_out(data: Dataset, settings: HParams, slices: Mapping[str, Slices]) -> int:
    """How many `twins` the training split of `splits` lacks."""
    drawn_from = [settings.train_split, *[settings.validation_split] * (settings.folds > 0)]
    there = sum(data.manifest.splits[name]["slices"] for name in drawn_from)
    return int(there) - sum(len(slices[name]) for name in drawn_from)


def twins(train: Slices, held: Sequence[Slices]) -> npt.NDArray[np.bool_]:
    """bool [n], slices of `train` with the pixels of a slice that is held out for validation or test.

    RSNA's data hold such slices under the ids of several patients; learnt by heart, they would flatter.
    """
    digests = [part.table["pixel_digest"] for part in held]
    known = pa.chunked_array([chunk for column in digests for chunk in column.chunks], pa.string())
    return pc.is_in(train.table["pixel_digest"], value_set=known.combine_chunks()).to_numpy()


def _without_twins(train: Slices, held: Sequence[Slices]) -> Slices:
    found = twins(train, held)
    return train.take(~found, train.split) if found.any() else train


def _drawn(data: Dataset, settings: HParams, name: str) -> Slices:
    pair = (settings.train_split, settings.validation_split)
    if not settings.folds or name not in pair:
        found = data.split(name)
    else:
        found = data.fold(pair, settings.fold, settings.folds)[pair.index(name)]
    return found.with_neighbours(settings.context_slices)


def _ways_on(settings: HParams) -> dict[str, str]:
    """What a user may set where the split that a setting names has no slices."""
    validation = "go on without validation with --set validation_split=" + " --set patience=0" * (settings.patience > 0)
    folded = "folds need two splits with slices: name another one with --set validation_split=NAME"
    return {
        "train_split": "train on another one with --set train_split=NAME",
        "validation_split": folded if settings.folds else validation,
        "test_split": "go on without a test with --set test_split=",
    }


def _check_data_shares(settings: HParams, data: Dataset) -> None:
    shares = settings.data_shares
    if shares and len(shares) != len(data.parts):
        raise WrongUse(
            f"data_shares is {shares}, a share for each --data_dir, and {len(data.parts)} given; give as many shares, "
            "or leave it empty"
        )
    if shares and not data.local:
        raise WrongUse(f"{data.place}: data_shares need the shards as files; copy them here with --cache_dir DIR")


def _check_labels(train: Slices, labels: tuple[str, ...], settings: HParams) -> None:
    if not train.labelled.any():
        raise WrongUse(f"no slice of split {settings.train_split} has labels, so there is nothing to learn")
    known = train.labels
    if settings.model == hparams.SERIES and train.study_labels is not None:
        known = np.concatenate([known, train.study_labels])  # its head learns from those
    for value, word in ((1, "positive"), (0, "negative")):
        absent = [name for i, name in enumerate(labels) if not (known[:, i] == value).any()]
        if absent and not settings.absent_labels:
            raise WrongUse(
                f"no slice of split {settings.train_split} is {word} for {', '.join(absent)}, so no model can learn "
                "it; take more data, or go on all the same with --set absent_labels=true"
            )


def _check_monitor(validation: Slices, settings: HParams) -> None:
    """Refuse a metric that has no value on these slices: no epoch would be the best, and patience would run out."""
    names = validation.spec.labels.names
    lack = {name: metrics.lacking(name, names, validation.labels) for name in metrics.metric_names(names)}
    if lack[settings.monitor]:
        other = next((f"monitor={name}" for name in lack if not lack[name]), "validation_split=")
        raise WrongUse(
            f"monitor is {settings.monitor}, and split {validation.split} holds {lack[settings.monitor]}, so it never "
            f"has a value; take other slices, or go on with --set {other}"
        )


def data_of(settings: HParams, slices: Mapping[str, Slices], devices: Devices) -> Data:
    """What the loop reads, how an epoch is drawn, and what that does to the odds. Raises `WrongUse`."""
    feeds = {name: SliceFeed(part) for name, part in slices.items()}
    train = feeds[settings.train_split]
    plan, odds = plan_of(settings, train, devices), odds_of(settings, train.slices)
    plan = dataclasses.replace(plan, in_step=strategy.augments_in_step(settings, devices.kind))
    return Data(train, feeds.get(settings.validation_split), plan, train.slices.spec.labels.names, odds)


def plan_of(settings: HParams, train: Feed, devices: Devices) -> EpochPlan:
    """How an epoch is drawn. Raises `WrongUse`."""
    _check_grey(settings, train.slices.spec.image)
    of_parts = _of_parts(settings, train.counts_of_parts(len(settings.data_shares)))
    return EpochPlan(
        policy=settings.sampling,
        shares=_shares(settings, train.stratum_counts, of_parts),
        of_parts=of_parts,
        seed=settings.seed,
        epoch=0,
        size=_epoch_size(settings, train, devices),
        batch_size=settings.batch_size,
        quantum=_quantum(settings, devices),
        augmentation=augmentation_of(settings),
    )


def _of_parts(settings: HParams, counts: Sequence[Mapping[str, int]]) -> tuple[Mapping[str, float], ...]:
    """What of all falls to each stratum of each data set by `data_shares`; nothing where none are set."""
    whole, found = sum(settings.data_shares), []
    for share, of_part in zip(settings.data_shares, counts, strict=True):
        inside = sampling.proportions(settings.sampling, of_part, settings.proportions) if share else {}
        found.append({name: share / whole * inside.get(name, 0.0) for name in of_part})
    return tuple(found)


def _shares(
    settings: HParams, counts: Mapping[str, int], of_parts: Sequence[Mapping[str, float]]
) -> Mapping[str, float]:
    """What falls to each stratum of all data sets together."""
    if not of_parts:
        return sampling.proportions(settings.sampling, counts, settings.proportions)
    return {name: sum(one[name] for one in of_parts) for name in counts}


def augmentation_of(settings: HParams) -> Augmentation:
    """What may happen to a slice while training. Raises `WrongUse`."""
    moves = (settings.flip, settings.rotate_deg, settings.shift, settings.scale, settings.crop)
    return Augmentation(*moves, settings.contrast, settings.brightness, settings.erase)


def _check_grey(settings: HParams, image: ImageSpec) -> None:
    for name in ("contrast", "brightness"):
        value = getattr(settings, name)
        if value and image.kind == HU:
            raise WrongUse(f"{name} is {value:g}, and it changes grey levels; this data set holds HU, so set it to 0")


def _quantum(settings: HParams, devices: Devices) -> int:
    """What a short last batch is a multiple of; a TPU computes whole batches only, since shapes are fixed there."""
    return settings.batch_size if devices.kind == "tpu" else devices.share.replicas * settings.accumulate


def _epoch_size(settings: HParams, train: Feed, devices: Devices) -> int:
    """Samples of an epoch. Other policies than natural take whole batches."""
    every = train.epoch_size(devices.share)
    if settings.batch_size > every:
        raise WrongUse(
            f"batch_size is {settings.batch_size}, but split {settings.train_split} has {every} {train.samples} to "
            "train on; lower it"
        )
    most = every // settings.batch_size
    if settings.sampling == sampling.NATURAL and settings.steps_per_epoch > most:
        raise WrongUse(
            f"steps_per_epoch is {settings.steps_per_epoch}, but natural sampling shows all {train.samples} once an "
            f"epoch, which makes {most} steps of {settings.batch_size}; use that, 0 for all, or another sampling"
        )
    if settings.steps_per_epoch:
        return settings.steps_per_epoch * settings.batch_size
    return every if settings.sampling == sampling.NATURAL else -(-every // settings.batch_size) * settings.batch_size


def odds_of(settings: HParams, train: Slices) -> Odds:
    """What loss and sampling do to the odds of the labels of `train`, and so what to undo. Raises `WrongUse`."""
    labels, loss = train.spec.labels, (settings.label_smoothing, settings.focal_gamma)
    counts = train.stratum_counts
    parts = sampling.counts_of_parts(train.stratum, train.part, labels.strata, len(settings.data_shares))
    shares = _shares(settings, counts, _of_parts(settings, parts))
    if len(labels.names) == 1 or sampling.is_natural(shares, counts):
        return joint.unchanged(labels.names, labels.any, *loss)
    if not joint.fits(labels.names):
        return joint.alone(labels.names, labels.any, _shift(train, shares), *loss)
    weights = sampling.weights(shares, counts)
    of_stratum = np.array([weights.get(name, np.nan) for name in labels.strata])
    every = joint.combinations(labels.names, labels.any)
    rows, of_combination = train.labelled, of_stratum[stratum_indices(every, labels)]
    found = joint.estimate(
        labels.names, labels.any, train.labels[rows], of_stratum[train.stratum[rows]], of_combination
    )
    return joint.Odds(labels.names, labels.any, *loss, *found, np.zeros(len(labels.names)))


def _shift(train: Slices, shares: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """float64 [L]: by how much sampling moves the log-odds of each label on average."""
    strata = train.spec.labels.strata
    inside = {name: train.labels[train.stratum == index] for index, name in enumerate(strata)}
    positives = {name: (labels == 1).sum(0) for name, labels in inside.items()}
    negatives = {name: (labels == 0).sum(0) for name, labels in inside.items()}
    return sampling.log_odds_shift(positives, negatives, shares)


def network(settings: HParams, data: Dataset, devices: Devices, steps_per_epoch: int) -> Network:
    """The model, what changes it at each step, and the objective, on the devices. Raises `WrongUse`."""
    told: list[str] = []
    with devices.strategy.scope():
        model = build_model(settings, data, settings.weights, told.append)
        update = update_of(settings, model, devices, steps_per_epoch)
    backbone = backbones.backbone(model)
    if settings.freeze_epochs and backbone is None:
        raise WrongUse(
            f"freeze_epochs is {settings.freeze_epochs}, but {settings.model} has no pretrained part; set it to 0"
        )
    objective = Objective(*objective_of(settings, data.manifest.spec.labels))
    return Network(model, backbone, update, objective, told)


def update_of(settings: HParams, model: keras.Model, devices: Devices, steps_per_epoch: int) -> Update:
    """What changes a model at each step; to be called in the scope of the devices' strategy."""
    optimizer = optimizers.make(settings, devices.precision == "mixed_float16")
    optimizer.build(model.trainable_variables)
    averages = Averages(model, settings.ema) if settings.ema else None
    return Update(optimizer, optimizers.schedule(settings, steps_per_epoch), averages)


def objective_of(settings: HParams, labels: LabelSpec) -> tuple[npt.NDArray[np.float32], float, float, int, int]:
    """The fields of an `Objective`."""
    weights = losses.label_weights(labels.names, labels.any, settings.any_weight)
    return weights, settings.label_smoothing, settings.focal_gamma, settings.accumulate, settings.batch_size


def fetch_weights(settings: HParams, data: Dataset) -> None:
    """Have the ImageNet weights at hand, where the settings start from them. Raises `WrongUse`."""
    shape, labels = _ends(settings, data)
    seen = windows.seen(windows_of(settings, data.manifest.spec.image), shape)
    networks.check(settings.model, seen, labels, settings.architecture, settings.stem)
    if settings.weights == "imagenet":
        pretrained.imagenet_weights(settings.model)


def build_model(
    settings: HParams, data: Dataset, weights: str, note: Callable[[str], None] = lambda text: None
) -> keras.Model:
    """The model of the settings for the images and labels of the data set; `weights` and `note` as `networks.build`."""
    shape, labels = _ends(settings, data)
    inside = windows_of(settings, data.manifest.spec.image)
    parts = (settings.architecture, settings.stem, note, inside)
    return networks.build(settings.model, shape, labels, weights, *parts)


def _ends(settings: HParams, data: Dataset) -> tuple[tuple[int, ...], int]:
    """The shape of what the model takes of a slice, and how many labels it gives."""
    spec = data.manifest.spec
    return neighbours.shape(spec.image.shape, settings.context_slices), len(spec.labels.names)


def windows_of(settings: HParams, image: ImageSpec) -> Windows | None:
    """How the model of the settings windows HU; None where the data set did that. Raises `WrongUse`."""
    return windows.of_settings(settings.windows, settings.window_form, image)
