"""Objects as they were received, each in the folder of its study, on the disk before anybody is told of success."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import atomic, file_system, sources
from trainer.listening.screen import warn
from trainer.listening.studies import Studies

MIN_FREE_BYTES = 2 << 30  # what prediction writes of a study needs room as well
PREFIX = "received-"  # of the names of objects that are not whole yet
HEAD_BYTES = 1 << 20  # of a file of many slices
STALE_S = 600.0  # an association is silent for a tenth of that at most
_LAST = 0x0020000D  # StudyInstanceUID
MOST_UID = 64  # characters (PS3.5 6.2)

# Status of C-STORE (PS3.4 B.2.3, PS3.7 C.5)
SUCCESS, NO_ROOM, OTHER_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000


class Taken(NamedTuple):
    """The status of C-STORE, a comment of at most 64 characters, and the id of the study that has grown, or ""."""

    status: int
    comment: str = ""
    study: str = ""


class Inbox:
    """Puts received files in their place. `studies` says where that is, and hears what arrived."""

    def __init__(self, incoming: Path, studies: Studies) -> None:
        self.incoming, self._studies = incoming, studies
        self._is_full = False
        incoming.mkdir(exist_ok=True)
        for left in self._unfinished():  # of a process that was killed: no sender was told of success
            left.unlink()

    def take(self, received: Path, sop_class: str, sop_uid: str) -> Taken:
        """Keep the file `received`, whose sender calls it so; nothing raises, since the sender waits for an answer."""
        if not self._has_room():
            return Taken(NO_ROOM, "the disk of the receiver is full")
        try:
            study_uid, complaint = _study_of(received, sop_class, sop_uid)
            if complaint:
                return complaint
            study = study_id(study_uid)
            self._keep(received, self._studies.place(study) / f"{_digest(sop_uid)}.dcm")
            self._studies.arrived(study)
        except OSError as error:
            warn(f"an object could not be written: {error.strerror}; its sender was refused")
            return Taken(NO_ROOM, f"cannot be written: {error.strerror}"[:64])
        return Taken(SUCCESS, study=study)

    def tidy(self) -> None:
        """Remove what associations left that ended inside an object."""
        for path in self._unfinished():
            with contextlib.suppress(FileNotFoundError):  # it became an object meanwhile
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()

    def _unfinished(self) -> Iterator[Path]:
        return self.incoming.glob(f"{PREFIX}*")

    def _has_room(self) -> bool:
        free = shutil.disk_usage(self.incoming).free
        if self._is_full != (free < MIN_FREE_BYTES):
            self._is_full = not self._is_full
            now = "is full: objects are refused (A700) until there is room" if self._is_full else "has room again"
            warn(f"the disk of {self.incoming.parent} {now} ({free >> 20:,} of {MIN_FREE_BYTES >> 20:,} MiB free)")
        return not self._is_full

    @staticmethod
    def _keep(received: Path, place: Path) -> None:
        """The file at its place, through a power cut too. One that is there already and is the same stays untouched."""
        with received.open("rb") as file:
            file_system.sync(file.fileno(), place.parent)
        if not _are_same(received, place):
            received.replace(place)
        atomic.sync_folder(place.parent)


def study_id(study_uid: str) -> str:
    """32 hexadecimal digits for a StudyInstanceUID: names on the disk and on the screen come from nobody outside."""
    return _digest(f"study {study_uid}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _study_of(received: Path, sop_class: str, sop_uid: str) -> tuple[str, Taken | None]:
    """StudyInstanceUID of a file, and why it is refused. Raises `OSError`."""
    try:
        is_slice = received.stat().st_size <= sources.MAX_SLICE_BYTES  # what is deflated is read whole
        with received.open("rb") as file:
            found = ct_slice.elements_of(file.read(sources.MAX_SLICE_BYTES if is_slice else HEAD_BYTES), _LAST)
    except Problem as problem:
        return "", Taken(NOT_UNDERSTOOD, f"its header cannot be read ({problem.reason})"[:64])
    says = {name: str(found.get(name, "")).strip(" \0") for name in ("SOPClassUID", "SOPInstanceUID", "Modality")}
    study_uid = str(found.get("StudyInstanceUID", "")).strip(" \0")
    if (says["SOPClassUID"], says["SOPInstanceUID"]) != (sop_class, sop_uid):
        return "", Taken(OTHER_CLASS, "the data set bears another SOP class or instance")
    if says["Modality"] != "CT":
        return "", Taken(OTHER_CLASS, "the modality is not CT")
    if not 0 < len(study_uid) <= MOST_UID:
        return "", Taken(NOT_UNDERSTOOD, "it names no study")
    return study_uid, None


def _are_same(one: Path, other: Path) -> bool:
    try:
        sizes = {path.stat().st_size for path in (one, other)}
    except FileNotFoundError:
        return False
    return len(sizes) == 1 and atomic.file_crc32c(one) == atomic.file_crc32c(other)
