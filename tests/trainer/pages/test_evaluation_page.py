"""The page of an evaluation: whole, self-contained, escaped, the same each time; a dash where nothing is defined."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import browser
import numpy as np
import pyarrow as pa
import pytest
from html_pages import Page, assert_every_text_stays_text
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.pages import evaluation_page as pages
from trainer.pages.figures import DASH
from trainer.pages.sections import best_epoch
from trainer.results import calibration, conformal, measures, study_level, thresholds
from trainer.results.predictions import Predictions
from trainer.results.probability import sigmoid
from trainer.training.run_dir import json_text

pytestmark = pytest.mark.slow  # draws

NAMES = ("any", "epidural", "subdural")
SCRIPT = "<script>alert(1)</script>"
SECTIONS = [
    *("Training", "Labels", "Against knowing nothing", "ROC", "Precision and recall", "Confusion matrices"),
    *(
        "Reliability",
        "Thresholds",
        "Studies",
        "Both values of the headline label",
        "Worst errors",
        "Made from",
        "Settings",
    ),
]
HISTORY: list[dict[str, float]] = [
    {"epoch": 1, "log_loss": 0.5, "accuracy": 0.8, "val_log_loss": 0.4, "val_accuracy": 0.9, "val_auc": 0.8},
    {"epoch": 2, "log_loss": 0.4, "accuracy": 0.9, "val_log_loss": 0.3, "val_accuracy": 0.9, "val_auc": 0.7},
    {"epoch": 3, "log_loss": 0.3, "accuracy": 0.9, "val_log_loss": 0.3, "val_accuracy": 0.9, "val_auc": 0.9},
]


def predictions_of(labels: np.ndarray, logits: np.ndarray, names=NAMES, slices_a_patient: int = 10) -> Predictions:
    """One study a patient; ids that a browser would run."""
    n = len(labels)
    patients = [f"p{row // slices_a_patient:03d}" for row in range(n)]
    ids = pa.table(
        {
            "sop_uid": [f"{SCRIPT}{row}" for row in range(n)],
            "study_uid": [f"{SCRIPT}{patient}" for patient in patients],
            "series_uid": patients,
            "patient_key": patients,
            "slice_index": np.arange(n) % slices_a_patient,
            "position_mm": np.arange(n, dtype=np.float32),
        }
    )
    shown = sigmoid(logits)
    return Predictions(names, "any", ids, labels.astype(np.int8), logits.astype(np.float32), shown)


def simulated(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 3)) < [0, 0.1, 0.2]).astype(int)
    labels[:, 0] = labels.max(axis=1)
    return labels, -2 + 3 * labels + rng.normal(0, 1.2, labels.shape)


def result_of(labels: np.ndarray, logits: np.ndarray, chosen: Any = None) -> tuple[dict[str, Any], Predictions]:
    """metrics.json as the command writes it, and the table of predictions."""
    found = predictions_of(labels, logits)
    own = {name: thresholds.choose(labels[:, at], found.probabilities[:, at]) for at, name in enumerate(NAMES)}
    before = sigmoid(logits + 1)
    what = {
        "run": f"cnn {SCRIPT}",
        "split": "test",
        "dataset": {"name": f"set {SCRIPT}", "version": "1.0.0", "fingerprint": "a" * 64},
        "trained_on": "b" * 64,
        "foreseen": {"slices": foreseen_of(labels, found), "studies": {}},
        "flip": False,
        "model": "cnn",
        "parameters": 1234567,
        "settings": {"monitor": "log_loss", "architecture": {"filters": [32, SCRIPT]}},
        "versions": {"keras": "3.15.1"},
        "fold": [1, 5],
        "train": {"epochs": 3, "seconds": 83.4, "images_per_s": None},
        "evaluated_slices_per_s": 512.3,
    }
    fitted = calibration.Calibration(
        NAMES, np.array([1.0, 2, 3]), np.ones(3), np.zeros(3), {"epidural": f"no positive slice {SCRIPT}"}
    )
    measured = measures.measure(found, before, chosen or own, chosen or own, dict.fromkeys(NAMES, 0.1), 100, 0)
    result = {"format": 2, "what": what, "calibration": fitted.to_dict(), "measures": measured}
    return json.loads(json_text(result)), found


def foreseen_of(labels: np.ndarray, found: Predictions) -> dict[str, Any]:
    return {
        name: thresholds.foreseen(labels[:, at], found.probabilities[:, at], found.patients, 50, 0)
        for at, name in enumerate(NAMES)
    }


def worst_of(found: Predictions, count: int = 4) -> list[pages.Worst]:
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [
        pages.Worst(
            found.ids.slice(row, 1).to_pylist()[0],
            found.names[label],
            int(found.labels[row, label]),
            float(found.probabilities[row, label]),
            image,
        )
        for (row, label), image in zip(pages.worst_rows(found, count), images)
    ]


def test_the_promise_is_shown_where_one_was_tested(made):
    result, found = made
    assert "Three groups with a promise" not in pages.page(result, found, [], [])
    promise = conformal.Promise(0.05, {name: conformal.Limits(0.2, 0.6) for name in NAMES})
    tested = {"promise": conformal.measured(promise, *study_level.studies(found))}
    page = Page(pages.page(json.loads(json_text({**result, **tested})), found, [], []))
    assert "Three groups with a promise" in page.words
    assert "at most 5 of 100 are called wrongly" in page.words
    of = tested["promise"]["labels"]["epidural"]["wrong"]["positive"]
    assert f"{of['called_wrongly']} of {of['patients']}: {of['value']:.3f}" in page.words


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, Any], Predictions]:
    return result_of(*simulated(0))


@pytest.fixture(scope="module")
def text(made) -> str:
    result, found = made
    return pages.page(result, found, HISTORY, worst_of(found))


@pytest.fixture(scope="module")
def bare() -> Page:
    """The page where epidural has no positive slice, nobody knows subdural, and nothing was trained or wrong."""
    labels, logits = simulated(1)
    labels[:, 1], labels[:, 2] = 0, -1
    result, found = result_of(labels, logits)
    result["what"] |= {"fold": None, "train": {"epochs": 0, "seconds": None, "images_per_s": None}}
    return Page(pages.page(result, found, [], []))


class TestPage:
    def test_it_is_one_file_without_scripts_or_requests(self, text):
        page = Page(text)
        assert not {"script", "link", "iframe", "object", "a"} & set(page.tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        sources = [value for name, value in page.attributes if name == "src"]
        kinds = [value.partition(",")[0] for value in sources]
        assert kinds == ["data:image/svg+xml;base64"] * 5 + ["data:image/png;base64"] * 4
        rest = re.sub(r'src="[^"]*"', "", text).replace("http-equiv", "")
        assert "http" not in rest
        assert "url(" not in rest

    def test_every_section_is_there_and_says_how_to_read_it(self, text):
        page = Page(text)
        assert page.headings == SECTIONS
        assert text.count('<p class="note">') >= len(SECTIONS) - 1

    def test_the_same_results_give_the_same_bytes(self, made, text):
        result, found = made
        assert pages.page(copy.deepcopy(result), found, HISTORY, worst_of(found)) == text

    def test_hostile_names_stay_text(self, text):
        page = Page(text)
        assert "<script" not in text
        for place in (
            "cnn ",
            "set ",
            '32, "',
            "epidural are not calibrated, but for the shift: no positive slice ",
        ):  # run, data set, setting, refusal
            assert f"{place}{SCRIPT}" in page.words
        assert f"study {SCRIPT}p0" in page.words

    def test_whatever_comes_in_as_text_stays_text(self, made, monkeypatch):
        result, found = made
        assert_every_text_stays_text(monkeypatch, lambda: pages.page(result, found, HISTORY, worst_of(found)))

    def test_no_patient_key_is_shown(self, made, text):
        keys = set(made[1].ids["patient_key"].to_pylist())
        outside = re.sub(r'src="[^"]*"', "", text).replace(SCRIPT.replace("<", "&lt;").replace(">", "&gt;") + "p", "")
        assert not any(key in outside for key in keys)

    def test_pictures_tell_truth_and_probability(self, made, text):
        words = Page(text).words
        for one in worst_of(made[1]):
            truth = "positive" if one.truth else "negative"
            assert f"{one.label} is {truth}, probability {one.probability:.3g}" in words

    def test_it_looks_right_in_a_browser(self, text, tmp_path):
        (tmp_path / "report.html").write_text(text, encoding="utf-8")
        report = browser.render(tmp_path / "report.html", tmp_path / "report.png")
        assert (report.console, report.requests, report.scripts) == ([], [], 0)
        assert (report.images, report.broken_images) == (9, 0)
        assert not report.too_wide
        assert f"cnn {SCRIPT}: test split" in report.text
        with Image.open(tmp_path / "report.png") as shown:
            assert len(shown.convert("RGB").getcolors(1 << 24) or []) > 1000


class TestNumbers:
    def test_the_head_says_what_the_model_finds(self):
        labels = np.zeros((1100, 3), int)
        labels[:100, :2] = 1
        logits = np.full((1100, 3), -5.0)
        logits[:88, 0] = logits[100:150, 0] = 5.0  # 88 of 100 found, 50 of 1,000 flagged for nothing
        chosen = {name: {"youden": 0.5, "even": 0.5} for name in NAMES}
        words = Page(pages.page(*result_of(labels, logits, chosen), HISTORY, [])).words
        assert re.search(r"Of 100 slices with hemorrhage it flags 88 \(95% interval \d+ to \d+\)\.", words)
        assert re.search(r"Of 100 slices without, it leaves 95 \(95% interval \d+ to \d+\) alone\.", words)
        assert "Of 100 slices that it flags, 64 (95%" in words
        assert "Calling every slice free of hemorrhage would be right for 90.9% of them." in words

    @pytest.mark.parametrize(
        ("split", "trained_on", "words"),
        [
            ("train", "a" * 64, "Trained on these very slices, so nothing here says how good it is on new patients."),
            ("validation", "a" * 64, "Calibration, thresholds and the best epoch were chosen on these very slices, so"),
            ("train", "b" * 64, "Trained on another data set than the one evaluated on; see to it that no patient is"),
        ],
    )
    def test_the_head_says_what_the_training_has_seen(self, made, split, trained_on, words):
        settings = made[0]["what"]["settings"] | {"train_split": "train", "validation_split": "validation"}
        what = made[0]["what"] | {"split": split, "trained_on": trained_on, "settings": settings}
        page = Page(pages.page(made[0] | {"what": what}, made[1], [], []))
        assert words in page.words

    def test_tables_hold_the_measures(self, made, text):
        page, found = Page(text), made[0]["measures"]
        label = found["labels"]["subdural"]
        first, decisions = page.rows_of("subdural")[:2]
        assert first[:2] == [str(label["known"]), str(label["positives"])]
        assert first[3] == "{value:.3f} ({low:.3f} to {high:.3f})".format(**label["auc"])
        assert decisions[0] == f"{label['threshold']:.3g}"
        assert decisions[1].startswith(f"{label['sensitivity']['value']:.3f} (")
        study = found["studies_level"]["subdural"]
        assert [str(study["known"]), str(study["positives"])] in [row[:2] for row in page.rows_of("subdural")]

    def test_every_rule_has_its_row(self, made, text):
        rows = [row for row in Page(text).rows if {"Youden", "greatest F1", "one half"} & set(row) and len(row) == 8]
        assert len(rows) == 3 * len(NAMES)
        flagged = made[0]["measures"]["thresholds"]["any"][0]["flagged"]
        assert rows[0][0] == "any"
        assert rows[0][-1] == f"{100 * flagged:.1f}%"

    def test_what_the_thresholds_rest_on_has_its_rows(self, made, text):
        foreseen = made[0]["what"]["foreseen"]["slices"]
        rows = [row for row in Page(text).rows if row[1:2] == ["Youden"] and len(row) == 6]
        assert [row[0] for row in rows] == list(NAMES)
        for row, label in zip(rows, foreseen.values()):
            assert row[2:4] == [str(label["positives"]), str(label["patients"])]
            assert row[4].startswith(f"{label['rules']['youden']['sensitivity']['value']:.3f} (")

    def test_a_run_of_before_foresaw_nothing(self, made):
        result = made[0] | {"what": made[0]["what"] | {"foreseen": {}}}
        assert "What they rest on" not in Page(pages.page(result, made[1], HISTORY, [])).words

    def test_skill_stands_beside_every_log_loss(self, made, text):
        found = made[0]["measures"]["skill"]["labels"]["subdural"]
        row = next(row for row in Page(text).rows_of("subdural") if row[0] == "0.1")
        assert row[3].startswith(f"{found['skill']['value']:.3f} (")
        assert "says of each how often the label is positive where the model was trained" in Page(text).words

    def test_a_run_without_skill_says_so_first(self, made):
        labels, logits = simulated(3)
        words = Page(pages.page(*result_of(labels, -logits), HISTORY, [])).words
        assert "It knows less than the prevalence: its log loss is" in words
        assert words.index("It knows less") < words.index("Of 100 slices")

    def test_both_values_are_named(self, made, text):
        ways = made[0]["measures"]["both_ways"]
        rows = [row for row in Page(text).rows if row[:1] in (["hemorrhage"], ["no hemorrhage"])]
        assert len(rows) == 4
        assert rows[1][2] == str(ways["youden"]["no hemorrhage"]["slices"])
        assert rows[1][4].startswith(f"{ways['youden']['no hemorrhage']['precision']['value']:.3f} (")


class TestNothingToShow:
    def test_what_is_not_defined_is_a_dash_with_its_reason(self, bare):
        first, decisions = bare.rows_of("epidural")[:2]
        assert first[3:5] == [DASH, DASH]
        assert decisions[1] == DASH
        assert bare.rows_of("subdural")[0][2:] == [DASH] * 4
        assert f"What is missing ({DASH}), and why: epidural: no positive slice" in bare.words
        assert "subdural: no slice with a known label" in bare.words

    def test_pictures_say_why_there_is_no_curve(self, bare):
        spoken = [value for name, value in bare.attributes if name == "alt"]
        assert sum("epidural no curve: no positive slice" in words for words in spoken) == 2

    def test_a_run_without_history_or_errors(self, bare):
        assert bare.headings == SECTIONS
        assert "The run has no history.csv." in bare.words
        assert "No probability is nearer to the wrong value than to the truth." in bare.words
        assert bare.rows_of("training") == [[DASH]]
        assert bare.rows_of("fold") == [["none"]]

    def test_no_slice_with_hemorrhage_at_all(self):
        labels, logits = simulated(2)
        page = Page(pages.page(*result_of(0 * labels, logits), HISTORY, []))
        assert "any: no positive slice" in page.words
        assert "slices with hemorrhage it flags" not in page.words
        assert "would be right for 100.0% of them" in page.words


@pytest.mark.parametrize(
    ("monitor", "epoch"),
    [("log_loss", 2), ("auc", 3), ("accuracy", 1), ("auc_any", None)],  # the first of equals; no such column
)
def test_the_best_epoch_is_that_of_the_monitor(monitor, epoch):
    assert best_epoch(HISTORY, monitor) == epoch


LOGITS = st.sampled_from([-6.0, -2, -0.1, 0.1, 2, 6])
CELLS = st.tuples(st.integers(-1, 1), LOGITS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=20), st.integers(0, 12))
def test_the_worst_slices(cells, count):
    table = np.array(cells) + [[0, 0.01]] * np.arange(3)[:, None]  # no two labels of a slice are equally wrong
    found = predictions_of(table[..., 0].astype(int), table[..., 1])
    losses = {}  # row -> its greatest loss and the label of that
    for row, label in np.ndindex(found.labels.shape):
        truth, shown = found.labels[row, label], found.probabilities[row, label]
        loss = 0.0 if truth < 0 else -np.log(shown if truth else 1 - shown)
        if loss > max(np.log(2), losses.get(row, (0.0, 0))[0]):
            losses[row] = (loss, label)
    shown = pages.worst_rows(found, count)
    assert len(shown) == min(count, len(losses))
    assert len({row for row, _ in shown}) == len(shown)
    assert all(losses[row][1] == label for row, label in shown)
    assert [label for _, label in shown] == sorted(label for _, label in shown)
    for label in range(3):
        ranked = sorted((loss for loss, at in losses.values() if at == label), reverse=True)
        taken = [losses[row][0] for row, at in shown if at == label]
        assert taken == pytest.approx(ranked[: len(taken)])
        others = [sum(at == other for _, at in shown) for other in range(3)]
        assert len(taken) == len(ranked) or len(taken) >= max(others) - 1  # the labels take turns
