"""The sentence for clear, unclear and several runs; the page escaped and complete; the CSV and the table of text."""

from __future__ import annotations

import csv
import io
import math
import re

import browser
import pytest
from evaluated_runs import folds, predictions, run
from html_pages import assert_every_text_stays_text

from trainer.pages import comparison_page, figures
from trainer.pages.comparison_page import decimals, percent, verdict
from trainer.results.comparison import LUCK, compare

pytestmark = pytest.mark.slow  # draws

DRAWS = 60


def result(differences: dict[str, tuple[float, float, float]], too_few: str = "") -> dict:
    """A comparison whose best run is `best` with a log loss of 0.081; name -> difference, low and high."""
    pairs = len(differences) * (len(differences) + 1) // 2
    models = [("best", 0.081), *((name, 0.081 + gap[0]) for name, gap in differences.items())]
    return {
        "models": [{"name": name, "values": {"log_loss": {"value": value}}} for name, value in models],
        "best": "best",
        "too_few": too_few,
        "pairs": pairs,
        "level": 0.95,
        "pair_level": 1 - 0.05 / pairs,
        "differences": [
            {
                "name": name,
                "values": {
                    "log_loss": {"value": gap, "low": low, "high": high, "reading": "worse" if low > 0 else "unclear"}
                },
            }
            for name, (gap, low, high) in differences.items()
        ],
    }


# the sentence


def test_a_clear_difference_between_two():
    (sentence,) = verdict(result({"other": (0.014, 0.004, 0.025)}))
    assert sentence == (
        "best has the lower log loss: 0.081 against 0.095 of other, a difference of 0.014 "
        "(95% interval 0.004 to 0.025)."
    )


def test_an_unclear_difference_between_two():
    (sentence,) = verdict(result({"other": (0.004, -0.003, 0.011)}))
    assert sentence == (
        "No difference can be claimed: best has a log loss of 0.081 and other of 0.085, and the 95% interval of the "
        "difference, -0.003 to 0.011, includes 0."
    )


def test_an_interval_that_is_not_defined():
    (sentence,) = verdict(result({"other": (0.004, math.nan, math.nan)}))
    assert sentence.endswith("and the 95% interval of the difference is not defined.")


def test_three_runs_name_each_pair_and_the_correction():
    interval = "the 98.33% interval of the difference"
    corrected = (
        "The 98.33% intervals are Bonferroni-corrected for the 3 pairs, so that all claims about log loss together "
        "hold with 95%."
    )
    gaps = {"far": (0.02, 0.01, 0.03), "near": (0.001, -0.004, 0.006)}
    assert verdict(result(gaps)) == [
        "best has the lowest log loss, 0.081.",
        "It is lower than the 0.101 of far by 0.020 (98.33% interval 0.010 to 0.030).",
        f"No difference to the 0.082 of near can be claimed: {interval}, -0.004 to 0.006, includes 0.",
        corrected,
    ]


def test_three_runs_without_a_clear_one():
    sentences = verdict(result({"a": (0.002, -0.01, 0.03), "b": (0.001, -0.004, 0.006)}))
    assert sentences[0] == (
        "No difference can be claimed: best has the lowest log loss, 0.081, but no other is clearly higher."
    )
    assert "lower than" not in " ".join(sentences)


def test_too_few_patients_are_the_reason():
    sentences = verdict(result({"a": (0.5, 0.4, 0.6)}, too_few="4 patients are too few"))
    assert sentences == ["No difference can be claimed: 4 patients are too few."]


def test_nineteen_patients_claim_nothing():
    runs = [run("a", predictions(0.5, 1, range(19))), run("b", predictions(6.0, 2, range(19)))]
    assert verdict(compare(runs, DRAWS, 0, False)) == [
        "No difference can be claimed: 19 patients with a known label are too few (20 at least)."
    ]


