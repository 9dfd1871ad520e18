"""What a cohort is like."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from trainer.results import cohort


def test_what_is_told():
    table = pa.table(
        {
            "sop_uid": list("abcd"),
            "slice_count": [30, 30, 40, 50],
            "manufacturer": ["ge", "siemens", "ge", None],
            "kernel": pa.array([None] * 4, pa.string()),
            "thickness_mm": pa.array([5.0, 2.5, None, 5.0], pa.float32()),
        }
    )
    labels = np.array([[1, 0], [0, -1], [0, -1], [-1, -1]])
    found = cohort.told(table, ("any", "epidural"), labels, np.array([[1, 0], [-1, -1]]))
    assert json.loads(json.dumps(found)) == found
    assert (found["slices"], found["studies"]) == (4, 2)
    assert found["prevalence"] == {"any": 1 / 3, "epidural": 0.0}
    assert found["study_prevalence"] == {"any": 1.0, "epidural": 0.0}
    assert found["words"] == {"manufacturer": {"ge": 0.5, "siemens": 0.25}}
    assert found["numbers"] == {"slice_count": [30.0, 30.0, 50.0], "thickness_mm": [2.5, 5.0, 5.0]}


def test_nothing_known():
    table = pa.table({"sop_uid": ["a"]})
    found = cohort.told(table, ("any",), np.array([[-1]]), np.array([[-1]]))
    assert found["prevalence"] == {"any": None}
    assert (found["words"], found["numbers"]) == ({}, {})
