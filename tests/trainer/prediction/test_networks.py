"""What is said where the memory does not suffice for what a network is asked."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from trainer.prediction import networks
from trainer.shell.problems import WorkFailed

pytestmark = pytest.mark.slow  # TensorFlow


@pytest.mark.parametrize(
    ("told", "given", "words"),
    [
        (networks._images_told, np.zeros((9, 8, 8, 3), np.uint8), "9 slices at once need more memory than there is; "),
        (networks._inputs_told, {"mask": np.ones((2, 700), bool)}, "a series of 700 slices needs more memory than "),
    ],
)
def test_too_little_memory_is_one_line(told, given, words):
    def ask(given):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(WorkFailed, match=words):
        networks._guarded(ask, told)(given)
