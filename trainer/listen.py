"""Head CT in by DICOM's network, probabilities back the same way.

    python -m trainer.listen --model runs/cnn --ae_title ICH --port 11112 --send_to PACS@pacs.example:104

What it receives and what it sends names patients, as the scanner does. Lines on the screen name nobody.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.views.montage import shortened
from trainer.listening import peers, screen
from trainer.models import model_file
from trainer.shell import command

if TYPE_CHECKING:
    from trainer.listening.service import Settings

EPILOG = f"""\
It answers C-ECHO, and takes CT objects by C-STORE (CT, enhanced CT, legacy converted
enhanced CT) in the transfer syntaxes that can be read; another kind of object is refused
when the association is negotiated. An object is on the disk before its sender is told of
success. With less than 2 GiB free it is refused (A700), and a later try may succeed.

A study to which nothing came for --idle_s is judged: its best head series, as
trainer.predict --series best chooses it. After an association that broke off, its studies
wait ten times as long for their rest. Objects that come later make it be judged again,
and the newer result counts.

--spool holds a folder for each study, called by a hash of its UID: files/ as received,
result/ what trainer.predict writes, dicom/ a report (SR) and a picture (secondary
capture). It is the queue: what was received, judged or not yet sent when the process
ended, however it ended, goes on at the next start. A study goes --keep_days after the
last that happened to it, but never before its results were sent.

--send_to sends these two objects, again and again until the other side takes them. A
login for https comes from ~/.netrc.

DICOM encrypts nothing and checks no password: an AE title is a name that anybody can
give. Away from this machine keep it inside a network of your own; docs/clinical.md shows
that, beside Orthanc.

SIGTERM ends it: open associations first, and what is under way waits for the next start.

{NOT_A_DEVICE}

example:
    python -m trainer.listen --model runs/densenet121 --allow CT1@10.0.0.5 \\
      --host 0.0.0.0 --send_to PACS@pacs.example:104"""
GOES_ON = "what was received is in --spool; the same command goes on"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 ended by SIGTERM, 1 failed, 2 wrong use, 130 interrupted."""
    return command.run("listen", lambda: _listen(command.parse(_parser(), argv)), GOES_ON)


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog="python -m trainer.listen",
        usage="%(prog)s --model RUN_OR_EXPORT [--ae_title ICH] [--port 11112] [--send_to WHERE] [flags]",
        description="Receive head CT as DICOM, judge each study once it is whole, send the results.",
        epilog=EPILOG,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a run, or of an export")
    here = parser.add_argument_group("here")
    here.add_argument(
        "--ae_title", type=_read(peers.title), default="ICH", metavar="AE",
        help="what this is called; callers must call it so (default: %(default)s)",
    )  # fmt: skip
    here.add_argument("--port", type=_number(0, 65_535), default=11112, help="0: any (default: %(default)s)")
    here.add_argument(
        "--host", default="127.0.0.1",
        help="address of this machine to listen at; 0.0.0.0 for all (default: %(default)s, this machine alone)",
    )  # fmt: skip
    here.add_argument(
        "--spool", type=Path, default=Path("listened"), metavar="DIR",
        help="new, empty, or of this command (default: %(default)s)",
    )  # fmt: skip
    there = parser.add_argument_group("there")
    there.add_argument(
        "--allow", type=_read(peers.Caller.read), action="append", default=[], metavar="AE[@HOST]",
        help="who may call; repeatable (default: everybody who knows --ae_title)",
    )  # fmt: skip
    there.add_argument(
        "--send_to", type=_read(peers.destination), metavar="WHERE",
        help="where results go: AE@HOST:PORT (C-STORE), or https://HOST/.../studies (STOW-RS)",
    )  # fmt: skip
    when = parser.add_argument_group("when")
    when.add_argument(
        "--idle_s", type=_number(0.1, 86_400), default=60.0, metavar="N",
        help="seconds without an object after which a study counts as whole (default: %(default)g)",
    )  # fmt: skip
    when.add_argument(
        "--keep_days", type=_number(0.0, 36_500), default=7.0, metavar="N",
        help="how long a study that is done with is kept (default: %(default)g)",
    )  # fmt: skip
    return parser


def _read(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _number(least: float, most: float) -> Callable[[str], Any]:
    kind = type(least)

    def read(text: str) -> Any:
        try:
            value = kind(text) if len(text) <= 20 else math.nan
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shortened(text)!r} is no number from {least:g} to {most:,g}")
        return value

    return read


def _listen(args: argparse.Namespace) -> None:
    from trainer.listening import service

    settings = _settings(args)
    _warn_of_strangers(args)
    service.run(settings, lambda port: _tell_ready(settings, port))


def _warn_of_strangers(args: argparse.Namespace) -> None:
    to = args.send_to
    if not peers.is_loopback(args.host):
        advice = "keep it inside a network of your own" + ("" if args.allow else ", and say who may call with --allow")
        screen.warn(f"{args.host} is reached from elsewhere, and DICOM encrypts nothing: {advice}")
    if to and not to.is_encrypted and not peers.is_loopback(to.host):
        screen.warn(f"{to} is elsewhere, and nothing encrypts what goes there; keep it inside a network of your own")


def _settings(args: argparse.Namespace) -> Settings:
    from trainer.listening import service

    model = model_file.find(args.model)
    about = model_file.read_about(model)
    service.make_place(args.spool)
    return service.Settings(
        model=model, any_label=about.spec.labels.any, title=args.ae_title, host=args.host, port=args.port,
        spool=args.spool, idle_s=args.idle_s, keep_days=args.keep_days, callers=args.allow, send_to=args.send_to,
    )  # fmt: skip


def _tell_ready(settings: Settings, port: int) -> None:
    print(f"{settings.title} listens at {settings.host}:{port}, spool {settings.spool}")
    print(f"results {f'go to {settings.send_to}' if settings.send_to else 'stay in the spool; --send_to sends them'}")
    print(NOT_A_DEVICE, flush=True)


if __name__ == "__main__":
    sys.exit(main())
