"""The trained model on disk: `model.keras`, and `about.json` with all that is needed to use it rightly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords.spec import DatasetSpec, SpecError, from_dict, sample_differences, to_dict
from ich_tfrecords.storage import atomic
from trainer.data import neighbours
from trainer.models import keras_file, model_folder, windows
from trainer.results import blend as blends
from trainer.results import calibration as calibrations
from trainer.results.joint import Odds, coherent
from trainer.results.joint import from_dict as odds_from_dict
from trainer.results.thresholds import EVEN
from trainer.shell import vertex
from trainer.shell.problems import TrainingFailed, WrongUse
from trainer.trust import scope_file
from trainer.trust.scope import Scope

if TYPE_CHECKING:
    import keras

MODEL, SLICE, ABOUT = model_folder.MODEL, model_folder.SLICE, model_folder.ABOUT
CLASSIFIER = "classifier"  # among the settings: what takes the place of the last layer, see `classical`
Embedder = Callable[[npt.NDArray[Any]], tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]]
FORMAT = 2
READABLE = (1, 2)  # format 1 has no odds
_ANEW = "let the command that wrote it, train, classify or export, write it anew"


@dataclasses.dataclass(frozen=True, eq=False)
class About:
    """What a trained model takes, where it comes from, and how its logits become probabilities and decisions.

    `fingerprint`: of the data set it was trained on. `settings`: of its run. `thresholds`: label -> rule -> probability
    from which on a slice counts as positive, chosen on the validation split; `study_thresholds`: the same for the
    greatest probability of a study. `facts`: data_dir (of several data sets a list, with data_sets, their
    fingerprints), parameters, epoch (of the weights), step (at the end of training), prevalence (label -> share of
    positives of the training split), foreseen (what the thresholds rest on and will hold, see `thresholds.foreseen`),
    conformal (what a promise about studies rests on, see `conformal.scores`), versions. `odds`: what lies between
    logits and natural log odds, before the calibration; None for one of the earlier kind, which takes one shift off
    each label. `blend`: of a series model, what joins context and slice model; its "logits" are the natural log odds of
    both.
    """

    spec: DatasetSpec
    fingerprint: str
    settings: Mapping[str, Any]
    calibration: calibrations.Calibration
    thresholds: Mapping[str, Mapping[str, float]]
    study_thresholds: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, Any]
    odds: Odds | None = None
    blend: blends.Blend | None = None

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of the data set it was trained on, then of those that this one was put together of, if it was."""
        return (self.fingerprint, *self.facts.get("data_sets", ()))

    @property
    def network(self) -> str:
        """Its kind, as `cnn` or `cnn, forest`."""
        last = self.settings.get(CLASSIFIER)
        return str(self.settings["model"]) + (f", {last['kind']}" if last else "")

    @property
    def shown(self) -> DatasetSpec:
        """The spec whose windows pictures show: those that the model sees."""
        return dataclasses.replace(self.spec, image=windows.shown(self.spec.image, self.facts))

    @property
    def context_slices(self) -> int:
        """Neighbours on either side that a slice model sees a slice with."""
        return int(self.settings.get("context_slices", 0))  # runs of before have no such setting

    @property
    def in_series(self) -> bool:
        """Whether what it says of a slice depends on the other slices of its series."""
        return self.blend is not None or self.context_slices > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Rows, columns and channels of what a slice model takes of a slice."""
        return neighbours.shape(self.spec.image.shape, self.context_slices)

    def log_odds(self, logits: Any) -> npt.NDArray[np.float64]:
        """float64 [n, L], what the calibration starts from; `logits` float [n, L] of the model."""
        return np.asarray(logits, np.float64) if self.odds is None else self.odds.log_odds(logits)

    def probabilities(self, logits: Any) -> npt.NDArray[np.float64]:
        """float64 [n, L], natural and calibrated, no kind above `any`; `logits` float [n, L] of the model."""
        labels = self.spec.labels
        return coherent(self.calibration.probabilities(self.log_odds(logits)), labels.names.index(labels.any))

    def notes(self, place: str) -> list[str]:
        """What whoever uses the model of `place` must know of it."""
        if self.odds is not None:
            return []
        why = "it undoes the sampling label by label, which is right on average only"
        command = f"python -m trainer.evaluate --job_dir {place} --recalibrate"
        return [f"the calibration is of the earlier kind: {why}; fit it anew with {command}"]


def to_json(about: About) -> str:
    """Text of `about.json`."""
    values = {field.name: getattr(about, field.name) for field in dataclasses.fields(About)}
    odds = None if about.odds is None else about.odds.to_dict()
    plain = {"spec": to_dict(about.spec), "calibration": about.calibration.to_dict(), "odds": odds}
    if about.blend is None:
        del values["blend"]
    else:
        plain["blend"] = about.blend.to_dict()
    return json.dumps({"format": FORMAT, **values, **plain}, indent=1, allow_nan=False) + "\n"


def read_about(folder: Path) -> About:
    """`about.json` of a folder. Raises `WrongUse` where it is missing, damaged or of another format."""
    path = folder / ABOUT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("format") not in READABLE:
            raise ValueError(f"this version reads the formats {', '.join(map(str, READABLE))}")
        values["spec"] = from_dict(values["spec"], f"{path}: spec")
        values["calibration"] = calibrations.from_dict(values["calibration"])
        values["odds"] = odds_from_dict(values["odds"]) if values.get("odds") is not None else None
        if "blend" in values:
            values["blend"] = blends.from_dict(values["blend"])
        about = About(**values)
        _check(about)
        return about
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WrongUse(f"cannot use {path} ({reason}); {_ANEW}") from error


def _check(about: About) -> None:
    """Raises `ValueError` for parts that are missing or do not fit together."""
    names = about.spec.labels.names
    for what in ("settings", "thresholds", "study_thresholds", "facts"):
        if not isinstance(getattr(about, what), dict):
            raise ValueError(f"{what} is {getattr(about, what)!r}, no object")
    if about.calibration.names != names:
        raise ValueError("the calibration is of other labels than the spec")
    if about.odds is not None and (about.odds.names, about.odds.any) != (names, about.spec.labels.any):
        raise ValueError("the odds are of other labels than the spec")
    if about.blend is not None and (about.blend.odds.names, about.blend.odds.any) != (names, about.spec.labels.any):
        raise ValueError("the blend is of other labels than the spec")
    for what in ("thresholds", "study_thresholds"):
        chosen = getattr(about, what)
        if not all(isinstance(chosen.get(name), dict) and EVEN in chosen[name] for name in names):
            raise ValueError(f"{what} must hold {EVEN} for each of {', '.join(names)}")
    if not isinstance(about.settings.get("model"), str):
        raise ValueError("settings name no model")
    for fact in ("parameters", "epoch", "step"):
        if not isinstance(about.facts.get(fact), int):
            raise ValueError(f"facts hold no {fact}")


def find(place: str) -> Path:
    """The folder with `MODEL` and `ABOUT`: `place` itself, or what the run at `place` exported. Raises `WrongUse`."""
    folder = vertex.mounted(place)
    if model_folder.is_model(folder):
        return folder
    for written in (folder / name for name in model_folder.WRITTEN):
        if model_folder.is_model(written):
            _require_ended(folder, written, place)
            return written
    raise WrongUse(f"{place} {model_folder.what_else(folder)}")


def run_folder(folder: Path) -> Path:
    """The run that exported into `folder` (as `find` gives it); where there is none, `folder` itself."""
    own = folder.name in model_folder.WRITTEN and (folder.parent / "config.yaml").is_file()
    return folder.parent if own else folder


def _require_ended(run: Path, written: Path, place: str) -> None:
    """Refuse a run that was trained on after its model was written."""
    newest = max((path.stem for path in run.glob("checkpoints/step-*.npz")), default="step-0")
    step, before = int(newest.removeprefix("step-")), read_about(written).facts["step"]
    if step > before:
        raise WrongUse(
            f"{place} has been trained on to step {step:,} since its model was written at step {before:,}; the same "
            f"train command ends it, or give {written} for the model of then"
        )


def files(folder: Path) -> tuple[str, ...]:
    """Names of the files of the model in a folder, the model last; those of the slice model inside are its own."""
    scope = (scope_file.NAME,) * (folder / scope_file.NAME).is_file()
    return (ABOUT, *scope, MODEL)


def digest(folder: Path) -> str:
    """sha256 of `MODEL` in a folder, 64 hexadecimal digits: the name of the weights in results."""
    return hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()


def load_model(folder: Path, about: About) -> keras.Model:
    """The model of a folder. Raises `WrongUse` where it is damaged or does not fit `about`."""
    import keras

    from trainer.models import classical

    path = folder / MODEL
    try:
        model = keras.models.load_model(path, {"Forest": classical.Forest}, compile=False)
        classical.require_whole(model)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WrongUse(f"cannot read {path} ({reason}); {_ANEW}") from error
    wanted = _shapes(about)
    if (model.input_shape, model.output_shape) != wanted:
        raise WrongUse(
            f"{path} takes {model.input_shape} and gives {model.output_shape}, but its {ABOUT} speaks of "
            f"{wanted[0]} and {wanted[1]}; they are of two models, export again"
        )
    return model


def load_slice_model(folder: Path, about: About) -> tuple[keras.Model, About]:
    """The slice model beside the context in `folder`, of which `about` speaks, and what is known of it.

    Raises `WrongUse` where it is missing, damaged or not the one that the context was trained on.
    """
    beside = folder / SLICE
    known = read_about(beside)
    model = load_model(beside, known)
    differs = sample_differences(about.spec, known.spec)
    if differs or vector_dim(model) != about.facts["vector_dim"] or known.fingerprint not in about.fingerprints:
        raise WrongUse(
            f"{beside} is not the slice model that {folder / MODEL} stands on; end its training again to write both"
        )
    return model, known


def _shapes(about: About) -> tuple[Any, Any]:
    """What a model takes and gives."""
    labels = len(about.spec.labels.names)
    if about.blend is None:
        return (None, *about.input_shape), (None, labels)
    # Keras names the inputs of a series model in order of their names: mask, place, vectors
    taken = [(None, None), (None, None, 3), (None, None, about.facts["vector_dim"])]
    return taken, [(None, None, labels), (None, labels)]


def scorer(model: keras.Model, flip: bool = False) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """A function from images [b, size, size, channels] to logits float32 [b, L]; compiled once, for any b.

    A tensor of them is taken without a copy. `flip`: the mean of the logits of each slice and of its left-right
    mirror image.
    """
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, model.input.dtype)])
    def score(images: Any) -> Any:
        logits = tf.cast(model(images, training=False), tf.float32)
        if flip:
            mirrored = tf.cast(model(tf.reverse(images, [2]), training=False), tf.float32)
            logits = (logits + mirrored) / 2
        return logits

    return lambda images: score(tf.convert_to_tensor(images)).numpy()


def vector_dim(model: keras.Model) -> int:
    """Length of a slice's vector: of what the layer of the logits takes."""
    dim: int = model.layers[-1].input.shape[-1]
    return dim


