"""Names in one form, with `unicodedata` and plain Python as the oracle."""

from __future__ import annotations

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.labels import names

TEXTS = st.lists(st.text(st.sampled_from("aB/\\.é\u0301üu\u0308ﬁ漢 \u00a0\u200b\ufeff") | st.characters(codec="utf-8")))


@given(TEXTS, st.sampled_from([pa.string(), pa.large_string()]))
def test_composed_equals_unicodedata(texts, kind):
    expected = [unicodedata.normalize("NFC", text) for text in texts]
    assert names.composed(pa.array(texts, kind)).to_pylist() == expected
    chunked = names.composed(pa.chunked_array([texts[:2], texts[2:]], kind))
    assert (chunked.to_pylist(), chunked.type) == (expected, kind)


def test_ascii_is_not_copied():
    texts = pa.array(["ID_1.dcm", "a b"])
    assert names.composed(texts) is texts


def test_what_stands_around_an_id():
    around = "\t\n\r \u00a0\u2007\u202f\u3000\u200b\u200d\u2060\ufeff\u200e"
    assert names.trimmed(pa.array([f"{around}a b{around}", "", around])).to_pylist() == ["a b", "", ""]


@given(st.text(st.sampled_from("aé") | st.characters(categories=["Zs", "Zl", "Zp", "Cc"]), max_size=6))
def test_trimmed_takes_what_python_takes(text):
    once = names.trimmed(pa.array([text])).to_pylist()[0]
    assert once == once.strip()
    assert once in text


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("ID_1.png", "ID_1"),
        ("p1/IM1.dcm", "p1/IM1"),
        ("p1\\s 2\\IM1.DCM", "p1/s 2/IM1"),
        ("././p1/IM1.Ima", "p1/IM1"),
        ("../IM1.dicom", "../IM1"),
        ("C:\\a\\b.JPG", "C:/a/b"),
        ("a.dcm.png", "a.dcm"),
        ("1.2.840.1", "1.2.840.1"),
        ("p.1/1.2.840.1.dcm", "p.1/1.2.840.1"),
        ("a.tar", "a.tar"),
        ("dcm", "dcm"),
        ("Mu\u0308ller/b0.dcm", "M\u00fcller/b0"),
    ],
)
def test_bare(name, bare):
    assert names.bare(pa.array([name])).to_pylist() == [bare]


@pytest.mark.parametrize("text", ["ID_a", " ID_a", "id_A\u00a0", "ID_A.DCM", "id_a .dcm", "\ufeffID_a.png "])
def test_lenient_forms_of_one_id(text):
    assert names.lenient(pa.array([text])).to_pylist() == ["id_a"]


@given(st.lists(st.sampled_from(["a", "A", "a ", "b", "B.dcm", "c"]), unique=True), st.sampled_from("aAbBcd"))
def test_a_lenient_form_counts_where_one_id_alone_has_it(ids, wanted):
    forms, only = names.lenient_forms(pa.array(ids, pa.string()))
    place = names.found(pa.array([wanted.lower()]), forms)[0]
    fits = [at for at, text in enumerate(ids) if text.lower().removesuffix(".dcm").strip() == wanted.lower()]
    assert np.append(only, -1)[place] == (fits[0] if len(fits) == 1 else -1)
