"""What is compiled is kept where nobody else can write; without numba, or with one that fails, all works as before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from codestreams import jpeg

from ich_tfrecords.dicom import jpeg_compiled, jpeg_lossless
from ich_tfrecords.dicom.jpeg_compiled import ABSENT, Forms, cache_folder, forms, note

ROOT = Path(__file__).parents[3]
CELLS = np.arange(99, dtype=np.uint16).reshape(9, 11)
STREAM = jpeg(CELLS, 12, 1)
DECODE = (
    "from ich_tfrecords.dicom import jpeg_compiled, jpeg_lossless; "
    f"print(jpeg_lossless.decode({STREAM!r}, 9, 11, 16).values.sum(), jpeg_compiled.note())"
)


@pytest.fixture
def fresh(monkeypatch):
    """A process in which nothing was decoded yet, and the next import looks for numba."""
    monkeypatch.delitem(sys.modules, numba.__name__)
    forms.cache_clear()
    yield monkeypatch
    forms.cache_clear()


def test_nothing_is_said_before_it_matters(fresh):
    assert note() == ""


def test_without_numba_numpy_does_it_and_the_line_names_the_extra(fresh):
    fresh.setitem(sys.modules, "numba", None)
    assert np.array_equal(jpeg_lossless.decode(STREAM, 9, 11, 16).values, CELLS)
    assert forms() == ABSENT
    assert note() == f"JPEG Lossless is decoded by numpy alone: {ABSENT}"
    assert "pip install 'ich-tfrecords[fast]'" in note()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise ImportError('Numba needs NumPy 2.3 or less.\\nGot 9.9.')",
            "ImportError: Numba needs NumPy 2.3 or less.",
        ),
        ("import numba_part_that_is_gone", "ModuleNotFoundError: No module named 'numba_part_that_is_gone'"),
        ("raise SystemError('a' * 500)", f"SystemError: {'a' * 107}..."),
        ("class config: pass", "AttributeError: module 'numba' has no attribute 'njit'"),
    ],
)
def test_a_numba_that_fails_is_told_in_a_line(code, words, fresh, tmp_path):
    (tmp_path / "numba.py").write_text(code)
    fresh.syspath_prepend(tmp_path)
    assert np.array_equal(jpeg_lossless.decode(STREAM, 9, 11, 16).values, CELLS)
    assert note() == f"JPEG Lossless is decoded by numpy alone: numba fails ({words})"


def decode(cache: Path, **environ: str) -> str:
    """What a process says that decodes a slice."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "NUMBA_DEBUG_CACHE": "1", **environ}
    command = [sys.executable, "-c", DECODE]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path):
    first, second = decode(tmp_path / "cache"), decode(tmp_path / "cache")
    assert first.count("data saved to") == second.count("data loaded from") == 2
    assert "data saved to" not in second
    assert [said.splitlines()[-1].strip() for said in (first, second)] == [str(CELLS.sum())] * 2
    folder = tmp_path / "cache" / "ich_tfrecords" / "compiled"
    assert {part.stat().st_mode & 0o777 for part in (folder, folder.parent, tmp_path / "cache")} == {0o700}


@pytest.mark.slow
def test_what_was_kept_and_is_damaged_is_compiled_again(tmp_path):
    decode(tmp_path)
    for path in tmp_path.rglob("*.nb?"):
        path.write_bytes(path.read_bytes()[:50])
    assert decode(tmp_path).splitlines()[-1].strip() == str(CELLS.sum())


@pytest.mark.slow
def test_where_others_could_write_nothing_is_kept(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert decode(tmp_path / "open" / "cache") == f"{CELLS.sum()} \n"
    assert not list(tmp_path.rglob("*.nb?"))


@pytest.mark.slow
def test_a_file_of_settings_in_the_current_folder_leads_nowhere(tmp_path):
    (tmp_path / ".numba_config.yaml").write_text(f"disable_jit: 1\ncache_dir: {tmp_path / 'elsewhere'}\n")
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DECODE], cwd=tmp_path, env=environ, capture_output=True, check=True)
    assert len(list((tmp_path / "cache").rglob("*.nbc"))) == 2
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(mode, tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = cache_folder(environ)
    assert folder == tmp_path / "ich_tfrecords" / "compiled"
    folder.chmod(mode)
    assert cache_folder(environ) is None


@pytest.mark.parametrize(("mode", "is_safe"), [(0o775, False), (0o757, False), (0o755, True), (0o1777, True)])
def test_a_folder_above_that_others_can_write_to_is_safe_only_as_tmp_is(mode, is_safe, tmp_path):
    """Where the sticky bit is set nobody can put another folder in the place of ours."""
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(mode)
    assert (cache_folder({"XDG_CACHE_HOME": str(tmp_path / "above" / "cache")}) is not None) is is_safe


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_used(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 12345, 12345)
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path / "cache")}) is None


def test_a_link_is_followed_before_it_is_judged(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path / "link")}) == tmp_path / "real" / "ich_tfrecords" / "compiled"


@pytest.mark.parametrize("base", ["relative/cache", "~nobody-of-this-name/cache", "/proc/self/cache", "/dev/null"])
def test_where_no_folder_can_be_there_is_none(base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cache_folder({"XDG_CACHE_HOME": base}) is None
    assert not list(tmp_path.iterdir())


def test_it_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({}) == tmp_path / ".cache" / "ich_tfrecords" / "compiled"


def test_an_index_outside_of_an_array_is_an_error_and_no_memory_of_others():
    """So that a mistake of ours could never read or write what lies beside."""
    found = forms()
    assert isinstance(found, Forms)
    table = jpeg_compiled.Huffman(np.ones(4, np.uint8), np.zeros(4, np.uint8))  # of 16 bits there are 65,536 patterns
    with pytest.raises(IndexError):
        found.read(b"\xff\xff", table, 3)
