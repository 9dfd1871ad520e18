"""Application entities: which may call, and where results go, as the command line names them."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

_TITLE = re.compile(r"(?! +$)[ -\[\]-~]{1,16}")  # PS3.5 6.2, AE: at most 16 characters, no backslash, not blank
STUDIES = "/studies"  # where an address of STOW-RS ends (PS3.18 10.5)


def title(text: str) -> str:
    """An AE title without the blanks around it, which do not count. Raises `ValueError`."""
    if not _TITLE.fullmatch(text):
        raise ValueError(f"{text!r} is no AE title (1 to 16 plain characters)")
    return text.strip()


class Caller(NamedTuple):
    """Who may call: an AE title, and the addresses it may call from; none: from everywhere."""

    title: str
    addresses: frozenset[str]

    @classmethod
    def read(cls, text: str) -> Caller:
        """`AE` or `AE@HOST`; the name of a host is looked up now. Raises `ValueError`."""
        name, at, host = text.partition("@")
        if at and not host:  # it would be everywhere
            raise ValueError(f"{text!r} names no host after the @; write AE or AE@HOST")
        return cls(title(name), frozenset(_addresses(host)) if host else frozenset())


def may_call(callers: Sequence[Caller], called_by: str, address: str) -> bool:
    """Whether one of `callers` calls; without any everybody may."""
    plain = _plain(address)
    return not callers or any(
        called_by == one.title and (not one.addresses or plain in one.addresses) for one in callers
    )


class Entity(NamedTuple):
    """Where C-STORE goes."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.title}@{host}:{self.port}"

    @property
    def is_encrypted(self) -> bool:
        """Whether nobody on the way can read what is sent: DICOM as such encrypts nothing."""
        return False


class Web(NamedTuple):
    """Where STOW-RS goes: the address of a DICOMweb service, without `/studies`."""

    url: str

    def __str__(self) -> str:
        return f"{self.url}{STUDIES}"

    @property
    def host(self) -> str:
        """Where it is."""
        return str(urlsplit(self.url).hostname)

    @property
    def is_encrypted(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        return self.url.startswith("https:")


def destination(text: str) -> Entity | Web:
    """`AE@HOST:PORT`, or `https://HOST/.../studies`. Raises `ValueError`."""
    return _web(text) if "://" in text else _entity(text)


def _entity(text: str) -> Entity:
    name, at, place = text.partition("@")
    host, _, port = place.rpartition(":")
    if not (at and host and port.isascii() and port.isdecimal() and 0 < int(port[:9]) < 1 << 16):
        raise ValueError(f"{text!r} is neither AE@HOST:PORT nor https://HOST/.../studies")
    return Entity(title(name), host.strip("[]"), int(port))


def _web(text: str) -> Web:
    parts = urlsplit(text)
    if parts.username is not None or parts.password is not None:
        raise ValueError("a password has no place on a command line, where others see it; put it into ~/.netrc")
    whole = parts.path.rstrip("/")
    if parts.scheme not in ("http", "https") or not parts.hostname or not whole.endswith(STUDIES) or parts.query:
        raise ValueError(f"{text!r} is no address of STOW-RS, such as https://pacs.example/dicom-web/studies")
    return Web(text.rstrip("/").removesuffix(STUDIES))


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine, as it calls itself; an unknown one is not."""
    try:
        return all(ipaddress.ip_address(address).is_loopback for address in _addresses(host))
    except ValueError:
        return False


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"no host {host} is known ({getattr(error, 'strerror', None) or 'no name'})") from error
    return sorted({_plain(str(place[4][0])) for place in found})


def _plain(address: str) -> str:
    """An address in one spelling; IPv4 that comes over IPv6 as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)
