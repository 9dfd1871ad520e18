"""Objects that an input names in Cloud Storage: a folder, a glob, one object, a zip archive.

The same rules as for local folders hold of names; a listing has no folders, links or unreadable corners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ich_tfrecords import buckets, folder_walk, zip_directory
from ich_tfrecords.bucket_path import BucketPath, any_path
from ich_tfrecords.folder_walk import CANDIDATE, HIDDEN
from ich_tfrecords.zip_directory import SourceError

_is_candidate = re.compile(CANDIDATE).search
_is_hidden = re.compile(HIDDEN).search


class Objects(NamedTuple):
    """The objects below `root` that `pattern` (a regular expression on the name) names; slice names are relative.

    What `named` matches was named itself, so it is a slice whatever its suffix.
    """

    root: BucketPath
    below: str  # what their keys begin with
    pattern: str

    def names(self) -> Iterator[tuple[str, buckets.Stored, bool]]:
        """(name, object, whether the input named it itself and not a folder that it lies in)."""
        match = re.compile(self.pattern, re.DOTALL).fullmatch
        for stored in buckets.listed(self.root.bucket, self.below):
            name = stored.key[len(self.root.prefix) :]
            found = match(name)
            if found and name and not name.endswith("/"):
                yield name, stored, not found["rest"]


def places(text: str) -> Objects | BucketPath:
    """What one input names: objects, or the path of a zip archive. Raises `SourceError` when there is nothing."""
    try:
        path = any_path(text)
        assert isinstance(path, BucketPath)
        return _places(text, path)
    except ValueError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise SourceError(
            f"{error.filename}: cannot be read ({error.strerror}); check the name and its rights"
        ) from error


def _places(text: str, path: BucketPath) -> Objects | BucketPath:
    parts = path.key.split("/")
    magic = next((i for i, part in enumerate(parts) if folder_walk.MAGIC.search(part)), None)
    if magic is not None:
        root = BucketPath(path.bucket, "/".join(parts[:magic]))
        begin = folder_walk.MAGIC.split(parts[magic])[0]
        return Objects(root, root.prefix + begin, _pattern(parts[magic:]))
    if path.key and path.is_file():
        if _is_zip(path):
            return path
        return Objects(path.parent, path.key, f"{re.escape(path.name)}(?P<rest>)")
    if not path.is_dir():
        raise SourceError(f"{text}: there is no such object and none below it; check the name")
    return Objects(path, path.prefix, "(?P<rest>.*)")


def _pattern(parts: list[str]) -> str:
    """A glob as a regular expression; `*` stays within a part, `**` goes through folders, `rest` lies below."""
    last = len(parts) - 1
    text = ""
    for i, part in enumerate(parts):
        if part == "**":
            text += "(?:.*/)?" if i < last else ".*"
        else:
            text += _part_pattern(part) + ("/" if i < last else "")
    return f"{text}(?P<rest>(?:/.*)?)" if parts[last] != "**" else f"(?P<rest>{text})"


def _part_pattern(part: str) -> str:
    kinds = {"*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*+|\?|\[[^\]]+\])", part)
    return "".join(
        kinds.get(piece[:1]) or (piece.replace("[!", "[^", 1) if piece[:1] == "[" else re.escape(piece))
        for piece in pieces
        if piece
    )


def is_slice(name: str, named: bool) -> bool:
    """Whether an object counts as a slice by its name."""
    return named or bool(_is_candidate(name))


def is_hidden(name: str) -> bool:
    """Whether a name, or a folder in it, is hidden."""
    return bool(_is_hidden(name))


def is_archive(name: str) -> bool:
    """Whether a glob takes an object for a zip archive: by its suffix alone, for opening each takes a request."""
    return name.lower().endswith(".zip")


def _is_zip(path: BucketPath) -> bool:
    if is_archive(path.name):
        return True
    if path.suffix and _is_candidate(path.name):
        return False
    return buckets.read_range(path.bucket, path.key, 0, 4) in zip_directory.BEGINNINGS
