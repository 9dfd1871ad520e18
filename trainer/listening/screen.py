"""What stands on the screen: lines that name a study by a part of its id, and nobody."""

from __future__ import annotations

import sys


def short(study: str) -> str:
    """What a study is called there; `study`: its id in the spool."""
    return f"study {study[:8]}"


def tell(line: str) -> None:
    """How the work goes on."""
    print(line, flush=True)


def warn(line: str) -> None:
    """What somebody should look after."""
    print(f"listen: {line}", file=sys.stderr, flush=True)
