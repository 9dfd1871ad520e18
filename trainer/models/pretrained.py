"""ImageNet weights of the applications: found in Keras's cache, or downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras

from ich_tfrecords import environment
from trainer.models.applications import APPLICATIONS, Application
from trainer.shell.problems import WrongUse, in_short

SILENCE_S = 60.0


def imagenet_weights(name: str) -> Path:
    """The file of ImageNet weights of an application (without its top), from Keras's cache folder or downloaded.

    Only a file with the published digest is taken, where Keras publishes one. A download goes to a folder of its own
    and is moved into place when whole, so that one broken off, or two at the same time, spoil nothing. Raises
    `WrongUse` with the ways out.
    """
    if name not in APPLICATIONS:
        raise WrongUse(f"weights imagenet: there are none for {name}; give --weights none, or the path of its own file")
    application = APPLICATIONS[name]
    folder = _keras_folder() / "models"
    target = folder / application.weights_file
    try:
        if not _is_whole(target, application.digest):
            _download(application, folder)
    except Exception as error:  # get_file raises bare Exception
        reason = in_short(error).replace(application.weights_url, "the address below")
        here = f"{target.name} is neither whole in {folder} nor can it be downloaded ({reason})"
        fetch = f"get {application.weights_url} elsewhere and place it in {folder} or give --weights PATH of it"
        raise WrongUse(f"weights imagenet: {here}; give --weights none, or {fetch}") from error
    return target


def _keras_folder() -> Path:
    """Keras's own rule for the folder that it keeps downloads in."""
    if os.environ.get("KERAS_HOME"):
        return environment.expanded(os.environ["KERAS_HOME"])
    home = environment.expanded("~")
    return (home if os.access(home, os.W_OK) else Path(tempfile.gettempdir())) / ".keras"


def _is_whole(path: Path, digest: str) -> bool:
    """Whether there is a file with the digest; with "" whether one opens as HDF5, which knows its own length."""
    if not path.is_file():
        return False
    if not digest:
        with contextlib.suppress(OSError), h5py.File(path, "r"):
            return True
        return False
    kind = "sha256" if len(digest) == 64 else "md5"
    return hashlib.new(kind, path.read_bytes(), usedforsecurity=False).hexdigest() == digest


def _download(application: Application, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as staging:
        where = {"cache_dir": staging, "cache_subdir": ".", "file_hash": application.digest or None}
        with _silence_ends(SILENCE_S):
            got = Path(keras.utils.get_file(application.weights_file, application.weights_url, **where))
        if not _is_whole(got, application.digest):
            wanted = f"the file of digest {application.digest}" if application.digest else "a whole HDF5 file"
            raise ValueError(f"{got.stat().st_size:,} bytes came, not {wanted}")
        got.replace(folder / application.weights_file)


@contextlib.contextmanager
def _silence_ends(seconds: float) -> Iterator[None]:
    """Connections opened meanwhile fail after so many quiet seconds; `get_file` would wait without an end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