def test_no_known_label():
    values = result({"other": (math.nan,) * 3}) | {"best": None, "differences": []}
    assert verdict(values)[0].startswith("No difference can be claimed: the log loss is not defined")


@pytest.mark.parametrize(
    ("split", "whole"), [("validation", "their pooled predictions have"), ("test", "over resamples")]
)
def test_folds_of_one_model_have_nothing_beside_them(split, whole):
    (sentence,) = verdict(compare(folds("cnn", 2.0, 3, split=split), DRAWS, 0, False))
    assert sentence.startswith("cnn (4 folds) is one model, with nothing to compare it with: its log loss is 0.3")
    assert whole in sentence


# numbers


@pytest.mark.parametrize(
    ("low", "high", "digits"),
    [
        (0.004, 0.025, 3),
        (-3.0, 5.0, 3),
        (0.00042, 0.00093, 5),
        (0.0004, 0.2, 4),  # an end that would read as 0
        (-0.00004, 0.2, 5),
        (0.0, 0.0, 3),
        (1e-9, 2e-9, 6),
        (math.nan, math.nan, 3),
    ],
)
def test_decimals_show_the_interval(low, high, digits):
    assert decimals({"low": low, "high": high}) == digits


@pytest.mark.parametrize(("share", "words"), [(0.95, "95%"), (1 - 0.05 / 3, "98.33%"), (1 - 0.05 / 6, "99.17%")])
def test_levels_are_told_apart(share, words):
    assert percent(share) == words


def test_nothing_is_told_as_minus_zero():
    (sentence,) = verdict(result({"other": (0.0, -1e-9, 1e-9)}))
    assert "difference, 0.000000 to 0.000000, includes 0" in sentence


# page, CSV, text


@pytest.fixture(scope="module")
def compared() -> dict:
    runs = [
        run("<script>alert(1)</script>", predictions(2.0, 1)),
        run("=cmd $x$", predictions(3.0, 2), model="xception"),
    ]
    return compare(runs, DRAWS, 0, False)


def test_the_page_shows_names_as_text(compared):
    page = comparison_page.page(compared)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for title in ("Side by side", "Differences to =cmd $x$", "Curves", "Cost", "Made from"):
        assert f"<h2>{title}</h2>" in page


def test_whatever_comes_in_as_text_stays_text(monkeypatch):
    found = compare([*folds("a", 2.0, 10), *folds("b", 2.6, 30)], DRAWS, 0, False)
    assert_every_text_stays_text(monkeypatch, lambda: comparison_page.page(found))


def test_a_browser_shows_it_whole(compared, tmp_path):
    (tmp_path / "page.html").write_text(comparison_page.page(compared), encoding="utf-8")
    seen = browser.render(tmp_path / "page.html", tmp_path / "page.png")
    assert (seen.console, seen.requests, seen.broken_images, seen.scripts) == ([], [], 0, 0)
    assert seen.images >= 3
    assert not seen.too_wide
    assert "<script>" in seen.text


def test_the_page_holds_every_metric_of_every_run(compared):
    page = comparison_page.page(compared)
    for model in compared["models"]:
        for value in model["values"].values():
            assert f"{value['value']:.3f}\xa0({value['low']:.3f}\xa0to\xa0{value['high']:.3f})" in page


def test_many_runs_stand_in_several_tables():
    runs = [run(f"r{number}", predictions(2.0, number, range(8))) for number in range(6)]
    page = comparison_page.page(compare(runs, 40, 0, False))
    assert "<title>Comparison of 6 models</title>" in page
    side_by_side = page[page.index("<h2>Side by side</h2>") : page.index("<h2>Differences")]
    heads = re.findall(r"<thead>(.*?)</thead>", side_by_side)
    assert [re.findall(r">(r\d)<", head) for head in heads] == [["r0", "r1", "r2", "r3"], ["r4", "r5"]]


