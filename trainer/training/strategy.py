"""Which devices a run uses, how they work together, and in which precision they compute."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import keras
import tensorflow as tf

from trainer.data.input_pipeline import Share
from trainer.shell import waiting
from trainer.shell.problems import WrongUse
from trainer.shell.vertex import Cluster, cluster
from trainer.training.hparams import HParams

TPU_ANSWERS_S = 30.0


@dataclasses.dataclass(frozen=True)
class Devices:
    """The strategy of a run with what the loop must know about it.

    `share`: the replicas of this worker among all. `chief`: whether this worker writes. `workers`: how many
    processes train together. `kind`: default, mirrored, multi_worker or tpu.
    """

    kind: str
    strategy: Any
    precision: str
    share: Share
    chief: bool
    workers: int

    @property
    def text(self) -> str:
        """`mirrored, 2 of 2 replicas here, float32`."""
        replicas = f"{self.share.count} of {self.share.replicas} replicas here"
        return f"{self.kind}, {replicas}, {self.precision}"


def prepare(hparams: HParams, environ: Mapping[str, str]) -> Devices:
    """Set TensorFlow up as the settings say; to be called before any tensor exists. Raises `WrongUse`.

    With several workers it waits for them inside TensorFlow, deaf to signals: see to it before that all are there.
    """
    place = cluster(environ)
    check_cluster(hparams, place)
    kind = kind_of(hparams, place, len(_gpus()), environ)
    if kind == "mirrored":
        _logical_cpus(hparams.replicas)
    if hparams.deterministic and kind != "tpu":
        tf.config.experimental.enable_op_determinism()
        if kind == "default" and not _gpus():
            _one_after_the_other()
    strategy = _strategy(kind, hparams)
    precision = _precision(hparams.precision, kind)
    _check(hparams, kind, precision, strategy)
    keras.utils.clear_session()  # names of variables begin anew, so that a second run in one process can resume
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(hparams.seed)
    return Devices(kind, strategy, precision, _share(strategy, kind, place), place.is_chief, max(1, place.workers))


def _one_after_the_other() -> None:
    """Let operations of a CPU run one after the other, each on all cores.

    Side by side, as in the branches of Inception, those of oneDNN share out their work by which cores are free, and
    sums come out in another order: on a busy machine 8 of 10 epochs ended with other bits.
    """
    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError as error:  # TensorFlow is at work in this process already
        logging.getLogger(__name__).info("operations stay side by side: %s", error)


def check_cluster(hparams: HParams, place: Cluster) -> None:
    """Refuse a strategy that would leave the other workers of TF_CONFIG alone. Raises `WrongUse`."""
    if place.workers > 1 and hparams.strategy not in ("auto", "multi_worker"):
        raise WrongUse(
            f"TF_CONFIG names {place.workers} workers, and strategy is {hparams.strategy}; "
            "use auto or multi_worker, or unset TF_CONFIG"
        )


def kind_of(hparams: HParams, place: Cluster, gpus: int, environ: Mapping[str, str]) -> str:
    """The strategy by name; `auto` looks at TF_CONFIG, TPU_NAME and the number of GPUs."""
    if hparams.strategy != "auto":
        return hparams.strategy
    if place.workers > 1:
        return "multi_worker"
    if environ.get("TPU_NAME"):
        return "tpu"
    return "mirrored" if gpus > 1 else "default"


def augments_in_step(hparams: HParams, kind: str) -> bool:
    """Whether slices are changed in the compiled step: where the settings say so, or an accelerator trains."""
    if hparams.augment_on != "auto":
        return hparams.augment_on == "device"
    return kind == "tpu" or bool(tf.config.list_logical_devices("GPU"))


def _gpus() -> list[Any]:
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def _logical_cpus(replicas: int) -> None:
    """Several logical CPU devices where there is no GPU: slow, but the same program."""
    if replicas > 1 and not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)


def _strategy(kind: str, hparams: HParams) -> Any:
    if kind == "default":
        return tf.distribute.get_strategy()
    if kind == "mirrored":
        return tf.distribute.MirroredStrategy(_mirrored_devices(hparams.replicas))
    if kind == "multi_worker":
        return _multi_worker(hparams.wait_minutes)
    return _tpu()


def _mirrored_devices(replicas: int) -> list[str]:
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    wanted = replicas or len(devices)
    if wanted > len(devices):
        raise WrongUse(f"replicas is {wanted}, but this machine has {len(devices)} GPUs; lower it or leave it at 0")
    return [device.name for device in devices[:wanted]]


def _multi_worker(wait_minutes: float) -> Any:
    if not os.environ.get("TF_CONFIG"):
        raise WrongUse(
            "--strategy multi_worker needs TF_CONFIG, which names the workers; see docs/train.md, several machines"
        )
    with waiting.no_longer_than(wait_minutes, _LOST):
        return tf.distribute.MultiWorkerMirroredStrategy()


_LOST = (
    "train: another worker was lost while TensorFlow connected them; start all workers again with the same command to "
    "go on"
)


def _tpu() -> Any:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        _require_answer(resolver.master())
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        first = str(error).splitlines()[0]
        named = os.environ.get("TPU_NAME")
        tpu, way = (f"TPU_NAME={named}", "unset it") if named else ("--strategy tpu", "set TPU_NAME")
        raise WrongUse(f"{tpu}: no TPU answers ({first}); {way}, or choose another --strategy") from error
    return tf.distribute.TPUStrategy(resolver)


def _require_answer(master: str) -> None:
    """Raise `OSError` where nobody listens at `grpc://host:port`, for TensorFlow would wait without an end."""
    place = urlsplit(master)
    if place.scheme == "grpc" and place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), TPU_ANSWERS_S).close()


def _precision(wanted: str, kind: str) -> str:
    """`auto`: bfloat16 on TPU and on GPUs from Ampere on, float16 on Volta and Turing, float32 elsewhere."""
    if wanted != "auto":
        return wanted
    if kind == "tpu":
        return "mixed_bfloat16"
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    weakest = min((detail.get("compute_capability", (0, 0)) for detail in details), default=(0, 0))
    return "mixed_bfloat16" if weakest >= (8, 0) else "mixed_float16" if weakest >= (7, 0) else "float32"


def _check(hparams: HParams, kind: str, precision: str, strategy: Any) -> None:
    replicas = strategy.num_replicas_in_sync
    parts = replicas * hparams.accumulate
    if hparams.batch_size % parts:
        raise WrongUse(
            f"batch_size {hparams.batch_size} is no multiple of {parts} "
            f"({replicas} replicas x accumulate {hparams.accumulate}); use {-(-hparams.batch_size // parts) * parts}"
        )
    if hparams.jit_compile and kind != "default":
        raise WrongUse(f"jit_compile works on one device; with strategy {kind} set it to false")
    if kind == "tpu" and precision == "mixed_float16":
        raise WrongUse("TPUs have no float16; use --precision mixed_bfloat16")


def _share(strategy: Any, kind: str, place: Cluster) -> Share:
    total = strategy.num_replicas_in_sync
    if kind != "multi_worker":
        return Share(total, 0, total)
    here = total // place.workers
    return Share(total, place.rank * here, here)
