"""The model card: what a model is, what it was made from, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import HEAD
from trainer.models.model_file import About
from trainer.results.blend import Blend
from trainer.results.calibration import Calibration
from trainer.results.measures import GREATEST, unskilled
from trainer.results.thresholds import RULES, headline
from trainer.serving import card_front
from trainer.serving import card_text as words

RANKING = {
    "auc": "ROC AUC",
    "average_precision": "average precision",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
}
DECIDING = {"sensitivity": "sensitivity", "specificity": "specificity", "precision": "precision", "f1": "F1"}
BOTH_WAYS = {"precision": "precision", "recall": "recall", "f1": "F1"}
IN_SHORT = (  # of the slice model's settings
    "architecture", "weights", "stem", "windows", "window_form", "context_slices", "epochs", "batch_size", "sampling",
    "flip", "rotate_deg", "shift", "scale", "crop", "contrast", "brightness", "erase", "optimizer", "learning_rate",
    "label_smoothing", "focal_gamma", "ema", "seed", "classifier",
)  # fmt: skip


def card(
    about: About,
    result: Mapping[str, Any] | None,
    slice_about: About | None = None,
    form: str = words.SAVED_MODEL,
) -> str:
    """Model card in Markdown under a head in YAML. `result`: `metrics.json` of the test split, or None without one.

    `slice_about`: of a series model, what is known of its slice model. `form`: of the export. Raises KeyError or
    TypeError where `result` is no such thing.
    """
    spec, facts = about.spec, about.facts
    of_kind = _of_slices(about, form) if slice_about is None else _of_series(about, slice_about, form)
    return card_front.front(about, result, of_kind["title"], form) + words.CARD.format(
        **of_kind,
        needs=words.NEEDS[form],
        not_a_device=NOT_A_DEVICE,
        name=spec.name,
        version=spec.version,
        any=spec.labels.any,
        usage="\n".join(usage(form, about.in_series, form)),
        pad_hu=spec.image.pad_hu,
        windows=_windows(about, slice_about or about),
        fingerprint=about.fingerprint,
        train_split=_train_split(about.settings),
        tested="" if result is None else f"\n\n{_tested(about, result)}",
        parameters=f"{facts['parameters']:,}",
        epoch=facts["epoch"],
        made_with=", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        settings=_yaml(about.settings),
        results=words.NOT_EVALUATED if result is None else _results(about, result),
        calibration=_calibration(about.calibration),
        thresholds=_thresholds(about.thresholds) + _foreseen(facts.get("foreseen", {}).get("slices", {})),
    )


def _of_slices(about: About, form: str) -> dict[str, str]:
    tells, use, sees = words.TELLS, words.USE, words.SEES
    if about.context_slices:
        tells, use, sees = words.TELLS_OF_NEIGHBOURS, words.USE_OF_NEIGHBOURS, words.SEES_OF_NEIGHBOURS
    told = {
        "labels": ", ".join(about.spec.labels.names),
        "context": counted(about.context_slices, "slice", "slices"),
        "size": about.spec.image.size_px,
        "channels": about.input_shape[2],
        **_of_form(form),
    }
    return {
        "title": about.network,
        "tells": tells.format(**told),
        "signatures": (_series_signatures if about.context_slices else _signatures)(about, form),
        "use": use.format(**told),
        "calibrated": words.CALIBRATED,
        "sees": sees.format(**told),
        **dict.fromkeys(("slice_model", "blend", "of_studies", "of_study_thresholds"), ""),
    }


def _of_form(form: str) -> dict[str, str]:
    return {"about_too": words.ABOUT_TOO[form], "no_order": words.NO_ORDER[form]}


def _of_series(about: About, slice_about: About, form: str) -> dict[str, str]:
    blend = about.blend
    assert blend is not None  # `about` is of a series model
    study_thresholds = _thresholds(blend.study_thresholds)
    return {
        "title": f"{about.network} over {slice_about.network}",
        "tells": words.TELLS_OF_SERIES.format(labels=", ".join(about.spec.labels.names)),
        "signatures": _series_signatures(about, form),
        "use": words.USE_OF_SERIES.format(**_of_form(form)),
        "slice_model": _on_slices(about, slice_about),
        "blend": words.BLEND.format(parts=_parts(blend)),
        "calibrated": words.CALIBRATED_OF_SERIES,
        "of_studies": words.OF_STUDIES.format(table=_calibration(blend.study_calibration)),
        "of_study_thresholds": words.OF_STUDIES.format(table=study_thresholds),
        "sees": words.SEES_OF_SERIES.format(size=about.spec.image.size_px),
    }


def usage(place: str, of_series: bool = False, form: str = words.SAVED_MODEL) -> list[str]:
    """Lines of Python that ask the export at `place`; `hu` in them, and `position_mm`, are the caller's arrays."""
    if form == words.ONNX:
        return _usage_of_onnx(place, of_series)
    opened = ["import tensorflow as tf", f"model = tf.saved_model.load({place!r})"]
    if not of_series:
        return [
            *opened,
            'model.signatures["hu"](hu=tf.constant(hu, tf.int16))  # hu: CT numbers in HU, [n, rows, columns]',
        ]
    return [
        *opened,
        "# of one series, in any order; hu: CT numbers in HU, [n, rows, columns]; position_mm: of each slice, [n]",
        'model.signatures["series"](hu=tf.constant(hu, tf.int16), position_mm=tf.constant(position_mm, tf.float32))',
    ]


