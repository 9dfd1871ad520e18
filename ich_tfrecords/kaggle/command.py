"""The command-line door to Kaggle: the archive of the RSNA 2019 competition, about 180 GB, fetched and checked.

python -m ich_tfrecords.kaggle download --output data
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ich_tfrecords import environment
from ich_tfrecords.command_line import Parser, WrongUse
from ich_tfrecords.kaggle import download
from ich_tfrecords.kaggle.download import DownloadError, Lost, NoRoom, Part, Patience, gigabytes
from ich_tfrecords.storage import zip_directory
from ich_tfrecords.storage.bucket_path import local_path

COMPETITION = "rsna-intracranial-hemorrhage-detection"
ZIP_NAME = f"{COMPETITION}.zip"
RULES_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_PAGE = "https://www.kaggle.com/settings"
# slices of each folder as Kaggle publishes them
PUBLISHED = {"stage_2_train": 752_803, "stage_2_test": 121_232}
PATIENCE = Patience()
_GET_TOKEN = (
    f"make one at {TOKEN_PAGE} (API) and save it as ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY"
)
_MAY_PASS = frozenset({408, 425, 429})
_OTHERS_MAY_READ = 0o077


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 the download failed, 2 wrong use or input, 130."""
    environment.settle()
    try:
        arguments = _parser().parse_args(argv)
    except WrongUse as error:
        return _complain(error, 2)
    target = arguments.output / ZIP_NAME
    try:
        _download(target)
    except (WrongUse, NoRoom) as error:
        return _complain(error, 2)
    except DownloadError as error:
        return _complain(error, 1)
    except OSError as error:
        return _complain(f"{error.filename or arguments.output}: {error.strerror or error}; name another --output", 2)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {_kept(_part_of(target))}the same command goes on", 130)
    return 0


def _tell(text: object) -> None:
    print(f"kaggle: {' '.join(str(text).split())}", file=sys.stderr, flush=True)


def _complain(error: object, code: int) -> int:
    _tell(error)
    return code


def _kept(part: Path) -> str:
    return f"{part} keeps {gigabytes(part.stat().st_size)}, " if part.exists() else ""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ich_tfrecords.kaggle",
        description=f"Fetch the data of the Kaggle competition {COMPETITION}.",
        epilog=f"Once before: pip install '.[kaggle]'; accept the rules at {RULES_PAGE}; for the token, {_GET_TOKEN}. "
        "Exit codes: 0 done, 1 the download failed, 2 wrong use or input, 130 interrupted.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    what = f"fetch {ZIP_NAME}, about 180 GB, check it, and print the command that converts it"
    command = commands.add_parser(
        "download", help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False,
        epilog=f"The bytes so far lie in {ZIP_NAME}.part. If it stops, for whatever reason, run it again: it goes on. "
        "Example: python -m ich_tfrecords.kaggle download --output data",
    )  # fmt: skip
    command.add_argument(
        "--output",
        type=local_path,
        required=True,
        metavar="DIR",
        help="folder for the archive, made where it is missing",
    )
    return parser


def _download(target: Path) -> None:
    """Have the whole archive at `target`, and say what it holds and what comes next."""
    if target.exists():
        try:
            found = count_slices(target)
        except zip_directory.SourceError as error:
            raise WrongUse(f"{error} (move {target} away, then run the same command again)") from error
        print(f"{target}: already here, and its directory is whole ({gigabytes(target.stat().st_size)})")
    else:
        found = _fetched(target)
        print(f"{target}: {gigabytes(target.stat().st_size)}, fetched and whole")
    for line in (*compared(found), "next:", next_command(target)):
        print(line)


def _fetched(target: Path) -> dict[str, int]:
    """Slices of each folder in the archive, after fetching it to `target`."""
    api = connect()
    target.parent.mkdir(parents=True, exist_ok=True)
    with download.claimed(_part_of(target)) as part:
        download.fetch(lambda: archive_url(api), part, PATIENCE, _tell, sys.stderr)
        found = _checked(part)
        part.become(target)
    return found


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _checked(part: Part) -> dict[str, int]:
    try:
        return count_slices(part.path)
    except zip_directory.SourceError as error:
        raise DownloadError(f"{error} (delete {part.path}, then run the same command again)") from error


def count_slices(archive: Path) -> dict[str, int]:
    """Number of .dcm members below each folder of `PUBLISHED`, from the directory at the end of the zip.

    Raises `zip_directory.SourceError` when the directory is missing, or contradicts itself or the size of the file.
    """
    found = dict.fromkeys(PUBLISHED, 0)
    for batch in zip_directory.member_batches(archive):
        slices = batch.filter(pc.ends_with(batch["name"], ".dcm"))
        for folder in found:
            found[folder] += int(pc.sum(pc.match_substring(slices["name"], f"/{folder}/")).as_py() or 0)
    return found


def compared(found: Mapping[str, int]) -> Iterator[str]:
    """A line a folder: how many slices it holds, and how many were published where that differs."""
    for folder, count in found.items():
        note = "" if count == PUBLISHED[folder] else f", {PUBLISHED[folder]:,} were published: look before you convert"
        yield f"{folder}: {count:,} slices{note}"


def next_command(archive: Path) -> str:
    """The command that converts the labelled part, for a shell."""
    return (
        "python -m beam_pipelines.convert \\\n"
        f"    --input {shlex.quote(str(archive))} \\\n"
        "    --include '*/stage_2_train/*' \\\n"
        "    --labels stage_2_train.csv \\\n"
        f"    --output {shlex.quote(str(archive.parent / 'rsna_ich'))}"
    )


