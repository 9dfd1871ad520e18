"""What an evaluation found, in lines for the screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.results.conformal import GROUPS, WRONG
from trainer.results.measures import studies_alone, unskilled


def of_measures(measured: Mapping[str, Any], names: Sequence[str], any_name: str) -> Iterator[str]:
    """The numbers of the page in few lines; `measured` as `measures.measure` gives it."""
    if words := unskilled(measured):
        yield words
    skill = measured["skill"]["overall"]
    yield (
        f"{measured['slices']:,} slices of {measured['patients']:,} patients: log loss {_told(measured['log_loss'])}, "
        f"{_plain(measured['log_loss_before'])} before calibration, {_plain(skill['log_loss_of_prevalence'])} of the "
        f"prevalence alone; skill {_told(skill['skill'])}"
    )
    for name in () if studies_alone(measured) else names:
        found = measured["labels"][name]
        yield (
            f"  {name:<18} {found['positives']:>7,} positive, AUC {_told(found['auc'])}, "
            f"sensitivity {_told(found['sensitivity'])}, specificity {_told(found['specificity'])}"
        )
        if found["note"]:
            yield f"  {'':<18} {found['note']}"
    yield f"{measured['studies']:,} studies, by their greatest slice:"
    for name in names if studies_alone(measured) else [any_name]:
        found = measured["studies_level"][name]
        yield (
            f"  {name:<18} {found['positives']:>7,} positive, AUC {_told(found['auc'])}, "
            f"sensitivity {_told(found['sensitivity'])}, specificity {_told(found['specificity'])}"
        )
    if "at_prevalence" in measured:
        there = measured["at_prevalence"]
        for way, value in there["studies"].items():
            flag = f"a flag is right in {_told(value['precision'])}, its absence in {_told(value['npv'])}"
            yield f"where {there['prevalence']:g} of studies have a hemorrhage, by {way}: {flag}"


def elsewhere(result: Mapping[str, Any]) -> Iterator[str]:
    """What only some evaluations have: groups, a calibration anew. `result`: metrics.json."""
    for asked, table in result.get("subgroups", {}).items():
        for one in table["groups"]:
            sizes = f"{one['slices']:,} slices, {one['studies']:,} studies, {one['patients']:,} patients"
            yield f"{asked} {one['group']}: {sizes}, AUC of studies {_told(one['study_auc'])}"
        if table["worst"]:
            yield f"{asked}: worst in {table['worst']}"
    if promise := result.get("promise"):
        yield f"studies called with a promise of {promise['alpha']:g} (negative, uncertain, positive), and wrongly:"
        for name, one in promise["labels"].items():
            groups = ", ".join(f"{one['studies'][group]:,}" for group in GROUPS)
            wrong = [f"{of['called_wrongly']:,} of {of['patients']:,} patients" for of in map(one["wrong"].get, WRONG)]
            yield f"  {name:<18} {groups}; {wrong[0]} who have it, {wrong[1]} who have not"
    if found := result.get("recalibrated"):
        people = f"fitted on {found['fitted_on']:,} patients, tested on {found['tested_on']:,}"
        yield f"calibration anew, of {found['level']}, {people}:"
        for name, one in found["labels"].items():
            losses = f"log loss {_told(one['log_loss_before'])} as it is, {_told(one['log_loss'])} anew"
            yield f"  {name:<18} {one['kept'] or losses}"


def _told(value: Mapping[str, float | None]) -> str:
    """`0.912 (0.880 to 0.941)`, or a dash."""
    if value["value"] is None or value["low"] is None or value["high"] is None:
        return _plain(value)
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _plain(value: Mapping[str, float | None]) -> str:
    return "-" if value["value"] is None else f"{value['value']:.3f}"
