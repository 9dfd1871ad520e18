"""`jpeg_numpy.read` and `undo` compiled by numba (the extra `fast`), to the same values and ten times as fast.

Every index is checked in the compiled code too, so that no stream can reach memory that is not its own. What was
compiled is kept for the processes to come, as long as nobody else can write where it is kept: it is code. Without
numba, or where it fails, there is nothing here, and `note` says so.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ich_tfrecords import environment
from ich_tfrecords.dicom.jpeg_numpy import NO_CODE, NO_EXTRA, Coded, Huffman, UInt16

_READ = "UniTuple(int64, 2)(Array(uint8, 1, 'C', readonly=True), uint8[::1], uint8[::1], uint16[::1])"
_UNDO = "void(uint16[:, ::1], int64, int64)"
_FOLDER = Path("ich_tfrecords", "compiled")
_LONGEST = 120  # letters of another library's complaint

ABSENT = "numba is not installed; pip install 'ich-tfrecords[fast]' makes that more than ten times as fast"


class Forms(NamedTuple):
    """`read(data, table, count)` and `undo(differences, selection, first)`, as `jpeg_numpy` has them."""

    read: Callable[[bytes, Huffman, int], Coded]
    undo: Callable[[UInt16, int, int], UInt16]


@functools.cache
def forms() -> Forms | str:
    """The compiled form, or why there is none. The first call takes half a second, or two where it has to compile."""
    try:
        import numba
    except ModuleNotFoundError as error:
        return ABSENT if error.name == "numba" else _failed(error)
    except Exception as error:  # it refuses a numpy that is newer than itself, and says so in words of its own
        return _failed(error)
    folder = cache_folder(os.environ)
    for place in [folder, None] if folder else [None]:  # what was kept may be damaged
        try:
            return _compiled(numba, place)
        except Exception as error:
            failure = _failed(error)
    return failure


def _failed(error: Exception) -> str:
    line = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"numba fails ({line if len(line) <= _LONGEST else line[:_LONGEST] + '...'})"


def note() -> str:
    """Why slices were decoded the slow way in this process; "" where none were."""
    found = forms() if forms.cache_info().currsize else ""
    return f"JPEG Lossless is decoded by numpy alone: {found}" if isinstance(found, str) and found else ""


def _compiled(numba: Any, folder: Path | None) -> Forms:
    # a .numba_config.yaml where the command is started says otherwise
    numba.config.DISABLE_JIT, numba.config.CACHE_DIR, numba.config.CACHE_LOCATOR_CLASSES = 0, str(folder or ""), ""
    how = {"nogil": True, "boundscheck": True, "cache": folder is not None}
    read, undo = numba.njit(_READ, **how)(_read), numba.njit(_UNDO, **how)(_undo)

    def read_all(data: bytes, table: Huffman, count: int) -> Coded:
        differences = np.empty(count, np.uint16)
        return Coded(differences, *read(np.frombuffer(data, np.uint8), table.length, table.category, differences))

    def undo_all(differences: UInt16, selection: int, first: int) -> UInt16:
        cells = differences.copy()
        undo(cells, selection, first)
        return cells

    return Forms(read_all, undo_all)


def cache_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder for what is compiled, in this user's own cache; None where others could write into it."""
    base = environment.expanded(environ.get("XDG_CACHE_HOME") or "~/.cache")
    if not base.is_absolute():
        return None
    try:
        for part in (base, base / "ich_tfrecords", base / _FOLDER):
            part.mkdir(mode=0o700, exist_ok=True)
        folder = (base / _FOLDER).resolve()
        return folder if _is_private(folder) else None
    except OSError:
        return None


def _is_private(folder: Path) -> bool:
    """Whether nobody but this user and root can put a file there, or another folder in its place."""
    for part in (folder, *folder.parents):
        found = part.stat()
        keeps_others_out = not found.st_mode & 0o022 or (part != folder and found.st_mode & stat.S_ISVTX)  # as /tmp
        if found.st_uid not in (0, os.geteuid()) or not keeps_others_out:
            return False
    return True


# What follows is compiled: plain loops over numbers, of which numba knows the types.


def _read(data: Any, length: Any, category: Any, differences: Any) -> tuple[int, int]:
    """Fills `differences`; returns `samples` and `bits` of `Coded`. `window` ends with the next `held` bits."""
    window, held, byte, bits = 0, 0, 0, 0
    for place in range(differences.size):
        if bits >= 8 * data.size:
            return place, bits
        while held < 32:  # a code and what follows it, 16 bits each
            window = window << 8 & 0xFFFFFFFFFF | (data[byte] if byte < data.size else 0)
            byte += 1
            held += 8
        pattern = window >> (held - 16) & 0xFFFF
        if length[pattern] == 0:
            return place, NO_CODE
        extra = category[pattern] if category[pattern] != NO_EXTRA else 0
        held -= length[pattern] + extra
        bits += length[pattern] + extra
        value = window >> held & ((1 << extra) - 1)
        if category[pattern] == NO_EXTRA:
            value = 1 << 15
        elif value < 1 << extra >> 1:
            value += 1 - (1 << extra)
        differences[place] = value & 0xFFFF
    return differences.size, bits


def _undo(cells: Any, selection: int, first: int) -> None:
    """Turns the differences in `cells` into the cells."""
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            left = cells[row, column - 1] if column else first
            above = cells[row - 1, column] if row else left
            corner = cells[row - 1, column - 1] if row and column else above
            if row == 0 or (selection == 1 and column):
                guess = left
            elif column == 0 or selection == 2:
                guess = above
            elif selection == 3:
                guess = corner
            elif selection == 4:
                guess = left + above - corner
            elif selection == 5:
                guess = left + (above - corner >> 1)
            elif selection == 6:
                guess = above + (left - corner >> 1)
            else:
                guess = left + above >> 1
            cells[row, column] = cells[row, column] + guess & 0xFFFF
