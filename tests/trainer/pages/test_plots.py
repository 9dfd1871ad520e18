"""Plots: each says what it is given, in words where there is nothing to draw, and nothing smaller than 11 px."""

from __future__ import annotations

import functools
import itertools
import math
import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.pages import figures, plots

pytestmark = pytest.mark.slow  # draws

NAN = float("nan")
HISTORY = [
    {"epoch": 1, "loss": 0.5, "log_loss": 0.5, "accuracy": 0.8, "learning_rate": 1e-3,
     "val_log_loss": 0.4, "val_log_loss_as_sampled": 0.6, "val_accuracy": 0.9, "val_auc": 0.7},
    {"epoch": 2, "loss": 0.4, "log_loss": 0.4, "accuracy": 0.9, "learning_rate": 5e-4,
     "val_log_loss": 0.3, "val_log_loss_as_sampled": 0.5, "val_accuracy": NAN, "val_auc": NAN},
]  # fmt: skip
X = np.linspace(0, 1, 5)
GRID = np.linspace(0, 1, 101)
WHY = "no curve: no positive slice"
CURVES = {
    "any": plots.Curve("AUC 0.9", X, np.sqrt(X), (GRID, GRID * 0.9, np.minimum(1, GRID * 1.2)), (0.1, 0.8), 0.2),
    "epidural": WHY,
    "subdural": plots.Curve("AUC 0.8", X, X, (GRID, GRID * NAN, GRID * NAN)),
}
BINS = [[0.001, 0.0, 400], [0.2, 0.25, 400]]
PANELS = {"any": plots.Bins("error 0.1 before", BINS, BINS[:1]), "epidural": "no slice with a known label"}
COUNTS = {"any": plots.Counts("threshold 0.2", 88, 12, 1900, 8100), "epidural": plots.Counts("even", 0, 0, 3, 97)}
ROWS = [("cnn", 0.9, 0.88, 0.93), ("none", None, None, None), ("nan", NAN, NAN, NAN), ("alone", 0.5, None, None)]
RUNS = {"cnn": HISTORY, "xception": HISTORY[:1], "empty": []}

DRAWN = {
    "curves": lambda: plots.curves(HISTORY, 2),
    "curves of no epoch": lambda: plots.curves([]),
    "roc": lambda: plots.roc(CURVES),
    "precision_recall": lambda: plots.precision_recall(CURVES),
    "no label has a curve": lambda: plots.roc({"any": WHY}),
    "no label": lambda: plots.roc({}),
    "reliability": lambda: plots.reliability(PANELS),
    "no bins": lambda: plots.reliability({"any": plots.Bins("", [], [])}),
    "one bin at nought": lambda: plots.reliability({"any": plots.Bins("", [[0.0, 0.0, 5]], [[0.0, 0.0, 5]])}),
    "confusion": lambda: plots.confusion(COUNTS),
    "roc_overlay": lambda: plots.roc_overlay({"cnn": (X, np.sqrt(X)), "gone": (X[:0], X[:0])}),
    "history_overlay": lambda: plots.history_overlay(RUNS, {"val_auc": "AUC", "gone": "gone", "loss": "loss"}),
    "no run": lambda: plots.history_overlay({}, {}),
    "interval_plot": lambda: plots.interval_plot(ROWS, "AUC", 0.5),
    "no row": lambda: plots.interval_plot([], "AUC", 0.5),
    "no value": lambda: plots.interval_plot(ROWS[1:3], "AUC", 0.5),
}  # fmt: skip


