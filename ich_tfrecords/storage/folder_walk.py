"""Files that an input names: a folder walked to its end, the matches of a glob, one file, a zip archive.

Nothing here opens a slice or knows a column of the listing: out come names, sizes and times.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ich_tfrecords.storage import packed, zip_directory
from ich_tfrecords.storage.zip_directory import SourceError

UNKNOWN = -1  # size and time of a file that cannot be looked at
_SPECIAL = "pipe or device"

# The last part of the name: a DICOM suffix, a numeric one (the end of a UID), none at all, or that of a NIfTI volume.
CANDIDATE = r"(?i)(^|/)([^/]*\.(dcm|dicom|ima|nii|nii\.gz|[0-9]+)|[^/.]+)$"
# `.DS_Store`, `._x`, and the folder that macOS adds to archives; `.` and `..` hide nothing.
HIDDEN = r"(^|/)(\.[^./]|\.\.[^/]|__MACOSX(/|$))"
MAGIC = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """One folder or archive of the inputs, or `names` of files in one folder; slice names are relative to `root`.

    `kind`: folder, files, zip, or packed (an archive that is not read).
    """

    kind: str
    root: Path
    path: Path
    names: tuple[str, ...] = ()


def places(text: str) -> list[Place]:
    """Folders, files and archives that one input names. Raises `SourceError` when there are none."""
    if "://" in text:
        raise SourceError(f"{text}: only gs:// and local paths are read; copy the data to one of these")
    try:
        return _local_places(text, as_written(Path(text)))
    except OSError as error:
        raise SourceError(f"{error.filename or text}: cannot be read ({error.strerror}); check its rights") from error


def walk_order(place: Place) -> tuple[str, str]:
    """Key that sorts places into the order in which they are to be walked."""
    # A folder sorts in front of those inside it, so it names all its files whatever the order of the inputs.
    return (str(resolved(place.path)), str(place.root))


def resolved(path: Path) -> Path:
    """The absolute path without links; unlike `Path.resolve` it takes a link to itself."""
    return Path(os.path.realpath(path))


@dataclasses.dataclass
class Walk:
    """Where a walk has been (folders by device and inode), and the linked files that it met.

    `ignored`: how many files it left aside, by `packed.suffix`; not those of `read`, the archives that inputs name.
    """

    read: frozenset[Path] = frozenset()

    walked: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    links: list[Place] = dataclasses.field(default_factory=list)
    ignored: Counter[str] = dataclasses.field(default_factory=Counter)
    _single: dict[Path, set[str]] = dataclasses.field(default_factory=dict)

    def knows(self, folder: Path) -> bool:
        """Whether the folder has been walked."""
        return _identity(folder) in self.walked

    def walk_folder(self, place: Place) -> Iterator[tuple[str, int, int]]:
        """(name, size_bytes, mtime_ns) of the candidates below a folder; every folder is visited once."""
        pending = [place.path]
        while pending:
            folder = pending.pop()
            identity = _identity(folder)
            if identity in self.walked:
                continue
            self.walked.add(identity)
            prefix = _prefix(folder, place.root)
            inner = []
            for entry in _scan(folder):
                if _is_hidden(entry.name):
                    continue
                if _leads_to_folder(entry):
                    inner.append(folder / entry.name)
                elif not _is_candidate(entry.name):
                    kind = packed.suffix(entry.name)
                    self.ignored[kind] += not (packed.is_zip(kind) and folder / entry.name in self.read)
                elif entry.is_symlink():
                    self.links.append(Place("files", place.root, folder, (entry.name,)))
                elif entry.is_file():
                    yield (prefix + entry.name, *_size_and_mtime(entry))
                else:
                    self.ignored[_SPECIAL] += 1
            pending += sorted(inner, reverse=True)

    def new_files(self, place: Place) -> Iterator[tuple[str, int, int]]:
        """(name, size_bytes, mtime_ns) of the files of a place that no walk and no earlier call has met."""
        prefix, home = _prefix(place.path, place.root), resolved(place.path)
        for name in place.names:
            path = place.path / name
            size_bytes, mtime_ns = _size_and_mtime(path)
            real = resolved(path) if path.is_symlink() else None
            # A dangling link leads to nothing that could be listed already.
            if size_bytes == UNKNOWN or self._is_new(*(real.parent, real.name) if real else (home, name)):
                yield (prefix + name, size_bytes, mtime_ns)

    def take_links(self) -> list[Place]:
        """Linked files met since the last call: only after all folders is it known which are listed anyway."""
        links, self.links = self.links, []
        return sorted(links)

    def _is_new(self, folder: Path, name: str) -> bool:
        """Whether no walk and no earlier call has met this file (of a resolved folder); notes it."""
        names = self._single.setdefault(folder, set())
        if name in names:
            return False
        names.add(name)
        # Looked up last: a walk lists the candidates only, not the rest of what lies in the folder.
        return not _is_candidate(name) or _is_hidden(name) or not self.knows(folder)


def _prefix(folder: Path, root: Path) -> str:
    return "" if folder == root else f"{folder.relative_to(root).as_posix()}/"


def composed(name: str) -> str:
    """A name in Unicode NFC, as names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_written(path: Path) -> Path:
    """The path in the Unicode form that its parts have on the disk, where that is all in which they differ."""
    if str(path).isascii() or path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[len(found.parts) :]:
        if not part.isascii() and not (found / part).exists() and found.is_dir():
            part = next((entry.name for entry in _scan(found) if composed(entry.name) == composed(part)), part)
        found /= part
    return found


