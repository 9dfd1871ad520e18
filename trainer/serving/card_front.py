"""The head of a model card as YAML between two rules, in the form that Hugging Face's Hub and its library read.

It names no licence: that is the choice of whoever hands the model on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from trainer.models.model_file import About
from trainer.serving.card_text import ONNX

RULE = "---\n"
PIPELINE = "image-classification"
TASK = "intracranial hemorrhage in slices of head CT"
TAGS = ("computed-tomography", "head-ct", "intracranial-hemorrhage", "medical", "radiology")
MEASURES = {"log_loss": ("log_loss", "log loss"), "auc": ("roc_auc", "ROC AUC")}  # ours -> their type, its name


def front(about: About, result: Mapping[str, Any] | None, title: str, form: str) -> str:
    """The head of the card with its rules, the last ended by a newline.

    `result`: `metrics.json` of the split that was tested on; without one there is no `model-index`. `title`: the model
    in a word or two; `form`: of the export. Raises KeyError or TypeError where `result` is no such thing.
    """
    values: dict[str, Any] = {
        "library_name": "keras",
        "pipeline_tag": PIPELINE,
        "tags": [*TAGS, "onnx" if form == ONNX else "tensorflow"],
        "datasets": [about.spec.name],
    }
    if result is not None:
        values["model-index"] = [{"name": title, "results": [_results(result)]}]
    return RULE + yaml.safe_dump(values, sort_keys=False, allow_unicode=True) + RULE


def _results(result: Mapping[str, Any]) -> dict[str, Any]:
    what, measures = result["what"], result["measures"]
    data = what["dataset"]
    return {
        "task": {"type": PIPELINE, "name": TASK},
        "dataset": {
            "type": str(data["name"]),
            "name": f"{data['name']} {data['version']}",
            "split": str(what["split"]),
            "args": {"fingerprint": str(data["fingerprint"]), "mirrored_too": bool(what["flip"])},
        },
        "metrics": list(_metrics(measures)),
    }


def _metrics(measures: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of all labels together, then of each; what has no value, such as the AUC of a label never positive, is absent."""
    for measure, (kind, name) in MEASURES.items():
        together = f"{name}, {'as in the competition' if measure == 'log_loss' else 'mean of the labels'}"
        for told, of in ((together, measures), *((f"{name} of {one}", of) for one, of in measures["labels"].items())):
            value = of[measure]["value"]
            if value is not None:
                yield {"type": kind, "name": told, "value": float(value)}
