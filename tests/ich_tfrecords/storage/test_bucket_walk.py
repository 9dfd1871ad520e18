"""What inputs on gs:// name, with the same tree in a local folder as the oracle; listing in several ranges at once."""

from __future__ import annotations

import gzip
import re
import tempfile
import threading
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("google.cloud.storage", reason="google-cloud-storage is not installed")

from ich_tfrecords.storage import bucket_ranges, bucket_walk, buckets, sources
from ich_tfrecords.storage.sources import SourceError

TREE = [
    "p1/a.dcm", "p1/s/b.dcm", "p1/s/.c.dcm", "p1/note.txt", "p2/a.dcm", "p2/1.2.840.7", "p10/deep/er/x",
    ".hidden/a.dcm", "__MACOSX/a.dcm", "p1/._a.dcm", "scan[1]/a.dcm", "scan1/b.dcm", "with space/100%.dcm",
    "a#b?c/d.dcm", "caf\u00e9/\U0001f600.dcm", "new\nline/x.dcm", "+&=/~.dcm", "p1/raw.bin", "p-/x]y.dcm",
]  # fmt: skip
PATTERNS = [
    "", "p1", "p1/s", "p1/a.dcm", "p1/raw.bin", ".hidden", "p1/._a.dcm", "scan[1]", "with space", "a#b?c", "new\nline",
    "caf\u00e9", "*", "*/a.dcm", "p[2-9]/*", "p[!2-9]/*", "p[12]*/a.dcm", "**/*.dcm", "**", "p1/**", "**/s/**", "p?/s",
    "*/*", ".h*/*", "*/.*", "p1/s/.*.dcm", "p1/r*", "*.dcm", "p*", "p[-x]/*", "*/x[]]y.dcm", "[^a]/*", "p**/a.dcm",
]  # fmt: skip


def fill(gcs, folder: Path, names: list[str]) -> str:
    bucket = gcs.bucket()
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (len(name) + 1))
    buckets.write_many([(bucket, f"in/{name}", b"x" * (len(name) + 1)) for name in names])
    return f"gs://{bucket}/in"


def found(*inputs: str) -> object:
    """(name, size) of what the inputs name, or `SourceError` when they are refused."""
    try:
        return {(row.name, row.size_bytes) for row in sources.refs(sources.list_inputs(inputs).table)}
    except SourceError:
        return SourceError


@pytest.mark.slow
def test_inputs_are_those_of_the_same_tree_in_a_folder(gcs, tmp_path):
    place = fill(gcs, tmp_path, TREE)
    expected = {pattern: found(str(tmp_path / pattern)) for pattern in PATTERNS}
    assert sum(isinstance(rows, set) for rows in expected.values()) > 25
    assert {pattern: found(f"{place}/{pattern}") for pattern in PATTERNS} == expected


@pytest.mark.slow
@settings(max_examples=150)
@given(
    name=st.lists(st.text("ab.[-", min_size=1, max_size=3).filter(lambda part: part not in (".", "..")), max_size=3),
    parts=st.lists(st.sampled_from(["**", "*", "a*", "?", "[ab]", "[!a]*", "[", "a[", ".*", "b", "[]", "[.]a"])),
)
def test_a_glob_matches_what_it_matches_in_a_folder(name, parts):
    name, parts = ["x", *name, "n"], ["*", *parts]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder).joinpath(*name)).parent.mkdir(parents=True)
        Path(folder).joinpath(*name).touch()
        expected = found("/".join([folder, *parts])) is not SourceError
    match = re.fullmatch(bucket_walk._pattern(parts), "/".join(name), re.DOTALL)
    assert bool(match and bucket_walk.is_slice("/".join(name), not match["rest"])) == expected


def test_nested_inputs_are_listed_once(gcs, tmp_path):
    place = fill(gcs, tmp_path, ["p/a.dcm", "p/s/b.dcm", "p/note.txt", "q/c.dcm"])
    inputs = ["p", "p/s", "p/a.dcm", "p/note.txt", "q"]
    expected = found(*(f"{tmp_path}/{name}" for name in inputs))
    assert found(*(f"{place}/{name}" for name in inputs)) == expected
    assert found(*(f"{place}/{name}" for name in reversed(inputs))) == expected


