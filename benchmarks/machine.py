"""What a figure was measured on: processor, cores, memory, and versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = ("apache-beam", "numpy", "pandas", "pyarrow", "pydicom", "tensorflow", "tensorflow-datasets")


def facts() -> dict[str, str]:
    """Words on this machine and on what runs on it; a library that is not installed is left out."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    versions = [f"{name} {metadata.version(name)}" for name in LIBRARIES if _is_installed(name)]
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_gib:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": ", ".join(versions),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def in_words(found: dict[str, str]) -> str:
    """One line of what `facts` found."""
    hardware = f"{found['processor']}, {found['cores']} cores, {found['memory']}, {found['system']}"
    return f"{hardware}; Python {found['python']}, {found['libraries']}"
