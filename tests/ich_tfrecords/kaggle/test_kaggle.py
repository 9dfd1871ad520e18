"""Fetching the Kaggle archive: a stub client for the account, a server on loopback for the bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import http.server
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ich_tfrecords.kaggle import command, download
from ich_tfrecords.kaggle.download import Patience

SECRET = "SIGNED-0123"
ROOT = Path(__file__).parents[3]


def archive_bytes(train: int = 5, test: int = 3, fill: int = 0) -> bytes:
    """A zip in the layout of the competition, the same bytes at any time of the day."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for folder, count in (("stage_2_train", train), ("stage_2_test", test)):
            for number in range(count):
                name = f"{command.COMPETITION}/{folder}/ID_{number:09x}.dcm"
                archive.writestr(zipfile.ZipInfo(name), bytes([fill, number]) * 20_000)
        archive.writestr(zipfile.ZipInfo(f"{command.COMPETITION}/stage_2_train.csv"), "ID,Label\n")
    return file.getvalue()


class Storage(http.server.ThreadingHTTPServer):
    """Serves `data`. `script` holds what to do with the next requests: a status, `cut(n)`, or anything callable."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.data, self.etag, self.ranges, self.content_type = archive_bytes(), '"one"', True, "application/zip"
        self.script: list[int | Callable[[_Answer], None]] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/bundle.zip?X-Signature={SECRET}"


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Storage
    limit: int | None = None

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        step = self.server.script.pop(0) if self.server.script else None
        if isinstance(step, int):
            return self.empty(step)
        if step is not None:
            step(self)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        total = len(self.server.data)
        if begin >= total:
            return self.empty(416, {"Content-Range": f"bytes */{total}"})
        self.send_response(206 if asked and self.server.ranges else 200)
        if asked and self.server.ranges:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("Content-Length", str(total - begin))
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        self.end_headers()
        end = total if self.limit is None else begin + self.limit
        with contextlib.suppress(OSError):  # the client may leave
            self.wfile.write(self.server.data[begin:end])
        return None

    def empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


def cut(after: int) -> Callable[[_Answer], None]:
    def step(answer: _Answer) -> None:
        answer.limit = after

    return step


@pytest.fixture
def storage() -> Iterator[Storage]:
    server = Storage()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class HttpError(OSError):
    """As `requests` raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} for url: https://kaggle.test/x?X-Signature={SECRET}")
        self.response = types.SimpleNamespace(status_code=status)


