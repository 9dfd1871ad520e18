"""DICOM files on their way out: by C-STORE to another application entity, or by STOW-RS to a web address."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pynetdicom import AE, _config
from pynetdicom.association import Association

from trainer.listening.peers import Entity, Web
from trainer.shell.problems import in_short

CONNECT_S, ANSWER_S = 10, 60
Send = Callable[[Sequence[Path]], None]


class NotSent(Exception):
    """Why the other side does not have all of it; the message names nobody."""


def by(destination: Entity | Web, title: str) -> Send:
    """The function that sends files there, as the entity `title`; it raises `NotSent`."""
    if isinstance(destination, Web):
        return lambda files: _stow(destination, files)
    return lambda files: _store(destination, title, files)


def _store(to: Entity, title: str, files: Sequence[Path]) -> None:
    """C-STORE of each file as it stands, in its own transfer syntax."""
    _config.STORE_SEND_CHUNKED_DATASET = True  # the bytes of the file, not decoded and encoded again
    heads = [pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta for path in files]
    entity = AE(title)
    entity.acse_timeout = entity.connection_timeout = CONNECT_S
    entity.dimse_timeout = entity.network_timeout = ANSWER_S
    for kind, syntax in sorted({(head.MediaStorageSOPClassUID, head.TransferSyntaxUID) for head in heads}):
        entity.add_requested_context(kind, syntax)
    with _associated(entity, to) as association:
        for path in files:
            try:
                answer = association.send_c_store(path)
            except ValueError as error:  # of the negotiation: no context for what this file is
                raise NotSent(f"{to} takes no {_kind(path)}") from error
            except RuntimeError as error:
                raise NotSent(f"{to} has ended the association") from error
            if "Status" not in answer:
                raise NotSent(f"{to} gave no answer")
            if answer.Status and answer.Status >> 12 != 0xB:  # a warning (PS3.7 C.2) is a success
                raise NotSent(f"{to} refuses {_kind(path)} with status {answer.Status:04X}")


def _kind(path: Path) -> str:
    return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta.MediaStorageSOPClassUID.name


@contextlib.contextmanager
def _associated(entity: AE, to: Entity) -> Iterator[Association]:
    association = entity.associate(to.host, to.port, ae_title=to.title)
    if not association.is_established:
        raise NotSent(f"{to} {_refusal(association)}")
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _refusal(association: Association) -> str:
    if not association.is_rejected:
        return "does not answer, or takes nothing of what is sent"
    primitive: Any = association.acceptor.primitive
    return f"rejects the association ({primitive.reason_str})"


def _stow(to: Web, files: Sequence[Path]) -> None:
    """One request with all files. A login comes from ~/.netrc, as requests has it."""
    logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)
    client = DICOMwebClient(to.url, timeout=(CONNECT_S, ANSWER_S))
    client.set_http_retry_params(retry=False)  # the outbox tries again
    try:
        answer = client.store_instances([pydicom.dcmread(path) for path in files])
    except (requests.RequestException, ValueError) as error:
        raise NotSent(f"{to} does not take them ({in_short(error)})") from error
    if failed := answer.get("FailedSOPSequence"):
        raise NotSent(f"{to} refuses {len(failed)} of {len(files)} objects ({failed[0].FailureReason:04X})")
