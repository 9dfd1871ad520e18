"""The head of a model card: what the Hub of Hugging Face reads, and nothing that nobody said."""

from __future__ import annotations

import copy
import re

import pytest
import yaml
from made_cards import LABELS, about, result_of

from trainer.serving import card_front, model_card
from trainer.serving.card_text import ONNX, SAVED_MODEL


@pytest.fixture(scope="module")
def result() -> dict:
    return result_of()


def read(card: str) -> dict:
    """As its library does: the YAML between the first line that is a rule and the next."""
    found = re.match(r"---\n(.*?)\n---\n# ", card, re.DOTALL)
    assert found is not None
    assert "---" not in found[1].splitlines()
    return yaml.safe_load(found[1])


def test_what_the_model_is():
    head = read(model_card.card(about(), None))
    assert (head["library_name"], head["pipeline_tag"]) == ("keras", "image-classification")
    assert head["datasets"] == ["rsna_ich"]
    assert "tensorflow" in head["tags"]
    assert "onnx" in read(model_card.card(about(), None, form=ONNX))["tags"]


def test_no_licence_and_no_results_are_made_up():
    assert read(model_card.card(about(), None)).keys() == {"library_name", "pipeline_tag", "tags", "datasets"}


def test_the_results_are_those_of_the_test(result):
    [model] = read(model_card.card(about(), result))["model-index"]
    assert model["name"] == "densenet121"
    [found] = model["results"]
    assert found["task"]["type"] == "image-classification"
    told = {"fingerprint": result["what"]["dataset"]["fingerprint"], "mirrored_too": False}
    assert found["dataset"] == {"type": "rsna_ich", "name": "rsna_ich 1.0.0", "split": "test", "args": told}
    values = {metric["name"]: (metric["type"], metric["value"]) for metric in found["metrics"]}
    measures = result["measures"]
    assert values["log loss, as in the competition"] == ("log_loss", measures["log_loss"]["value"])
    assert values["ROC AUC, mean of the labels"] == ("roc_auc", measures["auc"]["value"])
    for name in LABELS:
        of_label = measures["labels"][name]
        assert values[f"log loss of {name}"] == ("log_loss", of_label["log_loss"]["value"])
        if of_label["auc"]["value"] is None:
            assert f"ROC AUC of {name}" not in values
        else:
            assert values[f"ROC AUC of {name}"] == ("roc_auc", of_label["auc"]["value"])
    assert measures["labels"][LABELS[1]]["auc"]["value"] is None  # so the table has a gap


@pytest.mark.parametrize(
    "name",
    [
        "clinic: north",
        "x\n---\nlicense: mit",
        "\n---\n",
        'it\'s "ours" # {now}',
        "- [a, b]",
        "yes",
        "2026-11-29",
        "Züri \u2028\x85\t\x07",
        "&a *b !!python/object:os.system",
    ],
)
def test_hostile_names_stay_values(name, result):
    other = copy.deepcopy(result)
    other["what"]["dataset"] |= {"name": name, "version": name}
    other["what"]["split"] = name
    head = read(card_front.front(about(), other, name, SAVED_MODEL) + "# ")
    assert head.keys() == {"library_name", "pipeline_tag", "tags", "datasets", "model-index"}
    [model] = head["model-index"]
    dataset = model["results"][0]["dataset"]
    assert (model["name"], dataset["type"], dataset["split"]) == (name, name, name)
    assert dataset["name"] == f"{name} {name}"
