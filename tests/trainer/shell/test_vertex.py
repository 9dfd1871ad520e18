from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.shell import vertex
from trainer.shell.problems import WrongUse
from trainer.shell.vertex import Cluster, Places

BASE = "gs://bucket/runs/7"
FULL = {
    "AIP_MODEL_DIR": f"{BASE}/model/",
    "AIP_CHECKPOINT_DIR": f"{BASE}/checkpoints/",
    "AIP_TENSORBOARD_LOG_DIR": f"{BASE}/logs/",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Places(None, None, None, None)),
        ({"AIP_MODEL_DIR": ""}, Places(None, None, None, None)),
        (FULL, Places(BASE, f"{BASE}/checkpoints", f"{BASE}/logs", f"{BASE}/model")),
        ({"AIP_MODEL_DIR": f"{BASE}/model"}, Places(BASE, None, None, f"{BASE}/model")),
        # set by hand, elsewhere: no common folder is guessed
        ({"AIP_MODEL_DIR": f"{BASE}/best"}, Places(None, None, None, f"{BASE}/best")),
        (
            {"AIP_MODEL_DIR": "gs://a/model/", "AIP_CHECKPOINT_DIR": "gs://b/checkpoints/"},
            Places(None, "gs://b/checkpoints", None, "gs://a/model"),
        ),
        ({"AIP_MODEL_DIR": f"{BASE}/model", "AIP_CHECKPOINT_DIR": "/ck"}, Places(None, "/ck", None, f"{BASE}/model")),
    ],
)
def test_places(environ, expected):
    assert vertex.places(environ) == expected


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        ("gs://bucket/runs/7", ("bucket", "runs", "7")),
        ("gs://bucket/runs/7/", ("bucket", "runs", "7")),
        ("gs://bucket", ("bucket",)),
    ],
)
def test_a_bucket_is_a_folder_of_the_mount(place, parts, tmp_path):
    assert vertex.mounted(place, tmp_path) == tmp_path.joinpath(*parts)


@pytest.mark.parametrize("place", ["runs/7", "/runs/7", "."])
def test_a_local_path_needs_no_mount(place, tmp_path):
    assert vertex.mounted(place, tmp_path / "none") == Path(place)


def test_without_a_mount_the_command_to_make_one_is_told(tmp_path):
    with pytest.raises(WrongUse, match=r"gs://b/x: .*gcsfuse --implicit-dirs b .*none/b`.*local folder") as caught:
        vertex.mounted("gs://b/x", tmp_path / "none")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["gs://", "gs:///x", "gs://b/../other/x", "gs://../x"])
def test_an_address_outside_of_a_bucket_is_refused(place, tmp_path):
    with pytest.raises(WrongUse, match="gs://BUCKET/PATH"):
        vertex.mounted(place, tmp_path)


def tf_config(cluster: object, task: object, **more: object) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, **more})}


TWO = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
THREE = ("a:1", "b:1", "c:1")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Cluster("chief", 0, 1, 0)),
        ({"TF_CONFIG": " "}, Cluster("chief", 0, 1, 0)),
        ({"TF_CONFIG": "{}"}, Cluster("chief", 0, 1, 0)),
        (tf_config({}, {"type": "worker", "index": 0}), Cluster("worker", 0, 1, 0)),
        (tf_config({"chief": ["a:1"]}, {"type": "chief", "index": 0}), Cluster("chief", 0, 1, 0, ("a:1",))),
        (tf_config(TWO, {"type": "chief", "index": 0}), Cluster("chief", 0, 3, 0, THREE)),
        (tf_config(TWO, {"type": "worker", "index": 0}), Cluster("worker", 0, 3, 1, THREE)),
        (
            tf_config(TWO, {"type": "worker", "index": "1"}),
            Cluster("worker", 1, 3, 2, THREE),
        ),  # old services write text
        (
            tf_config({"worker": ["b:1", "c:1"]}, {"type": "worker", "index": 0}),
            Cluster("worker", 0, 2, 0, ("b:1", "c:1")),
        ),
        (tf_config({**TWO, "ps": []}, {"type": "worker", "index": 0}), Cluster("worker", 0, 3, 1, THREE)),
        # further keys of Vertex AI
        (
            tf_config(TWO, {"type": "worker", "index": 1, "trial": "t"}, environment="cloud", job="{}"),
            Cluster("worker", 1, 3, 2, THREE),
        ),
    ],
)
def test_cluster(environ, expected):
    assert vertex.cluster(environ) == expected


def test_addresses_stand_by_rank():
    named = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    assert vertex.cluster(tf_config(named, {"type": "worker", "index": 0})).addresses == ("a:1", "b:1", "c:1")
    assert vertex.cluster({}).addresses == ()


@given(st.booleans(), st.integers(0, 5))
def test_each_task_has_one_rank_and_one_is_the_chief(chief, workers):
    named = {"chief": ["h:1"] * chief, "worker": ["h:2"] * workers}
    tasks = [(role, index) for role in ("chief", "worker") for index in range(len(named[role]))]
    found = [vertex.cluster(tf_config(named, {"type": role, "index": index})) for role, index in tasks]
    assert [one.rank for one in found] == list(range(len(tasks)))
    assert [one.is_chief for one in found] == [True, False, False, False, False, False][: len(tasks)]
    assert {one.workers for one in found} <= {len(tasks)}


