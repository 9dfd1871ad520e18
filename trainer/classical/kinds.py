"""The kinds of classical classifiers, and what each takes; light, so that a command line can be refused at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.models import model_file

FOREST, SVM, LOGISTIC = "forest", "svm", "logistic"
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    FOREST: {"trees": 100, "depth": 12},
    SVM: {"c": 1.0},
    LOGISTIC: {"c": 1.0},
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A classifier to fit: its `kind`, the `parameters` of `DEFAULTS`, and the `seed` of whatever it draws."""

    kind: str
    parameters: Mapping[str, Any]
    seed: int

    def identity(self, job_dir: str) -> dict[str, Any]:
        """What decides a classifier besides the data set of its slice run `job_dir`: a setting of the model."""
        digest = model_file.digest(model_file.find(job_dir))
        return {"kind": self.kind, **self.parameters, "seed": self.seed, "slice_model": digest}

    def steps(self, labels: int) -> tuple[int, str]:
        """How long a fit is, and in what it is counted."""
        return (labels * self.parameters["trees"], "trees") if self.kind == FOREST else (labels, "labels")
