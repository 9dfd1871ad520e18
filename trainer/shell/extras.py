"""What extras bring and the base install leaves out: told in one line where a command needs it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from trainer.shell.problems import WrongUse

NEEDED = ("tensorflow", "keras", "matplotlib", "sklearn", "h5py")
WITHOUT = ("score",)  # commands that numpy is enough for
# commands that have an extra of their own name, which brings all that `train` does, and these
ALSO = {
    "serve": ("starlette", "uvicorn", "python_multipart"),
    "listen": ("pynetdicom", "dicomweb_client", "highdicom"),
}
_OURS = re.compile(r"(?:trainer\.|(?:.*[/\\])?ich-)(\w+)(?:\.exe)?")


def lacking(command_line: Sequence[str]) -> str:
    """What to say where a process is a command of the trainer and lacks a package that it needs, else "".

    `command_line`: that of Python, as `sys.orig_argv` has it.
    """
    found = (_OURS.fullmatch(word) for word in command_line[1:4])  # the module or script follows Python's own flags
    command = next((match[1] for match in found if match), WITHOUT[0])
    needed = NEEDED + ALSO.get(command, ())
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    if command in WITHOUT or not absent:
        return ""
    extra = command if command in ALSO else "train"
    return f"{command}: {' and '.join(absent)} not installed; pip install 'ich-tfrecords[{extra}]' brings what it needs"


def require(what: str, extra: str, packages: Sequence[str]) -> None:
    """Refuse `what` where one of the `packages` of an extra is not installed. Raises `WrongUse`."""
    if absent := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise WrongUse(
            f"{what} needs {' and '.join(absent)}, not installed; pip install 'ich-tfrecords[{extra}]' brings it"
        )