def _usage_of_onnx(place: str, of_series: bool) -> list[str]:
    names = ["hu", "position_mm"] if of_series else ["hu"]
    given = ", ".join(f'"{name}": {name}' for name in names)
    told = "hu: CT numbers in HU, int16 [n, rows, columns]"
    return [
        "import onnxruntime",
        f"model = onnxruntime.InferenceSession({f'{place}/series.onnx' if of_series else f'{place}/hu.onnx'!r})",
        f"# of one series, in any order; {told}; position_mm: float32 [n]" if of_series else f"# {told}",
        "names = [output.name for output in model.get_outputs()]",
        f"dict(zip(names, model.run(names, {{{given}}})))",
    ]


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None, width=110).strip()


def _on_slices(about: About, slice_about: About) -> str:
    settings, facts = slice_about.settings, slice_about.facts
    return words.ON_SLICES.format(
        model=slice_about.network,
        parameters=f"{facts['parameters']:,}",
        epoch=facts["epoch"],
        vector_dim=f"{about.facts['vector_dim']:,}",
        settings=_yaml({name: settings[name] for name in IN_SHORT if name in settings}),
    )


def _parts(blend: Blend) -> str:
    both = zip(blend.odds.names, blend.slices.part, blend.studies.part, strict=True)
    rows = [[name, f"{in_slice:g}", f"{in_study:g}"] for name, in_slice, in_study in both]
    return _table(["label", "part of the context in a slice", "in a study"], rows)


def _series_signatures(about: About, form: str) -> str:
    labels, shape = len(about.spec.labels.names), ", ".join(map(str, about.spec.image.shape))
    hu, slices = "`hu` int16 [n, rows, columns]", f"`probabilities` float32 and `labels` string [n, {labels}]"
    study = "" if about.blend is None else f", `study_probabilities` float32 [{labels}]"
    rows = [
        [_named("series", form), f"{hu}, `position_mm` float32 [n]", f"{slices}{study}"],
        [_named("image", form), hu, f"`image` {about.spec.image.dtype} [n, {shape}], as the model sees it"],
    ]
    return _table([words.SIGNATURE[form], "takes", "gives"], rows, text=3)


def _signatures(about: About, form: str) -> str:
    labels, shape = len(about.spec.labels.names), ", ".join(map(str, about.spec.image.shape))
    hu, answers = "`hu` int16 [n, rows, columns]", f"`probabilities` float32 and `labels` string [n, {labels}]"
    rows = [
        [_named("hu", form), hu, answers],
        ["`records`", "`records` string [n], serialized `tf.train.Example`", "the same"],
        [_named("image", form), hu, f"`image` {about.spec.image.dtype} [n, {shape}], as the model sees it"],
    ]
    if form == words.ONNX:  # which reads no serialized examples
        del rows[1]
    return _table([words.SIGNATURE[form], "takes", "gives"], rows, text=3)


def _named(signature: str, form: str) -> str:
    """What a caller of the export calls a signature; the main one has two names in a SavedModel."""
    if form == words.ONNX:
        return f"`{signature}.onnx`"
    return f"`{signature}`" if signature == "image" else f"`{signature}`, `serving_default`"