def test_archives_and_folder_markers(gcs, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("k/x.dcm", b"x" * 5)
    bucket = gcs.bucket()
    buckets.write_many([(bucket, name, archive.read_bytes()) for name in ("z/a.zip", "z/no_suffix")])
    buckets.write_many([(bucket, name, b"") for name in ("m/", "m/n/", "m/n/a.dcm")])
    for name in ("a.zip", "no_suffix", "*.zip"):
        assert found(f"gs://{bucket}/z/{name}") == {("k/x.dcm", 5)}
    assert found(f"gs://{bucket}/m") == found(f"gs://{bucket}/m/") == {("n/a.dcm", 0)}


def test_archives_beside_slices_are_named_and_packed_ones_refused(gcs, tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("k/x.dcm", b"x")
    bucket = gcs.bucket()
    content = {"z/a.dcm": b"a", "z/s/a.zip": archive.read_bytes(), "z/t.tar.gz": b"t", "z/one": gzip.compress(b"x")}
    buckets.write_many([(bucket, name, data) for name, data in {**content, "z/n.txt": b""}.items()])
    place = f"gs://{bucket}/z"
    assert sources.list_inputs([place]).ignored == {".zip": 1, ".tar.gz": 1, ".txt": 1}
    both = sources.list_inputs([place, f"{place}/**/*.zip"])
    assert both.table["name"].to_pylist() == ["a.dcm", "one", "k/x.dcm"]
    assert both.ignored == {".tar.gz": 1, ".txt": 1}
    assert sources.list_inputs([f"{place}/*"]).ignored == {".tar.gz": 1, ".zip": 1}
    for name, command in (("t.tar.gz", "tar xf t.tar.gz"), ("one", "7z x one")):
        with pytest.raises(SourceError, match=f"{name}: is packed") as caught:
            sources.list_inputs([f"{place}/{name}"])
        assert str(caught.value).endswith(command)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gs://no-such-bucket/x", "there is no such object"),
        ("gs://no-such-bucket/*.dcm", "no such object or bucket"),
        ("gs://{bucket}/nothing", "nothing: there is no such object and none below it"),
        ("gs://{bucket}/texts", "texts: no slice among 1 file"),
        ("gs://{bucket}/*.nii", "no slice among 0 files"),
        ("gs://{bucket}/x[z-a]", "is no pattern"),
        ("gs://", "names no bucket"),
        ("gs://No_Bucket/x", "no bucket can be called 'No_Bucket'"),
    ],
)
def test_an_input_without_slices_is_refused_in_a_line(gcs, place, message):
    bucket = gcs.bucket()
    buckets.write(bucket, "texts/a.txt", b"a")
    with pytest.raises(SourceError, match=message) as caught:
        sources.list_inputs([place.format(bucket=bucket)])
    assert "\n" not in str(caught.value)


# listing in ranges


def pages_in_memory(names: set[str], rows: int) -> object:
    """What stands for `buckets.page`: pages of so many rows."""

    def page(_bucket: str, prefix: str, start: str, end: str) -> tuple[list[buckets.Stored], bool]:
        within = [n for n in sorted(names) if n.startswith(prefix) and n >= start and (not end or n < end)]
        return [buckets.Stored(name, 0, 1, 0, 0.0) for name in within[:rows]], len(within) > rows

    return page


LETTERS = st.one_of(st.sampled_from("ab/_09 ~\x01\x7f\ud7ff\ue000\U0010ffff\u00e9"), st.characters(codec="utf-8"))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    names=st.sets(st.text(LETTERS, max_size=6), max_size=80), rows=st.integers(2, 9), prefix=st.text("ab/", max_size=2)
)
def test_ranges_give_every_object_once(names, rows, prefix):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "page", pages_in_memory(names, rows))
        listed = [stored.key for stored in bucket_ranges.listed("b", prefix)]
    assert sorted(listed) == sorted(name for name in names if name.startswith(prefix))


@given(ends=st.sets(st.text(LETTERS, max_size=6), min_size=2, max_size=2))
def test_between_is_between(ends):
    start, end = sorted(ends)
    middle = bucket_ranges.between(start, end)
    assert not middle or (start < middle < end and start.encode() < middle.encode() < end.encode())


def test_between_cuts_hexadecimal_names():
    assert bucket_ranges.between("ID_1", "ID_9") == "ID_5"
    assert bucket_ranges.between("ID_1", "ID_2")[:4] == "ID_1"


@pytest.mark.slow
def test_ranges_against_the_plain_listing(gcs):
    """On the server: the same objects, pages of 1,000 at most, several at once."""
    bucket = gcs.bucket()
    names = [f"t/ID_{number * 0x9E3779B1 % 16**9:09x}.dcm" for number in range(2600)]
    buckets.write(bucket, names[0], b"x")
    stored = gcs._api._storage.objects[bucket]  # 2,600 uploads would take seconds
    stored.update({name: {**stored[names[0]], "name": name} for name in names})
    plain = list(buckets.listed(bucket, "t/"))
    gcs.clear()
    gcs.fail(r"GET .*/o\?", how="slow", times=None, seconds=0.05)
    ranged = list(bucket_ranges.listed(bucket, "t/"))
    assert len(plain) == 2600
    assert sorted(ranged) == plain
    assert max(gcs.pages) <= 1000
    assert gcs.most_in_flight > 1


def test_a_listing_left_early_or_failing_ends_its_threads(gcs, monkeypatch):
    bucket = gcs.bucket()
    buckets.write_many([(bucket, name, b"") for name in "abc"])
    listing = bucket_ranges.listed(bucket, "")
    next(listing)
    listing.close()
    monkeypatch.setattr(buckets, "RETRY_S", 0.2)
    gcs.fail(r"GET .*/o\?", how="503", times=None)
    with pytest.raises(OSError, match=bucket):
        list(bucket_ranges.listed(bucket, ""))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("list_")]
