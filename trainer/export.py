"""The trained model as a file: float32, whatever precision it was trained in."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from ich_tfrecords import atomic
from ich_tfrecords.manifest import Manifest
from ich_tfrecords.spec import to_dict
from trainer.problems import TrainingFailed

MODEL = "model.keras"
ABOUT = "about.json"


def float32_copy(model: keras.Model, build: Callable[[], keras.Model]) -> keras.Model:
    """The same architecture and values, computing in float32; `build` makes the architecture."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        copy = build()
    finally:
        keras.config.set_dtype_policy(before)
    for variable, trained in zip(copy.variables, model.variables, strict=True):
        variable.assign(trained.value.numpy())
    return copy


def write(folder: Path, model: keras.Model, manifest: Manifest, about: Mapping[str, Any]) -> Path:
    """Path of `model.keras`, written into `folder` with `about.json` (spec, fingerprint and `about`).

    Raises `TrainingFailed` when it cannot be written; what lay there before is then still whole.
    """
    temporary = folder.parent / f"{folder.name}.{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir(parents=True)
        model.save(temporary / MODEL)
        facts = {"spec": to_dict(manifest.spec), "fingerprint": manifest.fingerprint, **about}
        atomic.write_bytes(temporary / ABOUT, (json.dumps(facts, indent=1) + "\n").encode())
        _put(temporary, folder)
    except OSError as error:
        reason = error.strerror or error
        raise TrainingFailed(
            f"cannot write the model to {folder}: {reason}; training is done and saved, the same command tries again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / MODEL


def _put(temporary: Path, folder: Path) -> None:
    """Move the files one by one, the model last: who finds a model finds what it was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (ABOUT, MODEL):
        (temporary / name).replace(folder / name)
    atomic.sync_folder(folder)
