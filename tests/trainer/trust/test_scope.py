"""Scope: who is refused, how often wrongly, in which words; and the file that keeps it."""

from __future__ import annotations

import contextlib
import dataclasses
import re

import numpy as np
import pyarrow as pa
import pytest

from trainer.shell.problems import WrongUse
from trainer.trust import scope, scope_file
from trainer.trust.portraits import BINS
from trainer.trust.scope import NO, UNKNOWN, YES, Sample, Scope

WEIGHTS = "a" * 64
PER_SERIES = 4


def sample(patients: int, seed: int, moved: float = 0.0, dark: float = 0.0, spacing_mm: float = 0.45) -> Sample:
    """A series a patient, of 12 numbers a slice; `moved`: away from training, `dark`: part of the pixels in bin 0."""
    rng = np.random.default_rng(seed)
    slices = patients * PER_SERIES
    names = np.repeat([f"{seed}-{number}" for number in range(patients)], PER_SERIES)
    columns = {name: pa.array(names) for name in ("patient_key", "study_uid", "series_uid")}
    columns |= {
        "spacing_mm": pa.array(np.repeat(spacing_mm + rng.uniform(0, 0.05, patients), PER_SERIES), pa.float32())
    }
    grey = rng.dirichlet(np.full(BINS, 20.0), slices)
    grey[:, 0] += dark
    vectors = rng.normal(size=(slices, 12)) * np.linspace(2, 0.5, 12) + rng.normal(size=(patients, 12)).repeat(
        PER_SERIES, axis=0
    )
    grey32 = (grey / grey.sum(axis=1, keepdims=True)).astype(np.float32)
    return Sample(pa.table(columns), grey32, (vectors + moved).astype(np.float16), rng.uniform(size=(slices, 2)))


@pytest.fixture(scope="module")
def fitted() -> Scope:
    return scope.fit(WEIGHTS, sample(80, 1), sample(60, 2))


def judged(fitted: Scope, new: Sample) -> list[scope.Judgement]:
    """Of its series, as `predict` judges them."""
    return fitted.judge(scope._known(fitted, new).portraits)


@pytest.mark.slow
def test_at_most_the_stated_part_of_patients_like_those_of_validation_is_refused():
    """Over many draws of validation and of a new patient, as the promise says: on average."""
    refused = total = 0
    for seed in range(16):
        found = judged(scope.fit(WEIGHTS, sample(20, 3 * seed), sample(39, 3 * seed + 1)), sample(40, 3 * seed + 2))
        refused += sum(one.in_scope == NO for one in found)
        total += len(found)
    assert 0.015 < refused / total < 0.085  # 5%, and four standard errors of what 16 draws of validation vary by


@pytest.mark.parametrize(
    ("strange", "words"),
    [
        ({"moved": 9.0}, "vectors [0-9.]+ times as far as 95% of validation"),
        ({"dark": 2.0}, "grey [0-9.]+ times as far as 95% of validation"),
        ({"spacing_mm": 0.8}, r"pixel spacing 0.8[0-9]* mm, training 0.45\d* to 0.[45]\d*"),
    ],
)
def test_each_check_refuses_by_itself_and_says_why(fitted, strange, words):
    found = judged(fitted, sample(30, 9, **strange))
    assert {one.in_scope for one in found} == {NO}
    assert all(re.search(words, one.reason) for one in found)
    assert not any(";" in one.reason for one in found[:1])


def test_what_the_header_does_not_tell_judges_nobody(fitted):
    new = sample(40, 9)
    silent = new._replace(table=new.table.drop_columns(["spacing_mm"]))
    assert sum(one.in_scope == YES for one in judged(fitted, silent)) >= 34


def test_too_few_patients_judge_nobody_and_say_how_many_are_needed():
    few = scope.fit(WEIGHTS, sample(30, 1), sample(18, 2))
    assert (
        judged(few, sample(2, 3, moved=99))
        == [(UNKNOWN, "18 patients in validation, and a false-alarm rate of 5% needs 19")] * 2
    )
    assert judged(scope.fit(WEIGHTS, sample(30, 1), sample(19, 2)), sample(1, 3, moved=99))[0].in_scope == NO
    assert scope.fit(WEIGHTS, sample(30, 1), None).lacking().startswith("0 patients")


