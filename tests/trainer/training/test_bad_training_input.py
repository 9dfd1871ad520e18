"""Bad input to training, one test each: one clear line, exit code 2 or 1, and what was saved before is whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import log_of, one_line, result_of, steps_saved, train

from ich_tfrecords.dataset import manifest
from ich_tfrecords.storage import atomic
from trainer.data import dataset, sampling
from trainer.shell.vertex import mounted
from trainer.training import checkpoints, run_dir
from trainer.training.run_dir import RunDir

pytestmark = pytest.mark.slow  # trains

VERIFY = "python -m ich_tfrecords.inspect verify"


@pytest.fixture
def damaged(tiny_dataset: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "data"))


@pytest.fixture(scope="module")
def trained(tiny_dataset: Path, tmp_path_factory) -> Path:
    """A finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train(tiny_dataset, folder) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def shard(folder: Path, split: str) -> Path:
    """The largest shard of a split."""
    return max(folder.glob(f"*-{split}.tfrecord-*"), key=lambda path: path.stat().st_size)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_whole(job_dir: Path) -> list[str]:
    """Names of the checkpoints of a run, all of which can be read and hold numbers only; no half-written file."""
    names = steps_saved(job_dir)
    for name in names:
        loaded = checkpoints.load(job_dir / "checkpoints" / name)
        assert all(np.isfinite(array.astype(np.float64)).all() for array in loaded.arrays), name
    assert not list(job_dir.rglob(f"*{atomic.TEMPORARY_SUFFIX}"))
    return names


# the data set before training


def rewritten(folder: Path, change) -> None:
    """The slice table after `change(columns)`, and a manifest that knows its new sha256."""
    table = pq.read_table(folder / manifest.SLICES)
    columns = table.to_pydict()
    change(columns)
    data = atomic.write_table(folder / manifest.SLICES, pa.table(columns, schema=table.schema))
    text = json.loads((folder / manifest.MANIFEST).read_text())
    text["files"][manifest.SLICES] = hashlib.sha256(data).hexdigest()
    (folder / manifest.MANIFEST).write_text(json.dumps(text))


