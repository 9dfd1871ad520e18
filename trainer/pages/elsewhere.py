"""What not every evaluation has, such as one on another hospital: tables, each from its part of metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ich_tfrecords.views.html_page import Table
from trainer.pages import figures
from trainer.pages.sections import cell
from trainer.results.conformal import GROUPS, WRONG

NUMBERS = {
    "slice_count": "slices of the series",
    "kvp": "tube voltage (kV)",
    "thickness_mm": "slice thickness (mm)",
    "spacing_mm": "pixel spacing (mm)",
    "tilt_deg": "gantry tilt (degrees)",
}


def sections(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of each part that metrics.json may lack a table, or None. `result`: metrics.json."""
    there = result["measures"].get("at_prevalence")
    recalibrated = result.get("recalibrated")
    return {
        "cohort": _cohort(**result["cohort"]) if "cohort" in result else None,
        "groups": {asked: (_groups(one["groups"]), one["worst"]) for asked, one in result.get("subgroups", {}).items()},
        "readers": _readers(result["readers"]) if "readers" in result else None,
        "prevalence": there and {"share": f"{there['prevalence']:g}", "table": _predictive(there["studies"])},
        "promise": _promise(result["promise"]) if "promise" in result else None,
        "recalibrated": recalibrated and {**recalibrated, "table": _recalibrated(recalibrated["labels"])},
    }


def _cohort(training: Mapping[str, Any] | None, here: Mapping[str, Any]) -> Table:
    """Fact by fact, of training and here; a run of before noted nothing of its training."""
    sides = [training or {}, here]
    rows = [
        [what, *(f"{side[what]:,}" if what in side else figures.DASH for side in sides)]
        for what in ("slices", "studies")
    ]
    for key, words in (("prevalence", "of slices"), ("study_prevalence", "of studies")):
        rows += [[f"{name} {words}", *(_percent(side.get(key, {}).get(name)) for side in sides)] for name in here[key]]
    for name in _either(sides, "words"):
        rows.append([name, *(_words(side.get("words", {}).get(name)) for side in sides)])
    for name in _either(sides, "numbers"):
        rows.append([NUMBERS[name], *(_tenths(side.get("numbers", {}).get(name)) for side in sides)])
    return Table(["", "training", "here"], rows)


def _either(sides: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for side in sides for name in side.get(key, {})))


def _percent(share: float | None) -> str:
    return figures.DASH if share is None else f"{100 * share:.3g}%"


def _words(shares: Mapping[str, float] | None) -> str:
    return ", ".join(f"{word} {_percent(share)}" for word, share in (shares or {}).items()) or figures.DASH


def _tenths(values: Sequence[float] | None) -> str:
    return figures.DASH if values is None else "{1:.3g} ({0:.3g} to {2:.3g})".format(*values)


def _groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    sizes = ("slices", "studies", "patients", "positive_studies")
    rows = [
        [one["group"], *(f"{one[what]:,}" for what in sizes)]
        + [cell(one[what]) for what in ("study_auc", "sensitivity", "specificity", "log_loss")]
        for one in groups
    ]
    heads = ["group", "slices", "studies", "patients", "positive studies", "AUC of studies", "sensitivity"]
    return Table([*heads, "specificity", "log loss of slices"], rows)


def _promise(promise: Mapping[str, Any]) -> dict[str, Any]:
    """How large the groups are, and how often patients are called wrongly; in `alpha` of 100."""
    heads = ["label", *(f"called {group}" for group in GROUPS)]
    heads += [f"patients with a {kind} study, called {WRONG[kind]}" for kind in WRONG]
    rows = []
    for name, one in promise["labels"].items():
        wrong = [f"{of['called_wrongly']:,} of {of['patients']:,}: {cell(of)}" for of in map(one["wrong"].get, WRONG)]
        rows.append([name, *(f"{one['studies'][group]:,}" for group in GROUPS), *wrong])
    return {"of_100": f"{100 * promise['alpha']:g}", "table": Table(heads, rows)}


def _readers(labels: Mapping[str, Any]) -> Table:
    rows = [
        [name, f"{one['studies']:,}", f"{one['one_mind']:,}", figures.with_interval(one["kappa"], None, None)]
        for name, one in labels.items()
    ]
    return Table(["label", "studies with two readers or more", "all of one mind", "Fleiss' kappa"], rows)


def _predictive(ways: Mapping[str, Any]) -> Table:
    rows = [[way, cell(one["precision"]), cell(one["npv"])] for way, one in ways.items()]
    return Table(["a study judged by its", "a flag is right", "no flag is right"], rows)


def _recalibrated(labels: Mapping[str, Any]) -> Table:
    keys = ("log_loss_before", "log_loss", "calibration_error_before", "calibration_error")
    heads = ["label", "log loss as it is", "anew", "calibration error as it is", "anew", "slope", "intercept"]
    rows = [
        [name, *(cell(one[key]) for key in keys)]
        + (
            [one["kept"], ""]
            if one["kept"]
            else [f"{one['slope']:.3f}", f"{one['intercept']:.3f}".replace("-0.000", "0.000")]
        )
        for name, one in labels.items()
    ]
    return Table(heads, rows)
