"""How good the predictions of a split are: every number of an evaluation, with intervals over patients, from arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.results import bootstrap, calibration, study_level
from trainer.results.bootstrap import FEWEST_PATIENTS
from trainer.results.predictions import Predictions
from trainer.results.probability import competition_weights
from trainer.results.ratings import (
    Drawn,
    Rating,
    calibration_errors,
    decisions,
    known_patients,
    predictive,
    ratio,
    resampled,
    scale,
    skill,
    telling,
)
from trainer.results.thresholds import EVEN, HEADLINE, RULES, headline
from trainer.shell.problems import WrongUse

_DECISIONS = ("sensitivity", "specificity", "accuracy", "precision", "recall", "f1")
_AREAS = ("auc", "average_precision")
_WHEN = ("", "_before")  # calibration
_PREVALENCE = "_of_prevalence"

_Numbers = npt.NDArray[np.float64]
Thresholds = Mapping[str, Mapping[str, float]]
Ways = Mapping[str, tuple[_Numbers, Thresholds]]  # probabilities float64 [m, L] of studies by sorted UID, thresholds
GREATEST = "greatest slice"  # the way that every evaluation judges a study


def measure(
    predictions: Predictions,
    calibration_before: _Numbers,
    thresholds: Thresholds,
    study_thresholds: Thresholds,
    prevalence: Mapping[str, float],
    resamples: int,
    seed: int,
    ways: Ways | None = None,
    prevalence_there: float | None = None,
) -> dict[str, Any]:
    """Everything an evaluation reports, ready for JSON; a value that is not defined is None.

    `calibration_before`: float64 [n, L], the probabilities before calibration. `thresholds`: label -> rule ->
    threshold, as `thresholds.choose` gives them on another split; `study_thresholds`: the same for studies.
    `prevalence`: label -> share of positives where the model was trained, what one who knows nothing says. A
    measure is a dict of `value`, `low` and `high`, the last two the 95% interval from `resamples` resamples of the
    patients, None where fewer than `bootstrap.FEWEST_PATIENTS` carry what it needs (`ratings.NEEDS`); the same patients
    and `seed` are resampled alike. `ways`: other ways to judge a study than by its greatest slice, by name.
    `prevalence_there`: share of studies with hemorrhage where the model is to be used, for `at_prevalence`.
    Raises `WrongUse` where there is no slice.
    """
    if not len(predictions.labels):
        raise WrongUse("there is no slice to measure; evaluate a split that has some")
    slices = _ratings(predictions, calibration_before, thresholds, prevalence)
    labels, shown, patients = study_level.studies(predictions)
    judged = {GREATEST: (shown, study_thresholds), **(ways or {})}
    by_way = {way: _study_ratings(predictions.names, labels, *how, patients) for way, how in judged.items()}
    every = [*slices.values(), *(rating for ratings in by_way.values() for rating in ratings.values())]
    drawn = iter(resampled(every, predictions.patients, resamples, seed))
    of_slices = dict(zip(slices, drawn))
    of_ways = {way: dict(zip(ratings, drawn)) for way, ratings in by_way.items()}
    studies, of_studies = by_way.pop(GREATEST), of_ways.pop(GREATEST)
    return {
        "slices": len(predictions.labels),
        "studies": int(predictions.studies.max()) + 1,
        "patients": bootstrap.patients_in(predictions.patients),
        "resamples": resamples,
        "level": bootstrap.LEVEL,
        **_overall(of_slices, slices, predictions),
        "skill": {
            "prevalence": {name: float(prevalence[name]) for name in slices},
            "overall": _skill(list(of_slices.values()), _weights(predictions), _informed(slices, predictions)),
            "labels": {name: _skill([of_slices[name]], [1], slices[name].carriers("log_loss")) for name in slices},
        },
        "labels": {name: _label(slices[name], of_slices[name], thresholds[name]) for name in slices},
        "thresholds": {name: _rules(of_slices[name], thresholds[name]) for name in slices},
        "studies_level": {
            name: _study_label(studies[name], of_studies[name], study_thresholds[name]) for name in studies
        },
        **({"studies_by": _by_way(by_way, of_ways, of_studies, judged)} if by_way else {}),
        "both_ways": _both_ways(slices[predictions.any], of_slices[predictions.any], thresholds[predictions.any]),
        "reliability": _reliability(predictions, calibration_before),
        **_at_prevalence(predictions.any, studies, of_studies, by_way, of_ways, prevalence_there),
    }


def _at_prevalence(
    name: str,
    studies: Mapping[str, Rating],
    drawn: Mapping[str, Drawn],
    by_way: Mapping[str, Mapping[str, Rating]],
    of_ways: Mapping[str, Mapping[str, Drawn]],
    share: float | None,
) -> dict[str, Any]:
    """Way -> what a flag, and its absence, would mean for the label `name` of studies of which `share` have it."""
    if share is None:
        return {}
    every = {GREATEST: (studies[name], drawn[name])}
    every |= {way: (ratings[name], of_ways[way][name]) for way, ratings in by_way.items()}
    found = {}
    for way, (rating, one) in every.items():
        values = predictive(decisions(one["confusion"]), share)
        found[way] = _values(values, lambda _, rating=rating: rating.carriers("precision"))  # type: ignore[misc]
    return {"at_prevalence": {"prevalence": share, "studies": found}}


def of_group(slices: Rating, of_slices: Drawn, studies: Rating, of_studies: Drawn) -> dict[str, Any]:
    """What is told of one label in a group: of its slices the log loss, of its studies AUC and decisions."""
    found = {"log_loss": _value("log_loss", _losses([of_slices], [1], "log_loss"), slices.carriers("log_loss"))}
    found["study_auc"] = _value("auc", of_studies["auc"], studies.carriers("auc"))
    called = decisions(of_studies["confusion"])
    for name in ("sensitivity", "specificity"):
        found[name] = _value(name, called[name], studies.carriers(name))
    return found


def _ratings(
    predictions: Predictions, before: _Numbers, thresholds: Thresholds, prevalence: Mapping[str, float]
) -> dict[str, Rating]:
    found = {}
    for at, name in enumerate(predictions.names):
        shown = predictions.probabilities[:, at]
        rating = Rating(predictions.labels[:, at], shown, predictions.patients)
        rating.add_calibration("", shown)
        rating.add_calibration("_before", before[:, at])
        rating.add_losses(_PREVALENCE, np.full(len(shown), prevalence[name]))
        for rule, threshold in thresholds[name].items():
            rating.add_confusion(f"confusion_{rule}", threshold)
        found[name] = rating
    return found


def _by_way(
    ratings: Mapping[str, Mapping[str, Rating]],
    drawn: Mapping[str, Mapping[str, Drawn]],
    greatest: Mapping[str, Drawn],
    judged: Ways,
) -> dict[str, Any]:
    """Way -> label -> its measures, and `auc_gain`: by how much its area is above that of the greatest slice."""
    return {
        way: {
            name: {
                **_study_label(rating, drawn[way][name], judged[way][1][name]),
                "auc_gain": _value(
                    "auc", drawn[way][name]["auc"] - greatest[name]["auc"], rating.carriers("auc"), True
                ),
            }
            for name, rating in labels.items()
        }
        for way, labels in ratings.items()
    }


def _study_ratings(
    names: Sequence[str], labels: Any, shown: Any, thresholds: Thresholds, patients: npt.NDArray[np.int64]
) -> dict[str, Rating]:
    found = {}
    for at, name in enumerate(names):
        found[name] = Rating(labels[:, at], shown[:, at], patients)
        found[name].add_confusion("confusion", headline(thresholds[name])[1])
    return found


def _overall(
    drawn: Mapping[str, Drawn], ratings: Mapping[str, Rating], predictions: Predictions
) -> dict[str, dict[str, float | None]]:
    """Log losses over all labels, `any` twice, and the means of the areas over the labels that have one."""
    weights = _weights(predictions)
    every = list(drawn.values())
    having = [name for name in drawn if ratings[name].defined]
    # a resample without an area of one of these labels has no mean: one over fewer labels is another measure
    areas = {key: np.mean([drawn[name][key] for name in having] or [every[0][key]], axis=0) for key in _AREAS}
    informed = _informed(ratings, predictions)

    def carriers(measure: str) -> int:
        return min((ratings[name].carriers(measure) for name in having), default=0) if measure in _AREAS else informed

    return _values(
        {**{f"log_loss{when}": _losses(every, weights, f"log_loss{when}") for when in _WHEN}, **areas}, carriers
    )


def _weights(predictions: Predictions) -> list[float]:
    return competition_weights(predictions.names, predictions.any)


def _informed(ratings: Mapping[str, Rating], predictions: Predictions) -> int:
    """How many patients tell of a loss over all labels."""
    known = known_patients(predictions.labels, predictions.patients)
    return telling(known, max(rating.rarer for rating in ratings.values()))


def _losses(every: Sequence[Drawn], weights: Sequence[float], loss: str) -> _Numbers:
    """float64 [1 + r], the weighted mean of the sums named `loss` over the known labels."""
    losses = sum(weight * drawn[loss][:, 0] for weight, drawn in zip(weights, every))
    return ratio(losses, sum(weight * drawn["known"][:, 0] for weight, drawn in zip(weights, every)))


def _skill(every: Sequence[Drawn], weights: Sequence[float], patients: int) -> dict[str, dict[str, float | None]]:
    """Log loss and Brier score, those of the prevalence, and what is gained by them, as parts of the latter."""
    found: dict[str, dict[str, float | None]] = {}
    for loss, gained in (("log_loss", "skill"), ("brier", "brier_skill")):
        of_model, of_prevalence = (_losses(every, weights, f"{loss}{of}") for of in ("", _PREVALENCE))
        found[loss], found[loss + _PREVALENCE] = (_value(loss, one, patients) for one in (of_model, of_prevalence))
        found[gained] = dict(zip(("value", "low", "high"), map(_plain, skill(of_model, of_prevalence, patients))))
    return found


def unskilled(measured: Mapping[str, Any]) -> str:
    """A sentence that says why no skill over the prevalence can be claimed; the empty text where it can be.

    Nothing is said either of slices that are of `studies_alone`. `measured`: as `measure` gives it.
    """
    found = measured["skill"]["overall"]
    loss, other, gained = (found[key] for key in ("log_loss", "log_loss_of_prevalence", "skill"))
    if studies_alone(measured) or gained["value"] is None or (gained["low"] is not None and gained["low"] > 0):
        return ""
    what = f"its log loss is {loss['value']:.3f}, that of the prevalence alone {other['value']:.3f}"
    if gained["low"] is None:
        return (
            f"Whether it knows more than the prevalence cannot be told: {what}, and too few patients for an interval."
        )
    words = "It knows less than the prevalence" if gained["high"] < 0 else "It shows no skill over the prevalence"
    interval = f"{gained['low']:.3f} to {gained['high']:.3f}"
    return f"{words}: {what}, a skill of {gained['value']:.3f} ({measured['level']:.0%} interval {interval})."


def studies_alone(measured: Mapping[str, Any]) -> bool:
    """Whether positive studies are known and no positive slice, as where all labels are of studies."""
    slices, studies = (
        any(label["positives"] for label in measured[level].values()) for level in ("labels", "studies_level")
    )
    return studies and not slices


def _label(rating: Rating, drawn: Drawn, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Every measure of a label of slices."""
    confusion = drawn[f"confusion_{headline(chosen)[0]}"]
    losses, errors = _calibrated(drawn)
    measures = {**losses, **{key: drawn[key] for key in _AREAS}, **errors}
    return _told(rating, measures, confusion, chosen, "slice")


