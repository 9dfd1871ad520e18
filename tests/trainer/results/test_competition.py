"""The competition's file, byte for byte and there and back; its loss beside the closed formula."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ich_tfrecords.synthetic.rsna_layout import RSNA_LABELS
from trainer.results import competition
from trainer.results.probability import ANY_WEIGHT, log_losses, sigmoid
from trainer.shell.problems import WrongUse
from trainer.training import losses, metrics

LABELS = competition.label_spec()
NAMES, ANY = LABELS.names, LABELS.any
# as the competition's sample has them
TEXT = """\
ID,Label
ID_2_epidural,0.0
ID_2_intraparenchymal,0.1
ID_2_intraventricular,0.3333333333333333
ID_2_subarachnoid,1e-07
ID_2_subdural,1.0
ID_2_any,0.30000000000000004
ID_1_epidural,5e-324
ID_1_intraparenchymal,0.5
ID_1_intraventricular,0.25
ID_1_subarachnoid,0.125
ID_1_subdural,0.9999999999999999
ID_1_any,0.75
"""
IDS = ["ID_2", "ID_1"]
# in the order of the spec: any first
PROBABILITIES = np.array(
    [[0.1 + 0.2, 0, 0.1, 1 / 3, 1e-7, 1], [0.75, 5e-324, 0.5, 0.25, 0.125, 0.9999999999999999]], np.float64
)


def test_the_order_of_the_labels_is_the_competitions():
    assert competition.order(NAMES, ANY) == RSNA_LABELS
    assert competition.order(("b", "all", "a"), "all") == ("b", "a", "all")


def test_the_file_to_the_letter():
    assert competition.submission_text(IDS, NAMES, ANY, PROBABILITIES) == TEXT


def submission(folder: Path, text: str | bytes) -> Path:
    path = folder / "submission.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda text: text.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf".__add__]
)
def test_the_file_is_read_back(pack, tmp_path):
    keys, values = competition.read_submission(submission(tmp_path, pack(TEXT.encode())))
    assert keys.to_pylist() == [line.split(",")[0] for line in TEXT.splitlines()[1:]]
    rows = competition.rows_of(keys, pa.array(IDS), NAMES)
    np.testing.assert_array_equal(values[rows], PROBABILITIES)


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(6)), elements=st.floats(0, 1)), st.randoms())
def test_every_float64_comes_back_in_any_order_of_rows(tmp_path_factory, probabilities, random):
    ids = [f"1.2.840.{number}" for number in range(len(probabilities))]
    head, *lines = competition.submission_text(ids, NAMES, ANY, probabilities).splitlines()
    random.shuffle(lines)
    path = submission(tmp_path_factory.getbasetemp(), "\n".join([head, *lines]))
    keys, values = competition.read_submission(path)
    np.testing.assert_array_equal(values[competition.rows_of(keys, pa.array(ids), NAMES)], probabilities)


def test_rows_that_are_not_there():
    keys = pa.array(["b_any", "a_any", "b_epidural"], pa.large_string())
    found = competition.rows_of(keys, pa.array(["a", "b", "c"]), ("any", "epidural"))
    np.testing.assert_array_equal(found, [[1, -1], [0, 2], [-1, -1]])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "no slice to submit; choose"),
        (["a", "b", "a"], "slice a is there twice"),
        (["a,b"], "slice id 'a,b' cannot stand in a submission"),
        (["a\nb"], r"slice id 'a\\nb' cannot"),
        (["a\n"], r"slice id 'a\\n' cannot"),
        (['a"'], "cannot stand in a submission"),
        (["=1+1"], "cannot stand in a submission"),
        ([""], "slice id '' cannot"),
        ([" a"], "slice id ' a' cannot"),
        (["ä"], "only letters, digits"),
    ],
)
def test_ids_that_cannot_be_submitted(ids, words):
    with pytest.raises(WrongUse, match=words):
        competition.submission_text(ids, NAMES, ANY, np.zeros((len(ids), 6)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.0000001])
def test_a_probability_that_is_none_is_named(value):
    probabilities = np.full((2, 6), 0.5)
    probabilities[1, 3] = value
    with pytest.raises(WrongUse, match=f"^ID_1: {NAMES[3]} has probability {value}, outside of 0 to 1$"):
        competition.submission_text(IDS, NAMES, ANY, probabilities)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "header is ''; it must be ID,Label"),
        ("id,label\na_any,1\n", "header is 'id,label'; it must be ID,Label"),
        ("Label,ID\n1,a_any\n", "header is 'Label,ID'"),
        ("ID,Label,Usage\na_any,1,Public\n", "header is 'ID,Label,Usage'"),
        ("ID,Label\n", "has a header and no rows"),
        ("ID,Label\na_any,0.5\nb_any,x\n", "line 3: Label is 'x'; it must be a number"),
        ("ID,Label\na_any,0.5\n\nb_any,\n", "line 4: Label is ''; it must be a number"),
        ("ID,Label\na_any,0.5\nb_any\n", "line 3: 'b_any' is not ID,Label"),
        ("ID,Label\na_any,0.5,1\n", "line 2: 'a_any,0.5,1' is not ID,Label"),
        ("ID,Label\na_any,0.5\nb_any,nan\n", "line 3: 'b_any' has probability nan, which is no number"),
        ("ID,Label\na_any,1.5\n", "line 2: 'a_any' has probability 1.5, which is outside of 0 to 1"),
        ("ID,Label\na_any,inf\n", "'a_any' has probability inf, which is outside"),
        ("ID,Label\n\na_any,-1e-9\n", "line 3: 'a_any' has probability -1e-09"),
        ("ID,Label\na_any,0\nb_any,0\na_any,0\nb_any,0\n", "line 4: 'a_any' comes a second time"),
        (b"ID,Label\n\xff_any,0\n", "cannot be read as CSV: .*UTF8"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\x1f\x8bnothing", "damaged gzip file"),
    ],
)
def test_a_file_that_is_wrong_is_pointed_at(text, words, tmp_path):
    with pytest.raises(WrongUse, match=words) as raised:
        competition.read_submission(submission(tmp_path, text))
    assert str(raised.value).startswith(str(tmp_path / "submission.csv"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WrongUse, match="no such file; python -m trainer"):
        competition.read_submission(tmp_path / "nowhere.csv")
    with pytest.raises(WrongUse, match="no such file"):
        competition.read_submission(tmp_path)


# the loss

LOW, HIGH = -math.log(1e-15), -math.log1p(-(1 - 1e-15))


@pytest.mark.parametrize(
    ("label", "probability", "expected"),
    [
        (1, 1.0, 1e-15),
        (0, 0.0, 1e-15),
        (1, 0.0, LOW),
        (0, 1.0, HIGH),
        (1, 0.25, math.log(4)),
        (0, 0.25, math.log(4 / 3)),
        (1, 0.5, math.log(2)),
    ],
)
def test_the_loss_of_one_label(label, probability, expected):
    [[found]] = log_losses([[label == 1]], [[probability]])
    assert found == pytest.approx(expected, rel=1e-3 if expected == 1e-15 else 1e-15)
    assert np.isfinite(found)
    assert competition.loss([[label]], [[probability]], ["any"], "any") == found


def test_any_counts_twice():
    labels, probabilities = np.zeros((1, 6), int), np.zeros((1, 6))
    for at, name in enumerate(NAMES):
        probabilities[:] = 0
        probabilities[0, at] = 0.5
        share = (2 if name == ANY else 1) / 7
        assert competition.loss(labels, probabilities, NAMES, ANY) == pytest.approx(share * math.log(2), rel=1e-12)


def closed_formula(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean over the images of sum(weight * log loss) / sum(weight), summed exactly."""
    images = []
    for row, shown in zip(labels.tolist(), probabilities.tolist()):
        terms, weights = [], []
        for name, y, p in zip(NAMES, row, shown):
            p = min(max(p, 1e-15), 1 - 1e-15)
            weights.append(2.0 if name == "any" else 1.0)
            terms.append(-weights[-1] * (y * math.log(p) + (1 - y) * math.log1p(-p)))
        images.append(math.fsum(terms) / math.fsum(weights))
    return math.fsum(images) / len(images)