def with_vectors(model: keras.Model) -> keras.Model:
    """The same network, which gives the vectors of `embedder`, not yet float16, beside the logits."""
    import keras

    return keras.Model(model.input, [model.layers[-1].input, model.output])


def embedder(model: keras.Model, mirrored: bool = False) -> Embedder:
    """A function from images [b, size, size, channels] to vectors float16 [b, dim] and logits float32 [b, L].

    One pass gives both; the logits are those of `scorer`. A slice's vector is what the layer of the logits takes: the
    mean over all places of densenet121 and xception, the last dense layer of cnn. (The cnn pools to 64 x 32 x 32
    values, all of which that layer reads.) A tensor of images is taken without a copy. `mirrored`: of the left-right
    mirror image of each slice.
    """
    import tensorflow as tf

    both = with_vectors(model)

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, model.input.dtype)])
    def embed(images: Any) -> Any:
        vectors, logits = both(tf.reverse(images, [2]) if mirrored else images, training=False)
        return tf.cast(vectors, tf.float16), tf.cast(logits, tf.float32)

    def embedded(images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float32]]:
        vectors, logits = embed(tf.convert_to_tensor(images))
        return vectors.numpy(), logits.numpy()

    return embedded


def float32_copy(model: keras.Model, build: Callable[[], keras.Model]) -> keras.Model:
    """The same architecture and values, computing in float32; `build` makes the architecture."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = build()
    finally:
        keras.config.set_dtype_policy(before)
    for variable, trained in zip(copy.variables, model.variables, strict=True):
        variable.assign(trained.value.numpy())
    return copy


def write(
    folder: Path, model: keras.Model, about: About, slice_folder: Path | None = None, scope: Scope | None = None
) -> Path:
    """Path of `model.keras`, written into `folder` with `about.json`, and with its `scope` where that is known.

    `slice_folder`: of a series model, the folder of its slice model, which goes along as `SLICE`.
    Raises `TrainingFailed` when it cannot be written; what lay there before is then still whole.
    """
    temporary = folder.parent / f"{folder.name}.{uuid.uuid4().hex}{atomic.TEMPORARY_SUFFIX}"
    try:
        temporary.mkdir(parents=True)
        keras_file.save(model, temporary / MODEL)
        write_about(temporary, about)
        if scope is not None:
            scope_file.write(temporary, dataclasses.replace(scope, weights=digest(temporary)))
        if slice_folder is not None:
            _put_into(temporary / SLICE, slice_folder)
            shutil.rmtree(folder / SLICE, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            (temporary / SLICE).replace(folder / SLICE)
        _put(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise TrainingFailed(
            f"cannot write the model to {folder}: {reason}; make room there, and the same command tries again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / MODEL


def write_about(folder: Path, about: About) -> None:
    """Put `about.json` into a folder, whole or not at all. Raises `OSError`."""
    atomic.write_bytes(folder / ABOUT, to_json(about).encode())


def _put_into(target: Path, source: Path) -> None:
    target.mkdir()
    for name in files(source):
        atomic.write_bytes(target / name, (source / name).read_bytes())


def _put(temporary: Path, folder: Path) -> None:
    """Move the files one by one, the model last: who finds a model finds what it was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / scope_file.NAME).unlink(missing_ok=True)
    for name in files(temporary):
        (temporary / name).replace(folder / name)
    atomic.sync_folder(folder)
