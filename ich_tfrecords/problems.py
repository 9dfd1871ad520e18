"""Why a file gives no record: the base of the typed problems that become rows of rejects.csv."""

from __future__ import annotations

import re

# Reasons of files that never were axial CT slices. The others are slices that are lost: damaged, or not understood.
BY_NATURE = frozenset(
    ("not_dicom", "no_pixel_data", "color", "localizer", "derived_secondary", "not_ct", "not_axial"),
)
# Reasons of slices that could be read and are not wanted, since their series is not.
NOT_WANTED = frozenset(("other_series", "unfit_series"))
# The suffix of a slice, or a digit in a name that has none: IM_0001, but not LICENSE.
_CALLED_LIKE_A_SLICE = re.compile(r"(?i)\.(dcm|dicom|ima|[0-9]+)$|(^|/)[^/.]*[0-9][^/.]*$")


class Problem(Exception):
    """`reason`, a fixed word for counting, and `detail`, the facts for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def is_by_nature(reason: str, name: str) -> bool:
    """Whether a file of that name and reason never was an axial CT slice; else a slice is lost.

    What is not DICOM and yet is called like a slice was overwritten or fetched wrongly: that is a loss.
    """
    return reason in BY_NATURE and not (reason == "not_dicom" and _CALLED_LIKE_A_SLICE.search(name))
