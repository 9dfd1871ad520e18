from __future__ import annotations

import pytest

from ich_tfrecords.plural import counted


@pytest.mark.parametrize(("number", "slices", "studies"), [
    (0, "0 slices", "0 studies"), (1, "1 slice", "1 study"), (2000, "2,000 slices", "2,000 studies"),
])  # fmt: skip
def test_one_or_many(number, slices, studies):
    assert (counted(number, "slice"), counted(number, "study", "studies")) == (slices, studies)
