"""Tests of `ich_tfrecords.labels`: literal RSNA rows, both layouts, every error text, and a dict oracle."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.labels import table as module
from ich_tfrecords.labels.table import LabelError, LabelTable, read_labels, stratum_indices

LABELS = spec.load("rsna_ich").labels
CSV_ORDER = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "bench_labels.py"

# the first rows of stage_2_train.csv, an image with a hemorrhage, and one of the four images that stand twice
RSNA_ROWS = """\
ID,Label
ID_12cadc6af_epidural,0
ID_12cadc6af_intraparenchymal,0
ID_12cadc6af_intraventricular,0
ID_12cadc6af_subarachnoid,0
ID_12cadc6af_subdural,0
ID_12cadc6af_any,0
ID_07fa4d5ce_epidural,0
ID_07fa4d5ce_intraparenchymal,1
ID_07fa4d5ce_intraventricular,0
ID_07fa4d5ce_subarachnoid,0
ID_07fa4d5ce_subdural,0
ID_07fa4d5ce_any,1
"""

NO_COUNTS = {
    "rows": 0,
    "images": 0,
    "duplicate_rows": 0,
    "duplicate_images": 0,
    "conflicting_images": 0,
    "incomplete_images": 0,
    "any_contradictions": 0,
}


def image_rows(image: str, **positive: int) -> str:
    """Six long rows of an image; labels not named are 0."""
    return "".join(f"{image}_{label},{positive.get(label, 0)}\n" for label in CSV_ORDER)


def long_csv(*blocks: str) -> str:
    return "ID,Label\n" + "".join(blocks)


def read(text: str | bytes, labels: spec.LabelSpec = LABELS) -> LabelTable:
    data = text if isinstance(text, bytes) else text.encode()
    return read_labels(io.BytesIO(data), labels, name="labels.csv")


def message(text: str | bytes, labels: spec.LabelSpec = LABELS) -> str:
    with pytest.raises(LabelError) as caught:
        read(text, labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the long layout -----------------------------------------------------------------------------------------


def test_rsna_rows():
    table = read(RSNA_ROWS)
    assert table.ids.to_pylist() == ["ID_07fa4d5ce", "ID_12cadc6af"]
    # any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural
    assert table.values.tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert table.values.dtype == np.int8
    assert table.values.flags.c_contiguous
    assert table.ids.type == pa.string()
    assert table.dropped == {}
    assert table.counts == {**NO_COUNTS, "rows": 12, "images": 2}
    assert table.notes() == ["labels.csv: 12 rows give the labels of 2 images"]


def test_the_four_rsna_images_that_stand_twice():
    twice = ["ID_489ae4179", "ID_854fba667", "ID_a64d5deed", "ID_921490062"]
    block = "".join(image_rows(image) for image in twice)
    table = read(long_csv(block, image_rows("ID_12cadc6af"), block))
    assert table.ids.to_pylist() == sorted([*twice, "ID_12cadc6af"])
    assert table.counts == {**NO_COUNTS, "rows": 54, "images": 5, "duplicate_rows": 24, "duplicate_images": 4}
    assert table.notes()[1] == "labels.csv: merged 24 duplicate rows of 4 images (they agree)"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n\n\r\n",
        lambda text: text.rstrip("\n"),
        lambda text: "\n" + text.replace("_any,1\n", "_any,1\n\n"),
        lambda text: text.replace("_any,1", "_any,1.0"),
        lambda text: text.replace(",0\n", ",0.0\n"),
        lambda text: text.replace("ID_07fa4d5ce_any", '"ID_07fa4d5ce_any"').replace("Label", '"Label"'),
        lambda text: "\n".join(",".join(reversed(line.split(","))) for line in text.splitlines()),
    ],
    ids=["crlf", "cr", "bom", "blank_end", "no_end", "blank", "float_1", "float_0", "quotes", "swap"],
)
def test_same_table_however_the_file_was_saved(change):
    expected, table = read(RSNA_ROWS), read(change(RSNA_ROWS))
    assert table.ids.equals(expected.ids)
    assert np.array_equal(table.values, expected.values)
    assert table.counts == expected.counts


def test_image_ids_may_hold_underscores_and_any_text():
    names = ["ID_any", "a_b_c_subdural", "_", "ID_é_1", "no-underscore", "1.2.840.113619.2"]
    table = read(long_csv(*(image_rows(name, subdural=1, any=1) for name in names)))
    assert table.ids.to_pylist() == sorted(names, key=str.encode)
    assert (table.values[:, [0, 5]] == 1).all()


def test_longest_label_that_fits_is_meant():
    labels = spec.LabelSpec(
        any="any", names=("any", "subdural", "acute_subdural"), rarest_first=("acute_subdural", "subdural")
    )
    table = read("ID,Label\nx_acute_subdural,1\nx_subdural,0\nx_any,1\n", labels)
    assert table.ids.to_pylist() == ["x"]
    assert table.values.tolist() == [[1, 0, 1]]


def test_other_columns_are_ignored_with_a_note():
    header, *rows = RSNA_ROWS.splitlines()
    table = read("\n".join([f"{header},reader", *(f"{row},x" for row in rows)]))
    assert table.ids.equals(read(RSNA_ROWS).ids)
    assert table.ignored_columns == ("reader",)
    assert "labels.csv: ignored columns 'reader'" in table.notes()


# --- data that contradicts itself ----------------------------------------------------------------------------


def test_conflicting_images_are_left_out_and_told():
    table = read(
        long_csv(image_rows("ID_a"), image_rows("ID_b"), "ID_a_subdural,1\nID_a_any,1\n", image_rows("ID_c", any=1))
    )
    assert table.ids.to_pylist() == ["ID_b"]
    assert table.dropped == {"ID_a": "label_conflict", "ID_c": "label_any_contradiction"}
    assert table.counts == {
        **NO_COUNTS,
        "rows": 20,
        "images": 1,
        "conflicting_images": 1,
        "any_contradictions": 1,
    }
    assert table.notes()[1:] == [
        "labels.csv: left out 1 image, first ID_a: their rows contradict each other (label_conflict)",
        (
            "labels.csv: left out 1 image, first ID_c: the label for any hemorrhage is not the maximum of the others "
            "(label_any_contradiction)"
        ),
    ]


def test_any_0_beside_a_positive_label_is_a_contradiction():
    assert read(long_csv(image_rows("ID_a", subdural=1))).dropped == {"ID_a": "label_any_contradiction"}


def test_images_without_all_labels_are_left_out_and_told():
    table = read(long_csv(image_rows("ID_a"), "ID_b_any,0\nID_b_any,0\n"))
    assert table.ids.to_pylist() == ["ID_a"]
    assert table.dropped == {"ID_b": "label_incomplete"}
    assert table.counts["incomplete_images"] == 1
    assert (table.counts["duplicate_rows"], table.counts["duplicate_images"]) == (1, 1)
    assert table.notes()[-1] == (
        "labels.csv: left out 1 image, first ID_b: not every label has a row; --labels_may_miss makes "
        "the others unknown (label_incomplete)"
    )


def test_table_may_become_empty():
    table = read(long_csv(image_rows("ID_a", any=1)))
    assert table.values.shape == (0, 6)
    assert table.ids.to_pylist() == []


# --- the wide layout -----------------------------------------------------------------------------------------

WIDE = """\
filename,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural
ID_12cadc6af.png,0,0,0,0,0,0
ID_07fa4d5ce.png,1,0,1,0,0,0
"""


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace(".png", ".dcm"),
        lambda text: text.replace(".png", ".DCM"),
        lambda text: text.replace(".png", ""),
        lambda text: text.replace("filename", "sop_uid").replace(".png", ""),
        lambda text: text.replace("ID_", "./ID_"),
        lambda text: text.replace("ID_", ".\\ID_"),
        lambda text: "\n".join(",".join(reversed(line.split(","))) for line in text.splitlines()),
        lambda text: text.replace(",0", ",0.0").replace("\n", "\r\n"),
    ],
    ids=["png", "dcm", "upper", "bare", "sop_uid", "here", "windows", "columns", "floats"],
)
def test_wide_table_equals_the_long_one(change):
    expected, table = read(RSNA_ROWS), read(change(WIDE))
    assert table.ids.equals(expected.ids)
    assert np.array_equal(table.values, expected.values)
    assert table.counts == {**NO_COUNTS, "rows": 2, "images": 2}


def test_files_of_one_name_in_two_folders_are_two_images():
    table = read(WIDE_HEADER + "p1/IM1.dcm,0,0,0,0,0,0\np2/IM1.dcm,1,0,0,0,0,1\n")
    assert table.ids.to_pylist() == ["p1/IM1", "p2/IM1"]
    assert table.dropped == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("ID_", " ID_"),
        lambda text: text.replace(",1", "\u00a0,1").replace(",0", "\u200b\t,0"),
        lambda text: text.replace("ID_0", "\ufeff ID_0"),
        lambda text: text.replace("_any", " _any"),
    ],
)
def test_white_space_around_ids_is_not_meant(change):
    expected, table = read(RSNA_ROWS), read(change(RSNA_ROWS))
    assert table.ids.equals(expected.ids)
    assert np.array_equal(table.values, expected.values)
    assert table.counts == expected.counts


def test_names_of_a_wide_file_are_bare_and_in_nfc():
    table = read(WIDE_HEADER + "Mu\u0308ller\\b0.dcm ,0,0,0,0,0,0\n")
    assert table.ids.to_pylist() == ["M\u00fcller/b0"]


def test_uids_are_taken_as_they_stand():
    table = read(WIDE_HEADER.replace("filename", "sop_uid") + "1.2.dcm,0,0,0,0,0,0\n")
    assert table.ids.to_pylist() == ["1.2.dcm"]


def test_the_table_knows_whether_its_ids_are_file_names():
    assert read(WIDE).by_file_name
    assert not read(WIDE.replace("filename", "sop_uid")).by_file_name
    assert not read(RSNA_ROWS).by_file_name


def test_wide_repeats_conflicts_and_extra_columns():
    table = read(
        "sop_uid,filename,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,\n"
        "1.2.840.1,a.png,0,0,0,0,0,0,0\n"
        "1.2.840.1,b.png,0,0,0,0,0,0,1\n"
        "1.2.840.2,c.png,1,0,0,0,0,1,2\n"
        "1.2.840.2,d.png,1,0,0,0,1,1,3\n"
        "1.2.840.3,e.png,0,0,0,0,0,1,4\n"
    )
    assert table.ids.to_pylist() == ["1.2.840.1"]
    assert table.dropped == {"1.2.840.2": "label_conflict", "1.2.840.3": "label_any_contradiction"}
    assert table.ignored_columns == ("filename", "")
    assert table.counts == {
        "rows": 5,
        "images": 1,
        "duplicate_rows": 1,
        "duplicate_images": 1,
        "conflicting_images": 1,
        "incomplete_images": 0,
        "any_contradictions": 1,
    }


# --- errors --------------------------------------------------------------------------------------------------

ZERO_OR_ONE = "; it must be 0 or 1 (leave out images not labelled)"
OR_UNKNOWN = ZERO_OR_ONE[:-1] + ", or convert with --labels_may_miss, which makes it unknown)"
WIDE_HEADER = "filename,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "labels.csv: is empty; expected a header such as ID,Label and rows"),
        ("\n\n", "labels.csv: is empty; expected a header such as ID,Label and rows"),
        ("ID,Label\n", "labels.csv: has a header and no rows; is the download complete?"),
        ("ID,Label", "labels.csv: has a header and no rows; is the download complete?"),
        (WIDE_HEADER, "labels.csv: has a header and no rows; is the download complete?"),
        (
            "id;Label\nID_1_any;0\n",
            (
                "labels.csv: header is 'id;Label'; expected ID,Label, or a column sop_uid or filename and one for "
                "each label, separated by commas, semicolons or tabs"
            ),
        ),
        ("ID,Label,ID\nx,0,x\n", "labels.csv: column 'ID' stands twice in the header; remove one"),
        # a submission file holds probabilities
        (
            "ID,Label\nID_1_any,0\n\nID_1_subdural,0.5\n",
            "labels.csv, line 4: Label is '0.5'" + ZERO_OR_ONE,
        ),
        ("ID,Label\nx_any,\n", "labels.csv, line 2: Label is ''" + OR_UNKNOWN),
        ("ID,Label\nx_any,-1\n", "labels.csv, line 2: Label is '-1'" + OR_UNKNOWN),
        ("ID,Label\nx_any, 1\n", "labels.csv, line 2: Label is ' 1'" + ZERO_OR_ONE),
        # two files joined: the second header is a row
        (
            long_csv(image_rows("x"), "ID,Label\n"),
            "labels.csv, line 8: is the header once more; remove that line",
        ),
        (
            WIDE + "ID_3.png,0,0,0,2,0,0\n",
            "labels.csv, line 4: intraventricular is '2'" + ZERO_OR_ONE,
        ),
        (
            long_csv(image_rows("x"), "ID_7_subdurl,0\n"),
            "labels.csv, line 8: ID 'ID_7_subdurl' ends in no label, 'subdurl'; did you mean 'subdural'?",
        ),
        (
            long_csv(image_rows("x"), "ID_7_Any,0\n"),
            "labels.csv, line 8: ID 'ID_7_Any' ends in no label, 'Any'; did you mean 'any'?",
        ),
        (
            "ID,Label\nID_7_fracture,0\n",
            (
                "labels.csv, line 2: ID 'ID_7_fracture' ends in no label, 'fracture'; known are any, epidural, "
                "intraparenchymal, intraventricular, subarachnoid, subdural"
            ),
        ),
        ("ID,Label\nany,0\n", "labels.csv, line 2: ID 'any' ends in no label, 'any'; did you mean 'any'?"),
        (
            long_csv(image_rows("x"), "_subdural,0\n_any,0\n"),
            "labels.csv, line 8: ID '_subdural' has no image id before the label",
        ),
        (
            "ID,Label\nx_any,0\nx_subdural,0\n",
            (
                "labels.csv: no row for label 'epidural' (a spec may ask for other labels); each image needs any, "
                "epidural, intraparenchymal, intraventricular, subarachnoid, subdural"
            ),
        ),
        (
            "ID,Label\nx_any,0\nx_any\n",
            "labels.csv, line 3: 'x_any' has 1 columns, the header has 2; is the file cut off or edited?",
        ),
        (
            "ID,Label\r\nx_any,0\r\n\r\nx_any,0,0\r\n",
            "labels.csv, line 4: 'x_any,0,0' has 3 columns, the header has 2; is the file cut off or edited?",
        ),
        # signs of two kinds
        (
            WIDE.replace(",", ";") + "ID_3.png,0,0,0,0,0,0\n",
            (
                "labels.csv, line 4: the row has 1 columns, the header has 7; it is parted by ',', the header by ';'"
            ),
        ),
        (
            WIDE + "ID_3.png;0;0;0;0;0;0\n",
            (
                "labels.csv, line 4: the row has 1 columns, the header has 7; it is parted by ';', the header by ','"
            ),
        ),
        ("ID_1;0\nID_2;1\n", (
            "labels.csv: its first line is no header; expected ID,Label, or a column sop_uid or filename and one for "
            "each label, separated by commas, semicolons or tabs"
        )),
        (
            "filename,any\nx,0\n",
            ("labels.csv: no column for label 'epidural' (a spec may ask for other labels); known are filename, any; "
            "--labels_may_miss makes it unknown"),
        ),
        (
            WIDE.replace("subdural", "subdurl"),
            "labels.csv: no column for label 'subdural' (a spec may ask for other labels); did you mean 'subdurl'?",
        ),
        (WIDE + "png/.png,0,0,0,0,0,0\n", "labels.csv, line 4: filename is 'png/.png', which names no image"),
        (WIDE.encode("utf-16"), "labels.csv: is UTF-16 text; save it as UTF-8 CSV"),
        (
            "ID,Label\nx_any,0\né_any,0\n".encode("latin-1"),
            "labels.csv, line 3: byte 0xe9 is not UTF-8; save it as UTF-8 CSV",
        ),
        (
            b"\0" * 128 + b"DICM",
            "labels.csv: is binary (byte 0 is zero), not CSV; give the label CSV",
        ),
        (
            gzip.compress(b"\0" * 128, mtime=0),
            "labels.csv: is binary (byte 0 is zero), not CSV; give the label CSV",
        ),
    ],
)  # fmt: skip
def test_error_text(text, expected):
    assert message(text) == expected


def test_long_values_are_cut_in_messages():
    assert message("ID,Label\nx_any," + "7" * 1000 + "\n") == (
        f"labels.csv, line 2: Label is '{'7' * 80}...'; it must be 0 or 1 (leave out images not labelled)"
    )


def test_text_that_is_no_csv_at_all():
    assert message("x" * 200_000).startswith("labels.csv, line 1: cannot be read as CSV: field larger than")


def test_the_error_line_counts_physical_lines():
    text = "\n\n" + long_csv(image_rows("x"), "\n\n", "y_wrong,0\n")
    assert message(text).startswith("labels.csv, line 12: ")


def test_a_zip_is_refused_by_its_first_bytes(tmp_path):
    class Watched(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("stage_2_train.csv", RSNA_ROWS * 100)
    source = Watched(packed.getvalue())
    with pytest.raises(LabelError, match=r"^rsna\.zip: is a zip archive or a workbook, not CSV; unpack it"):
        read_labels(source, LABELS, "rsna.zip")
    assert source.taken <= 4096 < len(packed.getvalue())


def test_latin_1_in_an_ignored_column_does_no_harm():
    text = WIDE.replace("filename", "reader,filename").replace("ID_", "Müller,ID_")
    assert read(text.encode("latin-1")).ids.equals(read(WIDE).ids)


# --- where the file comes from -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_reads_paths_plain_and_gzipped(tmp_path, kind):
    plain, packed = tmp_path / "train.csv", tmp_path / "train.csv.gz"
    plain.write_text(RSNA_ROWS)
    packed.write_bytes(gzip.compress(RSNA_ROWS.encode()))
    tables = [read_labels(kind(path), LABELS) for path in (plain, packed)]
    assert [table.name for table in tables] == [str(plain), str(packed)]
    assert tables[0].ids.equals(tables[1].ids)
    assert np.array_equal(tables[0].values, tables[1].values)


def test_reads_open_files_and_takes_their_name(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(RSNA_ROWS)
    with path.open("rb") as file:
        assert read_labels(file, LABELS).name == str(path)
    assert read_labels(io.BytesIO(RSNA_ROWS.encode()), LABELS).name == "label CSV"


def test_missing_file_folder_and_damaged_gzip(tmp_path):
    with pytest.raises(LabelError, match=r"nowhere\.csv: no such file; check the path of the label CSV$"):
        read_labels(tmp_path / "nowhere.csv", LABELS)
    with pytest.raises(LabelError, match=r"cannot be read \(.*\); expected a label CSV$"):
        read_labels(tmp_path, LABELS)
    packed = gzip.compress(RSNA_ROWS.encode())
    flipped = packed[:20] + bytes([packed[20] ^ 0xFF]) + packed[21:]
    for damaged in (packed[:40], packed + b"tail", flipped):
        assert "labels.csv: damaged gzip file (" in message(damaged)


@pytest.mark.parametrize("sign", [";", "\t"])
@pytest.mark.parametrize("text", [RSNA_ROWS, "\ufeff" + WIDE, WIDE.replace("\n", "\r"), "\n\n" + WIDE + "\n"])
def test_semicolons_and_tabs_part_as_commas_do(text, sign):
    expected, table = read(text), read(text.replace(",", sign))
    assert table.ids.equals(expected.ids)
    assert np.array_equal(table.values, expected.values)


def test_a_comma_in_a_file_of_semicolons_is_a_letter():
    assert read(WIDE.replace(",", ";").replace("ID_1", "a,b/ID_1")).ids.to_pylist() == [
        "ID_07fa4d5ce",
        "a,b/ID_12cadc6af",
    ]


# --- against an oracle ---------------------------------------------------------------------------------------

rows_of_images = st.lists(
    st.tuples(st.sampled_from(["a", "b_any", "b", "é"]), st.sampled_from(LABELS.names), st.integers(0, 1)), max_size=30
)
whole_images = st.lists(
    st.tuples(st.sampled_from(["a", "b_any", "b", "c"]), st.tuples(*[st.integers(0, 1)] * 5)), min_size=1, max_size=8
)


def oracle(rows: list[tuple[str, str, int]]) -> tuple[dict[str, list[int]], dict[str, str], dict[str, int]]:
    """Labels of each usable image, reason of each other one, and the counts, row by row."""
    said: dict[str, dict[str, list[int]]] = {}
    for image, label, value in rows:
        said.setdefault(image, {}).setdefault(label, []).append(value)
    usable, dropped, repeats = {}, {}, {}
    for image in sorted(said, key=str.encode):
        of_label = said[image]
        if any(len(set(values)) > 1 for values in of_label.values()):
            dropped[image] = "label_conflict"
            continue
        repeats[image] = sum(len(values) - 1 for values in of_label.values())
        others = [of_label[label][0] for label in of_label if label != "any"]
        if len(of_label) < len(LABELS.names):
            dropped[image] = "label_incomplete"
        elif of_label["any"][0] != max(others):
            dropped[image] = "label_any_contradiction"
        else:
            usable[image] = [of_label[label][0] for label in LABELS.names]
    reasons = list(dropped.values())
    counts = {
        "rows": len(rows),
        "images": len(usable),
        "duplicate_rows": sum(repeats.values()),
        "duplicate_images": sum(count > 0 for count in repeats.values()),
        "conflicting_images": reasons.count("label_conflict"),
        "incomplete_images": reasons.count("label_incomplete"),
        "any_contradictions": reasons.count("label_any_contradiction"),
    }
    return usable, dropped, counts


def check_against_oracle(rows: list[tuple[str, str, int]]) -> None:
    table = read(long_csv(*(f"{image}_{label},{value}\n" for image, label, value in rows)))
    usable, dropped, counts = oracle(rows)
    assert table.ids.to_pylist() == list(usable)
    assert table.values.tolist() == list(usable.values())
    assert list(table.dropped.items()) == list(dropped.items())
    assert table.counts == counts


# one image that says every label, so that no label is absent from the file
COMPLETE = [("z", label, 0) for label in LABELS.names]


@given(rows_of_images)
def test_scattered_rows_equal_the_oracle(rows):
    check_against_oracle(rows + COMPLETE)


@given(whole_images, st.permutations(LABELS.names), st.booleans(), st.randoms(use_true_random=False))
def test_whole_images_in_any_order_equal_the_oracle(images, order, by_label, random):
    """Six rows an image, and all images label by label, take the short way through the ids; shuffled ones not."""
    rows = [
        (image, label, max(values) if label == "any" else values[LABELS.rarest_first.index(label)])
        for image, values in images
        for label in order
    ]
    check_against_oracle(sorted(rows, key=lambda row: order.index(row[1])) if by_label else rows)
    random.shuffle(rows)
    check_against_oracle(rows)


@given(whole_images, st.integers(0, 1))
def test_wide_tables_equal_the_oracle(images, any_shift):
    lines = [f"./{image}.png,{(max(v) + any_shift) % 2}," + ",".join(map(str, v)) for image, v in images]
    table = read("filename,any," + ",".join(LABELS.rarest_first) + "\n" + "\n".join(lines))
    rows = [(image, name, int(v[i])) for image, v in images for i, name in enumerate(LABELS.rarest_first)]
    rows += [(image, "any", (max(v) + any_shift) % 2) for image, v in images]
    usable, dropped, counts = oracle(rows)
    assert table.ids.to_pylist() == list(usable)
    assert table.values.tolist() == list(usable.values())
    assert table.dropped == dropped
    assert table.counts == {**counts, "rows": len(images), "duplicate_rows": counts["duplicate_rows"] // 6}


@pytest.mark.slow
def test_many_rows_in_blocks_of_the_parser():
    """Enough rows for several blocks of the CSV parser, scattered and in order."""
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2, (9000, 5))
    rows = [
        (f"ID_{i:05d}", label, int(bits[i].max() if label == "any" else bits[i, CSV_ORDER.index(label)]))
        for i in range(len(bits))
        for label in CSV_ORDER
    ]
    check_against_oracle(rows)
    check_against_oracle([rows[i] for i in rng.permutation(len(rows))])


# --- strata --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "stratum"),
    [
        # any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural
        ([0, 0, 0, 0, 0, 0], "none"),
        ([1, 1, 0, 0, 0, 0], "epidural"),
        ([1, 0, 1, 0, 0, 0], "intraparenchymal"),
        ([1, 0, 0, 1, 0, 0], "intraventricular"),
        ([1, 0, 0, 0, 1, 0], "subarachnoid"),
        ([1, 0, 0, 0, 0, 1], "subdural"),
        ([1, 1, 1, 1, 1, 1], "epidural"),
        ([1, 0, 1, 1, 1, 1], "intraventricular"),
        ([1, 0, 1, 0, 1, 1], "subarachnoid"),
        ([1, 0, 1, 0, 0, 1], "intraparenchymal"),
        ([-1, -1, -1, -1, -1, -1], "unlabelled"),
        # partly unknown: a known positive label decides, though an unknown one is rarer
        ([1, -1, -1, -1, -1, 1], "subdural"),
        ([-1, 0, -1, 0, 1, 1], "subarachnoid"),
        # partly unknown and nothing positive: none only when nothing can hide
        ([0, -1, -1, -1, -1, -1], "none"),
        ([-1, 0, 0, 0, 0, 0], "none"),
        ([1, -1, -1, -1, -1, -1], "unlabelled"),
        ([-1, 0, 0, 0, 0, -1], "unlabelled"),
        # read_labels never gives this row
        ([1, 0, 0, 0, 0, 0], "none"),
    ],
)
def test_stratum_of_a_row(row, stratum):
    index = stratum_indices(np.array([row], np.int8), LABELS)
    assert index.dtype == np.int8
    assert [LABELS.strata[i] for i in index] == [stratum]


def test_strata_of_a_table_in_the_proportions_of_rsna():
    """The stage-1 counts of the strata, a thousandth of them: the rarest label takes the image."""
    counts = {
        "none": 577,
        "subdural": 29,
        "subarachnoid": 25,
        "intraventricular": 24,
        "intraparenchymal": 17,
        "epidural": 3,
    }
    blocks = []
    for stratum, count in counts.items():
        # every commoner label is positive too, and may not take the image away
        at = LABELS.rarest_first.index(stratum) if stratum in LABELS.rarest_first else None
        positive = {} if at is None else dict.fromkeys((*LABELS.rarest_first[at:], "any"), 1)
        blocks += [image_rows(f"ID_{stratum}{i}", **positive) for i in range(count)]
    table = read(long_csv(*blocks))
    found = np.bincount(stratum_indices(table.values, LABELS), minlength=len(LABELS.strata))
    assert dict(zip(LABELS.strata, found.tolist())) == {**counts, "unlabelled": 0}


@given(st.lists(st.lists(st.integers(-1, 1), min_size=6, max_size=6), max_size=20))
def test_strata_equal_the_oracle(rows):
    def stratum(row: list[int]) -> str:
        known = dict(zip(LABELS.names, row))
        positive = [name for name in LABELS.rarest_first if known[name] == 1]
        if positive:
            return positive[0]
        empty = known["any"] == 0 or all(known[name] == 0 for name in LABELS.rarest_first)
        return "none" if empty else "unlabelled"

    indices = stratum_indices(np.array(rows, np.int8).reshape(-1, 6), LABELS)
    assert [LABELS.strata[i] for i in indices] == [stratum(row) for row in rows]


def test_labels_with_any_alone():
    labels = spec.LabelSpec(any="any", names=("any",), rarest_first=())
    table = read("ID,Label\nx_any,1\ny_any,0\n", labels)
    assert table.values.tolist() == [[1], [0]]
    assert stratum_indices(np.array([[1], [0], [-1]], np.int8), labels).tolist() == [0, 0, 1]


def test_strata_refuse_a_wrong_shape():
    with pytest.raises(LabelError, match=r"^values have shape \(2, 5\); expected \[n, 6\]"):
        stratum_indices(np.zeros((2, 5), np.int8), LABELS)


# --- the benchmark -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("limits", "code"), [(["--min_ratio=0"], 0), (["--min_ratio=0", "--max_rss_mb=1"], 1)])
def test_benchmark_runs_small_and_says_when_a_limit_is_missed(tmp_path, limits, code):
    output = tmp_path / "labels.json"
    command = [sys.executable, str(BENCHMARK), "--rows=600", "--rounds=1", f"--output={output}", *limits]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    result = json.loads(output.read_text())
    assert result["rows"] == 600
    assert result["passed"] is (code == 0)
    assert "times as fast as plain pandas" in done.stdout


def test_reasons_are_the_ones_rejects_csv_shows():
    assert module.DROP_REASONS == ("label_conflict", "label_incomplete", "label_any_contradiction")
