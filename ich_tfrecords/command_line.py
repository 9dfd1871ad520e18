"""Wrong use of a command, told in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class WrongUse(ValueError):
    """A command line, an account or a place that cannot be used as it is; the message says what to do."""


class Parser(argparse.ArgumentParser):
    """Wrong flags raise `WrongUse`, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse(f"{message}; `{self.prog} --help` explains")
