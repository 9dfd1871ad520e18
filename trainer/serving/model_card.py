"""The model card: what a model is, what it was made from, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ich_tfrecords import NOT_A_DEVICE
from trainer.models.model_file import About
from trainer.results.measures import unskilled
from trainer.results.thresholds import RULES, headline

RANKING = {
    "auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
DECIDING = {"sensitivity": "sensitivity", "specificity": "specificity", "precision": "precision", "f1": "F1"}
BOTH_WAYS = {"precision": "precision", "recall": "recall", "f1": "F1"}

CARD = """\
# {model}, trained on {name} {version}

Tells for a CT slice of the head the probability of each of: {labels}.
`{any}` means that one of the others is there.

**{not_a_device}**

## Use

It needs TensorFlow alone:

```python
{usage}
```

{signatures}

Slices of one call share their numbers of rows and columns; any will do. Probabilities are calibrated; `labels` names
their columns, for each slice anew. `about.json`, also among the assets (`model.about.asset_path`), holds spec,
settings, calibration and thresholds. `model.keras` is the same model for Keras: image in, logits out, not calibrated.

## Pixels

Slices that are not square are padded to squares with {pad_hu} HU. Each window clips at full resolution; exact box areas
then give {size} x {size} px of 0 to 255, a channel for each window in this order. All of it is inside the graph, bit
for bit as in the data set.

{windows}

## Data

Trained on {name} {version}, fingerprint `{fingerprint}`, {train_split}.
Patients stand in one split only.{tested}

## Training

{parameters} parameters, weights of epoch {epoch}, in float32; made with {made_with}.

```yaml
{settings}
```

## Results

{results}

## Calibration

probability = sigmoid(slope * (log odds - shift) + intercept), and no kind above `any`. Log odds are the logits with
what the loss and the sampling did to them undone, on the joint of all labels (`odds` in about.json); a shift that is
not 0 is of an earlier version, which did so label by label. Slope and intercept were fitted on the validation split
(Platt scaling), and are 1 and 0 where its patients do not clearly speak against that. A label that could not be fitted
has slope 0: it says its prevalence, whatever the logit.

{calibration}

## Thresholds

A slice is called positive where its probability is at least the threshold. Chosen on the validation split: `youden`
for the greatest sensitivity + specificity, `f1` for the greatest F1, `sensitivity_95` and `specificity_95` for at
least 0.95 of that; `even` is 0.5.

{thresholds}

## Limits

- Made for research and teaching. No authority has looked at it.
- It sees single slices of {size} x {size} px: not their neighbours, no history, no earlier scan. Small or faint blood
  can vanish at that size.
- It always answers, also for slices without brain, with contrast medium, with metal, or of other parts of the body. It
  has no way to say that it cannot tell.
- Results hold for slices like those it was tested on. Other scanners, kernels, slice thicknesses, populations and
  shares of bleeds move probabilities and thresholds: test it on labelled slices of your own first.
- Labels are the opinions of readers. Their errors are in the model and in its results.
- Results on synthetic slices, such as those of `ich_tfrecords.synthetic`, show that the software works. They say
  nothing about patients.
- Intervals tell how much the choice of patients matters, and nothing about the points above.
"""

NOT_EVALUATED = """\
Not evaluated yet. `python -m trainer.evaluate --job_dir RUN`, and then `python -m trainer.export --job_dir RUN` again,
put the results here."""

RESULTS = """\
{unskilled}Split {split}; in brackets {level:.0%} intervals from {resamples:,} resamples of its patients.{mirrored}

Log loss of the competition {log_loss}, before calibration {before}, of the prevalence alone {prevalence}: a skill
of {skill}; mean ROC AUC {auc}, mean average precision {precision}.

{ranking}

Skill: the part that the model saves of the log loss of one who says of every slice how often the label was positive in
training; none can be claimed where its interval includes 0.

At the threshold that was chosen on the validation split:

{deciding}

`{any}` read both ways, for hemorrhage and for its absence:

{both_ways}{notes}"""

FORESEEN = """\
What they rest on, and what to expect on new patients, with 95% intervals: chosen on resamples of the validation
patients and measured on those left out. A threshold looks better on the slices that chose it."""

MIRRORED = """
Each probability there is the mean of a slice and its mirror image; the export does not do that."""


def card(about: About, result: Mapping[str, Any] | None) -> str:
    """Model card in Markdown. `result`: `metrics.json` of the test split, or None where it was not evaluated.

    Raises KeyError or TypeError where `result` is no such thing.
    """
    spec, settings, facts = about.spec, about.settings, about.facts
    return CARD.format(
        not_a_device=NOT_A_DEVICE,
        model=settings["model"],
        name=spec.name,
        version=spec.version,
        labels=", ".join(spec.labels.names),
        any=spec.labels.any,
        usage="\n".join(usage("saved_model")),
        signatures=_signatures(about),
        pad_hu=spec.image.pad_hu,
        size=spec.image.size_px,
        windows=_windows(about),
        fingerprint=about.fingerprint,
        train_split=_train_split(settings),
        tested="" if result is None else f"\n\n{_tested(about, result)}",
        parameters=f"{facts['parameters']:,}",
        epoch=facts["epoch"],
        made_with=", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        settings=yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=110).strip(),
        results=NOT_EVALUATED if result is None else _results(about, result),
        calibration=_calibration(about),
        thresholds=_thresholds(about),
    )


def usage(place: str) -> list[str]:
    """Three lines of Python that ask the SavedModel at `place`; `hu` in them is the caller's array."""
    return [
        "import tensorflow as tf",
        f"model = tf.saved_model.load({place!r})",
        'model.signatures["hu"](hu=tf.constant(hu, tf.int16))  # hu: CT numbers in HU, [n, rows, columns]',
    ]


