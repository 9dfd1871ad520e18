"""Studies from slices, by hand and beside plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import predictions_of

from trainer.results.study_level import studies

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1), st.integers(0, 9)), min_size=1, max_size=30)


def test_a_study_is_its_worst_slice():
    labels = np.array([[0, -1], [1, 0], [0, -1], [0, 1], [0, -1]])
    probabilities = np.array([[0.1, 0.2], [0.3, 0.1], [0.8, 0.4], [0.2, 0.9], [0.4, 0.5]])
    said = predictions_of(labels, probabilities, studies=["b", "b", "a", "b", "c"], patients=[7, 7, 9, 7, 3])
    found_labels, shown, patients = studies(said)
    # a: one slice, the second label unknown. b: a positive slice outweighs the unknown. c: as a
    assert found_labels.tolist() == [[0, -1], [1, 1], [0, -1]]
    assert shown.tolist() == [[0.8, 0.4], [0.3, 0.9], [0.4, 0.5]]
    assert patients.tolist() == [2, 1, 0]
    assert found_labels.dtype == np.int8


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_studies_beside_loops(rows):
    number, labels, shown = (np.array(column) for column in zip(*rows))
    said = predictions_of(labels[:, None], shown[:, None] / 10, studies=[f"s{n}" for n in number], patients=number // 2)
    found_labels, probabilities, patients = studies(said)
    for at, study in enumerate(sorted(set(number.tolist()))):
        own = labels[number == study].tolist()
        expected = 1 if 1 in own else -1 if -1 in own else 0
        assert found_labels[at].tolist() == [expected]
        assert probabilities[at].tolist() == [shown[number == study].max() / 10]
        assert patients[at] == said.patients[number == study][0]
    assert len(found_labels) == len(set(number.tolist()))