class Account:
    """The other side of the stub client: `answers` holds a status or an error for each of the next requests."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.answers: list[int | Exception] = []
        self.login: BaseException | None = None
        self.sessions: list[types.SimpleNamespace] = []
        self.closed = 0

    def link(self) -> str:
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, int):
            raise HttpError(answer)
        if answer is not None:
            raise answer
        return self.storage.url

    def close(self) -> None:
        self.closed += 1


def client_module(account: Account) -> types.ModuleType:
    """What `kaggle.api.kaggle_api_extended` holds from 1.7 on."""
    module = types.ModuleType("kaggle.api.kaggle_api_extended")

    class KaggleApi:
        __module__ = module.__name__

        def authenticate(self) -> None:
            print("noise of the client")
            if account.login is not None:
                raise account.login

        @contextlib.contextmanager
        def build_kaggle_client(self):
            session = types.SimpleNamespace(stream=False)
            account.sessions.append(session)
            calls = types.SimpleNamespace(download_data_files=self.download_data_files)
            yield types.SimpleNamespace(
                http_client=lambda: types.SimpleNamespace(_session=session),
                competitions=types.SimpleNamespace(competition_api_client=calls),
            )

        def download_data_files(self, request):
            assert request.competition_name == command.COMPETITION
            return types.SimpleNamespace(url=account.link(), close=account.close)

    module.KaggleApi = KaggleApi
    module.ApiDownloadDataFilesRequest = types.SimpleNamespace
    return module


def install(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType) -> None:
    for name in ("kaggle", "kaggle.api"):
        package = types.ModuleType(name)
        package.__path__ = []
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home with a token, and no Kaggle variables."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_")] + ["XDG_CONFIG_HOME"]:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    (folder / ".kaggle").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    key = folder / ".kaggle" / "kaggle.json"
    key.write_text(json.dumps({"username": "someone", "key": "0123"}))
    key.chmod(0o600)
    return folder


@pytest.fixture
def account(storage: Storage, home: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    made = Account(storage)
    install(monkeypatch, client_module(made))
    monkeypatch.setattr(command, "PATIENCE", Patience(attempts=4, first_wait_s=0, longest_wait_s=0, silence_s=5))
    return made


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], tuple[int, str, str]]:
    def download_() -> tuple[int, str, str]:
        code = command.main(["download", "--output", str(tmp_path / "data")])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        assert "noise" not in out + err
        return code, out, err

    return download_


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / command.ZIP_NAME


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def told(err: str) -> list[str]:
    """What was said, without progress."""
    return [line for line in err.splitlines() if not line.startswith("download [")]


def leave_part(target: Path, data: bytes, record: dict | None) -> None:
    """A download that was killed."""
    target.parent.mkdir(exist_ok=True)
    part_of(target).write_bytes(data)
    if record is not None:
        target.with_name(f"{target.name}.part.json").write_text(json.dumps(record))


class TestWhole:
    def test_the_archive_arrives_is_counted_and_the_next_command_printed(self, account, run, target):
        code, out, err = run()
        assert code == 0
        assert target.read_bytes() == account.storage.data
        assert [path.name for path in target.parent.iterdir()] == [command.ZIP_NAME]
        assert told(err) == []
        assert "stage_2_train: 5 slices, 752,803 were published" in out
        assert "stage_2_test: 3 slices, 121,232 were published" in out
        assert f"--input {target} " in out
        assert "--labels stage_2_train.csv" in out

    def test_the_printed_command_is_one_that_the_converter_takes(self, target):
        from beam_pipelines.convert import main

        words = shlex.split(command.next_command(target / "with space"))
        assert words[:3] == ["python", "-m", "beam_pipelines.convert"]
        assert main(words[3:]) == 2  # the input is not there, which is found after the flags

    def test_published_counts_are_said_without_a_note(self):
        assert list(command.compared({"stage_2_train": 752_803})) == ["stage_2_train: 752,803 slices"]

    def test_a_second_run_asks_nobody(self, account, run, target):
        run()
        account.storage.asked.clear()
        account.login = AssertionError("asked")
        code, out, err = run()
        assert (code, err, account.storage.asked) == (0, "", [])
        assert "already here" in out
        assert "beam_pipelines.convert" in out

    def test_a_damaged_archive_that_is_there_is_refused_and_kept(self, account, run, target):
        target.parent.mkdir()
        target.write_bytes(account.storage.data[:-100])
        code, _, err = run()
        assert code == 2
        assert "move" in err
        assert err.count("\n") == 1
        assert target.exists()

    def test_the_link_is_asked_for_without_reading_the_archive(self, account, run):
        run()
        assert [session.stream for session in account.sessions] == [True]
        assert account.closed == 1

    def test_a_client_before_1_7(self, account, run, target, monkeypatch):
        module = types.ModuleType("kaggle.api.kaggle_api_extended")
        answer = types.SimpleNamespace(geturl=account.link, close=account.close)

        class KaggleApi:
            def __init__(self, _: object) -> None:
                """Takes an ApiClient."""

            def authenticate(self) -> None:
                """A token is there."""

            def competitions_data_download_files_with_http_info(self, id, _preload_content):
                assert (id, _preload_content) == (command.COMPETITION, False)
                return answer, 200, {}

        module.KaggleApi = KaggleApi
        install(monkeypatch, module)
        monkeypatch.setitem(sys.modules, "kaggle.api_client", types.SimpleNamespace(ApiClient=object))
        assert run()[0] == 0
        assert target.read_bytes() == account.storage.data
        assert account.closed == 1


class TestResume:
    def test_a_cut_connection_goes_on_where_it_was(self, account, run, target):
        account.storage.script = [cut(70_000), cut(60_000)]
        code, _, err = run()
        assert code == 0
        assert target.read_bytes() == account.storage.data
        assert account.storage.asked == [None, "bytes=70000-", "bytes=130000-"]
        assert len(told(err)) == 2

    def test_a_killed_download_goes_on(self, account, run, target):
        data = account.storage.data
        leave_part(target, data[:90_000], {"size_bytes": len(data), "mark": '"one"'})
        assert run()[0] == 0
        assert target.read_bytes() == data
        assert account.storage.asked == ["bytes=90000-"]

    def test_a_part_that_lacks_only_its_name_is_finished(self, account, run, target):
        data = account.storage.data
        leave_part(target, data, {"size_bytes": len(data), "mark": '"one"'})
        assert run()[0] == 0
        assert target.read_bytes() == data
        assert account.storage.asked == [f"bytes={len(data)}-"]

    @pytest.mark.parametrize(
        "record", [None, {"size_bytes": 10, "mark": '"one"'}, {"size": 1}, [], {"size_bytes": "x"}]
    )
    def test_a_part_of_unknown_origin_is_thrown_away_and_that_is_said(self, account, run, target, record):
        leave_part(target, b"x" * 90_000, record)
        code, _, err = run()
        assert code == 0
        assert target.read_bytes() == account.storage.data
        assert "unknown file; starting over" in err

    def test_a_server_without_ranges_sends_all_again_and_that_is_said(self, account, run, target):
        account.storage.ranges = False
        account.storage.script = [cut(70_000)]
        code, _, err = run()
        assert code == 0
        assert target.read_bytes() == account.storage.data
        assert "ignores ranges" in err

    def test_a_server_without_ranges_that_always_cuts_ends_the_work(self, account, run, target):
        account.storage.ranges = False
        account.storage.script = [cut(70_000)] * 50
        code, _, err = run()
        assert code == 1
        assert len(account.storage.asked) == 4  # the first, and three that got no further
        assert "gave up" in err

    def test_a_changed_file_starts_over_and_that_is_said(self, account, run, target):
        storage = account.storage

        def swap(_: _Answer) -> None:
            storage.data, storage.etag = archive_bytes(fill=9), '"two"'

        storage.script = [cut(70_000), swap]
        code, _, err = run()
        assert code == 0
        assert target.read_bytes() == storage.data == archive_bytes(fill=9)
        assert "has changed" in err
        assert '"two"' in err

    def test_a_file_that_became_shorter_starts_over(self, account, run, target):
        leave_part(target, b"x" * 400_000, {"size_bytes": 500_000, "mark": '"old"'})
        code, _, err = run()
        assert code == 0
        assert target.read_bytes() == account.storage.data
        assert "416" in err

    def test_a_file_that_always_changes_ends_the_work(self, account, run, target):
        storage = account.storage

        def change(answer: _Answer) -> None:
            storage.etag = f'"{len(storage.asked)}"'
            answer.limit = 20_000 * len(storage.asked)  # more each time, so that patience alone would not end it

        storage.script = [change] * 50
        code, _, err = run()
        assert code == 1
        assert "4 times" in err
        assert len(storage.asked) == 8

    def test_a_page_of_text_does_not_cost_the_part(self, account, run, target):
        data = account.storage.data
        leave_part(target, data[:90_000], {"size_bytes": len(data), "mark": '"one"'})
        account.storage.data, account.storage.content_type = b"<html>log in</html>", "text/html"
        account.storage.ranges = False
        code, _, err = run()
        assert code == 1
        assert "page of text" in err
        assert part_of(target).read_bytes() == data[:90_000]

    def test_bytes_from_another_place_are_not_taken(self, account, run, target):
        def elsewhere(answer: _Answer) -> None:
            answer.send_response(206)
            answer.send_header("Content-Range", f"bytes 5-9/{len(account.storage.data)}")
            answer.send_header("ETag", '"one"')
            answer.send_header("Content-Length", "5")
            answer.end_headers()
            answer.wfile.write(b"wrong")
            raise ConnectionAbortedError  # no second answer

        account.storage.handle_error = lambda *_: None
        account.storage.script = [cut(70_000), elsewhere]
        assert run()[0] == 0
        assert target.read_bytes() == account.storage.data


class TestRetries:
    @pytest.mark.parametrize("status", [500, 503, 429, 408])
    def test_a_bad_moment_of_the_server_passes(self, account, run, target, status):
        account.storage.script = [status, status]
        code, _, err = run()
        assert code == 0
        assert [f"answered {status}" in line for line in told(err)] == [True, True]

    def test_a_bad_moment_of_kaggle_passes(self, account, run):
        account.answers = [503, ConnectionError("reset"), 429]
        assert run()[0] == 0

    def test_they_end(self, account, run, target):
        account.storage.script = [cut(70_000), *[503] * 50]
        code, _, err = run()
        assert code == 1
        assert len(account.storage.asked) == 4
        last = told(err)[-1]
        assert "gave up after 4 attempts" in last
        assert "70.0 kB" in last
        assert part_of(target).stat().st_size == 70_000

    def test_new_bytes_renew_the_patience(self, account, run, target):
        account.storage.script = [cut(30_000), 503, 503, cut(30_000), 503, 503, cut(30_000)]
        assert run()[0] == 0
        assert target.read_bytes() == account.storage.data

    def test_no_network_is_one_last_line(self, account, run, storage):
        account.answers = [ConnectionError("Name or service not known")] * 9
        code, _, err = run()
        assert code == 1
        assert "check the network" in told(err)[-1]
        assert len(account.answers) == 5

    def test_waits_double_up_to_a_bound(self):
        patience = Patience(first_wait_s=2, longest_wait_s=60)
        assert [patience.wait_s(failures) for failures in (1, 2, 3, 6, 7)] == [2, 4, 8, 60, 60]

    def test_the_server_may_ask_for_a_longer_wait(self, account, run, monkeypatch):
        slept: list[float] = []
        monkeypatch.setattr(command, "PATIENCE", Patience(first_wait_s=1, longest_wait_s=20))
        monkeypatch.setattr(download.time, "sleep", slept.append)

        def busy(answer: _Answer) -> None:
            answer.empty(503, {"Retry-After": "7"})
            raise ConnectionAbortedError

        account.storage.handle_error = lambda *_: None
        account.storage.script = [busy]
        assert run()[0] == 0
        assert slept == [7]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "advice"),
        [(401, 2, command.TOKEN_PAGE), (403, 2, command.RULES_PAGE), (404, 1, "404"), (400, 1, "400")],
    )
    def test_of_kaggle_are_one_line(self, account, run, target, status, code, advice):
        account.answers = [status]
        got, out, err = run()
        assert (got, out) == (code, "")
        assert err.count("\n") == 1
        assert advice in err
        assert account.storage.asked == []

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_of_the_link_are_one_line_and_keep_the_part(self, account, run, target, status):
        account.storage.script = [cut(70_000), status]
        code, _, err = run()
        assert code == 1
        assert str(status) in told(err)[-1]
        assert part_of(target).stat().st_size == 70_000

    def test_too_little_room_is_said_before_the_first_byte(self, account, run, target, monkeypatch):
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=12_300_000))
        code, _, err = run()
        assert code == 2
        assert "12.3 MB free" in err
        assert err.count("\n") == 1
        assert list(target.parent.iterdir()) == []

    def test_only_what_is_missing_needs_room(self, account, run, target, monkeypatch):
        data = account.storage.data
        free = download.SPARE_BYTES + len(data) - 90_000
        monkeypatch.setattr(download.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
        assert run()[0] == 2
        leave_part(target, data[:90_000], {"size_bytes": len(data), "mark": '"one"'})
        assert run()[0] == 0

    def test_a_disk_that_fills_up_meanwhile(self, account, run, target, monkeypatch):
        real = download.Part.append

        def append(part: download.Part, block: bytes) -> None:
            part._file = _Full(part._file)
            real(part, block)

        monkeypatch.setattr(download.Part, "append", append)
        code, _, err = run()
        assert code == 1
        assert os.strerror(errno.ENOSPC) in told(err)[-1]
        assert part_of(target).read_bytes() == account.storage.data[:1000]

    def test_no_size_no_download(self, account, run):
        def unsized(answer: _Answer) -> None:
            answer.send_response(200)
            answer.end_headers()
            raise ConnectionAbortedError

        account.storage.handle_error = lambda *_: None
        account.storage.script = [unsized]
        code, _, err = run()
        assert code == 1
        assert "how large" in err

    def test_an_archive_without_its_directory_is_not_taken(self, account, run, target):
        account.storage.data = account.storage.data[:-100]
        code, _, err = run()
        assert code == 1
        assert "delete" in told(err)[-1]
        assert not target.exists()

    def test_a_second_download_into_the_folder(self, account, run, target):
        target.parent.mkdir()
        with download.claimed(part_of(target)):
            code, _, err = run()
        assert code == 2
        assert "another process" in err

    def test_a_part_that_was_renamed_before_it_was_locked(self, account, run, target, monkeypatch):
        target.parent.mkdir()
        monkeypatch.setattr(fcntl, "flock", lambda *_: part_of(target).rename(target.with_name("done")))
        code, _, err = run()
        assert code == 2
        assert "finished by another process" in err

    def test_a_file_system_without_locks_and_without_fsync(self, account, run, target, incapable):
        incapable(flock=errno.ENOLCK, sync_file=errno.EINVAL, sync_folder=errno.EINVAL)
        code, _, err = run()
        assert code == 0
        assert err.count("without locks") == 1
        assert target.exists()

    def test_a_folder_that_is_a_file(self, account, run, target):
        target.parent.write_text("")
        code, _, err = run()
        assert code == 2
        assert err.count("\n") == 1

    def test_a_link_to_a_file_of_this_machine_is_not_followed(self, account, run, monkeypatch, tmp_path):
        monkeypatch.setattr(Storage, "url", property(lambda _: f"file://{tmp_path}"))
        code, _, err = run()
        assert code == 1
        assert "'file'" in err


class _Full:
    """A file on a disk with room for 1,000 bytes more, taken in two writes."""

    def __init__(self, file) -> None:
        self.file, self.room = file, 1000

    def write(self, data) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: min(600, self.room)])
        self.room -= taken
        return taken

    def __getattr__(self, name: str):
        return getattr(self.file, name)


class TestToken:
    def test_none(self, account, run, home):
        shutil.rmtree(home / ".kaggle")
        code, _, err = run()
        assert code == 2
        assert "no Kaggle token" in err
        assert "KAGGLE_USERNAME" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("text", ["{", "[]", '{"username": "a"}', '{"username": "a", "key": ""}', '"x"'])
    def test_a_file_without_a_key(self, account, run, home, text):
        (home / ".kaggle" / "kaggle.json").write_text(text)
        code, _, err = run()
        assert code == 2
        assert "holds no username and key" in err

    def test_a_file_that_cannot_be_read(self, account, run, monkeypatch):
        def read_text(*_: object, **__: object) -> str:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "read_text", read_text)
        code, _, err = run()
        assert code == 2
        assert "cannot be read" in err
        assert err.count("\n") == 1

    def test_a_file_that_others_may_read_is_told_of(self, account, run, home):
        key = home / ".kaggle" / "kaggle.json"
        key.chmod(0o644)
        code, _, err = run()
        assert code == 0
        assert f"chmod 600 {key}" in told(err)[0]

    @pytest.mark.parametrize(
        "variables", [{"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "0123"}, {"KAGGLE_API_TOKEN": "0123"}]
    )
    def test_from_the_environment(self, account, run, home, monkeypatch, variables):
        shutil.rmtree(home / ".kaggle")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert run()[0] == 0

    @pytest.mark.parametrize("place", [".config/kaggle/kaggle.json", ".kaggle/access_token"])
    def test_from_the_other_places(self, home, monkeypatch, place):
        monkeypatch.setattr(sys, "platform", "linux")
        text = (home / ".kaggle" / "kaggle.json").read_text()
        shutil.rmtree(home / ".kaggle")
        path = home / place
        path.parent.mkdir(parents=True)
        path.write_text(text)
        assert command.token_source() == str(path)

    def test_from_a_chosen_folder(self, home, monkeypatch, tmp_path):
        monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "mine"))
        shutil.move(home / ".kaggle", tmp_path / "mine")
        assert command.token_source() == str(tmp_path / "mine" / "kaggle.json")

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (SystemExit(1), 2, "does not accept the token"),  # 2.x, an expired token
            (OSError("Could not find kaggle.json"), 2, "Could not find kaggle.json"),  # 1.x, a token it does not know
            (ConnectionError("no route"), 1, "check the network"),
            (HttpError(503), 1, "503"),
            (AttributeError("gone"), 1, "pip install -U kaggle"),
        ],
        ids=["exits", "refuses", "offline", "busy", "another api"],
    )
    def test_a_login_that_fails_is_one_line(self, account, run, error, code, words):
        account.login = error
        got, _, err = run()
        assert got == code
        assert words in err
        assert err.count("\n") == 1


class TestPackage:
    def test_missing(self, run, home, monkeypatch):
        monkeypatch.setitem(sys.modules, "kaggle", None)
        code, _, err = run()
        assert code == 2
        assert "pip install 'kaggle>=1.6'" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("import a_module_that_nobody_has", "lacks a_module_that_nobody_has"),
            ("from json import nothing", "cannot be imported"),
            ("print('noise'); raise SystemExit(1)", "cannot use"),
            ("raise OSError('Could not find kaggle.json')", "Could not find kaggle.json"),
        ],
        ids=["a dependency", "a name", "exits", "raises"],
    )
    def test_broken(self, run, home, monkeypatch, tmp_path, body, words):
        package = tmp_path / "site" / "kaggle"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(body)
        for name in [name for name in sys.modules if name.split(".")[0] == "kaggle"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(package.parent)
        code, _, err = run()
        assert code == 2
        assert words in err
        assert err.count("\n") == 1

    def test_help_needs_neither_package_nor_token(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "kaggle", None)
        for argv in (["--help"], ["download", "--help"]):
            with pytest.raises(SystemExit) as ended:
                command.main(argv)
            assert ended.value.code == 0
        out = capsys.readouterr().out
        assert "/rules" in out.replace("\n", "")
        assert ".part" in out

    @pytest.mark.parametrize("argv", [[], ["upload"], ["download"], ["download", "--out", "x"]])
    def test_wrong_flags_are_one_line(self, capsys, argv):
        assert command.main(argv) == 2
        err = capsys.readouterr().err
        assert "--help` explains" in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_keeps_the_part_and_the_same_command_goes_on(account, run, target, tmp_path):
    """A process of its own gets SIGINT while the server holds the rest back; then the command runs again here."""
    storage, held = account.storage, threading.Event()

    def hold(answer: _Answer) -> None:
        answer.send_response(200)
        answer.send_header("ETag", storage.etag)
        answer.send_header("Content-Length", str(len(storage.data)))
        answer.end_headers()
        answer.wfile.write(storage.data[:300_000])
        held.wait(60)
        raise ConnectionAbortedError

    storage.handle_error = lambda *_: None
    storage.script = [hold]
    code = (
        "import sys; from ich_tfrecords.kaggle import command; command.connect = lambda: None; "
        f"command.archive_url = lambda _: {storage.url!r}; sys.exit(command.main(sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", code, "download", "--output", str(target.parent)]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (part_of(target).exists() and part_of(target).stat().st_size):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    held.set()
    kept = part_of(target).stat().st_size
    assert process.returncode == 130
    assert told(err) == [f"kaggle: interrupted; {part_of(target)} keeps {kept / 1e3:.1f} kB, the same command goes on"]
    assert run()[0] == 0
    assert storage.asked == [None, f"bytes={kept}-"]
    assert target.read_bytes() == storage.data


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_a_line(self):
        words = functools.partial(download.progress_words, "download", "GB")
        line = words(45 * 10**9, 180 * 10**9, 10 * 10**9, 200.0)
        assert line == "download [######..................] 45.00/180.00 GB, 50.0 MB/s, 45:00 left"
        assert words(0, 10**9, 0, 0.0).endswith("time left not known yet")
        assert words(10**9, 10**9, 10**9, 5.0).endswith("0:05 in all")

    def test_a_reason_is_short_and_holds_no_signature(self):
        refused = "HTTPSConnectionPool(host='a'): Max retries exceeded with url: /x?s=1 (Caused by NameResolutionError("
        assert download.reason(OSError(refused + "\"c(host='a'): Failed to resolve 'a' (unknown)\"))")) == (
            "Failed to resolve 'a' (unknown)"
        )
        assert download.reason(HttpError(500)).endswith("/x?...")
        assert download.reason(TimeoutError()) == "TimeoutError"

    def test_sizes(self):
        assert [download.gigabytes(size) for size in (12, 1500, 2.5e6, 180e9)] == [
            "12 bytes",
            "1.5 kB",
            "2.5 MB",
            "180.0 GB",
        ]
