"""Devices: which strategy `auto` takes, which precision fits, and what is refused."""

from __future__ import annotations

import json
from urllib.error import URLError

import keras
import pytest
import tensorflow as tf

from trainer.data.input_pipeline import Share
from trainer.shell.problems import WrongUse
from trainer.shell.vertex import cluster
from trainer.training import hparams, strategy

pytestmark = pytest.mark.slow  # sets up devices

TWO_WORKERS = {"TF_CONFIG": json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}})}
ONE_WORKER = {"TF_CONFIG": json.dumps({"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}})}


@pytest.fixture(autouse=True)
def _policy():
    yield
    keras.config.set_dtype_policy("float32")


def settings(**sets):
    return hparams.resolve("cnn", None, sets)


@pytest.mark.parametrize(
    ("wanted", "environ", "gpus", "kind"),
    [
        ("auto", {}, 0, "default"),
        ("auto", {}, 1, "default"),
        ("auto", {}, 2, "mirrored"),
        ("auto", ONE_WORKER, 0, "default"),  # a job of one task is no cluster
        ("auto", ONE_WORKER, 4, "mirrored"),
        ("auto", TWO_WORKERS, 0, "multi_worker"),
        ("auto", TWO_WORKERS, 8, "multi_worker"),
        ("auto", {"TPU_NAME": "mine"}, 0, "tpu"),
        ("auto", {**TWO_WORKERS, "TPU_NAME": "mine"}, 0, "multi_worker"),
        ("default", TWO_WORKERS, 8, "default"),
        ("mirrored", {}, 0, "mirrored"),
    ],
)
def test_kind(wanted, environ, gpus, kind):
    assert strategy.kind_of(settings(strategy=wanted), cluster(environ), gpus, environ) == kind


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ([], "float32"),
        ([(9, 0)], "mixed_bfloat16"),
        ([(8, 0), (8, 6)], "mixed_bfloat16"),
        ([(7, 5)], "mixed_float16"),
        ([(7, 0), (9, 0)], "mixed_float16"),  # the weakest decides
        ([(6, 1), (8, 0)], "float32"),
        ([None], "float32"),  # a device that does not tell
    ],
)
def test_precision_of_devices(capabilities, precision, monkeypatch):
    details = {index: {} if one is None else {"compute_capability": one} for index, one in enumerate(capabilities)}
    monkeypatch.setattr(strategy.tf.config, "list_physical_devices", lambda kind: list(details))
    monkeypatch.setattr(strategy.tf.config.experimental, "get_device_details", details.get)
    assert strategy._precision("auto", "default") == precision
    assert strategy._precision("mixed_float16", "default") == "mixed_float16"
    assert strategy._precision("auto", "tpu") == "mixed_bfloat16"


@pytest.mark.parametrize(
    ("wanted", "kind", "gpus", "in_step"),
    [
        ("auto", "default", 0, False),
        ("auto", "mirrored", 0, False),
        ("auto", "default", 1, True),
        ("auto", "tpu", 0, True),
        ("host", "tpu", 0, False),
        ("host", "default", 1, False),
        ("device", "default", 0, True),
    ],
)
def test_where_slices_are_changed(wanted, kind, gpus, in_step, monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda of: ["gpu"] * gpus if of == "GPU" else ["cpu"])
    assert strategy.augments_in_step(settings(augment_on=wanted), kind) is in_step


@pytest.mark.parametrize(("deterministic", "gpus", "threads"), [(True, 0, [1]), (False, 0, []), (True, 1, [])])
def test_operations_of_a_cpu_run_one_after_the_other(deterministic, gpus, threads, monkeypatch, caplog):
    """Or stay as they are where TensorFlow is at work already, which is noted."""
    asked = []
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", asked.append)
    monkeypatch.setattr(strategy, "_gpus", lambda: ["gpu"] * gpus)
    strategy.prepare(settings(deterministic=deterministic, precision="float32"), {})
    assert asked == threads

    def refused(number: int) -> None:
        raise RuntimeError("cannot be modified after initialization")

    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", refused)
    with caplog.at_level("INFO"):
        strategy.prepare(settings(deterministic=deterministic, precision="float32"), {})
    assert ("cannot be modified" in caplog.text) == bool(threads)


def test_prepare_on_one_device():
    devices = strategy.prepare(settings(precision="mixed_bfloat16"), {})
    assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert (devices.kind, devices.share, devices.chief, devices.workers) == ("default", Share(1, 0, 1), True, 1)
    assert devices.text == "default, 1 of 1 replicas here, mixed_bfloat16"


def test_prepare_seeds_initial_weights():
    first, again, other = (
        (strategy.prepare(settings(seed=seed), {}), keras.random.normal([3]).numpy().tolist())[1] for seed in (5, 5, 6)
    )
    assert first == again != other


def test_variables_are_named_alike_in_a_second_run():
    paths = []
    for _ in range(2):
        strategy.prepare(settings(), {})
        paths.append(keras.Sequential([keras.layers.Dense(2)]).build((1, 3)) or keras.layers.Dense(1).name)
    assert paths[0] == paths[1]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"strategy": "mirrored", "jit_compile": True, "deterministic": False}, "jit_compile works on one device"),
        ({"strategy": "tpu"}, "no TPU answers"),
        ({"strategy": "multi_worker"}, "TF_CONFIG"),
    ],
)
def test_refused(sets, words):
    with pytest.raises(WrongUse, match=words) as caught:
        strategy.prepare(settings(**sets), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", ["default", "mirrored", "tpu"])
def test_a_strategy_that_leaves_the_other_workers_alone_is_refused(wanted):
    with pytest.raises(WrongUse, match=f"TF_CONFIG names 2 workers, and strategy is {wanted}; use auto or multi_work"):
        strategy.check_cluster(settings(strategy=wanted), cluster(TWO_WORKERS))
    for fits in ("auto", "multi_worker"):
        strategy.check_cluster(settings(strategy=fits), cluster(TWO_WORKERS))
    strategy.check_cluster(settings(strategy=wanted), cluster(ONE_WORKER))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("timed out"), r"no TPU answers \(timed out\); set TPU_NAME"),
        (URLError("Name or service not known"), r"no TPU answers \(<urlopen error Name or service not known>\)"),
    ],
)
def test_a_tpu_that_does_not_answer(error, words, monkeypatch):
    """TensorFlow itself would wait for it without an end, deaf to signals."""

    class Resolver:
        def master(self) -> str:
            return "grpc://10.0.0.2:8470"

    asked = []

    def connect(place, timeout):
        asked.append((place, timeout))
        raise error

    monkeypatch.setattr(strategy.tf.distribute.cluster_resolver, "TPUClusterResolver", Resolver)
    monkeypatch.setattr(strategy.socket, "create_connection", connect)
    with pytest.raises(WrongUse, match=words):
        strategy.prepare(settings(strategy="tpu"), {})
    assert asked == [(("10.0.0.2", 8470), strategy.TPU_ANSWERS_S)]


