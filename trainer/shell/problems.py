"""What can go wrong in a way the user can mend: one line each, and the exit code that goes with it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Protocol


class TrainerError(Exception):
    """A problem told in one line: the value, the place and the next step."""

    exit_code = 1


class WrongUse(TrainerError):
    """Flags, a config or a data set that cannot be used; nothing was done."""

    exit_code = 2


class WorkFailed(TrainerError):
    """The work failed on the way."""


class Stopped(BaseException):
    """The run was asked to stop by a signal. It has saved where it is, or the message says how far it was.

    Like KeyboardInterrupt no error, since it may come from a handler, wherever the program is.
    """


class TrainingFailed(WorkFailed):
    """Training failed on the way; what was saved stays."""


class _Closes(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def closed_after(thing: _Closes) -> Iterator[None]:
    """Close `thing` at the end; on the way out of a failure, that failure is the one to tell."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(TrainingFailed):
            thing.close()
        raise
    thing.close()


def hint(word: object, known: Iterable[str]) -> str:
    """`did you mean 'balanced'?`, the nearest of the known words, or all of them where none is near."""
    known = list(known)
    near = [name for name in known if word and name.startswith(str(word))]
    near = near or difflib.get_close_matches(str(word).lower(), known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def in_short(error: Exception) -> str:
    """What an error of others says, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