EDGES = st.sampled_from([0.0, 1.0, 5e-324, 1e-16, 1e-15, 2e-15, 1 - 1e-15, 1 - 1e-16, 0.5])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 8))
def test_the_loss_is_the_closed_formula(data, size):
    labels = data.draw(hnp.arrays(np.int8, (size, 6), elements=st.integers(0, 1)))
    probabilities = data.draw(hnp.arrays(np.float64, (size, 6), elements=st.floats(0, 1) | EDGES))
    expected = closed_formula(labels, probabilities)
    assert competition.loss(labels, probabilities, NAMES, ANY) == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_that_of_training():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, (300, 6)), rng.normal(0, 5, (300, 6))
    logits[:2] = [[-800.0], [800.0]]
    weights = losses.label_weights(NAMES, ANY, ANY_WEIGHT)
    expected = metrics.log_loss(labels, logits, weights)
    assert competition.loss(labels, sigmoid(logits), NAMES, ANY) == pytest.approx(expected, rel=1e-12)


def test_float32_is_clipped_in_float64():
    """1 - 1e-15 is 1 in float32, whose loss would not be finite."""
    assert competition.loss([[0]], np.ones((1, 1), np.float32), ["any"], "any") == HIGH


@pytest.mark.parametrize("bad", [-1, 2])
def test_every_label_must_be_known(bad):
    with pytest.raises(WrongUse, match="neither 0 nor 1"):
        competition.loss([[1, bad]], [[0.5, 0.5]], ["any", "epidural"], "any")


def test_no_image_has_no_loss():
    with pytest.raises(WrongUse, match="no image to score"):
        competition.loss(np.empty((0, 6), int), np.empty((0, 6)), NAMES, ANY)