def _signatures(about: About) -> str:
    labels, shape = len(about.spec.labels.names), ", ".join(map(str, about.spec.image.shape))
    hu, answers = "`hu` int16 [n, rows, columns]", f"`probabilities` float32 and `labels` string [n, {labels}]"
    rows = [
        ["`hu`, `serving_default`", hu, answers],
        ["`records`", "`records` string [n], serialized `tf.train.Example`", "the same"],
        ["`image`", hu, f"`image` uint8 [n, {shape}], as the model sees it"],
    ]
    return _table(["signature", "takes", "gives"], rows, words=3)


def _windows(about: About) -> str:
    rows = [[window.name, str(window.level_hu), str(window.width_hu)] for window in about.spec.image.windows]
    return _table(["window", "level (HU)", "width (HU)"], rows)


def _train_split(settings: Mapping[str, Any]) -> str:
    if not settings.get("folds"):
        return f"split {settings['train_split']}"
    both = f"{settings['train_split']} and {settings['validation_split']}"
    return f"splits {both} without fold {settings['fold']} of {settings['folds']}, which validates"


def _tested(about: About, result: Mapping[str, Any]) -> str:
    what, measures = result["what"], result["measures"]
    data = what["dataset"]
    same = data["fingerprint"] == about.fingerprint
    whose = "the same data set" if same else f"{data['name']} {data['version']}, fingerprint `{data['fingerprint']}`"
    rows = [[name, f"{one['known']:,}", f"{one['positives']:,}"] for name, one in measures["labels"].items()]
    return (
        f"Tested on split {what['split']} of {whose}: {measures['slices']:,} slices of {measures['studies']:,} studies "
        f"of {measures['patients']:,} patients.\n\n{_table(['label', 'slices with a known label', 'positive'], rows)}"
    )


def _results(about: About, result: Mapping[str, Any]) -> str:
    measures = result["measures"]
    labels = measures["labels"]
    skill = measures["skill"]["labels"]
    ranking = [
        [name, *(_value(one[key]) for key in RANKING), _value(skill[name]["skill"])] for name, one in labels.items()
    ]
    deciding = [
        [name, one["rule"], f"{one['threshold']:.4g}", *(_value(one[key]) for key in DECIDING)]
        for name, one in labels.items()
    ]
    return RESULTS.format(
        split=result["what"]["split"],
        level=measures["level"],
        resamples=measures["resamples"],
        mirrored=MIRRORED if result["what"]["flip"] else "",
        unskilled=f"**{words}**\n\n" if (words := unskilled(measures)) else "",
        log_loss=_value(measures["log_loss"]),
        prevalence=_value(measures["skill"]["overall"]["log_loss_of_prevalence"]),
        skill=_value(measures["skill"]["overall"]["skill"]),
        before=_value(measures["log_loss_before"]),
        auc=_value(measures["auc"]),
        precision=_value(measures["average_precision"]),
        ranking=_table(["label", *RANKING.values(), "skill"], ranking),
        deciding=_table(["label", "rule", "threshold", *DECIDING.values()], deciding, words=2),
        any=about.spec.labels.any,
        both_ways=_both_ways(measures["both_ways"]),
        notes=_list(f"{name}: {one['note']}." for name, one in labels.items() if one["note"]),
    )


def _both_ways(both_ways: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [way, rule, f"{one['threshold']:.4g}", f"{one[way]['slices']:,}", _value(one["accuracy"])]
        + [_value(one[way][key]) for key in BOTH_WAYS]
        for rule, one in both_ways.items()
        for way in ("hemorrhage", "no hemorrhage")
    ]
    return _table(["reading", "rule", "threshold", "slices", "accuracy", *BOTH_WAYS.values()], rows, words=2)


def _calibration(about: About) -> str:
    found = about.calibration
    rows = [
        [name, *(f"{number:.4f}" for number in numbers)]
        for name, *numbers in zip(found.names, found.shift, found.slope, found.intercept)
    ]
    return _table(["label", "shift", "slope", "intercept"], rows) + _list(f"{words}." for words in found.told())


def _thresholds(about: About) -> str:
    rows = [
        [name, *(f"{chosen[rule]:.4g}" if rule in chosen else "-" for rule in RULES)]
        for name, chosen in about.thresholds.items()
    ]
    return _table(["label", *RULES], rows) + _foreseen(about.facts.get("foreseen", {}).get("slices", {}))


def _foreseen(every: Mapping[str, Any]) -> str:
    """What the headline thresholds rest on and will hold; nothing for a run that did not foresee."""
    rows = []
    for name, label in every.items():
        rule, held = headline(label["rules"])
        rows.append([name, rule, str(label["positives"]), str(label["patients"]), *map(_value, held.values())])
    head = ["label", "rule", "positive slices", "of patients", "sensitivity to expect", "specificity to expect"]
    return f"\n\n{FORESEEN}\n\n{_table(head, rows, words=2)}" if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Markdown table; the first `words` columns are text, the rest numbers set to the right."""
    rule = ["---" if number < words else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _list(points: Iterable[str]) -> str:
    """Markdown list with an empty line before it; nothing where there are no points."""
    lines = [f"- {point}" for point in points]
    return "\n".join(["\n", *lines]) if lines else ""


def _value(measure: Mapping[str, float | None]) -> str:
    """`0.912 [0.870, 0.951]`; `-` for what is not defined."""
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