def _local_places(text: str, path: Path) -> list[Place]:
    if path.is_dir():
        return [Place("folder", resolved(path), resolved(path))]
    if path.is_file():
        return [_file_place(path)]
    if path.exists():
        raise SourceError(f"{path}: is neither a file nor a folder; give one of these")
    magic = [bool(MAGIC.search(part)) for part in path.parts]
    if not any(magic):
        raise SourceError(f"{text}: no such file or folder; check the path")
    root = resolved(Path(*path.parts[: magic.index(True)]))
    if not root.is_dir():
        raise SourceError(f"{text}: there is no folder {root}; check the path")
    found = list(_glob_places(root, path.parts[magic.index(True) :]))
    if not found:
        raise SourceError(f"{text}: the pattern matches nothing; check it, and quote it in the shell")
    if all(place.kind == "packed" for place in found):
        _refuse_packed(found[0].path)
    return found


def _glob_places(root: Path, parts: Sequence[str]) -> Iterator[Place]:
    """Places that match a glob. The files of a folder come as one place, for there may be 752,803 of them."""
    if parts[-1] == "**":
        yield from (Place("folder", root, folder) for folder in _glob_folders(root, parts[:-1]))
        return
    for folder in _glob_folders(root, parts[:-1]):
        names = []
        for entry in _matching(folder, parts[-1]):
            if _leads_to_folder(entry):
                yield Place("folder", root, folder / entry.name)
            elif entry.is_file() and (archive := _archive_place(folder / entry.name)):
                yield archive
            elif entry.is_file():
                names.append(entry.name)
        if names:
            yield Place("files", root, folder, tuple(sorted(names)))


def _glob_folders(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Folders that match the parts of a glob; `**` goes through folders but follows no links."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        yield from _glob_folders(folder, parts[1:])
        for entry in _matching(folder, "*"):
            if entry.is_dir(follow_symlinks=False):
                yield from _glob_folders(folder / entry.name, parts)
    else:
        for entry in _matching(folder, parts[0]):
            if _leads_to_folder(entry):
                yield from _glob_folders(folder / entry.name, parts[1:])


def _matching(folder: Path, pattern: str) -> Iterator[os.DirEntry]:
    match = re.compile(fnmatch.translate(composed(pattern))).match
    for entry in _scan(folder):
        if match(composed(entry.name)) and (pattern.startswith(".") or not _is_hidden(entry.name)):
            yield entry


def _file_place(path: Path) -> Place:
    """The place of a file that was named by itself. Raises `SourceError` when it is packed."""
    kind = _archive_kind(path)
    if kind == "packed":
        _refuse_packed(path)
    if kind:
        return Place(kind, resolved(path), resolved(path))
    return Place("files", resolved(path.parent), resolved(path.parent), (path.name,))


def _archive_place(path: Path) -> Place | None:
    """The place of a file that a glob names, if it is an archive."""
    if path.suffix and _is_candidate(path.name):
        return None  # a glob may name many slices, and opening each to look takes minutes
    kind = _archive_kind(path)
    return Place(kind, resolved(path), resolved(path)) if kind else None


def _archive_kind(path: Path) -> str:
    """zip, packed, or nothing."""
    head = _head(path)
    if zip_directory.is_zip(path.name, head):
        return "zip"
    return "packed" if packed.packing(path.name, head) else ""


def _refuse_packed(path: Path) -> None:
    raise SourceError(packed.advice(str(path), packing(path)))


def packing(path: Path) -> str:
    """How a file is packed (`packed.packing`)."""
    return packed.packing(path.name, _head(path))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(packed.HEAD_BYTES)


def _scan(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror}); check its rights") from error


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError:
        return (UNKNOWN, UNKNOWN)  # of a dangling link's target: no folder that was walked
    return (status.st_dev, status.st_ino)


def _leads_to_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself; it is listed as a file and fails when it is read


def _size_and_mtime(entry: os.DirEntry | Path) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return (UNKNOWN, UNKNOWN)  # a dangling link, or gone since: the reader says so of this slice
    return (status.st_size, status.st_mtime_ns)


def _is_candidate(name: str) -> bool:
    return re.search(CANDIDATE, name) is not None


def _is_hidden(name: str) -> bool:
    return re.search(HIDDEN, name) is not None