@pytest.mark.parametrize("master", ["", "local", "grpc://host"])
def test_a_tpu_of_this_machine_is_not_asked(master, monkeypatch):
    monkeypatch.setattr(strategy.socket, "create_connection", None)
    strategy._require_answer(master)


def test_a_tpu_by_name_that_does_not_answer_is_refused(monkeypatch):
    """TensorFlow asks for it over the network, and said no more than that a name is not known."""

    def ask() -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", ask)
    monkeypatch.setenv("TPU_NAME", "mine")
    with pytest.raises(WrongUse) as caught:
        strategy.prepare(settings(), {"TPU_NAME": "mine"})
    reason = "<urlopen error Name or service not known>"
    assert str(caught.value) == f"TPU_NAME=mine: no TPU answers ({reason}); unset it, or choose another --strategy"


class Replicas:
    """A strategy of so many replicas, for the checks."""

    def __init__(self, count: int) -> None:
        self.num_replicas_in_sync = count


@pytest.mark.parametrize(
    ("sets", "replicas", "kind", "words"),
    [
        ({"batch_size": 32}, 3, "mirrored", r"batch_size 32 is no multiple of 3 \(3 replicas x accumulate 1\); use 33"),
        ({"batch_size": 30, "accumulate": 2}, 4, "mirrored", r"\(4 replicas x accumulate 2\); use 32"),
        ({"precision": "mixed_float16"}, 8, "tpu", "TPUs have no float16"),
    ],
)
def test_what_does_not_fit_the_devices(sets, replicas, kind, words):
    with pytest.raises(WrongUse, match=words):
        strategy._check(settings(**sets), kind, sets.get("precision", "float32"), Replicas(replicas))


def test_shares_of_workers():
    place = cluster(TWO_WORKERS)
    assert strategy._share(Replicas(8), "multi_worker", place) == Share(8, 4 * place.rank, 4)
    assert place.rank == 1
    assert strategy._share(Replicas(8), "mirrored", cluster({})) == Share(8, 0, 8)


def test_mirrored_on_what_is_there():
    devices = strategy.prepare(settings(strategy="mirrored"), {})
    count = max(1, len(tf.config.list_physical_devices("GPU")))
    assert (devices.kind, devices.share) == ("mirrored", Share(count, 0, count))