def test_the_page_shows_a_mean_and_sd_of_folds():
    found = compare([*folds("a", 2.0, 10), *folds("b", 2.6, 30)], DRAWS, 0, False)
    value = found["models"][1]["values"]["log_loss"]
    row = [value["mean"], value["sd"], *value["of_runs"].values()]
    cells = "".join(f'<td class="number">{number:.3f}</td>' for number in row)
    assert f'<td class="text">log loss</td>{cells}' in comparison_page.page(found)


def test_folds_that_fell_out_have_no_column():
    other = run("b", predictions(2.6, 30, range(18)), split="validation")
    page = comparison_page.page(compare([*folds("a", 2.0, 10), other], DRAWS, 0, True))
    (head,) = re.findall(r"<h3>a .4 folds.</h3>\s*<table>\s*<thead>(.*?)</thead>", page)
    assert re.findall("a-fold.", head) == ["a-fold0", "a-fold1"]
    assert "a-fold2, a-fold3 have none of the slices" in page


def test_the_page_tells_how_far_its_readings_hold(compared):
    page = comparison_page.page(compared)
    assert "readings of the areas are not corrected for several metrics" in page
    assert "Skill: the part that a run saves of the log loss" in page
    assert LUCK in page


def test_a_difference_without_an_interval_is_a_dash():
    sides = [predictions(skill, 1) for skill in (1.0, 3.0)]
    for own in sides:
        own.labels[own.patients > 8] = 0  # 4 patients bleed
    page = comparison_page.page(compare([run(name, own) for name, own in zip("ab", sides)], DRAWS, 0, False))
    (row,) = re.findall('<tr><td class="text">ROC AUC, any</td><td class="text">a</td>(.*?)</tr>', page)
    cells = re.findall(">([^<]+)</td>", row)
    assert (cells[0], cells[2:]) == ("no difference can be claimed", [figures.DASH] * 2)
    assert float(cells[1]) < 0


def test_the_same_comparison_gives_the_same_bytes(compared):
    assert comparison_page.page(compared) == comparison_page.page(compared)


def test_values_that_are_not_defined_are_dashes_and_empty_cells():
    own = predictions(patients=range(0, 16, 2))  # nobody bleeds
    found = compare([run("a", own), run("b", predictions(1.0, 3, range(0, 16, 2)))], DRAWS, 0, False)
    page = re.sub(r'"data:[^"]*"', "", comparison_page.page(found))
    assert "nan" not in page
    assert '<td class="number">–</td>' in page  # noqa: RUF001
    cells = rows(comparison_page.csv(found))
    assert cells["a", "auc_any"]["value"] == ""
    assert float(cells["a", "log_loss"]["value"]) > 0


def rows(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(row["run"], row["metric"]): row for row in csv.DictReader(io.StringIO(text))}


def test_the_csv_has_a_row_for_each_run_and_metric(compared):
    found = rows(comparison_page.csv(compared))
    assert [metric for name, metric in found if name == "<script>alert(1)</script>"] == list(compared["metrics"])
    assert len(found) == 2 * len(compared["metrics"])
    best, other = compared["models"][1], compared["models"][0]
    row = found["'=cmd $x$", "auc_any"]  # a spreadsheet would run it
    assert float(row["value"]) == best["values"]["auc_any"]["value"]
    assert row["difference"] == row["mean_of_folds"] == ""
    gap = float(found[other["name"], "auc_any"]["difference"])
    assert gap == pytest.approx(other["values"]["auc_any"]["value"] - best["values"]["auc_any"]["value"])
    assert found[other["name"], "sensitivity_any"]["difference"] == ""


def test_the_text_ends_with_the_verdict(compared):
    lines = comparison_page.text(compared).splitlines()
    assert " ".join(lines[0].split()) == "log loss ROC AUC, mean ROC AUC, any"
    assert lines[2].startswith("=cmd $x$")
    assert lines[-1] == " ".join(verdict(compared))
