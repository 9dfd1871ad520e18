"""The command as a PACS meets it: studies in, results out, kills in between, and what it refuses to begin with."""

from __future__ import annotations

import contextlib
import csv
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from dicom_peer import Archive, WebArchive, associate, store
from highdicom import sr
from pydicom.sr.codedict import codes
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from ich_tfrecords import NOT_A_DEVICE
from trainer import listen
from trainer.listening.inbox import study_id
from trainer.worklist.spool import Spool

ROOT = Path(listen.__file__).parents[1]
RESULTS = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
IDLE_S = 1.5
LEAST = 12  # slices of a series that `--series best` takes
PLANTED = {
    0x00100010: ("PN", b"PLANTED^ANNA"),
    0x00100020: ("LO", b"MRN-0815"),
    0x00100030: ("DA", b"19470311"),
    0x00104000: ("LT", b"planted comment"),
}


def a_slice(study: int, number: int) -> bytes:
    place = f"-125\\-120\\{5 * number}".encode()
    uids = {"SOPInstanceUID": f"1.3.{study}.{number}", "StudyInstanceUID": f"1.2.{study}"}
    named = {name: uid.encode() for name, uid in {**uids, "SeriesInstanceUID": f"1.2.{study}.1"}.items()}
    elements = slice_elements(head_slice(64, 10 * study + number), ImagePositionPatient=place, **named)
    return dicom_file(dict(sorted({**elements, **PLANTED}.items())))


