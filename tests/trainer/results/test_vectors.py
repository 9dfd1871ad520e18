"""Rows of parts by number against one array of all; places and commands of vectors; when the disk is large enough."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from trainer import embed
from trainer.results import vectors
from trainer.results.vectors import Source, Store, Vectors
from trainer.shell.problems import WorkFailed, WrongUse

SOURCE = Source(Path("runs/a run"), "runs/a run", "data/it's", "ab" * 32, "12345678" * 8, "12345678" * 8)
LABELS = ("any", "epidural")
KIND = np.dtype([("vector", np.float16, (3,)), ("logits", np.float32, (2,))])


def made(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    rows = np.empty(count, KIND)
    rows["vector"], rows["logits"] = rng.normal(size=(count, 3)), rng.normal(size=(count, 2))
    return rows


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_rows_of_parts_are_those_of_one_array(sizes, data):
    every = made(sum(sizes))
    parts = np.split(every, np.cumsum(sizes)[:-1])
    at = data.draw(st_numpy.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, len(every) - 1)))
    numbers = data.draw(st_numpy.arrays(np.int64, st.integers(0, 30), elements=st.integers(0, len(at) - 1)))
    found = Vectors(parts, at)
    assert (len(found), found.dim) == (len(at), 3)
    for own, name in ((found.rows(numbers), "vector"), (found.logits(numbers), "logits")):
        np.testing.assert_array_equal(own, every[at[numbers]][name])
        assert own.dtype == every[name].dtype
        assert own.shape == (len(numbers), *every[name].shape[1:])


def test_places_and_commands():
    other = dataclasses.replace(SOURCE, dataset="f" * 64, mirrored=True)
    assert SOURCE.folder("test") == Path("runs/a run/vectors/test")
    assert dataclasses.replace(SOURCE, mirrored=True).folder("test") == Path("runs/a run/vectors/test-flip")
    assert other.folder("test") == Path("runs/a run/vectors/test-flip-ffffffff")
    words = shlex.split(other.command("my split"))
    assert words[:3] == ["python", "-m", "trainer.embed"]
    args = embed._parser().parse_args(words[3:])
    assert (args.job_dir, args.data_dir, args.split, args.flip) == ("runs/a run", ["data/it's"], ["my split"], True)


def store(folder: Path, slices: int, **changes: object) -> Store:
    return Store(dataclasses.replace(SOURCE, run=folder, **changes), "test", slices, 3, LABELS)


def test_a_store_knows_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "PART_SLICES", 4)
    first = store(tmp_path, 10)
    assert [first.span(number) for number in first.missing] == [(0, 4), (4, 8), (8, 10)]
    first.begin()
    for number, size in ((2, 2), (0, 4)):
        first.put(number, made(size))
    assert (first.missing, first.present_slices, first.notes()) == ([1], 6, [])
    again = store(tmp_path, 10)
    assert (again.missing, again.present_slices, again.notes()) == ([1], 6, [])
    for other in (store(tmp_path, 11), store(tmp_path, 10, weights="cd" * 32), store(tmp_path, 10, dataset="0" * 64)):
        assert other.present_slices == 0


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_runs_of_missing_parts_are_those_without_a_gap(present):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "PART_SLICES", 1)
        one = store(Path(name), len(present))
        one.begin()
        for number in np.flatnonzero(present).tolist():
            one.put(number, made(1))
        runs = "".join(" " if there else chr(65 + number) for number, there in enumerate(present)).split()
        assert one.missing_runs == [[ord(letter) - 65 for letter in run] for run in runs]


def test_what_is_no_part_any_more_goes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "PART_SLICES", 4)
    first = store(tmp_path, 8)
    first.begin()
    first.put(0, made(4))
    stray = ("part-00001.npy", f"part-00000.npy.{'0' * 32}.tmp", f"index.json.{'0' * 32}.tmp", "notes.txt")
    for name in stray:
        (first.folder / name).write_bytes(b"stray")
    store(tmp_path, 8).begin()
    assert {path.name for path in first.folder.iterdir()} == {"index.json", "part-00000.npy", "notes.txt"}


@pytest.mark.parametrize(("free", "enough"), [(100_000_000 + 14 * 1000, True), (100_000_000 + 14 * 1000 - 1, False)])
def test_room_on_the_disk(free, enough, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    stores = [store(tmp_path, 400), store(tmp_path, 600, mirrored=True)]
    if enough:
        vectors.require_room(stores)
        return
    words = "has 100 MB free, and the vectors of 1,000 slices take 0 MB, with 100 MB to spare; make room, or name fewer"
    with pytest.raises(WrongUse, match=words):
        vectors.require_room(stores)


def test_no_room_is_needed_for_what_is_there(tmp_path, monkeypatch):
    one = store(tmp_path, 4)
    one.begin()
    one.put(0, made(4))
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
    vectors.require_room([store(tmp_path, 4)])


def test_the_first_slice_that_is_not_finite_is_named():
    rows = made(5)
    vectors.require_finite(rows, list("abcde"))
    rows["vector"][3, 1] = np.inf
    with pytest.raises(WorkFailed, match=r"^slice d: the model gives a vector with values that float16 cannot hold"):
        vectors.require_finite(rows, list("abcde"))
    rows["logits"][2, 0] = np.nan
    with pytest.raises(WorkFailed, match=r"^slice c: the model gives logits that are not finite;"):
        vectors.require_finite(rows, list("abcde"))
