"""The web application in this process, with a model that takes no TensorFlow: it reads what waits when it is woken.

Its probabilities follow from the SOP UIDs; everything else it writes as prediction does.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from dicom_files import dicom_file, head_slice, slice_elements
from starlette.testclient import TestClient

from ich_tfrecords.plural import counted
from ich_tfrecords.storage import sources
from ich_tfrecords.volumes.reader import FrameReader
from trainer.models.model_file import About
from trainer.prediction import slice_stream, triage
from trainer.prediction.folder import PredictFolder, csv_file
from trainer.prediction.map_on_slice import MapOnSlice
from trainer.prediction.slice_stream import FoundSlice, Reject
from trainer.prediction.triage import Triage
from trainer.shell.problems import WorkFailed
from trainer.web import app
from trainer.web.limits import Limits
from trainer.web.model import Model
from trainer.worklist import spool
from trainer.worklist.spool import Entry, Spool

OWN = {"X-ICH": "1"}
DIGEST = "ab" * 32


def slice_bytes(uid: str, study: str = "1.2", series: str = "1.2.1", z_mm: float = 0.0, side: int = 16) -> bytes:
    """A DICOM file of a slice of noise."""
    seed = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4], "little")
    ids = {"SOPInstanceUID": uid.encode(), "StudyInstanceUID": study.encode(), "SeriesInstanceUID": series.encode()}
    place = f"-125\\-120\\{z_mm}".encode()
    return dicom_file(slice_elements(head_slice(side, seed), ImagePositionPatient=place, **ids))


def zip_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def form(files: dict[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """What httpx takes as `files`."""
    return [("files", (name, data)) for name, data in files.items()]


def probabilities(uid: str, labels: int) -> np.ndarray:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(uid.encode()).digest()[:4], "little"))
    found = rng.uniform(0.01, 0.9, labels).round(4)
    found[0] = found.max()  # any
    return found


class StandIn:
    """In the place of a `Worker`; with `reads` False what comes waits."""

    def __init__(self, spooled: Spool, about: About) -> None:
        self.fault, self.reads = "", True
        self._spool, self._about = spooled, about
        self.failing: Callable[[Entry], None] = lambda entry: None

    def wake(self) -> None:
        for entry in self._spool.waiting() if self.reads else []:
            entry.turn(spool.WORKING)
            try:
                self.failing(entry)
                self._read(entry)
                entry.turn(spool.DONE)
            except (WorkFailed, sources.SourceError) as error:
                entry.turn(spool.FAILED, str(error))

    def map(self, entry: Entry, place: int, file: str) -> MapOnSlice:
        if self.fault:
            raise WorkFailed(self.fault)
        return MapOnSlice(np.arange(256, dtype=np.uint8).reshape(16, 16), "any")

    def _read(self, entry: Entry) -> None:
        output, labels = PredictFolder(entry.result), self._about.spec.labels
        listing = sources.list_inputs(entry.inputs()).table
        found, lost = self._found(listing)
        known = Triage(labels, 0)
        values = np.array([probabilities(one.sop_uid, len(labels.names)) for one in found])
        known.add(found, values)
        known.reject(lost)
        with output.claimed():
            with csv_file(output.predictions, triage.slice_head(labels)) as write:
                write(map(triage.slice_row, found, values))
            with csv_file(output.rejects, Reject._fields) as write:
                write(lost)
            with csv_file(output.triage, triage.study_head(labels, known)) as write:
                write(triage.study_rows(known, labels))
            output.page.write_text("<!doctype html><title>a page</title>")
            output.finish({})
        if not found:
            raise WorkFailed(f"no file gave a prediction ({counted(len(lost), 'file')}); {output.rejects} names each")

    def _found(self, listing) -> tuple[list[FoundSlice], list[Reject]]:
        numbers = slice_stream.input_numbers(listing)
        found, lost = [], []
        with sources.SliceReader() as reader, FrameReader(reader, self._about.spec.accept) as frames:
            for ref, ct, _ in slice_stream.read_slices(sources.refs(listing), frames):
                number = numbers[ref.container]
                if isinstance(ct, Exception):
                    lost.append(slice_stream.unread(ref, number, ct))
                    continue
                header = ct.header
                ids = (header.sop_uid, header.study_uid, header.series_uid)
                found.append(FoundSlice(ref, number, *ids, header.position_mm))
        return found, lost


class Served:
    """A client of an application, its spool, and the stand-in for its model."""

    def __init__(self, client: TestClient, spooled: Spool, model: StandIn) -> None:
        self.client, self.spool, self.model = client, spooled, model

    def send(self, files: dict[str, bytes], **headers: str) -> str:
        """The id of an upload of these files."""
        answer = self.client.post("/api/studies", files=form(files), headers={**OWN, **headers})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def list(self) -> list[dict]:
        return self.client.get("/api/studies").json()["studies"]

    def one(self, upload: str) -> dict:
        answer = self.client.get(f"/api/studies/{upload}")
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.contextmanager
def served(
    place: Path, about: About, limits: Limits | None = None, token: str = "", hosts: Sequence[str] = ()
) -> Iterator[Served]:
    """An application whose spool is `place`; the client is let in by any host's name unless `hosts` are given."""
    with contextlib.closing(Spool(place, "--data")) as spooled:
        model = StandIn(spooled, about)
        made = app.application(spooled, Model(model, about, DIGEST), limits or Limits(), token, hosts)
        with TestClient(made, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
            yield Served(client, spooled, model)
