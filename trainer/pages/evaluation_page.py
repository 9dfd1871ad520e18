"""The page `report.html`: what an evaluation found, as one HTML file without scripts and without a request.

The same results give the same bytes. Everything that comes from data, file names or settings is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ich_tfrecords.views import html_page, montage
from ich_tfrecords.views.html_page import escape, section
from trainer.pages import figures, sections
from trainer.results.measures import unskilled
from trainer.results.predictions import Predictions
from trainer.results.probability import log_losses

PANEL_PX = 128  # of the pictures


class Worst(NamedTuple):
    """A slice to show: its row of the table of predictions, the label it is wrong about, its image uint8 [s, s, w]."""

    row: Mapping[str, Any]
    label: str
    truth: int
    probability: float
    image: npt.NDArray[np.uint8]


def worst_rows(predictions: Predictions, count: int) -> list[tuple[int, int]]:
    """Row and label of up to `count` slices: the greatest log losses, the labels taking turns, each slice once.

    Only where the probability is nearer to the wrong value than to the truth. A slice stands at the label that it
    is most wrong about. In the order of the labels, the worst of each first.
    """
    losses = log_losses(predictions.labels == 1, predictions.probabilities)
    losses = np.where(predictions.labels >= 0, losses, 0.0)
    label, loss = losses.argmax(axis=1), losses.max(axis=1)
    order = np.argsort(-loss, kind="stable")
    wrong = order[loss[order] > np.log(2)]
    ranked = [wrong[label[wrong] == at].tolist() for at in range(len(predictions.names))]
    turns = sorted((turn, at, row) for at, rows in enumerate(ranked) for turn, row in enumerate(rows))
    return [(row, at) for at, _, row in sorted((at, turn, row) for turn, at, row in turns[:count])]


def page(
    result: Mapping[str, Any], predictions: Predictions, history: Sequence[Mapping[str, float]], worst: Sequence[Worst]
) -> str:
    """HTML text of the page. `result`: metrics.json; `history`: the rows of history.csv; `worst`: slices to show."""
    what, measures = result["what"], result["measures"]
    body = [
        _head(what, measures, predictions.any),
        sections.training(what, history),
        sections.labels(measures, what["split"]),
        sections.skill(measures),
        sections.roc(measures, predictions),
        sections.precision_recall(measures, predictions),
        sections.confusions(measures),
        sections.reliability(measures, result["calibration"]),
        sections.thresholds(measures, what["foreseen"]),
        sections.studies(measures, what["foreseen"]),
        sections.both_ways(measures, predictions.any),
        _worst(worst),
        _made_from(what, measures),
        _settings(what["settings"]),
    ]
    return html_page.page(_title(what), "".join(body))


def _title(what: Mapping[str, Any]) -> str:
    return f"{what['run']}: {what['split']} split"


def _head(what: Mapping[str, Any], measures: Mapping[str, Any], any_name: str) -> str:
    told = " ".join(filter(None, [unskilled(measures), *_summary(measures, any_name)]))
    doubts = "".join(f"<p><b>{escape(sentence)}</b></p>" for sentence in _doubts(what))
    return (
        f"<header><h1>{escape(_title(what))}</h1>"
        f"<p>Model {escape(what['model'])} with {what['parameters']:,} parameters, on {escape(_dataset(what))}. "
        f"Fingerprint <code>{escape(what['dataset']['fingerprint'])}</code></p>"
        f"{html_page.tiles(_facts(measures, any_name))}"
        f'<p style="margin-top:16px;font-size:17px;max-width:62em">{escape(told)}</p>{doubts}</header>'
    )


def _doubts(what: Mapping[str, Any]) -> Iterator[str]:
    """What makes the numbers of the page kinder, or other, than those of new patients."""
    settings, own = what["settings"], what["trained_on"] == what["dataset"]["fingerprint"]
    if own and what["split"] == settings["train_split"]:
        yield "The model was trained on these very slices, so nothing here says how it does on new patients."
    elif own and what["split"] == settings["validation_split"]:
        yield (
            "Calibration, thresholds and the best epoch were chosen on these very slices, so log loss, calibration "
            "error and decisions are kinder than on new patients."
        )
    if not own:
        yield "The model was trained on another data set. See to it that none of these patients was in it."
    if what["flip"]:
        yield "Logits are means with the mirror image; calibration and thresholds were fitted without it."


def _dataset(what: Mapping[str, Any]) -> str:
    return f"{what['dataset']['name']} {what['dataset']['version']}"


def _facts(measures: Mapping[str, Any], any_name: str) -> dict[str, str]:
    shown = measures["labels"][any_name]
    numbers = {
        "log loss": measures["log_loss"],
        "skill": measures["skill"]["overall"]["skill"],
        f"AUC {any_name}": shown["auc"],
        "mean AUC": measures["auc"],
        f"sensitivity {any_name}": shown["sensitivity"],
        f"specificity {any_name}": shown["specificity"],
    }
    facts = {}
    for name, value in numbers.items():
        number, _, interval = figures.with_interval(value["value"], value["low"], value["high"]).partition(" ")
        facts[f"{name} {interval}".strip()] = number
    return facts | {what: f"{measures[what]:,}" for what in ("slices", "studies", "patients")}


def _summary(measures: Mapping[str, Any], any_name: str) -> Iterator[str]:
    """What the headline means, in sentences; those whose numbers are not defined are left out."""
    slices, studies = measures["labels"][any_name], measures["studies_level"][any_name]
    if slices["note"]:
        yield f"{any_name}: {slices['note']}."
    found, left, right = (_of_100(slices[key]) for key in ("sensitivity", "specificity", "precision"))
    if found:
        yield f"Of 100 slices with hemorrhage it flags {found}."
    if left:
        yield f"Of 100 slices without, it leaves {left} alone."
    if right:
        yield f"Of 100 slices that it flags, {right} hold a hemorrhage."
    found, left = (_of_100(studies[key]) for key in ("sensitivity", "specificity"))
    if found and left:
        yield f"Of 100 studies with hemorrhage it flags {found}; of 100 without, it leaves {left} alone."


def _of_100(share: Mapping[str, Any]) -> str:
    """`88 (95% interval 80 to 93)`, or nothing where the share is not defined."""
    number, low, high = (math.nan if share[key] is None else 100 * share[key] for key in ("value", "low", "high"))
    words = figures.with_interval(number, low, high, decimals=0)
    return "" if words == figures.DASH else words.replace("(", "(95% interval ")


def _worst(worst: Sequence[Worst]) -> str:
    if not worst:
        return section("Worst errors", "<p>No probability is nearer to the wrong value than to the truth.</p>")
    note = (
        "Slices that the model is surest and wrongest about, the labels taking turns; each window in grey, then all "
        "as colors. Now and then it is the label that is wrong."
    )
    return section("Worst errors", f'<div class="pictures">{"".join(map(_picture, worst))}</div>', note)


def _picture(one: Worst) -> str:
    picture = montage.strip(one.image, PANEL_PX)
    words = f"{one.label} is {'positive' if one.truth == 1 else 'negative'}, probability {one.probability:.3g}"
    image = html_page.image(montage.png_bytes(picture), "png", f"{one.row['sop_uid']}: {words}", picture.width)
    return (
        f'<figure style="width:{picture.width}px">{image}<figcaption><b>{escape(words)}</b><br>'
        f"{escape(one.row['sop_uid'])}, slice {one.row['slice_index'] + 1}<br>"
        f"<span>study {escape(one.row['study_uid'])}</span></figcaption></figure>"
    )


def _made_from(what: Mapping[str, Any], measures: Mapping[str, Any]) -> str:
    train = what["train"]
    facts = {
        "run": what["run"],
        "model": f"{what['model']}, {what['parameters']:,} parameters",
        "epochs": f"{train['epochs']:,}",
        "training": _number(train["seconds"], "s"),
        "speed of training": _number(train["images_per_s"], "images/s"),
        "fold": "none" if what["fold"] is None else "{} of {}".format(*what["fold"]),
        "trained on the fingerprint": what["trained_on"],
        "data set": f"{_dataset(what)}, split {what['split']}",
        "its fingerprint": what["dataset"]["fingerprint"],
        "mean with the mirror image": "yes" if what["flip"] else "no",
        "evaluation": _number(what["evaluated_slices_per_s"], "slices/s"),
        "intervals": f"{100 * measures['level']:g}%, {measures['resamples']:,} resamples of the patients",
        "versions": ", ".join(f"{name} {version}" for name, version in what["versions"].items()),
    }
    return section("Made from", html_page.table(["what", "value"], [[*pair] for pair in facts.items()], words=2))


def _number(value: float | None, unit: str) -> str:
    return figures.DASH if value is None else f"{value:,.0f} {unit}"


def _settings(settings: Mapping[str, Any]) -> str:
    lines = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
    return section("Settings", f'<pre style="columns:3">{escape(lines)}</pre>', "Those of the training run.")
