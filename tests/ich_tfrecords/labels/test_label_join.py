"""Which label row belongs to which slice, where ids are written a little differently; the exact join: test_plan."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.labels import join
from ich_tfrecords.labels.table import LabelTable, read_labels
from ich_tfrecords.spec import load

LABELS = load("rsna_ich").labels
NEGATIVE = "0,0,0,0,0,0"
NFC, NFD = "M\u00fcller", "Mu\u0308ller"


def wide(*ids: str, column: str = "filename") -> LabelTable:
    lines = [",".join([column, *LABELS.names]), *(f'"{name}",{NEGATIVE}' for name in ids)]
    return read_labels(io.BytesIO("\n".join(lines).encode()), LABELS, "l.csv")


def long(*ids: str) -> LabelTable:
    rows = [f"{name}_{label},0" for name in ids for label in LABELS.names]
    return read_labels(io.BytesIO("\n".join(["ID,Label", *rows]).encode()), LABELS, "l.csv")


def slices(*files: str, uids: tuple[str, ...] = ()) -> pa.Table:
    uids = uids or tuple(f"1.2.{at}" for at in range(len(files)))
    return pa.table({"sop_uid": pa.array(uids, pa.string()), "name": pa.array(files, pa.string())})


def by_uid(*uids: str) -> pa.Table:
    return slices(*(f"{at}.dcm" for at in range(len(uids))), uids=uids)


@pytest.mark.parametrize(
    ("disk", "listed"),
    [
        (f"{NFD}/b0.dcm", f"{NFC}/b0.dcm"),  # macOS, and a list typed by hand
        (f"{NFC}/b0.dcm", f"{NFD}/b0.dcm"),
        (f"{NFD}/b0.dcm", f"{NFC}\\b0.png"),
        (f"s/{NFD}.dcm", NFC),
    ],
)
def test_names_in_two_unicode_forms_are_one(disk, listed):
    joined = join.join(slices(disk), wide(listed))
    assert (joined.known.tolist(), joined.notes) == ([True], ())


def test_two_files_whose_names_are_one_in_nfc_are_ambiguous():
    joined = join.join(slices(f"{NFD}.dcm", f"{NFC}.dcm", "c"), wide(NFC, "c"))
    assert joined.known.tolist() == [False, False, True]
    assert joined.reasons == ["ambiguous_label"] * 2


@pytest.mark.parametrize(
    "written", ["ID_a ", " ID_a", "ID_a\u00a0", "\ufeffID_a", "ID_a\u200b", "id_A", "ID_a.dcm", "ID_A.DCM "]
)
@pytest.mark.parametrize("table", [long, lambda *ids: wide(*ids, column="sop_uid")], ids=["long", "wide"])
def test_an_id_that_differs_a_little_is_found(written, table):
    joined = join.join(by_uid("ID_a", "ID_b"), table(written, "ID_b"))
    assert joined.known.tolist() == [True, True]
    assert joined.unused == 0
    blank_only = written.strip("\u200b\ufeff \u00a0") == "ID_a"  # tidied where the file is read
    note = "l.csv: 1 slice has its labels by an id that differs in letter case, white space or suffix"
    assert [line.partition(" (first: ")[0] for line in joined.notes] == ([] if blank_only else [note])


def test_white_space_in_a_long_file_does_not_tear_an_image_apart():
    rows = [f"ID_a{' ' * (at % 2)}_{label}{chr(0xA0) * (at % 3)},0" for at, label in enumerate(LABELS.names)]
    table = read_labels(io.BytesIO("\n".join(["ID,Label", *rows]).encode()), LABELS, "l.csv")
    assert (table.ids.to_pylist(), table.dropped) == (["ID_a"], {})


def test_the_note_shows_both_ids():
    (note,) = join.join(by_uid("ID_b"), long("id_B")).notes
    assert note.endswith("(first: 0.dcm by 'id_B')")


def test_letter_case_counts_where_the_label_file_uses_it():
    joined = join.join(by_uid("iD_a"), long("ID_a", "id_a"))
    assert joined.reasons == ["no_label"]


def test_an_exact_id_keeps_its_row():
    joined = join.join(by_uid("ID_a", "id_a"), long("ID_a"))
    assert joined.known.tolist() == [True, False]
    assert joined.reasons == ["no_label"]


def test_no_two_slices_share_a_row_that_both_find_leniently():
    joined = join.join(by_uid("ID_a", "id_A"), long("Id_a"))
    assert joined.reasons == ["ambiguous_label"] * 2
    assert joined.notes == ()


def test_a_lenient_id_of_untrusted_labels_has_their_reason():
    rows = "".join(f"id_A_{label},{int(label == 'any')}\n" for label in LABELS.names)
    table = read_labels(io.BytesIO(f"ID,Label\n{rows}".encode()), LABELS, "l.csv")
    assert join.join(by_uid("ID_a"), table).reasons == ["label_any_contradiction"]


@pytest.mark.parametrize(
    ("table", "files", "detail"),
    [
        (long("ID_ab12", "ID_b"), by_uid("ID_ab99"), "has no row for 'ID_ab99'; its nearest id is 'ID_ab12'"),
        (long("ID_b", "ID_a"), by_uid("1.2.3"), "has no row for '1.2.3'; its nearest id is 'ID_a'"),
        (wide("p1/IM1.dcm", "z"), slices("p1/IM2.dcm"), "has no row for 'p1/IM2'; its nearest id is 'p1/IM1'"),
        (wide("IM1.dcm", "z"), slices("p1/IM2.dcm"), "has no row for 'IM2'; its nearest id is 'IM1'"),
    ],
)
def test_a_slice_without_a_row_is_told_with_the_nearest_id(table, files, detail):
    joined = join.join(files, table)
    assert joined.reasons == ["no_label"]
    assert joined.details == [f"the label file {detail}"]


def test_a_label_file_without_a_trusted_row_has_no_nearest_id():
    assert join.no_row(["x"], []) == "the label file has no row for 'x'"


@given(st.lists(st.text("ab", max_size=4), unique=True, min_size=1), st.text("abc", max_size=4))
def test_the_nearest_id_begins_as_much_alike_as_any(ids, wanted):
    def alike(text: str) -> int:
        return next((at for at, (a, b) in enumerate(zip(text, wanted)) if a != b), min(len(text), len(wanted)))

    line = join.no_row([wanted], sorted(ids))
    assert alike(line.rpartition(" is ")[2].strip("'")) == max(map(alike, ids))


@given(st.lists(st.sampled_from(["a", "A", "b ", "b", "B.dcm", "c"])), st.lists(st.sampled_from("aAbBcC"), unique=True))
def test_the_join_against_plain_python(ids, uids):
    ids = list(dict.fromkeys(text.strip() for text in ids))
    table = LabelTable(
        "l.csv", pa.array(sorted(ids), pa.string()), np.zeros((len(ids), 6), np.int8), {}, {}, (), "sop_uid"
    )
    joined = join.join(by_uid(*uids), table)
    taken = {uid: uid for uid in uids if uid in ids}
    for uid in uids:
        fits = [text for text in ids if text.lower().removesuffix(".dcm") == uid.lower()]
        if uid not in ids and len(fits) == 1 and fits[0] not in uids:
            taken[uid] = fits[0]
    rows = list(taken.values())
    assert joined.known.tolist() == [uid in taken and rows.count(taken[uid]) == 1 for uid in uids]


def test_stems_and_the_ids_known_by_them():
    names = pa.chunked_array([["p1/IM1.dcm", "p2/IM2.IMA", "1.2.3.1", "a.b/x.tar", f"{NFD}.dcm"]])
    stems = join.stems(names)
    assert stems.to_pylist() == ["IM1", "IM2", "1.2.3.1", "x.tar", NFC]
    double = read_labels(
        io.BytesIO(
            f"filename,{','.join(LABELS.names)}\nq/IM2,1,1,0,0,0,0\nq/IM2,{NEGATIVE}\np/IM1,{NEGATIVE}".encode()
        ),
        LABELS,
        "l.csv",
    )
    assert join.known_ids(stems, double).tolist() == [True, True, False, False, False]
    by_uid = wide("1.2.3.1", "im2", NFC, column="sop_uid")
    assert join.known_ids(stems, by_uid).tolist() == [False, True, True, False, True]
