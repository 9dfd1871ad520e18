"""What can go wrong in a way the user can mend: one line each, and the exit code that goes with it."""

from __future__ import annotations


class TrainerError(Exception):
    """A problem told in one line: the value, the place and the next step."""

    exit_code = 1


class WrongUse(TrainerError):
    """Flags, a config or a data set that cannot be used; nothing was done."""

    exit_code = 2


class TrainingFailed(TrainerError):
    """The work failed on the way; what was saved stays."""
