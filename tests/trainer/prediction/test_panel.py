"""Several models that judge together: their spread, and the labels that some call positive and others not."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from ich_tfrecords.spec import LabelSpec
from ich_tfrecords.storage.slice_reader import SliceRef
from trainer.prediction import panel
from trainer.prediction.panel import Panel
from trainer.prediction.slice_stream import FoundSlice
from trainer.prediction.triage import Outcome, Triage

LABELS = LabelSpec("any", ("any", "epidural"), ("epidural",))
TWO = Panel(LABELS.names, np.array([[0.5, 0.2], [0.3, 0.2]]))


def test_each_model_calls_by_its_own_threshold():
    assert TWO.disagreed(np.array([[0.4, 0.1], [0.4, 0.1]])) == ["any"]
    assert TWO.disagreed(np.array([[0.5, 0.1], [0.3, 0.3]])) == ["epidural"]
    assert TWO.disagreed(np.array([[0.9, 0.9], [0.3, 0.2]])) == []
    assert TWO.disagreed(np.array([[0.0, 0.0], [0.0, 0.0]])) == []


def test_a_model_that_knows_nothing_of_a_label_is_not_asked():
    some = Panel(LABELS.names, np.array([[0.5, np.nan], [0.3, 0.2], [0.3, 0.2]]))
    assert some.disagreed(np.array([[0.9, 0.1], [0.9, 0.3], [0.9, 0.3]])) == []
    assert some.disagreed(np.array([[0.9, 0.1], [0.9, 0.3], [0.9, 0.1]])) == ["epidural"]


def test_what_is_not_calibrated_is_told_of_each_model(about):
    """A label is uncalibrated where all models lack it."""
    name, other = about.spec.labels.names[1:3]
    slope = np.where(np.arange(len(about.spec.labels.names)) == 2, 0.0, about.calibration.slope)
    more = {name: "no positive slice", other: "no positive slice"}
    second = dataclasses.replace(about.calibration, slope=slope, refused=more)
    known = {name: {"youden": 0.5} for name in about.spec.labels.names}
    first = dataclasses.replace(about, study_thresholds=known)
    made = panel.panel_of([first, dataclasses.replace(first, calibration=second)])
    assert made.refused == (name,)
    assert [line.split(":")[0] for line in made.notes] == ["model 1 of 2", "model 2 of 2", "model 2 of 2"]
    assert np.isnan(made.thresholds).tolist() == [[False] * 6, [False, False, True, False, False, False]]


def found(study: str, at: int) -> FoundSlice:
    return FoundSlice(SliceRef("/in", f"{at}.dcm", -1, -1, 1, 1, -1, 1), 1, f"{study}{at}", study, "series", float(at))


@given(st.data())
def test_opinions_of_a_study_are_the_greatest_of_each_model(data):
    models, count = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 9))
    opinions = data.draw(st_numpy.arrays(np.float64, (count, models, 2), elements=st.floats(0, 1, width=16)))
    studies = data.draw(st.lists(st.sampled_from("ABC"), min_size=count, max_size=count))
    known = Panel(LABELS.names, np.full((models, 2), 0.5))
    made, begin = Triage(LABELS, 1, panel=known), 0
    for size in (count // 2, count - count // 2):  # handed over in two parts
        part = slice(begin, begin + size)
        slices = [found(study, at) for at, study in enumerate(studies[part], begin)]
        made.take(Outcome(slices, opinions[part].mean(axis=1), [], size, opinions=opinions[part]))
        begin += size
    for study in made.studies():
        own = opinions[[one == study.study_uid for one in studies]]
        np.testing.assert_array_equal(study.opinions, own.max(axis=0))
        np.testing.assert_array_equal(panel.spread(study.opinions), own.max(axis=0).max(0) - own.max(axis=0).min(0))
        np.testing.assert_array_equal(study.probabilities, own.mean(axis=1).max(axis=0))
