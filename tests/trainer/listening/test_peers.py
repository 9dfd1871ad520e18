"""Who may call, and where results go, as they are written on a command line."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.listening import peers
from trainer.listening.peers import Caller, Entity, Web, may_call


@pytest.mark.parametrize("text", ["ICH", "A", "a b", "x" * 16, " ICH ", "CT-1_.2", "]["])
def test_titles(text):
    assert peers.title(text) == text.strip()


@pytest.mark.parametrize("text", ["", " ", "x" * 17, "a\\b", "a\nb", "ä", "\x1b[2J", "a\n"])
def test_what_is_no_title(text):
    with pytest.raises(ValueError, match="is no AE title"):
        peers.title(text)


@given(st.text(max_size=20))
def test_a_title_is_what_dicom_says(text):
    is_one = 1 <= len(text) <= 16 and text.isascii() and text.isprintable() and "\\" not in text and text.strip(" ")
    try:
        assert peers.title(text) == text.strip()
        assert is_one
    except ValueError:
        assert not is_one


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PACS@pacs.example:104", Entity("PACS", "pacs.example", 104)),
        ("P@10.0.0.1:65535", Entity("P", "10.0.0.1", 65535)),
        ("P@[::1]:104", Entity("P", "::1", 104)),
        ("https://pacs.example/dicom-web/studies", Web("https://pacs.example/dicom-web")),
        ("http://localhost:8042/dicom-web/studies/", Web("http://localhost:8042/dicom-web")),
    ],
)
def test_destinations(text, expected):
    assert peers.destination(text) == expected
    assert peers.destination(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PACS", "is neither AE@HOST:PORT nor"),
        ("PACS@host", "is neither"),
        ("PACS@host:0", "is neither"),
        ("PACS@host:65536", "is neither"),
        ("PACS@host:" + "9" * 5000, "is neither"),
        ("PACS@:104", "is neither"),
        ("@host:104", "is no AE title"),
        ("https://host/dicom-web", "no address of STOW-RS"),
        ("https:///studies", "no address of STOW-RS"),
        ("ftp://host/studies", "no address of STOW-RS"),
        ("https://host/studies?x=1", "no address of STOW-RS"),
        ("https://me:secret@host/studies", "put it into ~/.netrc"),
    ],
)
def test_what_is_no_destination(text, words):
    with pytest.raises(ValueError, match=words.replace(".", "\\.")) as error:
        peers.destination(text)
    assert "secret" not in str(error.value)


def test_callers():
    anywhere, here = Caller.read("CT1"), Caller.read("CT2@localhost")
    assert anywhere == Caller("CT1", frozenset())
    assert "127.0.0.1" in here.addresses
    assert may_call([], "anybody", "192.0.2.1")
    assert may_call([anywhere, here], "CT1", "192.0.2.1")
    assert may_call([anywhere, here], "CT2", "127.0.0.1")
    assert may_call([here], "CT2", "::ffff:127.0.0.1")  # the same, on a socket of both kinds
    assert not may_call([anywhere, here], "CT2", "192.0.2.1")
    assert not may_call([anywhere, here], "CT3", "127.0.0.1")


def test_no_host_after_the_at_is_not_everywhere():
    """As `--allow CT1@$SCANNER` is where the variable is not set."""
    with pytest.raises(ValueError, match="'CT1@' names no host after the @; write AE or AE@HOST"):
        Caller.read("CT1@")


def test_a_host_that_nobody_knows(monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ValueError, match="no host nowhere is known"):
        Caller.read("CT@nowhere")
    assert not peers.is_loopback("nowhere")  # who knows


def test_what_only_this_machine_reaches():
    assert all(map(peers.is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(peers.is_loopback, ("0.0.0.0", "192.0.2.1", "::")))