def _calibrated(drawn: Drawn) -> tuple[Drawn, Drawn]:
    """Log losses and calibration errors, after and before."""
    losses = {f"log_loss{when}": _losses([drawn], [1], f"log_loss{when}") for when in _WHEN}
    return losses, {f"calibration_error{when}": calibration_errors(drawn, when) for when in _WHEN}


def of_calibration(rating: Rating, drawn: Drawn) -> dict[str, Any]:
    """What is told of the probabilities of one label, those `_before` beside the others."""
    losses, errors = _calibrated(drawn)
    return _values({**losses, **errors}, rating.carriers)


def _study_label(rating: Rating, drawn: Drawn, chosen: Mapping[str, float]) -> dict[str, Any]:
    """The measures of a label of studies."""
    return _told(rating, {key: drawn[key] for key in _AREAS}, drawn["confusion"], chosen, "study")


def _told(
    rating: Rating, measures: Mapping[str, _Numbers], confusion: _Numbers, chosen: Mapping[str, float], what: str
) -> dict[str, Any]:
    """`measures` and those of the decisions, with what they are of; `what` is slice or study."""
    rule, threshold = headline(chosen)
    values = _values({**measures, **_decisions(confusion)}, rating.carriers)
    return {
        "known": rating.known,
        "positives": rating.positives,
        **values,
        "threshold": threshold,
        "rule": rule,
        "confusion": _confusion(confusion),
        "note": _note(rating, values, len(confusion) > 1, what),
    }


