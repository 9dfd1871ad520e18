"""The model card: it tells what the files tell, no more, and always what the model must not be used for."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import re

import made_series
import numpy as np
import pytest
from made_cards import FACTS, FINGERPRINT, LABELS, RSNA, SETTINGS, about, result_of

from trainer.results import thresholds
from trainer.serving import model_card


@pytest.fixture(scope="module")
def result() -> dict:
    return result_of()


def rows(card: str, head: str) -> list[list[str]]:
    """Cells of the table whose first line begins with `head`."""
    table = card[card.index(f"| {head}") :].split("\n\n")[0].strip().splitlines()
    assert set(table[1]) <= set("|-: ")
    assert len({line.count("|") for line in table}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


@pytest.mark.parametrize("evaluated", [True, False])
def test_every_card_says_what_the_model_is_and_is_not_for(evaluated, result):
    card = model_card.card(about(), result if evaluated else None)
    for words in ("Not a medical device", "synthetic slices", "Other scanners", "single slices of 128 x 128 px"):
        assert words in card
    assert "\n---\n# densenet121, trained on rsna_ich 1.0.0\n" in card
    assert f"fingerprint `{FINGERPRINT}`, split train." in card
    assert "7,654,321 parameters, weights of epoch 9" in card
    assert "tensorflow 2.21.0, keras 3.15.1" in card
    assert "architecture: {dropout: 0.1}" in card
    assert not re.findall(r"(?<!`)\{\w+\}", card.replace("{dropout: 0.1}", ""))


def test_pixels_come_from_the_spec():
    image = dataclasses.replace(RSNA.image, size_px=64, pad_hu=-2000)
    card = model_card.card(about(spec=dataclasses.replace(RSNA, image=image)), None)
    wanted = [[window.name, str(window.level_hu), str(window.width_hu)] for window in image.windows]
    assert rows(card, "window") == wanted
    assert "padded to squares with -2000 HU" in card
    assert "64 x 64 px of 0 to 255" in card
    assert "`image` uint8 [n, 64, 64, 3]" in card


def test_without_an_evaluation_it_says_how_to_get_one():
    card = model_card.card(about(), None)
    assert "Not evaluated yet. `python -m trainer.evaluate --job_dir RUN`" in card
    assert "Tested on" not in card


def test_results_with_intervals(result):
    card = model_card.card(about(), result)
    measured = result["measures"]
    assert "Tested on split test of the same data set: 240 slices of 24 studies of 24 patients." in card
    assert "95% intervals from 100 resamples" in card
    auc = measured["labels"]["any"]["auc"]
    ranking = {row[0]: row[1:] for row in rows(card, "label | ROC AUC")}
    assert ranking["any"][0] == f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"
    assert ranking[LABELS[1]][0] == "-"
    assert f"- {LABELS[1]}: no positive slice" in card
    deciding = {row[0]: row[1:] for row in rows(card, "label | rule")}
    assert deciding["any"][:2] == ["youden", "0.1235"]
    assert deciding[LABELS[1]][:2] == ["even", "0.5"]
    both_ways = rows(card, "reading")
    assert [row[:2] for row in both_ways[:2]] == [["hemorrhage", "youden"], ["no hemorrhage", "youden"]]
    assert sum(int(row[3]) for row in both_ways[:2]) == 240


def test_an_evaluation_on_other_data_or_with_mirror_images_is_told(result):
    other = copy.deepcopy(result)
    other["what"] |= {"flip": True, "dataset": {"name": "clinic", "version": "2.0.0", "fingerprint": "e" * 64}}
    card = model_card.card(about(), other)
    assert f"of clinic 2.0.0, fingerprint `{'e' * 64}`: 240 slices" in card
    assert "mean of a slice and its mirror image; the export does not do that" in card
    assert "mirror image" not in model_card.card(about(), result)


def test_folds_are_told():
    card = model_card.card(about(settings=SETTINGS | {"fold": 2, "folds": 5}), None)
    assert "splits train and validation without fold 2 of 5, which validates." in card


def test_calibration_and_what_was_refused():
    card = model_card.card(about(), None)
    assert rows(card, "label | shift")[0] == ["any", "0.0000", "0.5000", "0.7500"]
    assert (
        f"- probabilities of {LABELS[1]} are not calibrated, but for the shift: no positive slice among the 12" in card
    )
    constant = dataclasses.replace(about().calibration, slope=np.array([0.5, 0, 1, 1, 1, 1]))
    words = (
        f"- {LABELS[1]} has the same probability in every slice, its prevalence of 0.5: no positive slice among the 12"
    )
    assert words in model_card.card(about(calibration=constant), None)
    fitted = dataclasses.replace(about().calibration, refused={})
    assert "are not calibrated" not in model_card.card(about(calibration=fitted), None)


def test_a_model_without_skill_says_so_first(result):
    card = model_card.card(about(), result)
    assert "of the prevalence alone" in card
    assert "no skill" not in card
    unskilled = copy.deepcopy(result)
    unskilled["measures"]["skill"]["overall"]["skill"] = {"value": -0.1, "low": -0.3, "high": 0.1}
    results = model_card.card(about(), unskilled).partition("## Results\n\n")[2]
    assert results.startswith("**It shows no skill over the prevalence: its log loss is ")


def test_what_thresholds_rest_on():
    held = {"value": 0.8, "low": 0.6, "high": 0.9}
    label = {"positives": 31, "patients": 8, "rules": {"youden": {"sensitivity": held, "specificity": held}}}
    card = model_card.card(about(facts=FACTS | {"foreseen": {"slices": {"any": label}}}), None)
    shown = "0.800 [0.600, 0.900]"
    assert rows(card, "label | rule | positive slices") == [["any", "youden", "31", "8", shown, shown]]
    assert "sensitivity to expect" not in model_card.card(about(), None)


def test_thresholds_of_every_rule():
    card = model_card.card(about(), None)
    head = f"label | {' | '.join(thresholds.RULES)}"
    found = {row[0]: row[1:] for row in rows(card, head)}
    assert found["any"] == ["0.1235", "0.25", "-", "-", "0.5"]
    assert found[LABELS[1]] == ["-", "-", "-", "-", "0.5"]


def test_what_is_no_evaluation_is_an_error():
    with pytest.raises(KeyError):
        model_card.card(about(), {"what": {}})


# --- of series -----------------------------------------------------------------------------------------------


def series_card(result: dict | None = None) -> str:
    made = made_series.about_of("series", RSNA, None, made_series.blend_of(made_series.odds_of(LABELS)))
    return model_card.card(made, result, about())


def test_the_card_of_a_model_of_slices_keeps_its_bytes():
    """Who exports a run again gets the card that is there."""
    _, _, below_its_head = model_card.card(about(), None).split("---\n", 2)
    found = hashlib.sha256(below_its_head.encode()).hexdigest()
    assert found == "b0a31a6aaf71edc5a800f890c7ea57a11617fcba419d874d3442c9dcd8d0d1d9"


def test_the_card_of_a_series_model_says_what_it_sees():
    card = series_card()
    assert "\n---\n# series over densenet121, trained on rsna_ich 1.0.0\n" in card
    for words in ("among its neighbours", "sees the slices of one series together, each of 128 x 128 px", "at one"):
        assert words in card
    assert "single slices of 128" not in card
    assert "not their neighbours" not in card
    assert not re.findall(r"(?<!`)\{\w+\}", card.replace("{dropout: 0.1}", ""))
    assert rows(card, "signature")[0][0] == "`series`, `serving_default`"
    assert "`records`" not in card
    assert 'model.signatures["series"](hu=' in card


def test_the_slice_model_below_a_series_model():
    card = series_card()
    assert "a slice model, `slice/model.keras`: densenet121, 7,654,321 of the parameters, weights of epoch 9." in card
    assert "vectors of 8 numbers" in card
    assert "architecture: {dropout: 0.1}" in card


def test_blend_calibration_and_thresholds_of_both_levels():
    card = series_card()
    parts = {row[0]: row[1:] for row in rows(card, "label | part of the context")}
    assert parts["any"] == ["0.3", "0.6"]
    assert parts[LABELS[1]] == ["0", "1"]
    of_studies = card.partition("## Calibration")[2].partition("Of studies:")[2]
    assert rows(of_studies, "label | shift")[0] == ["any", "0.0000", "0.8000", "0.4000"]
    thresholds_of_studies = card.partition("## Thresholds")[2].partition("Of studies:")[2]
    assert rows(thresholds_of_studies, "label | youden")[0] == ["any", "-", "0.25", "-", "-", "0.5"]
    assert "Of studies:" not in model_card.card(about(), None)


def test_studies_are_judged_in_every_way(result):
    one = copy.deepcopy(result)
    gain = {"value": 0.01, "low": -0.02, "high": 0.04}
    levels = one["measures"]["studies_level"]
    of_head = {name: {**values, "auc_gain": gain} for name, values in levels.items()}
    one["measures"]["studies_by"] = {"series head": of_head}
    found = rows(series_card(one), "label | judged by")
    assert [row[:2] for row in found[:2]] == [["any", "greatest slice"], ["any", "series head"]]
    assert (found[0][3], found[1][3]) == ("-", "0.010 [-0.020, 0.040]")
    assert "judged by" not in series_card(result)
