"""What Vertex AI and TensorFlow's cluster format say in the environment: output places, mounts, this task's role."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.shell.problems import WrongUse

MOUNT = Path("/gcs")  # where Vertex AI shows every bucket as a folder (Cloud Storage FUSE)
ROLES = ("chief", "worker")
_JOB_PLACES = {"AIP_MODEL_DIR": "model", "AIP_CHECKPOINT_DIR": "checkpoints", "AIP_TENSORBOARD_LOG_DIR": "logs"}


@dataclasses.dataclass(frozen=True)
class Places:
    """Where a job is asked to write, as `gs://` addresses without a slash at the end; None where nothing is asked."""

    job_dir: str | None
    checkpoints: str | None
    tensorboard: str | None
    model: str | None


def places(environ: Mapping[str, str]) -> Places:
    """Output places of a Vertex AI job; all None elsewhere.

    Vertex AI sets AIP_MODEL_DIR, AIP_CHECKPOINT_DIR and AIP_TENSORBOARD_LOG_DIR to `model/`, `checkpoints/`
    and `logs/` below the job's baseOutputDirectory (REST reference of CustomJobSpec). `job_dir` is the folder
    above them, or None when they do not lie side by side.
    """
    given = {name: environ.get(name, "").rstrip("/") or None for name in _JOB_PLACES}
    above = {place[: -len(leaf) - 1] if place.endswith(f"/{leaf}") else "" for place, leaf in _pairs(given)}
    return Places(
        job_dir=(above.pop() or None) if len(above) == 1 else None,
        checkpoints=given["AIP_CHECKPOINT_DIR"],
        tensorboard=given["AIP_TENSORBOARD_LOG_DIR"],
        model=given["AIP_MODEL_DIR"],
    )


def _pairs(given: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(place, _JOB_PLACES[name]) for name, place in given.items() if place]


def mounted(place: str, mount: Path = MOUNT) -> Path:
    """Local path of a place: `gs://bucket/path` becomes `/gcs/bucket/path`; a local path stays as it is.

    Raises `WrongUse` where no bucket is mounted.
    """
    if not place.startswith("gs://"):
        return Path(place)
    bucket, *parts = place.removeprefix("gs://").split("/")
    if not bucket or ".." in (bucket, *parts):
        raise WrongUse(f"{place} names no place in a bucket; write gs://BUCKET/PATH")
    if not mount.is_dir():
        raise WrongUse(
            f"{place}: no bucket is mounted at {mount} (Vertex AI does it by itself); run "
            f"`gcsfuse --implicit-dirs {bucket} {mount / bucket}`, or name a local folder"
        )
    return mount.joinpath(bucket, *parts)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This task among those that train together: `rank` 0 to `workers` - 1; the chief counts as a worker.

    `addresses`: host:port of each, by rank; none where there is no cluster.
    """

    task_type: str
    task_index: int
    workers: int
    rank: int
    addresses: tuple[str, ...] = ()

    @property
    def is_chief(self) -> bool:
        """Whether this task writes: the chief, or worker 0 where there is no chief."""
        return self.rank == 0


def cluster(environ: Mapping[str, str]) -> Cluster:
    """Role of this task by TF_CONFIG; a single one without it. Raises `WrongUse` naming the fault.

    TF_CONFIG is JSON: `{"cluster": {"chief": ["host:port"], "worker": ["host:port", ...]}, "task": {"type":
    "worker", "index": 0}}`. Other keys, which Vertex AI adds, are let be.
    """
    text = environ.get("TF_CONFIG", "").strip()
    config = _parsed(text) if text else {}
    named = _mapping(config, "cluster")
    task = _mapping(config, "task")
    role = str(task.get("type", "chief"))
    _refuse_other_roles(role, named)
    if not named:
        return Cluster(role, 0, 1, 0)
    sizes = {role: _size(role, addresses) for role, addresses in named.items()}
    if sizes.get("chief", 0) > 1:
        raise _fault(f"names {sizes['chief']} chiefs; a cluster has one")
    index = _index(task, role, sizes.get(role, 0))
    rank = index if role == "chief" else sizes.get("chief", 0) + index
    addresses = tuple(address for role in ROLES for address in named.get(role, ()))
    return Cluster(role, index, sum(sizes.values()), rank, addresses)


def hosts(environ: Mapping[str, str]) -> list[str]:
    """Names of the machines that TF_CONFIG names, each once, in its order. Raises `WrongUse` as `cluster` does."""
    text = environ.get("TF_CONFIG", "").strip()
    named = _mapping(_parsed(text), "cluster") if text else {}
    found = (address.rpartition(":")[0].strip("[]") for addresses in named.values() for address in addresses)
    return list(dict.fromkeys(found))


def _fault(text: str) -> WrongUse:
    return WrongUse(f"TF_CONFIG {text}; see README, several machines")


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _fault(f"is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _fault(f"is {type(config).__name__} in JSON, not an object with cluster and task")
    return config


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise _fault(f"has {key}: {value!r}, which is no object")
    return value


def _refuse_other_roles(role: str, named: Mapping[str, Any]) -> None:
    """Such machines would be paid for and do nothing."""
    others = sorted({role, *(name for name, addresses in named.items() if addresses)} - set(ROLES))
    if others:
        raise _fault(f"has tasks of type {', '.join(others)}; this trainer uses only {' and '.join(ROLES)}")


def _size(role: str, addresses: Any) -> int:
    fits = isinstance(addresses, list) and all(isinstance(one, str) and ":" in one for one in addresses)
    if not fits:
        raise _fault(f"has cluster.{role}: {addresses!r}; write a list of host:port")
    return len(addresses)


def _index(task: Mapping[str, Any], role: str, size: int) -> int:
    value = task.get("index")
    if "type" not in task or isinstance(value, bool) or not str(value).isdecimal():
        raise _fault(f'has task {dict(task)!r}; write {{"type": "worker", "index": 0}}')
    index = int(str(value))
    if index >= size:
        raise _fault(f"has task {role} {index}, but its cluster names {size} of type {role}")
    return index
