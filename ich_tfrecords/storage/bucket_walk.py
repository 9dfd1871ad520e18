"""Objects that an input names in Cloud Storage: a folder, a glob, one object, a zip archive.

The same rules as for local folders hold of names; a listing has no folders, links or unreadable corners.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ich_tfrecords.storage import bucket_ranges, buckets, folder_walk, packed, zip_directory
from ich_tfrecords.storage.bucket_path import BucketPath, any_path
from ich_tfrecords.storage.folder_walk import CANDIDATE, HIDDEN
from ich_tfrecords.storage.zip_directory import SourceError

_is_candidate = re.compile(CANDIDATE).search
_SEEN = HIDDEN.replace("(^|/)", "(?!", 1) + ")"  # a part of a name that is not hidden begins here
_ANY = f"{_SEEN}[^/]*"
_BELOW = f"(?:/{_ANY})*"


class Objects(NamedTuple):
    """The objects below `root` that `pattern` (a regular expression on the name) names; slice names are relative.

    What `named` matches was named itself, so it is a slice whatever its suffix.
    """

    root: BucketPath
    below: str  # what their keys begin with
    pattern: str

    def names(self) -> Iterator[tuple[str, buckets.Stored, bool]]:
        """(name, object, whether the input named it itself and not a folder that it lies in), in no order."""
        match = re.compile(self.pattern, re.DOTALL).fullmatch
        for stored in bucket_ranges.listed(self.root.bucket, self.below):
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
    if path.key and path.is_file():
        if _is_zip(path, text):
            return path
        return Objects(path.parent, path.key, f"{re.escape(path.name)}(?P<rest>)")
    if path.is_dir():
        return Objects(path, path.prefix, f"(?P<rest>{_ANY}{_BELOW})")
    parts = path.key.split("/")
    magic = next((i for i, part in enumerate(parts) if folder_walk.MAGIC.search(part)), None)
    if magic is None:
        raise SourceError(f"{text}: there is no such object and none below it; check the name")
    root = BucketPath(path.bucket, "/".join(parts[:magic]))
    begin = folder_walk.MAGIC.split(parts[magic])[0]
    pattern = _pattern(parts[magic:])
    try:
        re.compile(pattern)
    except re.error as error:
        raise SourceError(f"{text}: is no pattern ({error.msg}); write [a-z] in ascending order") from error
    return Objects(root, root.prefix + begin, pattern)


def _pattern(parts: list[str]) -> str:
    """A glob as a regular expression; `*` stays within a part, `**` goes through folders, `rest` lies below.

    As in a local folder hidden names are met only by a part that begins with a dot itself.
    """
    *before, last = parts
    text = "".join(f"(?:{_ANY}/)*" if part == "**" else f"{_part_pattern(part)}/" for part in before)
    if last == "**":
        return f"{text}(?P<rest>{_ANY}{_BELOW})"
    return f"{text}{_part_pattern(last)}(?P<rest>{_BELOW})"


def _part_pattern(part: str) -> str:
    kinds = {"*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*+|\?|\[(?:!?\]|!(?=[^\]])|(?=[^\]!]))[^\]]*\])", part)  # every second one is a wildcard
    text = "".join(
        (kinds.get(piece[:1]) or _letters(piece)) if i % 2 else re.escape(piece) for i, piece in enumerate(pieces)
    )
    return text if part.startswith(".") else _SEEN + text


def _letters(piece: str) -> str:
    """`[abc]` or `[!abc]` as a regular expression."""
    negation = "^" if piece[1] == "!" else ""
    letters = re.sub(r"[\\\[\]^&~|]", r"\\\g<0>", piece[1 + len(negation) : -1])
    return f"(?!/)[{negation}{letters}]"


def is_slice(name: str, named: bool) -> bool:
    """Whether an object counts as a slice by its name."""
    return bool(_is_candidate(name)) or (named and not packed.is_packed(packed.suffix(name)))


def is_archive(name: str) -> bool:
    """Whether a glob takes an object for a zip archive: by its suffix alone, for opening each takes a request."""
    return name.lower().endswith(".zip")


def _is_zip(path: BucketPath, text: str) -> bool:
    """Whether an object named by itself is a zip archive. Raises `SourceError` when it is packed otherwise."""
    head = buckets.read_range(path.bucket, path.key, 0, packed.HEAD_BYTES)
    if zip_directory.is_zip(path.name, head):
        return True
    if kind := packed.packing(path.name, head):
        raise SourceError(packed.advice(text, kind))
    return False
