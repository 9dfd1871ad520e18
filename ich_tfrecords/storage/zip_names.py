"""Names of zip members as text, in whichever of the ways in which they are written.

Clause numbers are those of PKWARE's APPNOTE.TXT 6.3.
"""

from __future__ import annotations

import re
import struct
import zlib

_UNICODE_PATH = 0x7075
_FIELD = struct.Struct("<2H")
_MARK = _UNICODE_PATH.to_bytes(2, "little")
_UNICODE_PATH_FIELD = re.compile(_MARK + rb"..\x01", re.DOTALL)


def name(raw: bytes, extra: bytes) -> str:
    """The name of a member, from the bytes of its name and of its extra field (4.4.17, 4.5.3); parted by `/`.

    The Unicode Path field counts where its crc32 is that of the name (4.6.9). Otherwise bytes that are UTF-8 are
    taken for it whatever bit 11 says, which macOS leaves out, and others for code page 437 (appendix D). Windows
    programs part folders by a backslash. Nothing is refused: a member is read by its place, and not by its name.
    """
    if raw.isascii() and b"\\" not in raw and _MARK not in extra:
        return raw.decode("ascii")
    text = _unicode_path(raw, extra) or _either(raw)
    return text.replace("\\", "/")


def are_plain(names: list[bytes], directory: bytes) -> bool:
    """Whether these names of members are text as they stand; `directory`: the bytes that their entries lie in."""
    joined = b"".join(names)
    return joined.isascii() and b"\\" not in joined and not _UNICODE_PATH_FIELD.search(directory)


def _either(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _unicode_path(raw: bytes, extra: bytes) -> str:
    """The name in the Unicode Path field that belongs to `raw`; "" where there is none."""
    at = 0
    while at + _FIELD.size <= len(extra):
        kind, size_bytes = _FIELD.unpack_from(extra, at)
        field = extra[at + _FIELD.size : at + _FIELD.size + size_bytes]
        if kind == _UNICODE_PATH and field[:5] == b"\x01" + zlib.crc32(raw).to_bytes(4, "little"):
            return field[5:].decode("utf-8", errors="replace")
        at += _FIELD.size + size_bytes
    return ""
