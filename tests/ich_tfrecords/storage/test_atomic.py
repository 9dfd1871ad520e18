from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ich_tfrecords.storage import atomic


def test_the_file_appears_when_the_block_ends_well(tmp_path):
    path = tmp_path / "a"
    with atomic.replacing(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_rest(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail_halfway():
        with atomic.replacing(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_never_mix(tmp_path):
    path, aside = tmp_path / "a", tmp_path / "aside"
    aside.mkdir()
    with atomic.replacing(path, aside) as one, atomic.replacing(path, aside) as two:
        one.write(b"1" * 10)
        two.write(b"2" * 10)
        assert len(list(aside.iterdir())) == 2
    assert path.read_bytes() == b"1" * 10  # the outer block ends last
    assert list(aside.iterdir()) == []


def test_a_table_comes_back_and_the_bytes_are_told(tmp_path):
    table = pa.table({"a": [1, 2, 3]})
    data = atomic.write_table(tmp_path / "t", table)
    assert (tmp_path / "t").read_bytes() == data
    assert pq.read_table(tmp_path / "t").equals(table)
