"""What the environment says to TensorFlow and Keras: what decides about numbers is left aside, and told in a line.

The same command gives the same numbers whatever other projects of the user have set. docs/faults.md has a row for
each door.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ich_tfrecords import environment
from trainer.shell.problems import WrongUse

_DECIDES = re.compile(  # about kernels, precision and the order of sums, or it breaks what is traced and compiled
    r"(KERAS|ONEDNN|DNNL|AUTOGRAPH)_\w+"
    r"|TF_(AUTO_MIXED_PRECISION|CONV2D|CUDNN|DATA|DETERMINISTIC|DISABLE|ENABLE|FP16|FUNCTION|JIT|MATMUL|SET|USE|XLA)_\w+"
    r"|NVIDIA_TF32_OVERRIDE|TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL|XLA_FLAGS"
)
_STAYS = {"KERAS_HOME", "TF_USE_LEGACY_KERAS"}  # where downloads lie; what nobody here asks for
_BACKEND: dict[str, str | None] = {"KERAS_BACKEND": "tensorflow"}
_PLACES = re.compile(r"--xla_gpu_cuda_data_dir=\S+")  # where CUDA lies on this machine; without it XLA may not work
_USUAL = {
    "floatx": "float32",
    "epsilon": 1e-7,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
    "nnx_enabled": False,
}  # what Keras takes without a keras.json
_LONGEST = 60  # letters of a value that are shown


class Decided(NamedTuple):
    """`changes`: variables with their new values, None to take one away; `notes`: lines for the user."""

    changes: dict[str, str | None]
    notes: list[str]


def decide(environ: Mapping[str, str], gpus: int) -> Decided:
    """What is left aside or told. Raises `WrongUse` for what names a thing that is not there.

    `gpus`: how many this machine has.
    """
    _refuse_absent_gpus(environ.get("CUDA_VISIBLE_DEVICES", ""), gpus)
    _refuse_absent_plugin(environ.get("TF_PLUGGABLE_DEVICE_LIBRARY_PATH", ""))
    changes = _changes(environ)
    aside = [f"{name}={_shown(environ[name])}" for name in changes if environ.get(name, "") not in ("", changes[name])]
    notes = [f"left aside, since numbers would depend on it: {', '.join(aside)}"] if aside else []
    threads = environ.get("TF_NUM_INTRAOP_THREADS", "")
    if threads.isdecimal() and int(threads):
        notes.append(f"TF_NUM_INTRAOP_THREADS={threads}: on a CPU the last digits go with the number of threads")
    return Decided(changes, notes)


def _changes(environ: Mapping[str, str]) -> dict[str, str | None]:
    changes: dict[str, str | None] = {name: None for name in environ if _DECIDES.fullmatch(name) and name not in _STAYS}
    if "XLA_FLAGS" in changes:
        changes["XLA_FLAGS"] = " ".join(_PLACES.findall(environ["XLA_FLAGS"])) or None
    return changes | _BACKEND


def _refuse_absent_gpus(visible: str, gpus: int) -> None:
    """CUDA would show no GPU from the first absent one on, and the work would go on without, on the CPU."""
    absent = [part.strip() for part in visible.split(",") if part.strip().isdecimal() and int(part) >= gpus]
    if absent and gpus:
        raise WrongUse(
            f"CUDA_VISIBLE_DEVICES={_shown(visible)} names GPU {absent[0]}, and this machine has {gpus}, from 0 on; "
            "unset it, or set it to -1 for the CPU"
        )


def _refuse_absent_plugin(path: str) -> None:
    if path and not Path(path).exists():
        raise WrongUse(f"TF_PLUGGABLE_DEVICE_LIBRARY_PATH={_shown(path)}: no such file or folder; unset it")


def _shown(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def keras_json(environ: Mapping[str, str]) -> Path:
    """The file that Keras would go by."""
    return environment.expanded(environ.get("KERAS_HOME") or "~/.keras") / "keras.json"


def keras_notes(path: Path) -> list[str]:
    """A line about what keras.json says otherwise than usual; nothing where Keras could not read it either."""
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(said, dict):
        return []
    other = [f"{key} {_shown(json.dumps(said[key]))}" for key, usual in _USUAL.items() if said.get(key, usual) != usual]
    return [f"{path} is left aside, since numbers would depend on it: {', '.join(other)}"] if other else []
