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
from ich_tfrecords.views.html_page import Table
from trainer.models import windows
from trainer.pages import elsewhere, figures, sections
from trainer.results import evaluated
from trainer.results.measures import studies_alone, unskilled
from trainer.results.predictions import Predictions
from trainer.results.probability import log_losses

TEMPLATES = "trainer.pages"
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
    return html_page.page(
        "evaluation.html",
        TEMPLATES,
        title=f"{what['run']}: {what['split']} split",
        what=what,
        any=predictions.any,
        dash=figures.DASH,
        facts=_facts(measures, predictions.any),
        told=list(filter(None, [unskilled(measures), *_summary(measures, predictions.any)])),
        doubts=list(_doubts(what)),
        training=sections.training(what, history),
        labels=sections.labels(measures),
        skill=sections.skill(measures),
        band_resamples=sections.BAND_RESAMPLES,
        roc=sections.roc(measures, predictions),
        precision_recall=sections.precision_recall(measures, predictions),
        confusions=sections.confusions(measures),
        reliability=sections.reliability(measures, result["calibration"]),
        thresholds=sections.thresholds(measures, what["foreseen"]),
        studies=sections.studies(measures, what["foreseen"]),
        both_ways=sections.both_ways(measures),
        worst=list(map(_picture, worst)),
        elsewhere=elsewhere.sections(result),
        made_from=_made_from(what, measures),
        settings=[f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in what["settings"].items()],
    )


def _doubts(what: Mapping[str, Any]) -> Iterator[str]:
    """What makes the numbers of the page kinder, or other, than those of new patients."""
    if doubt := evaluated.doubt(what):
        words = evaluated.DOUBTS[doubt]
        yield f"{words[0].upper()}{words[1:]}."
    if what["flip"]:
        yield "Logits are means with the mirror image; calibration and thresholds were fitted without it."


def _facts(measures: Mapping[str, Any], any_name: str) -> dict[str, str]:
    slices, studies = measures["labels"][any_name], measures["studies_level"][any_name]
    if not studies_alone(measures):
        numbers = {
            "log loss": measures["log_loss"],
            "skill": measures["skill"]["overall"]["skill"],
            f"AUC {any_name}": slices["auc"],
            "mean AUC": measures["auc"],
            f"sensitivity {any_name}": slices["sensitivity"],
            f"specificity {any_name}": slices["specificity"],
        }
    else:
        keys = {"AUC": "auc", "sensitivity": "sensitivity", "specificity": "specificity"}
        numbers = {f"{words} {any_name}, studies": studies[key] for words, key in keys.items()}
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


def _picture(one: Worst) -> dict[str, Any]:
    strip = montage.strip(one.image, PANEL_PX)
    words = f"{one.label} is {'positive' if one.truth == 1 else 'negative'}, probability {one.probability:.3g}"
    image = html_page.image(montage.png_bytes(strip), "png", f"{one.row['sop_uid']}: {words}", strip.width)
    return {"image": image, "words": words, "row": one.row}


def _made_from(what: Mapping[str, Any], measures: Mapping[str, Any]) -> Table:
    train, data = what["train"], what["dataset"]
    facts = {
        "run": what["run"],
        "model": f"{what['model']}, {what['parameters']:,} parameters",
        **({"windows, level/width in HU": windows.told(what["windows"])} if "windows" in what else {}),
        "epochs": f"{train['epochs']:,}",
        "training": _number(train["seconds"], "s"),
        "speed of training": _number(train["images_per_s"], "images/s"),
        "fold": "none" if what["fold"] is None else "{} of {}".format(*what["fold"]),
        "trained on the fingerprint": ", ".join([what["trained_on"], *what.get("trained_on_parts", ())]),
        "data set": f"{data['name']} {data['version']}, split {what['split']}",
        "its fingerprint": data["fingerprint"],
        "mean with the mirror image": "yes" if what["flip"] else "no",
        "evaluation": _number(what["evaluated_slices_per_s"], "slices/s"),
        "intervals": f"{100 * measures['level']:g}%, {measures['resamples']:,} resamples of the patients",
        "versions": ", ".join(f"{name} {version}" for name, version in what["versions"].items()),
    }
    return Table(["what", "value"], list(facts.items()), words=2)


def _number(value: float | None, unit: str) -> str:
    return figures.DASH if value is None else f"{value:,.0f} {unit}"
