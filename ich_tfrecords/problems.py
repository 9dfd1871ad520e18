"""Why a file gives no record: the base of the typed problems that become rows of rejects.csv."""

from __future__ import annotations

BY_NATURE = frozenset({"not_dicom", "dicomdir", "localizer", "derived_secondary", "not_ct", "no_pixel_data", "color"})
"""Reasons of files that are no CT slices by nature, so that nothing of a study is lost with them."""


class Problem(Exception):
    """`reason`, a fixed word for counting, and `detail`, the facts for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