def _decisions(confusion: _Numbers) -> Drawn:
    found = decisions(confusion)
    return {name: found[name] for name in _DECISIONS}


def _confusion(confusion: _Numbers) -> dict[str, int]:
    return dict(zip(("tp", "fp", "fn", "tn"), confusion[0].astype(int).tolist()))


def _note(rating: Rating, values: Mapping[str, Mapping[str, float | None]], resamples: bool, what: str) -> str:
    """Why values or intervals (of which there are none without `resamples`) are missing; `what` is slice or study."""
    if not rating.known:
        return f"no {what} with a known label"
    reasons = []
    if not rating.defined:
        reasons.append(f"no {'negative' if rating.positives else 'positive'} {what}")
    if resamples and (few := _few(rating, what)):
        reasons.append(f"{' and '.join(few)}, too few for an interval ({FEWEST_PATIENTS} at least)")
    if values["precision"]["value"] is None:
        reasons.append(f"no {what} reaches the threshold")
    return "; ".join(reasons)


def _few(rating: Rating, what: str) -> list[str]:
    """`3 patients have a positive slice` and the like, of what too few patients have, though some."""
    having = {
        "known": f"a {what} with a known label",
        "positive": f"a positive {what}",
        "negative": f"a negative {what}",
    }
    few = [kind for kind, count in rating.patients.items() if 0 < count < FEWEST_PATIENTS]
    return [
        f"{count} {'patient has' if count == 1 else 'patients have'} {having[kind]}"
        for kind in (few[:1] if "known" in few else few)  # few with a known label say it all
        for count in [rating.patients[kind]]
    ]