class Listening:
    """The command in a process of its own."""

    def __init__(self, flags: Sequence[object]) -> None:
        self.said: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        words = [sys.executable, "-m", "trainer.listen", "--port", "0", *map(str, flags)]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.port = int(self.until(r"^ICH listens at 127\.0\.0\.1:(\d+), spool")[1])
        self.until(re.escape(NOT_A_DEVICE))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("(it has ended)")

    def until(self, words: str) -> re.Match[str]:
        """The next line with these words; those before it were said, too."""
        while True:
            try:
                self.said.append(self._lines.get(timeout=90))
            except queue.Empty:
                raise AssertionError(self.said) from None
            if found := re.search(words, self.said[-1]):
                return found
            assert self.said[-1] != "(it has ended)", self.said

    def end(self, by: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(by)
        code = self.process.wait(60)
        while self.said[-1:] != ["(it has ended)"]:
            self.said.append(self._lines.get(timeout=60))
        return code


@pytest.fixture
def listening(export, tmp_path) -> Iterator[Callable[..., Listening]]:
    """listening(*flags) -> the command that listens into `tmp_path / "spool"`."""
    made: list[Listening] = []

    def begin(*flags: object) -> Listening:
        given = ("--model", export, "--spool", tmp_path / "spool", "--idle_s", IDLE_S)
        made.append(Listening((*given, *flags)))
        return made[-1]

    yield begin
    for one in made:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def rows(spool: Path, study: int) -> list[dict[str, str]]:
    with (spool / "studies" / study_id(f"1.2.{study}") / "result" / "triage.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def in_time(holds: Callable[[], object]) -> bool:
    end = time.monotonic() + 90
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def probabilities(report: pydicom.Dataset) -> dict[str, float]:
    found = {}
    for group in sr.ComprehensiveSR.from_dataset(report).content.get_image_measurement_groups():
        (measured,) = group.get_measurements(name=codes.DCM.Probability)
        found[group.tracking_identifier] = float(measured.value)
    return found


@pytest.mark.long
@pytest.mark.slow
def test_three_studies_over_two_associations_of_which_one_breaks_off(listening, tmp_path, about):
    """Each gives a result, the broken one after its rest came; a late object makes one be judged again; all is sent."""
    with Archive().open(RESULTS) as archive:
        running = listening("--send_to", f"PACS@127.0.0.1:{archive.port}")
        one, two = associate(running.port), associate(running.port)
        for number in range(LEAST):
            assert store(one, a_slice(1, number)).Status == 0
            assert store(two, a_slice(2, number)).Status == 0
            assert store(one, a_slice(3, number)).Status == 0
        one.abort()  # half of study 3 is missing, and study 1 is whole, which nobody here can know
        two.release()
        running.until(f"^study {study_id('1.2.2')[:8]}: any 0[.]\\d+, {LEAST} slices, ")
        rest = associate(running.port)
        for number in range(LEAST):
            assert store(rest, a_slice(1, number)).Status == 0  # a sender sends all of it again
            assert store(rest, a_slice(3, number)).Status == 0
        for number in range(LEAST, 2 * LEAST):
            assert store(rest, a_slice(3, number)).Status == 0
        rest.release()
        assert in_time(lambda: len(archive.held) == 6)
        slices = [row["slices"] for study in (1, 2, 3) for row in rows(tmp_path / "spool", study)]
        assert slices == [str(LEAST), str(LEAST), str(2 * LEAST)]

        late = associate(running.port)
        assert store(late, a_slice(2, LEAST)).Status == 0
        late.release()
        assert in_time(lambda: len(archive.held) == 8)
        assert running.end() == 0
    reports = [one for one in archive.held if one.SOPClassUID == ComprehensiveSRStorage]
    assert sorted(one.StudyInstanceUID for one in reports) == ["1.2.1", "1.2.2", "1.2.2", "1.2.3"]
    for report in reports:
        assert (report.PatientName, report.PatientID) == ("PLANTED^ANNA", "MRN-0815")
    (row,) = rows(tmp_path / "spool", 2)
    assert row["slices"] == str(LEAST + 1)
    newest = [one for one in reports if one.StudyInstanceUID == "1.2.2"][-1]
    assert probabilities(newest) == {name: float(row[name]) for name in about.spec.labels.names}
    others = [path for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    for path in [path for path in others if path.parent.name != "files" and "dicom" not in path.parts]:
        assert not [word for word in (b"PLANTED", b"MRN-0815", b"planted") if word in path.read_bytes()], path
    screen = "\n".join(running.said)
    assert not [word for word in ("PLANTED", "MRN-0815", "19470311", "planted", "Traceback") if word in screen]
    assert not [word for word in ("1.2.1", "1.2.2", "1.2.3") if f"{word} " in screen]


@pytest.mark.long
@pytest.mark.slow
def test_nothing_is_lost_by_a_kill(listening, tmp_path):
    """Killed with a study received, one judged that nobody took, and half an object on its way."""
    archive = Archive()
    with archive.open(RESULTS):
        port = archive.port
    running = listening("--send_to", f"PACS@127.0.0.1:{port}")  # nobody is there
    association = associate(running.port)
    for number in range(LEAST):
        assert store(association, a_slice(1, number)).Status == 0
    running.until(
        f"^listen: study {study_id('1.2.1')[:8]}: not sent, tried again later: PACS@127.0.0.1:{port} does not"
    )
    for number in range(LEAST):
        assert store(association, a_slice(2, number)).Status == 0
    half = tmp_path / "spool" / "incoming" / "received-half.dcm"
    half.write_bytes(b"half an object")
    running.end(signal.SIGKILL)
    association.abort()
    with archive.open(RESULTS, port):
        again = listening("--send_to", f"PACS@127.0.0.1:{port}")
        assert not half.exists()
        assert in_time(lambda: len(archive.held) == 4)
        assert again.end() == 0
    found = {(one.StudyInstanceUID, one.SOPClassUID) for one in archive.held}
    assert found == {(study, kind) for study in ("1.2.1", "1.2.2") for kind in RESULTS}
    assert [row["slices"] for study in (1, 2) for row in rows(tmp_path / "spool", study)] == [str(LEAST)] * 2


@pytest.mark.long
@pytest.mark.slow
def test_a_study_without_a_slice_fails_by_name_and_others_go_on(listening, tmp_path):
    """By STOW-RS this time. SIGTERM to the whole group, as systemd sends it, costs no study, and is waited out."""
    archive = WebArchive()
    with archive.open() as url:
        running = listening("--send_to", url)
        association = associate(running.port)
        localizer = dicom_file(
            slice_elements(
                head_slice(32), SOPInstanceUID=b"1.3.9", StudyInstanceUID=b"1.2.9",
                ImageType=b"ORIGINAL\\PRIMARY\\LOCALIZER",
            )
        )  # fmt: skip
        assert store(association, localizer).Status == 0
        for number in range(LEAST):
            assert store(association, a_slice(1, number)).Status == 0
        association.release()
        running.until(f"^listen: study {study_id('1.2.9')[:8]}: no result: ")
        assert in_time(lambda: len(archive.held) == 2)
        second = associate(running.port)
        for number in range(LEAST):
            assert store(second, a_slice(2, number)).Status == 0
        running.until(f"^study {study_id('1.2.2')[:8]}: {LEAST} objects, and quiet; waits for the model")
        os.killpg(running.process.pid, signal.SIGTERM)
        running.until("^ending: open associations first")
        time.sleep(1)
        assert store(second, a_slice(3, 0)).Status == 0  # what is open goes on
        second.release()
        assert running.process.wait(60) == 0
        again = listening("--send_to", url)
        assert in_time(lambda: len(archive.held) == 4)
        assert again.end(signal.SIGINT) == 130
    assert "listen: interrupted; what was received is in --spool; the same command goes on" in again.said
    assert {one.StudyInstanceUID for one in archive.held} == {"1.2.1", "1.2.2"}
    assert len(list((tmp_path / "spool" / "studies" / study_id("1.2.3") / "files").iterdir())) == 1


# --- what it refuses to begin with ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--model"),
        (["--model", ""], "holds no model"),
        (["--model", "MODEL", "--ae_title", "x" * 17], "is no AE title"),
        (["--model", "MODEL", "--port", "65536"], "'65536' is no number from 0 to 65,535"),
        (["--model", "MODEL", "--port", "x"], "'x' is no number"),
        (["--model", "MODEL", "--idle_s", "0"], "is no number from 0.1 to 86,400"),
        (["--model", "MODEL", "--idle_s", "nan"], "'nan' is no number"),
        (["--model", "MODEL", "--keep_days", "-1"], "'-1' is no number from 0"),
        (["--model", "MODEL", "--allow", "a\\b"], "is no AE title"),
        (["--model", "MODEL", "--send_to", "PACS"], "is neither AE@HOST:PORT nor"),
        (["--model", "MODEL", "--spool", "FULL"], "which is none of this command's"),
        (["--model", "MODEL", "--spool", "FULL/studies"], "holds mine.txt, which is none of this command's"),
        (["--model", "MODEL", "--spool", "FULL/studies/mine.txt"], "cannot be made: File exists"),
        (["--model", "MODEL", "--spool", "gs://bucket/x"], "is in a bucket"),
        (["--model", "MODEL", "--spools", "x"], "unknown flag --spools"),
    ],
)
def test_wrong_use_is_one_line(export, tmp_path, flags, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "studies").mkdir(parents=True)
    (tmp_path / "full" / "studies" / "mine.txt").write_text("mine")
    given = [word.replace("MODEL", str(export)).replace("FULL", str(tmp_path / "full")) for word in flags]
    assert listen.main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_second_one_into_the_same_spool_is_refused(export, tmp_path, capsys):
    with contextlib.closing(Spool(tmp_path / "studies", "--spool")):
        assert listen.main(["--model", str(export), "--spool", str(tmp_path), "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert f"studies is in use by process {os.getpid()} on " in err
    assert len(err.splitlines()) == 1


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded(export, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert listen.main(["--model", str(export), "--spool", str(tmp_path / "spool"), "--port", port]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"listen: cannot listen at 127.0.0.1:{port} (Address already in use); ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ([], []),
        (["--host", "0.0.0.0"], ["network of your own, and say who may call with --allow"]),
        (["--host", "0.0.0.0", "--allow", "CT1"], ["inside a network of your own"]),
        (["--send_to", "PACS@192.0.2.1:104"], ["PACS@192.0.2.1:104 is elsewhere, and nothing encrypts"]),
        (["--send_to", "http://192.0.2.1/studies"], ["http://192.0.2.1/studies is elsewhere, and nothing encrypts"]),
        (["--send_to", "https://192.0.2.1/studies"], []),
        (["--send_to", "PACS@localhost:104"], []),
    ],
)
def test_what_others_could_read_is_told(export, tmp_path, monkeypatch, capsys, flags, lines):
    from trainer.listening import service

    seen: list[service.Settings] = []
    monkeypatch.setattr(service, "run", lambda settings, listening: seen.append(settings))
    spool = tmp_path / "spool"
    assert listen.main(["--model", str(export), "--spool", str(spool), *flags]) == 0
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(lines)
    assert all(words in line for words, line in zip(lines, told))
    assert spool.stat().st_mode & 0o777 == 0o700
    assert seen[0].title == "ICH"
