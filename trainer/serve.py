"""A web page that takes head CT in, and shows which study to read first; the same as JSON for programs.

    python -m trainer.serve --model runs/cnn

Nothing leaves this machine, and no page asks another one for anything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.plural import counted
from trainer.models import model_file
from trainer.shell import command
from trainer.shell.problems import WrongUse
from trainer.web import app, server
from trainer.web.limits import MIB, Limits
from trainer.web.model import Model
from trainer.worklist.reading import How
from trainer.worklist.spool import Spool
from trainer.worklist.worker import Worker

TOKEN_VARIABLE = "ICH_SERVE_TOKEN"
LEAST_TOKEN = 16  # letters
EPILOG = f"""\
Open the address that it prints in a browser: drop DICOM files, a folder or a zip, see how far
the model is, and scroll through the slices of each study, most urgent first. Programs find the
same as JSON below /api/studies; the page /api describes it.

It listens to this machine alone. For --host of a network it needs a token, and there should
be a proxy with TLS in front: it speaks plain HTTP.
--token @FILE reads the token from a file, and without --token ${TOKEN_VARIABLE} is taken, so
that it does not stand in the list of processes.

What is sent is kept in --data with its results, until --keep_hours after it is done or until
it is deleted. After a kill the same command with the same --data goes on where it was. Without
--data everything goes when the server ends.

One study is read at a time; the others wait. {NOT_A_DEVICE}

example:
    python -m trainer.serve --model runs/densenet121 --data spool --port 8000"""
EXIT_CODES = """\
exit codes:
    0  ended by SIGTERM
    1  the model or the disk failed
    2  wrong use; nothing was served
  130  interrupted (Ctrl-C)
Every failure is one line."""
GOES_ON = "with --data the same command goes on where it was"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 ended by SIGTERM, 1 failed, 2 wrong use, 130 interrupted."""
    return command.run("serve", lambda: _serve(command.parse(_parser(), argv)), GOES_ON)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="python -m trainer.serve",
        usage="%(prog)s --model RUN_OR_EXPORT [flags]",
        description="A web page that takes head CT in, and shows which study to read first.",
        epilog=EPILOG,
        exit_codes=EXIT_CODES,
    )
    parser.add_argument(
        "--model", required=True, type=command.path, metavar="DIR", help="folder of a run, or of an export"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s, this machine)"
    )
    parser.add_argument(
        "--port", type=command.whole_number(0, 65535), default=8000, metavar="N",
        help="0 takes a free one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--token", metavar="TEXT", help="what every client must know; @FILE reads it from a file")
    parser.add_argument(
        "--data",
        type=command.path,
        metavar="DIR",
        help="keep uploads and results here (default: a private folder that goes at the end)",
    )
    parser.add_argument(
        "--most_upload", type=command.whole_number(1, 1 << 20), default=2048, metavar="MIB",
        help="what one upload may hold (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--keep_hours", type=command.whole_number(1, 24 * 366), default=24, metavar="N",
        help="how long a study is kept once it is done (default: %(default)s)",
    )  # fmt: skip
    return parser


def _serve(args: argparse.Namespace) -> int:
    token = _token(args.token)
    if not token and not server.is_loopback(args.host):
        raise WrongUse(f"--host {args.host} lets others in; give a --token of {LEAST_TOKEN} letters or more")
    folder = model_file.find(args.model)
    about = model_file.read_about(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # while the model is loaded; then the server hears it
    os.umask(0o077)  # what is sent is for this user alone
    with contextlib.ExitStack() as ending:
        listener = ending.enter_context(server.listening(args.host, args.port))
        spooled = ending.enter_context(contextlib.closing(Spool(ending.enter_context(_data(args.data)), "--data")))
        worker = Worker(spooled, folder, How(), dicom=False)
        limits = Limits(args.most_upload * MIB, 3600.0 * args.keep_hours)
        known = Model(worker, about, model_file.digest(folder))
        made = app.application(spooled, known, limits, token, server.hosts(args.host))
        worker.start()
        ending.callback(worker.stop)
        server.run(made, listener, lambda: _tell(args, listener.getsockname()[1]))
    return 0


@contextlib.contextmanager
def _data(given: str | None) -> Iterator[Path]:
    """The folder of the uploads, absolute and without links."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="ich-serve-") as made:
            yield Path(made).resolve()
        return
    if given.startswith("gs:"):
        raise WrongUse(f"--data {given} is in a bucket; name a local folder")
    try:
        Path(given).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUse(f"--data {given} cannot be made ({error.strerror}); choose another") from error
    yield Path(given).resolve()


def _token(given: str | None) -> str:
    """The token of the command line, of a file, or of the environment; "" where there is none. Raises `WrongUse`."""
    token = os.environ.get(TOKEN_VARIABLE, "") if given is None else given
    if token.startswith("@"):
        try:
            token = Path(token[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUse(f"--token {token}: the file cannot be read ({error})") from error
    elif given is None and not token:
        return ""
    if len(token) < LEAST_TOKEN or not token.isprintable() or not token.isascii() or " " in token:
        raise WrongUse(f"the token needs {LEAST_TOKEN} or more letters or digits and no blank; make one at random")
    return token


def _tell(args: argparse.Namespace, port: int) -> None:
    print(f"{server.address(args.host, port)} (Ctrl-C ends it)")
    kept = args.data or "a folder that goes when it ends"
    print(f"uploads and results are kept in {kept}, for {counted(args.keep_hours, 'hour')}")
    print(NOT_A_DEVICE, flush=True)


if __name__ == "__main__":
    sys.exit(main())