def test_hosts_stand_once_in_their_order():
    config = {
        "cluster": {"chief": ["b:1"], "worker": ["a.net:2", "b:3", "[::1]:4"]},
        "task": {"type": "chief", "index": 0},
    }
    assert vertex.hosts({"TF_CONFIG": json.dumps(config)}) == ["b", "a.net", "::1"]
    assert vertex.hosts({}) == vertex.hosts({"TF_CONFIG": '{"task": {"type": "chief", "index": 0}}'}) == []


def test_ranks_are_those_of_tensorflow():
    util = pytest.importorskip("tensorflow.python.distribute.multi_worker_util")
    for named in (TWO, {"worker": ["b:1", "c:1"]}):
        for role in named:
            for index in range(len(named[role])):
                found = vertex.cluster(tf_config(named, {"type": role, "index": index}))
                assert found.rank == util.id_in_cluster(named, role, index)
                assert found.is_chief == util.is_chief(named, role, index)
                assert found.workers == util.worker_count(named, role)


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"TF_CONFIG": "{'cluster'"}, "is not JSON"),
        ({"TF_CONFIG": "[1]"}, "is list in JSON"),
        (tf_config([1], {"type": "chief", "index": 0}), r"cluster: \[1\]"),
        (tf_config(TWO, "chief"), "task: 'chief'"),
        (tf_config(TWO, {}), "has task {}"),
        (tf_config(TWO, {"index": 0}), "has task {'index': 0}"),
        (tf_config(TWO, {"type": "worker"}), "has task {'type': 'worker'}"),
        (tf_config(TWO, {"type": "worker", "index": -1}), "'index': -1"),
        (tf_config(TWO, {"type": "worker", "index": True}), "'index': True"),
        (tf_config(TWO, {"type": "worker", "index": 2}), "worker 2, but its cluster names 2 of type worker"),
        (tf_config({"worker": ["b:1"]}, {"type": "chief", "index": 0}), "names 0 of type chief"),
        (tf_config({"chief": ["a:1", "b:1"]}, {"type": "chief", "index": 1}), "names 2 chiefs"),
        (tf_config({"worker": "b:1"}, {"type": "worker", "index": 0}), "list of host:port"),
        (tf_config({"worker": ["b"]}, {"type": "worker", "index": 0}), "list of host:port"),
        (tf_config(TWO, {"type": "evaluator", "index": 0}), "type evaluator"),
        (tf_config({**TWO, "ps": ["d:1"]}, {"type": "chief", "index": 0}), "type ps"),
        (tf_config({"master": ["d:1"]}, {"type": "master", "index": 0}), "type master"),
    ],
)
def test_a_fault_of_tf_config_is_named_in_one_line(environ, fault):
    with pytest.raises(WrongUse, match=f"TF_CONFIG .*{fault}") as caught:
        vertex.cluster(environ)
    assert "\n" not in str(caught.value)


# Fields of CustomJobSpec and what it holds, as far as they are used (REST reference v1 of Vertex AI).
FIELDS = {
    "": {"workerPoolSpecs", "baseOutputDirectory", "scheduling", "serviceAccount", "tensorboard"},
    "workerPoolSpecs": {"machineSpec", "replicaCount", "diskSpec", "containerSpec"},
    "machineSpec": {"machineType", "acceleratorType", "acceleratorCount"},
    "diskSpec": {"bootDiskType", "bootDiskSizeGb"},
    "containerSpec": {"imageUri", "command", "args", "env"},
    "baseOutputDirectory": {"outputUriPrefix"},
    "scheduling": {"strategy", "restartJobOnWorkerRestart", "timeout", "maxWaitDuration", "disableRetries"},
}
JOB = Path(__file__).parents[3] / "configs" / "vertex_custom_job.yaml"


@pytest.fixture
def job() -> dict:
    return yaml.safe_load(JOB.read_text(encoding="utf-8"))


def unknown_fields(value: object, name: str = "") -> set[str]:
    if isinstance(value, list):
        return {field for one in value for field in unknown_fields(one, name)}
    if not isinstance(value, dict):
        return set()
    return (set(value) - FIELDS[name]) | {bad for key, one in value.items() for bad in unknown_fields(one, key)}


def test_the_job_file_has_only_fields_of_the_reference(job):
    assert unknown_fields(job) == set()


def test_the_job_file_is_a_chief_and_workers_that_run_the_same_command(job):
    chief, *others = job["workerPoolSpecs"]
    assert chief["replicaCount"] == 1
    assert [pool["containerSpec"] for pool in others] == [chief["containerSpec"]]
    assert [pool["machineSpec"] for pool in others] == [chief["machineSpec"]]
    assert chief["containerSpec"]["command"] == ["python", "-m", "trainer.task"]
    assert all(isinstance(one, str) and one.startswith("--") for one in chief["containerSpec"]["args"])


def test_the_job_file_survives_spot_machines_and_has_plain_placeholders(job):
    assert job["scheduling"] == {"strategy": "SPOT", "restartJobOnWorkerRestart": True, "timeout": "86400s"}
    assert "YOUR-" in job["workerPoolSpecs"][0]["containerSpec"]["imageUri"]
    assert job["baseOutputDirectory"]["outputUriPrefix"].startswith("gs://YOUR-BUCKET/")
    assert "--config=configs/vertex_custom_job.yaml" in JOB.read_text(encoding="utf-8")
