"""What is packed: archives and compressed files that are not read in place, and how to go on with each.

A zip has a directory, so each slice in it can be read alone. The others have none: a tar must be walked from end to
end to be listed, and a compressed one must be unpacked up to each slice, by every worker. Unpacking once is cheaper.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

HEAD_BYTES = 264  # hold every mark below, and the one of DICOM
OTHER = "other"

# Only these are told, for what stands behind the last dot of a name may be a person's.
_KNOWN = re.compile(
    r"((\.(tar|dcm|dicom|ima|nii|csv))?\.(gz|bz2|xz|zst)|\.(tar|tgz|tbz2?|txz|7z|rar|iso|zip|txt|md|csv|tsv|xls|xlsx|doc"
    r"|docx|pdf|rtf|png|jpg|jpeg|bmp|gif|tif|tiff|svg|ico|nii|nrrd|mha|mhd|raw|mat|npy|h5|xml|json|yaml|html?|js|css"
    r"|exe|dll|bat|sh|py|inf|ini|cfg|log|db|dat|bin|tmp))\Z",
    re.IGNORECASE,
)
_PACKED = re.compile(r"(\.(tar|dcm|dicom|ima))?\.(gz|bz2|xz|zst)|\.(tar|tgz|tbz2?|txz|7z|rar|iso)", re.IGNORECASE)
_MARKS = {
    b"\x1f\x8b": ".gz",
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"7z\xbc\xaf\x27\x1c": ".7z",
    b"Rar!\x1a\x07": ".rar",
}
_UNPACKERS = {".gz": "gunzip -k", ".bz2": "bunzip2 -k", ".xz": "unxz -k", ".zst": "unzstd"}


def suffix(name: str) -> str:
    """The suffix of a file left aside, as it is written; `OTHER` for one that is not known."""
    found = _KNOWN.search(name)
    return found[0] if found else OTHER


def is_packed(kind: str) -> bool:
    """Whether files of this `suffix` are packed; a zip is not, for it is read in place."""
    return _PACKED.fullmatch(kind) is not None


def is_zip(kind: str) -> bool:
    """Whether files of this `suffix` are zips."""
    return kind.lower() == ".zip"


def packing(name: str, head: bytes) -> str:
    """How a file is packed, as a suffix, by its first `HEAD_BYTES` and its name; "" for one that is not, and a zip."""
    if head[128:132] == b"DICM":
        return ""
    kind = suffix(name)
    if is_packed(kind):
        return kind.lower()
    if kind != OTHER:
        return ""  # a gzipped label file or volume holds no slices either
    if head[257:262] == b"ustar":
        return ".tar"
    return next((packed for mark, packed in _MARKS.items() if head.startswith(mark)), "")


def advice(place: str, kind: str) -> str:
    """The line about an input that is packed: what it is, and the command that unpacks it here."""
    is_tar = kind.startswith((".tar", ".tgz", ".tbz", ".txz"))
    by_suffix = _UNPACKERS.get(kind[kind.rfind(".") :]) if suffix(place).lower() == kind else None
    unpack, file = "tar xf" if is_tar else by_suffix or "7z x", place
    if place.startswith("gs://"):
        file = place.rpartition("/")[2]
        unpack = f"gcloud storage cp {shlex.quote(place)} . && {unpack}"
    step = f"unpack it and give the folder: {unpack} {shlex.quote(file)}"
    return f"{place}: is packed ({kind}), which is not read in place; {step}"


def counted(ignored: Mapping[str, int]) -> str:
    """Files left aside by suffix, the most frequent first: `2 .zip, 1 .txt`."""
    return ", ".join(
        f"{count:,} {kind}" for kind, count in sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    )


def unread(ignored: Mapping[str, int], beside: bool = True) -> str:
    """The line about archives among the files left aside, and what to do with them; "" where there are none.

    `beside`: slices lie there too, so the zips are one more input; else they are the only one.
    """
    zips = {kind: count for kind, count in ignored.items() if is_zip(kind)}
    packed = {kind: count for kind, count in ignored.items() if is_packed(kind)}
    steps = []
    if zips:
        globs = " ".join(f"--input 'FOLDER/**/*{kind}'" for kind in sorted(zips))
        give = "add" if beside else "give only"
        steps.append(f"{give} {globs} for zips in a folder, and unpack a zip that holds zips")
    if packed:
        steps.append(f"unpack {', '.join(sorted(packed))} first")
    return f"NOT READ: {counted(zips | packed)}, which may hold slices; {'; '.join(steps)}" if steps else ""
