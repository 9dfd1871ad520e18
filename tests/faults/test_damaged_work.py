"""Files of an unfinished or finished conversion that are lost or damaged between two runs of one command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faulty_runs import flags, only_line, sha256s

from ich_tfrecords.conversion import job
from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.verify import verify


def first(folder: Path, pattern: str) -> Path:
    return min(path for path in folder.glob(pattern) if path.is_file())


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int) -> None:
    """One bit of the byte at `place`."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def scramble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


WORK_FILES = {
    "shard": "*.tfrecord*",
    "sidecar": ".work/sidecars/*",
    "plan": ".work/plan/*",
    "index": ".work/index/*",
    "listing": ".work/listing/*",
    "places": ".work/places",
}
DAMAGES = [(kind, damage) for kind in WORK_FILES for damage in (lose, cut, empty, scramble)]


def marked(kind: str, damage) -> object:
    name = f"{kind}-{damage.__name__}"
    return pytest.param(kind, damage, id=name)


@pytest.mark.parametrize(("kind", "damage"), [marked(*pair) for pair in DAMAGES if pair != ("shard", scramble)])
def test_a_lost_or_damaged_work_file_is_made_anew(unfinished_copy, finishes, kind, damage):
    damage(first(unfinished_copy, WORK_FILES[kind]))
    finishes(unfinished_copy)


def test_only_the_shard_of_a_lost_sidecar_is_written_again(unfinished_copy, finishes):
    shards = sorted(path for path in unfinished_copy.iterdir() if path.is_file())
    before = {path.name: path.stat().st_ino for path in shards}
    (unfinished_copy / ".work" / "sidecars" / f"{shards[0].name}.json").unlink()
    finishes(unfinished_copy)
    assert {path.name for path in shards if path.stat().st_ino != before[path.name]} == {shards[0].name}


@pytest.mark.parametrize("kind", ["index", "sidecar"])
def test_any_bit_of_a_work_file_may_flip(unfinished, tmp_path, finishes, kind):
    """Much of it would still parse: another offset, another position, another digest."""
    size_bytes = first(unfinished, WORK_FILES[kind]).stat().st_size
    for number, place in enumerate(range(size_bytes // 24, size_bytes, size_bytes // 12)):
        copy = Path(shutil.copytree(unfinished, tmp_path / str(number)))
        flip(first(copy, WORK_FILES[kind]), place)
        finishes(copy)


def test_a_damaged_listing_whose_index_is_lost_too(unfinished_copy, finishes):
    cut(first(unfinished_copy, ".work/listing/*"))
    lose(first(unfinished_copy, ".work/index/*"))
    finishes(unfinished_copy)


@pytest.mark.parametrize("damage", [lose, cut])
def test_a_plan_file_damaged_before_its_shard_is_written(
    finishes, synthetic_set, tmp_path, convert, monkeypatch, capsys, damage
):
    output, real = tmp_path / "out", job.write_plan

    def damaging(work: job.WorkDir, *args) -> list[str]:
        pending = real(work, *args)
        damage(first(work.path, "plan/*"))
        return pending

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_plan", damaging)
        assert convert(*flags(synthetic_set.output, output)) in (1, 2)
    only_line(capsys.readouterr().err)
    assert not (output / manifest.MANIFEST).exists()
    finishes(output)


def test_a_bit_flipped_in_a_finished_shard_is_seen_by_the_next_run(unfinished_copy, finishes):
    shard = first(unfinished_copy, "*.tfrecord*")
    flip(shard, shard.stat().st_size // 2)
    finishes(unfinished_copy)


def test_a_bit_flipped_after_the_commit_is_named_by_verify(dataset_copy):
    shard = first(dataset_copy, "*.tfrecord*")
    flip(shard, shard.stat().st_size // 2)
    found = verify(dataset_copy).problems
    assert any(problem.startswith(f"{shard.name}: record ") for problem in found)
    assert all(problem.startswith(f"{shard.name}: ") for problem in found)


def test_a_shard_cut_short_after_the_commit_is_named(dataset_copy, synthetic_set, convert, capsys):
    shard = first(dataset_copy, "*.tfrecord*")
    cut(shard)
    before = sha256s(dataset_copy)
    assert convert(*flags(synthetic_set.output, dataset_copy)) == 2
    assert f"is damaged: {shard.name} has not the length" in only_line(capsys.readouterr().err)
    assert sha256s(dataset_copy) == before


def test_a_manifest_lost_after_the_commit(dataset_copy, synthetic_set, finishes, convert, capsys):
    """Its folder is no data set any more, and no conversion takes it for its own."""
    lose(dataset_copy / manifest.MANIFEST)
    before = sha256s(dataset_copy)
    assert convert(*flags(synthetic_set.output, dataset_copy)) == 2
    assert "holds other files" in only_line(capsys.readouterr().err)
    with pytest.raises(manifest.DatasetError, match=r"holds no manifest\.json"):
        verify(dataset_copy)
    assert sha256s(dataset_copy) == before
    finishes(dataset_copy.parent / "anew")


@pytest.mark.parametrize("damage", [cut, empty, scramble])
def test_a_manifest_damaged_after_the_commit(dataset_copy, synthetic_set, convert, capsys, damage):
    damage(dataset_copy / manifest.MANIFEST)
    assert convert(*flags(synthetic_set.output, dataset_copy)) == 2
    assert manifest.MANIFEST in only_line(capsys.readouterr().err)