def _rules(drawn: Drawn, chosen: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a rule, in the order of `RULES`: its threshold and what comes of it, without intervals."""
    return [
        {"rule": rule, "threshold": chosen[rule], **_rule(drawn[f"confusion_{rule}"][:1])}
        for rule in RULES
        if rule in chosen
    ]


def _rule(confusion: _Numbers) -> dict[str, float | None]:
    found = decisions(confusion)
    tp, fp, _, _ = confusion.T
    found["flagged"] = ratio(tp + fp, confusion.sum(axis=1))
    wanted = ("sensitivity", "specificity", "precision", "npv", "flagged")
    return {name: _plain(found[name][0]) for name in wanted}


def _both_ways(rating: Rating, drawn: Drawn, chosen: Mapping[str, float]) -> dict[str, Any]:
    """Rule -> the thesis's table, read for hemorrhage and for its absence; only of the rules that were chosen."""
    found = {}
    for rule in (rule for rule in (HEADLINE, EVEN) if rule in chosen):
        confusion = drawn[f"confusion_{rule}"]
        found[rule] = {
            "threshold": chosen[rule],
            "accuracy": _value("accuracy", decisions(confusion)["accuracy"], rating.carriers("accuracy")),
            "hemorrhage": _one_way(confusion, rating, "sensitivity"),
            # what is not there, called by not being flagged: true negatives are its hits
            "no hemorrhage": _one_way(confusion[:, ::-1], rating, "specificity"),
        }
    return found


def _one_way(confusion: _Numbers, rating: Rating, recall: str) -> dict[str, Any]:
    """Precision, recall and F1 of the value whose hits stand first in `confusion`, and the slices that have it.

    `recall`: the measure of `rating` that its recall is.
    """
    found = decisions(confusion)
    needs = {"precision": "precision", "recall": recall, "f1": "f1"}
    values = {name: _value(name, found[name], rating.carriers(like)) for name, like in needs.items()}
    return {**values, "slices": int(confusion[0, 0] + confusion[0, 2])}


def _reliability(predictions: Predictions, before: _Numbers) -> dict[str, Any]:
    sides = {"before": before, "after": predictions.probabilities}
    return {
        name: {
            side: [list(group) for group in calibration.reliability(predictions.labels[:, at], shown[:, at])]
            for side, shown in sides.items()
        }
        for at, name in enumerate(predictions.names)
    }


def _values(measures: Mapping[str, _Numbers], carriers: Callable[[str], int]) -> dict[str, dict[str, float | None]]:
    """`_value` of each; `carriers`: how many patients carry a measure of that name."""
    return {name: _value(name, values, carriers(name)) for name, values in measures.items()}


def _value(measure: str, values: _Numbers, patients: int, difference: bool = False) -> dict[str, float | None]:
    """`value`, the first of `values` float64 [1 + r], with its interval, see `bootstrap.interval`.

    `difference`: they are differences of the measure.
    """
    low, high = bootstrap.interval(values, bootstrap.DIFFERENCE if difference else scale(measure), patients)
    return {"value": _plain(values[0]), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