def cut_short(folder: Path) -> None:
    path = shard(folder, "train")
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "no manifest": (
        lambda folder: (folder / manifest.MANIFEST).unlink(),
        ("data holds no manifest.json, so it is no converted data set", "python -m beam_pipelines.convert"),
    ),
    "half a manifest": (
        lambda folder: os.truncate(folder / manifest.MANIFEST, 500),
        ("cannot read", "manifest.json", "restore it or convert again"),
    ),
    "no slice table": (lambda folder: (folder / manifest.SLICES).unlink(), ("slices.parquet", "convert again")),
    "another slice table": (
        lambda folder: os.truncate(folder / manifest.SLICES, 500),
        ("the sha256 of slices.parquet is not the one in manifest.json", VERIFY),
    ),
    "lost shard": (
        lambda folder: shard(folder, "validation").unlink(),
        ("shard tiny_ich-validation.tfrecord-00002-of-00006 is missing", VERIFY),
    ),
    "short shard": (
        cut_short,
        ("shard tiny_ich-train.tfrecord-00002-of-00006 has 230,247 bytes, the manifest says 230,248", VERIFY),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_data_set_is_refused_before_anything_is_written(damage, damaged, tmp_path, capsys):
    change, words = DAMAGES[damage]
    change(damaged)
    assert train(damaged, tmp_path / "run") == 2
    line = one_line(capsys)
    assert str(damaged) in line
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_a_label_without_positives(damaged, tmp_path, capsys):
    rewritten(damaged, lambda columns: columns.update(epidural=[0] * len(columns["epidural"])))
    assert train(damaged, tmp_path / "run") == 2
    line = one_line(capsys)
    assert "no slice of split train is positive for epidural" in line
    assert line.endswith("--set absent_labels=true")


def test_a_label_without_negatives(damaged, tmp_path, capsys):
    rewritten(damaged, of_split("train", any=1))
    assert train(damaged, tmp_path / "run") == 2
    line = one_line(capsys)
    assert "no slice of split train is negative for any" in line
    assert line.endswith("--set absent_labels=true")


def of_split(split: str, **values: int):
    """A change that gives every slice of a split these labels."""

    def change(columns):
        for label, value in values.items():
            columns[label] = [
                value if its == split else old for its, old in zip(columns["split"], columns[label], strict=True)
            ]

    return change


UNKNOWN = dict.fromkeys(("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"), -1)
NEVER = [  # change of the labels, monitor, what validation holds, the setting that goes on
    ({"epidural": 0}, "auc_epidural", "0 positive and 66 negative slices of epidural", "monitor=log_loss"),
    ({"any": 1}, "auc_any", "66 positive and 0 negative slices of any", "monitor=log_loss"),
    ({"subdural": -1}, "accuracy_subdural", "no slice where subdural is known", "monitor=log_loss"),
    (UNKNOWN, "log_loss", "no slice with a known label", "validation_split="),
    (UNKNOWN, "auc", "no label that is positive in some slices and negative in others", "validation_split="),
]


@pytest.mark.parametrize(("labels", "monitor", "holds", "goes_on"), NEVER, ids=[one[1] for one in NEVER])
def test_a_monitor_that_never_has_a_value(labels, monitor, holds, goes_on, damaged, tmp_path, capsys):
    rewritten(damaged, of_split("validation", **labels))
    more = {"epochs": 6, "patience": 2, "steps_per_epoch": 1}
    assert train(damaged, tmp_path / "run", monitor=monitor, **more) == 2
    line = one_line(capsys)
    assert f"monitor is {monitor}, and split validation holds {holds}, so it never has a value" in line
    assert line.endswith(f"go on with --set {goes_on}")
    assert not (tmp_path / "run").exists()
    key, _, value = goes_on.partition("=")
    more |= {"patience": 0} if key == "validation_split" else {}
    assert train(damaged, tmp_path / "run", **{"monitor": monitor, **more, key: value}) == 0


def test_a_monitor_that_a_fold_lacks(damaged, tmp_path, capsys):
    rewritten(damaged, lambda columns: columns.update(subdural=first_only(columns)))
    folds = {"folds": 4, "absent_labels": True, "monitor": "auc_subdural"}
    told = [train(damaged, tmp_path / f"run{fold}", fold=fold, **folds) for fold in range(4)]
    assert sorted(told) == [0, 2, 2, 2]
    err = capsys.readouterr().err
    assert err.count("auc_subdural, and split fold ") == 3
    assert "of 4 holds 0 positive and " in err


def first_only(columns) -> list[int]:
    """Positive for one patient of the train split alone."""
    chosen = min(key for key, split in zip(columns["patient_key"], columns["split"], strict=True) if split == "train")
    slices = zip(columns["patient_key"], columns["slice_index"], strict=True)
    return [int(key == chosen and index % 2 == 0) for key, index in slices]


def test_a_test_split_without_labels(damaged, tmp_path, capsys):
    rewritten(damaged, lambda columns: unlabelled(columns, "test"))
    assert train(damaged, tmp_path / "run") == 2
    line = one_line(capsys)
    assert "no slice of split test has labels, so nothing can be scored there" in line
    assert line.endswith("--set test_split=")
    assert train(damaged, tmp_path / "run", test_split="") == 0


def unlabelled(columns, split: str) -> None:
    of_split(split, **UNKNOWN)(columns)
    columns["stratum"] = [
        "unlabelled" if its == split else old for its, old in zip(columns["split"], columns["stratum"], strict=True)
    ]


def test_a_split_without_labels(damaged, tmp_path, capsys):
    names = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")

    def unlabel(columns):
        count = len(columns["any"])
        columns.update({name: [-1] * count for name in names}, stratum=["unlabelled"] * count)

    rewritten(damaged, unlabel)
    assert train(damaged, tmp_path / "run") == 2
    assert "no slice of split train has labels" in one_line(capsys)


def test_a_split_without_slices(damaged, tmp_path, capsys):
    path = damaged / manifest.MANIFEST
    text = json.loads(path.read_text())
    text["splits"]["test"]["slices"] = 0
    path.write_text(json.dumps(text))
    assert train(damaged, tmp_path / "run") == 2
    way_on = "go on without a test with --set test_split="
    assert one_line(capsys).endswith(f"'test' has no slices; the splits with slices are train, validation; {way_on}")
    assert train(damaged, tmp_path / "run", validation_split="val") == 2
    assert "'val' is not a split; " in one_line(capsys)


@pytest.mark.parametrize(
    ("changes", "way_on"),
    [
        ({}, "go on without validation with --set validation_split="),
        ({"patience": 2}, "go on without validation with --set validation_split= --set patience=0"),
        ({"folds": 5}, "folds need two splits with slices: name another one with --set validation_split=NAME"),
    ],
)
def test_no_slices_to_validate_on(damaged, tmp_path, capsys, changes, way_on):
    path = damaged / manifest.MANIFEST
    text = json.loads(path.read_text())
    text["splits"]["validation"]["slices"] = text["splits"]["test"]["slices"] = 0
    path.write_text(json.dumps(text))
    assert train(damaged, tmp_path / "run", **changes) == 2
    assert one_line(capsys).endswith(f"'validation' has no slices; the splits with slices are train; {way_on}")


def test_the_ways_on_lead_on(damaged, tmp_path, capsys):
    path = damaged / manifest.MANIFEST
    text = json.loads(path.read_text())
    text["splits"]["validation"]["slices"] = text["splits"]["test"]["slices"] = 0
    path.write_text(json.dumps(text))
    assert train(damaged, tmp_path / "run", patience=2) == 2
    ways = [one_line(capsys)]
    assert train(damaged, tmp_path / "run", validation_split="", patience=0) == 2
    ways.append(one_line(capsys))
    sets = [word for way in ways for word in way.split(" --set ")[1:]]
    assert sets == ["validation_split=", "patience=0", "test_split="]
    assert train(damaged, tmp_path / "run", *(part for one in sets for part in ("--set", one))) == 0


# settings that do not fit the data set or the machine

WRONG = [
    ({"batch_size": 139}, "batch_size is 139, but split train has 138 slices to train on; lower it"),
    ({"train_split": "trian"}, "'trian' is not a split; the splits with slices are"),
    ({"monitor": "auc_anny"}, "no metric is named 'auc_anny'; did you mean 'auc_any'?"),
    ({"monitor": "loss"}, "no metric is named 'loss'; did you mean 'log_loss'?"),
    ({"freeze_epochs": 1}, "freeze_epochs is 1, but cnn has no pretrained part; set it to 0"),
    ({"weights": "nowhere.keras"}, "weights nowhere.keras: there is no such file"),
    ({"weights": "imagenet"}, "imagenet"),
    ({"architecture.filter": [4]}, "architecture of cnn: unknown key 'filter'; did you mean 'filters'?"),
    ({"architecture.filters": [4] * 6}, "6 poolings leave nothing of 32 px"),
    ({"accumulate": 3, "batch_size": 16}, "batch_size 16 is no multiple of accumulate 3"),
    ({"sampling": "explicit", "proportions": {"nonne": 1}}, "nonne"),
    ({"strategy": "tpu"}, "--strategy tpu"),
    ({"sampling": "natural", "steps_per_epoch": 12}, "8 steps of 16"),
    ({"jit_compile": True, "deterministic": False, "strategy": "mirrored"}, "jit_compile works on one device"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=[" ".join(map(str, one)) for one, _ in WRONG])
def test_settings_that_do_not_fit(settings, words, tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset, tmp_path / "run", **settings) == 2
    assert words in one_line(capsys)
    assert not list((tmp_path / "run").glob("*.*"))


# the folder of the run


def test_a_job_dir_without_permission(tiny_dataset, tmp_path, capsys, monkeypatch):
    """Root writes everywhere, so the refusal is put where the folder is tried."""

    def refusing(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_dir.atomic, "write_bytes", refusing)
    assert train(tiny_dataset, tmp_path / "run") == 2
    assert f"cannot write to {tmp_path}/run: Permission denied; choose another --job_dir" in one_line(capsys)


def test_a_job_dir_that_is_a_file_or_below_one(tiny_dataset, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    for place in ("run", "run/below"):
        assert train(tiny_dataset, tmp_path / place) == 2
        assert f"{tmp_path}/{place}" in one_line(capsys)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_job_dir_in_use(tiny_dataset, run, capsys):
    code = "import sys, time; from trainer.training.run_dir import RunDir; from pathlib import Path\n"
    code += "with RunDir(Path(sys.argv[1])).lock(): print('locked', flush=True); time.sleep(600)"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code, str(run)], stdout=subprocess.PIPE, cwd=root) as holder:
        try:
            assert holder.stdout.readline() == b"locked\n"
            before = files(run)
            assert train(tiny_dataset, run, epochs=3) == 2
            assert f"{run} is in use by process {holder.pid} on " in one_line(capsys)
            assert files(run) == before
        finally:
            holder.kill()
    assert train(tiny_dataset, run, epochs=3) == 0  # the lock went with its holder


def test_another_run_in_the_job_dir_is_left_as_it_is(tiny_dataset, run, capsys):
    before = files(run)
    assert train(tiny_dataset, run, seed=9, learning_rate=0.5) == 2
    line = one_line(capsys)
    assert f"{run} holds another run (learning_rate: 0.001, now 0.5; seed: 0, now 9)" in line
    before.pop("lock")
    after = files(run)
    after.pop("lock")
    assert after == before


@pytest.mark.parametrize("name", ["history.csv", "metrics.jsonl", "config.yaml", "result.json", "inputs.png"])
def test_damaged_reports_do_not_stop_a_resume(name, tiny_dataset, run, trained, tmp_path):
    """What is for people only is written anew from the checkpoint, or mended."""
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[: len(data) // 2] + b"\x00\xff\xfe{")
    assert train(tiny_dataset, run, epochs=3) == 0
    rows = RunDir(run).read_history()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[:2] == RunDir(trained).read_history()
    steps = [entry["step"] for entry in log_of(run)]
    assert steps == sorted(steps)
    assert steps[-1] == 9
    assert result_of(run)["epochs"] == 3


def test_a_broken_newest_checkpoint_is_told_and_passed_over(tiny_dataset, run, capsys):
    newest = run / "checkpoints" / "step-000000006.npz"
    os.truncate(newest, newest.stat().st_size // 2)
    assert train(tiny_dataset, run) == 0
    out = capsys.readouterr().out
    assert "step-000000006.npz" in out.partition("goes on from step 3")[0]
    assert_whole(run)


def test_no_readable_checkpoint_is_not_a_new_run(tiny_dataset, run, capsys):
    for path in (run / "checkpoints").glob("step-*"):
        os.truncate(path, 100)
    before = files(run / "checkpoints")
    assert train(tiny_dataset, run) == 2
    assert "none of the 2 checkpoints in" in one_line(capsys)
    assert files(run / "checkpoints") == before


# on the way


def flip_a_byte(folder: Path, row: int) -> tuple[str, int, int]:
    """Shard, record and byte offset of the train slice at `row` of the table; one bit of its image is flipped."""
    train_slices = dataset.open_dataset(str(folder)).split("train")
    path = Path(train_slices.paths[train_slices.shard[row]])
    data = bytearray(path.read_bytes())
    offset = int(train_slices.offset[row])
    data[offset + 1000] ^= 4
    path.write_bytes(data)
    return path.name, int(train_slices.record[row]), offset


def test_a_flipped_byte_in_the_middle_of_training(damaged, tmp_path, capsys):
    """Met after some checkpoints: in a slice that the second epoch shows late and the first does not show."""
    settings = {"sampling": "balanced", "checkpoint_minutes": 0, "keep": 10}
    slices = dataset.open_dataset(str(damaged)).split("train")
    names, shares = slices.spec.labels.strata, dict.fromkeys(slices.spec.labels.strata[:6], 1 / 6)
    first, second = (sampling.epoch_order(slices.stratum, names, "balanced", shares, 0, epoch, 48) for epoch in (0, 1))
    row = int(next(row for row in second[16:] if row not in first and row not in second[:16]))
    name, record, offset = flip_a_byte(damaged, row)
    run = tmp_path / "run"
    assert train(damaged, run, **settings) == 1
    line = one_line(capsys)
    for word in (name, f"record {record}", f"byte {offset:,}", f"{VERIFY} {damaged}"):
        assert word in line, line
    saved = assert_whole(run)
    assert "step-000000003.npz" in saved
    assert "best-000000003.npz" in saved
    reference = damaged.with_name("whole")
    flip_a_byte(damaged, row)  # back: the shard is restored, and the same command goes on
    assert train(damaged, run, **settings) == 0
    assert train(damaged, reference, **settings) == 0
    for part in ("history.csv", "result.json"):
        assert (run / part).read_bytes() == (reference / part).read_bytes()


def test_a_share_without_fsync_and_locks(tiny_dataset, trained, tmp_path, incapable, capsys):
    incapable(flock=errno.ENOLCK, sync_file=errno.EINVAL, sync_folder=errno.EINVAL)
    assert train(tiny_dataset, tmp_path / "run") == 0
    no_sync, no_locks = sorted(capsys.readouterr().err.splitlines())
    assert "is on a file system that cannot bring files to the disk when asked" in no_sync
    assert "is on a file system without locks" in no_locks
    assert (tmp_path / "run" / "history.csv").read_bytes() == (trained / "history.csv").read_bytes()
    assert_whole(tmp_path / "run")


def test_a_share_that_fails_is_told(tiny_dataset, run, incapable, capsys):
    incapable(sync_folder=errno.EIO)
    assert train(tiny_dataset, run, epochs=3) == 1
    assert "cannot be written, Input/output error" in one_line(capsys)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, and a file that fills what is left of it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs more rights")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(disk: Path) -> Path:
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_a_disk_that_fills_up_while_checkpointing(small_disk, tiny_dataset, tmp_path, capsys, monkeypatch):
    run, real_save = small_disk / "run", checkpoints.save

    def filling(directory, name, *args):
        if name == "step-000000004":
            fill(small_disk)
        return real_save(directory, name, *args)

    settings = {"checkpoint_minutes": 0, "keep": 3}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", filling)
        assert train(tiny_dataset, run, **settings) == 1
    line = one_line(capsys)
    assert "step-000000004.npz: cannot be written, No space left on device" in line
    assert "the same command resumes" in line
    assert assert_whole(run) == [f"{name}.npz" for name in (
        "best-000000003", "step-000000001", "step-000000002", "step-000000003"
    )]  # fmt: skip
    (small_disk / "filler").unlink()
    assert train(tiny_dataset, run, **settings) == 0
    assert "goes on from step 3" in capsys.readouterr().out
    reference = tmp_path / "reference"
    assert train(tiny_dataset, reference, **settings) == 0
    assert (run / "history.csv").read_bytes() == (reference / "history.csv").read_bytes()
    assert result_of(run) == result_of(reference)


def test_a_disk_that_is_full_from_the_start_or_at_the_end(small_disk, tiny_dataset, trained, capsys):
    run = Path(shutil.copytree(trained, small_disk / "run"))
    kept = files(run / "checkpoints")
    filler = fill(small_disk)
    for epochs in (2, 3):  # nothing left to do but the model, and an epoch
        assert train(tiny_dataset, run, epochs=epochs) == 1
        assert "No space left on device" in one_line(capsys)
        assert files(run / "checkpoints") == kept
    filler.unlink()
    assert train(tiny_dataset, run, epochs=3) == 0


def test_a_model_that_cannot_be_written(small_disk, tiny_dataset, run, capsys, monkeypatch):
    """Buckets of a job may be different ones: here that of the model is full."""
    (small_disk / "bucket").mkdir()
    monkeypatch.setattr(mounted, "__defaults__", (small_disk,))
    monkeypatch.setenv("AIP_MODEL_DIR", "gs://bucket/best")
    shutil.rmtree(run / "export")
    filler = fill(small_disk)
    assert train(tiny_dataset, run) == 1
    line = one_line(capsys)
    assert f"cannot write the model to {small_disk}/bucket/best: No space left on device" in line
    assert [path.name for path in (small_disk / "bucket").iterdir()] == []
    filler.unlink()
    assert train(tiny_dataset, run) == 0
    assert (small_disk / "bucket" / "best" / "model.keras").is_file()