def test_two_series_of_a_patient_count_once():
    held = sample(20, 2)
    same = held.table.set_column(0, "patient_key", pa.array(["p"] * len(held.table)))
    assert scope.fit(WEIGHTS, sample(30, 1), held._replace(table=same)).lacking().startswith("1 patient ")


def test_vectors_that_are_not_finite_are_far(fitted):
    new = sample(3, 9)
    new.vectors[:] = np.inf
    assert {one.in_scope for one in judged(fitted, new)} == {NO}


def test_the_draw_takes_whole_series_by_patient_and_keeps_to_its_limits():
    table = sample(20, 1).table
    rows = scope.drawn(table, 7, most_series=5)
    assert len(rows) == 5 * PER_SERIES
    turned = table.take(pa.array(np.arange(len(table))[::-1]))
    keys = {table["series_uid"][int(row)].as_py() for row in rows}
    assert keys == {turned["series_uid"][int(row)].as_py() for row in scope.drawn(turned, 7, most_series=5)}
    assert len(scope.drawn(table, 7, most_slices=2 * PER_SERIES + 1)) == 2 * PER_SERIES
    assert len(scope.drawn(table, 7, most_slices=1)) == PER_SERIES
    assert set(scope.drawn(table, 8, most_series=5)) != set(rows)


def test_the_file_keeps_it_and_belongs_to_its_weights(fitted, tmp_path):
    path = scope_file.write(tmp_path, fitted)
    found = scope_file.read(tmp_path, WEIGHTS)
    assert found is not None
    new = sample(20, 9, moved=0.7)
    assert judged(found, new) == judged(fitted, new)
    assert found.training.portraits.equals(fitted.training.portraits)
    assert np.array_equal(found.training.whose, fitted.training.whose)
    assert scope_file.read(tmp_path, "b" * 64) is None
    first = path.read_bytes()
    scope_file.write(tmp_path, dataclasses.replace(fitted))
    assert path.read_bytes() == first
    assert b"1-3" not in first  # no key of a patient, no UID


@pytest.mark.parametrize("damage", ["cut", "text", "part"])
def test_a_damaged_file_is_told_in_one_line(fitted, tmp_path, damage):
    path = scope_file.write(tmp_path, fitted)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("no arrays")
    else:
        np.savez(path, head=np.frombuffer(b"{}", np.uint8))
    with pytest.raises(WrongUse, match=r"cannot use .*scope\.npz"):
        scope_file.read(tmp_path, WEIGHTS)


@pytest.mark.parametrize("name", ["vectors_centre", "validation_patients"])
def test_numbers_that_are_none_are_damage(fitted, tmp_path, name):
    path = scope_file.write(tmp_path, fitted)
    with np.load(path) as arrays:
        parts = dict(arrays)
    parts[name] = parts[name] * np.nan if name == "vectors_centre" else np.stack([parts[name]] * 2, axis=1)
    np.savez(path, **parts)
    with pytest.raises(WrongUse, match=r"cannot use .*scope\.npz"):
        scope_file.read(tmp_path, WEIGHTS)


@pytest.mark.parametrize("seed", range(60))
def test_bytes_that_were_changed_are_damage_or_change_nothing(fitted, tmp_path, seed):
    path = scope_file.write(tmp_path, fitted)
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(0, len(data), 3):
        data[at] ^= 1 << rng.integers(0, 8)
    path.write_bytes(data)
    found = None
    with contextlib.suppress(WrongUse):  # and nothing else
        found = scope_file.read(tmp_path, WEIGHTS)
    assert found is None or judged(found, sample(4, 9)) == judged(fitted, sample(4, 9))


def test_a_vector_that_is_no_number_harms_no_model(tmp_path):
    """As of a slice whose vector is beyond float16."""
    some = sample(30, 5)
    some.vectors[3, 2] = np.inf
    scope_file.write(tmp_path, scope.fit(WEIGHTS, some, sample(30, 6)))
    assert judged(scope_file.read(tmp_path, WEIGHTS), sample(5, 7))


def test_no_file_is_no_scope(tmp_path):
    assert scope_file.read(tmp_path, WEIGHTS) is None
