"""Bucket paths beside pathlib's, on the same parts and on the same tree."""

from __future__ import annotations

import io
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from ich_tfrecords.storage import buckets
from ich_tfrecords.storage.bucket_path import BucketPath, any_path, is_bucket

PARTS = st.lists(
    st.text(st.sampled_from("ab.-_ %#?\u00e9\n"), min_size=1, max_size=6).filter(lambda part: part not in (".", "..")),
    max_size=4,
)
TREE = {"a.dcm": b"a", "b/c.dcm": b"c" * 10, "b/d/e f.txt": b"", "b.c/[x]#?%.dcm": b"x", "\u00e9/z": b"z"}


@given(parts=PARTS, suffix=st.sampled_from(["", ".x", ".tar"]))
def test_names_are_those_of_pathlib(parts, suffix):
    pure, path = PurePosixPath("/", *parts), BucketPath("bkt", "")
    for part in parts:
        path = path / part
    assert path == BucketPath("bkt", "") / "/".join(parts)
    assert (path.name, path.suffix) == (pure.name, pure.suffix)
    assert str(path) == f"gs://bkt{pure}".rstrip("/")
    assert path.parent.key == str(pure.parent)[1:]
    assert any_path(str(path)) == path.absolute() == path
    if parts:
        assert path.with_suffix(suffix).key == str(pure.with_suffix(suffix))[1:]


def test_only_gs_is_a_bucket(tmp_path):
    assert any_path(str(tmp_path)) == tmp_path
    assert is_bucket("gs://b/c")
    assert not is_bucket("/gs://b")
    assert any_path("gs://bkt/a/b/") == BucketPath("bkt", "a/b")


@pytest.mark.parametrize("text", ["gs://", "gs:///a", "gs://B/a", "gs://-b-/a", "gs://ab", "gs://a b c/d", "gs://*/a"])
def test_an_impossible_bucket_is_refused_by_name(text):
    with pytest.raises(ValueError, match="bucket") as caught:
        any_path(text)
    assert repr(text) in str(caught.value)


@pytest.fixture
def trees(gcs, tmp_path):
    bucket = gcs.bucket()
    for name, data in TREE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(data)
    buckets.write_many([(bucket, f"in/{name}", data) for name, data in TREE.items()])
    return BucketPath(bucket, "in"), tmp_path


def test_a_tree_looks_like_a_folder(trees):
    far, near = trees
    for name in ["", *TREE, "b", "b/d", "b.c", "\u00e9", "none", "b/none", "a"]:
        one, other = (far / name, near / name) if name else (far, near)
        assert (one.exists(), one.is_dir(), one.is_file()) == (other.exists(), other.is_dir(), other.is_file()), name
        if other.is_dir():
            assert [path.name for path in one.iterdir()] == sorted(path.name for path in other.iterdir())
            for pattern in ("*", "*.dcm", "?.dcm", "[[]x]*"):
                assert [p.name for p in one.glob(pattern)] == sorted(p.name for p in other.glob(pattern))
        elif other.is_file():
            assert (one.read_bytes(), one.stat().st_size) == (other.read_bytes(), other.stat().st_size)
        else:
            for call in (one.read_bytes, one.stat, one.unlink, one.open):
                with pytest.raises(FileNotFoundError):
                    call()
            one.unlink(missing_ok=True)


def test_a_bucket_that_is_not_there_holds_nothing(gcs):
    path = BucketPath("no-such-bucket", "a")
    assert (path.exists(), path.is_dir(), path.is_file()) == (False, False, False)


def test_markers_and_nameless_folders_are_no_entries(gcs):
    path = BucketPath(gcs.bucket(), "m")
    buckets.write_many([(path.bucket, key, b"") for key in ("m/", "m/a", "m//b", "m/n/")])
    assert [entry.key for entry in path.iterdir()] == ["m/a", "m/n"]
    assert list(path.stored()) == ["a"]
    path.remove_all()
    assert not path.exists()


def test_unlink_and_remove_all(trees):
    far, _ = trees
    (far / "a.dcm").unlink()
    assert not (far / "a.dcm").exists()
    (far / "b").remove_all()
    assert not (far / "b").exists()
    assert (far / "b.c").exists()  # begins with the same letters, and lies beside it


def test_writing(gcs):
    path = BucketPath(gcs.bucket(), "x") / "y.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("caf\u00e9".encode())
    assert path.read_text("utf-8") == "caf\u00e9"
    path.write_file(io.BytesIO(b"12345"), 5)
    assert path.read_bytes() == b"12345"
    with pytest.raises(ValueError, match="only opened to be read"):
        path.open("wb")


STEPS = st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-130, 130), st.integers(-1, 150)), max_size=6)


@pytest.fixture(scope="module")
def data() -> bytes:
    return bytes(range(100))


@given(steps=STEPS)
def test_a_file_reads_like_one_in_memory(bucket_server, data, steps):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket_server.environment.items():
            patch.setenv(name, value)
        path = BucketPath("read-in-ranges", "a")
        if "read-in-ranges" not in bucket_server._api._storage.buckets:
            bucket_server.bucket(path.bucket)
            path.write_bytes(data)
        patch.setattr("ich_tfrecords.storage.bucket_path._BLOCK_BYTES", 16)
        with path.open() as file, io.BytesIO(data) as memory:
            for whence, offset, size in steps:
                base = (0, memory.tell(), len(data))[whence]
                if base + offset < 0:
                    with pytest.raises(OSError, match="before the beginning"):
                        file.seek(offset, whence)
                else:
                    assert file.seek(offset, whence) == memory.seek(offset, whence)
                    assert file.read(size) == memory.read(size)


def test_an_open_file_is_of_one_generation(gcs, data):
    path = BucketPath(gcs.bucket(), "a")
    path.write_bytes(data)
    with path.open() as file:
        path.write_bytes(b"other")
        with pytest.raises(FileNotFoundError):
            file.read(5)