def connect() -> Any:
    """An authenticated `KaggleApi`. Raises `WrongUse`: no token, no or a broken `kaggle` package, a refused token."""
    source = token_source()
    module = _client_module(source)
    try:
        with _hushed():
            api = module.KaggleApi() if hasattr(module.KaggleApi, "build_kaggle_client") else _old_api(module)
            api.authenticate()
    except SystemExit as error:  # how the client says that a token is expired or revoked
        raise WrongUse(f"Kaggle does not accept the token in {source}; {_GET_TOKEN}") from error
    except Exception as error:
        # Exactly these are the client's own; errors of `requests` are OSErrors as well.
        if type(error) in (OSError, ValueError):
            raise WrongUse(f"the kaggle package cannot use {source} ({download.reason(error)}); {_GET_TOKEN}") from None
        found = _explained(error)
        again = f"{found}; check the network, then run the same command again"
        raise (DownloadError(again) if isinstance(found, Lost) else found) from error
    return api


def token_source() -> str:
    """Where a Kaggle token is: environment variables, or a file. Warns of a file that others may read."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return "KAGGLE_API_TOKEN"
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return "KAGGLE_USERNAME and KAGGLE_KEY"
    key_file, home = _config_folder() / "kaggle.json", environment.expanded("~") / ".kaggle"
    places = (key_file, *(home / name for name in ("access_token", "access_token.txt", "credentials.json")))
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise WrongUse(f"no Kaggle token in {key_file} or the environment; {_GET_TOKEN}")
    if path == key_file:
        _require_key(path)
    if path.stat().st_mode & _OTHERS_MAY_READ:
        _tell(f"{path} can be read by other users of this machine; run: chmod 600 {shlex.quote(str(path))}")
    return str(path)


def _config_folder() -> Path:
    """Where the client looks for kaggle.json."""
    chosen, home = os.environ.get("KAGGLE_CONFIG_DIR"), environment.expanded("~") / ".kaggle"
    if chosen or home.exists() or not sys.platform.startswith("linux"):
        return Path(chosen or home)
    there = Path(os.environ.get("XDG_CONFIG_HOME") or environment.expanded("~") / ".config") / "kaggle"
    return there if there.exists() else home


def _require_key(path: Path) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["username"] and known["key"]:
            return
    except OSError as error:
        raise WrongUse(f"{path} cannot be read ({error.strerror}); run: chmod 600 {shlex.quote(str(path))}") from error
    except (ValueError, KeyError, TypeError):
        pass  # said below, as for an empty value
    raise WrongUse(f"{path} holds no username and key; {_GET_TOKEN}")


def _client_module(source: str) -> Any:
    """The module of the official client, which logs in as soon as it is imported."""
    try:
        with _hushed():
            return importlib.import_module("kaggle.api.kaggle_api_extended")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "kaggle":
            raise WrongUse("the kaggle package is not installed; run: pip install 'kaggle>=1.6'") from error
        raise WrongUse(f"the kaggle package lacks {error.name}; run: pip install {error.name}") from error
    except ImportError as error:
        why = download.reason(error)
        raise WrongUse(f"the kaggle package cannot be imported ({why}); run: pip install -U kaggle") from error
    except (SystemExit, OSError, ValueError) as error:
        raise WrongUse(f"the kaggle package cannot use {source} ({download.reason(error)}); {_GET_TOKEN}") from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep the client's own help texts and warnings off the screen; ours say it in a line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _old_api(module: Any) -> Any:
    return module.KaggleApi(importlib.import_module("kaggle.api_client").ApiClient())


def archive_url(api: Any) -> str:
    """Signed address of the archive, good for some hours; Kaggle gives it to who has accepted the rules.

    Raises `WrongUse` for a refused token and rules not accepted, `Lost` for what may pass.
    """
    # The client's own download is not used: up to 1.7 it appends to whatever file is there, without
    # asking whether that is of the same version, and none of its releases looks at the room on the disk.
    try:
        with _hushed():
            return _new_url(api) if hasattr(api, "build_kaggle_client") else _old_url(api)
    except Exception as error:
        raise _explained(error) from error


def _new_url(api: Any) -> str:
    """Address by clients from 1.7 on, whose answers are of `requests`."""
    types = importlib.import_module(type(api).__module__)
    with api.build_kaggle_client() as client:
        # 1.7 would read the 180 GB into memory before it returns; later ones stream by themselves.
        client.http_client()._session.stream = True
        request = types.ApiDownloadDataFilesRequest()
        request.competition_name = COMPETITION
        with contextlib.closing(client.competitions.competition_api_client.download_data_files(request)) as response:
            return str(response.url)


def _old_url(api: Any) -> str:
    """Address by clients before 1.7, whose answers are of `urllib3`."""
    response, *_ = api.competitions_data_download_files_with_http_info(id=COMPETITION, _preload_content=False)
    with contextlib.closing(response):
        return str(response.geturl())


def _explained(error: Exception) -> Exception:
    """What an error of the client means: by its HTTP status, or that no answer came."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    why = download.reason(error)
    if status == 401:
        return WrongUse(f"Kaggle does not accept the token (401); {_GET_TOKEN}")
    if status == 403:
        return WrongUse(
            f"Kaggle refuses the archive (403); accept the competition's rules at {RULES_PAGE} with the account of "
            "the token, then run the same command again"
        )
    if status in _MAY_PASS or (isinstance(status, int) and status >= 500):
        return Lost(f"Kaggle answered {status}")
    if status:
        return DownloadError(f"Kaggle answered {status} ({why}); look whether {RULES_PAGE} opens in a browser")
    if isinstance(error, OSError) or type(error).__module__.startswith("urllib3"):
        return Lost(f"no connection to Kaggle ({why})")
    return DownloadError(f"the kaggle package failed ({type(error).__name__}: {why}); run: pip install -U kaggle")