def texts(svg: bytes) -> list[str]:
    """What the figure says: matplotlib writes each text as a comment beside its paths."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", svg.decode(), re.DOTALL)]


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_is_whole_the_same_each_time_and_drawn_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = DRAWN[name]()
    tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert not tags & {"text", "script", "image"}
    assert drawn(name) == svg


@functools.cache
def drawn(name: str) -> bytes:
    return DRAWN[name]()


@pytest.mark.parametrize("name", DRAWN)
def test_no_letter_is_smaller_than_eleven_pixels(name):
    sizes_pt = [100 * float(scale) for scale in re.findall(r"scale\(([\d.]+) -[\d.]+\)", drawn(name).decode())]
    assert all(size / figures.PX >= 11 for size in sizes_pt)
    assert sizes_pt or name in ("no label", "no run")


class TestCurves:
    def test_lines_are_named_and_the_best_epoch_is_marked(self):
        said = texts(plots.curves(HISTORY, 2))
        for words in ("training", "validation", "validation, at the odds of training", "log loss", "accuracy", "epoch"):
            assert words in said
        assert said.count("best epoch: 2") == 4
        assert "best epoch: 2" not in texts(plots.curves(HISTORY))

    def test_a_loss_that_repeats_another_is_left_out(self):
        same = [{**row, "val_log_loss_as_sampled": row["val_log_loss"]} for row in HISTORY]
        assert "validation, at the odds of training" not in texts(plots.curves(same))
        assert "the loss that training minimises" not in texts(plots.curves(HISTORY))
        focal = [{**row, "loss": row["loss"] / 2} for row in HISTORY]
        assert "the loss that training minimises" in texts(plots.curves(focal))

    def test_a_run_without_validation(self):
        rows = [{key: value for key, value in row.items() if not key.startswith("val")} for row in HISTORY]
        said = texts(plots.curves(rows))
        assert "validation" not in said
        assert said.count("the run wrote no such values") == 1  # where the AUC would be


class TestPanels:
    def test_a_label_without_a_curve_says_why(self):
        for draw in (plots.roc, plots.precision_recall):
            said = texts(draw(CURVES))
            assert {"any", "epidural", "subdural", "AUC 0.9", WHY, "a model that guesses"} <= {
                words.partition(":")[0] if words.startswith("a model") else words for words in said
            }

    def test_the_legend_names_what_is_drawn(self):
        bare = {"any": CURVES["any"]._replace(band=None, point=None)}
        said = texts(plots.roc(bare))
        assert "this model" in said
        assert not {"95% interval", "threshold chosen on validation"} & set(said)
        assert "this model" not in texts(plots.roc({"any": WHY}))

    def test_confusion_shows_counts_and_the_share_of_the_row(self):
        said = texts(plots.confusion(COUNTS))
        for words in ("88", "88.0%", "12", "12.0%", "1,900", "19.0%", "8,100", "81.0%", "3.0%", "97.0%"):
            assert words in said
        assert said.count("no slice") == 2  # the empty row

    def test_a_long_reason_is_broken_into_lines(self):
        said = texts(plots.roc({"any": "too few patients with a positive or a negative slice for every interval"}))
        assert {"too few patients with a positive or a", "negative slice for every interval"} <= set(said)


@given(st.floats(1e-6, 1))
@settings(max_examples=200, deadline=None)
def test_ticks_are_round_ascend_and_stay_below_the_top(top):
    ticks = plots.root_ticks(top)
    assert ticks[0] == 0
    assert 2 <= len(ticks) <= 5
    assert all(a < b for a, b in itertools.pairwise(ticks))
    assert ticks[-1] <= top * (1 + 1e-6)
    assert ticks[-1] >= top / 2
    for tick in ticks[1:]:
        assert float(f"{tick:.0e}") == tick
    roots = [math.sqrt(a / top) for a in ticks]
    assert min(b - a for a, b in itertools.pairwise(roots)) > 0.05  # room for the numbers


class TestOverlays:
    def test_every_run_is_named_once(self):
        said = texts(plots.history_overlay(RUNS, {"val_log_loss": "validation log loss", "gone": "gone"}))
        assert [said.count(name) for name in RUNS] == [1, 1, 0]  # the last has no epoch to draw
        assert "validation log loss" in said
        assert "no run wrote such values" in said
        assert "cnn" in texts(plots.roc_overlay({"cnn": (X, X)}))

    def test_intervals_stand_in_words(self):
        said = texts(plots.interval_plot(ROWS, "ROC AUC", 0.5))
        assert {"cnn", "0.900 (0.880 to 0.930)", "0.500", figures.DASH, "ROC AUC"} <= set(said)
        assert {"AUC", "nothing to compare"} <= set(texts(plots.interval_plot([], "AUC")))

    def test_a_name_is_text_and_a_long_one_is_cut(self):
        name = "--><script>$x$</script>" + 100 * "y"
        for svg in (
            plots.interval_plot([(name, 0.5, 0.4, 0.6)], name),
            plots.roc_overlay({name: (X, X)}),
            plots.history_overlay({name: HISTORY}, {"loss": name}),
        ):
            tags = {element.tag.partition("}")[2] for element in ElementTree.fromstring(svg).iter()}
            assert "script" not in tags
        assert any(words.endswith("y...") for words in texts(plots.roc_overlay({name: (X, X)})))