def _windows(about: About, of_slices: About) -> str:
    """The windows, and how they come about; `of_slices`: the model that sees pixels."""
    inside = of_slices.facts.get("windows")
    seen = {"size": about.spec.image.size_px, "crop": words.CROPPED if about.spec.image.crop == HEAD else ""}
    if inside is None:
        rows = [[window.name, str(window.level_hu), str(window.width_hu)] for window in about.spec.image.windows]
        return words.WINDOWED.format(**seen, windows=_table(_HEAD, rows))
    rows = [[one["name"], f"{one['level_hu']:.4g}", f"{one['width_hu']:.4g}"] for one in inside["now"]]
    learned = words.LEARNED.format(begun=", ".join(inside["begun"])) if inside["learned"] else ""
    form = words.FORMS[inside["form"]]
    return words.WINDOWS_INSIDE.format(**seen, form=form, learned=learned, windows=_table(_HEAD, rows))


_HEAD = ["window", "level (HU)", "width (HU)"]


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
    return words.RESULTS.format(
        split=result["what"]["split"],
        level=measures["level"],
        resamples=measures["resamples"],
        mirrored=words.MIRRORED if result["what"]["flip"] else "",
        unskilled=f"**{told}**\n\n" if (told := unskilled(measures)) else "",
        log_loss=_value(measures["log_loss"]),
        prevalence=_value(measures["skill"]["overall"]["log_loss_of_prevalence"]),
        skill=_value(measures["skill"]["overall"]["skill"]),
        before=_value(measures["log_loss_before"]),
        auc=_value(measures["auc"]),
        precision=_value(measures["average_precision"]),
        ranking=_table(["label", *RANKING.values(), "skill"], ranking),
        deciding=_table(["label", "rule", "threshold", *DECIDING.values()], deciding, text=2),
        any=about.spec.labels.any,
        both_ways=_both_ways(measures["both_ways"]),
        notes=_list(f"{name}: {one['note']}." for name, one in labels.items() if one["note"]),
        studies=_study_results(measures),
    )


def _study_results(measures: Mapping[str, Any]) -> str:
    """How studies were judged, way by way; nothing where there is but one."""
    if "studies_by" not in measures:
        return ""
    rows = [
        [name, way, _value(one["auc"]), _value(one["auc_gain"]) if "auc_gain" in one else "-"]
        + [_value(one[key]) for key in ("sensitivity", "specificity")]
        for name in measures["studies_level"]
        for way, one in [
            (GREATEST, measures["studies_level"][name]),
            *((way, of_way[name]) for way, of_way in measures["studies_by"].items()),
        ]
    ]
    head = ["label", "judged by", "ROC AUC", "gain", "sensitivity", "specificity"]
    return words.STUDY_RESULTS.format(table=_table(head, rows, text=2))


def _both_ways(both_ways: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [way, rule, f"{one['threshold']:.4g}", f"{one[way]['slices']:,}", _value(one["accuracy"])]
        + [_value(one[way][key]) for key in BOTH_WAYS]
        for rule, one in both_ways.items()
        for way in ("hemorrhage", "no hemorrhage")
    ]
    return _table(["reading", "rule", "threshold", "slices", "accuracy", *BOTH_WAYS.values()], rows, text=2)


def _calibration(found: Calibration) -> str:
    rows = [
        [name, *(f"{number:.4f}" for number in numbers)]
        for name, *numbers in zip(found.names, found.shift, found.slope, found.intercept)
    ]
    return _table(["label", "shift", "slope", "intercept"], rows) + _list(f"{told}." for told in found.told())


def _thresholds(every: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, *(f"{chosen[rule]:.4g}" if rule in chosen else "-" for rule in RULES)] for name, chosen in every.items()
    ]
    return _table(["label", *RULES], rows)


def _foreseen(every: Mapping[str, Any]) -> str:
    """What the headline thresholds rest on and will hold; nothing for a run that did not foresee."""
    rows = []
    for name, label in every.items():
        rule, held = headline(label["rules"])
        rows.append([name, rule, str(label["positives"]), str(label["patients"]), *map(_value, held.values())])
    head = ["label", "rule", "positive slices", "of patients", "sensitivity to expect", "specificity to expect"]
    return f"\n\n{words.FORESEEN}\n\n{_table(head, rows, text=2)}" if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """Markdown table; the first `text` columns are text, the rest numbers set to the right."""
    rule = ["---" if number < text else "---:" for number in range(len(head))]
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
