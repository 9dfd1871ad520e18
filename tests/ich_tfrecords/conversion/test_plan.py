from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords.conversion import plan
from ich_tfrecords.dataset import splits
from ich_tfrecords.labels.table import LabelTable, read_labels
from ich_tfrecords.spec import from_dict, load, to_dict


def row(sop: str, **changes) -> dict:
    base = dict.fromkeys(plan.INDEX_SCHEMA.names)
    base |= {"container": "in", "name": f"{sop}.dcm", "offset": -1, "method": -1, "stored_bytes": 9, "size_bytes": 9}
    base |= {"crc32": -1, "version": 1, "sop_uid": sop, "patient_key": "p1", "study_uid": "s1", "series_uid": "e1"}
    return base | {"position_mm": 0.0, "rows": 8, "columns": 8, "reason": "", "detail": ""} | changes


def index(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), plan.INDEX_SCHEMA)


def labels(dropped: dict[str, str] | None = None, by_file_name: bool = False, **by_id: list[int]) -> LabelTable:
    ids = sorted(by_id)
    values = np.array([by_id[name] for name in ids], np.int8).reshape(-1, 6)
    return LabelTable(
        "l.csv", pa.array(ids, pa.string()), values, dropped or {}, {}, (), "filename" if by_file_name else "sop_uid"
    )


NEGATIVE = [0, 0, 0, 0, 0, 0]
SUBDURAL = [1, 0, 0, 0, 0, 1]
BOTH = [1, 1, 0, 0, 0, 1]


def rejects(planned: plan.Plan) -> dict[str, str]:
    return dict(zip(planned.rejects["name"].to_pylist(), planned.rejects["reason"].to_pylist(), strict=True))


def test_labels_reach_their_slices_and_decide_the_stratum(rsna_spec):
    table = labels(a=NEGATIVE, b=SUBDURAL, c=BOTH)
    planned = plan.build_plan(index(row("c"), row("a"), row("b")), [table], rsna_spec)
    strata = {r["sop_uid"]: (rsna_spec.labels.strata[r["stratum"]], r["labels"]) for r in planned.slices.to_pylist()}
    assert strata == {"a": ("none", NEGATIVE), "b": ("subdural", SUBDURAL), "c": ("epidural", BOTH)}
    assert planned.rejects.num_rows == planned.not_drawn == planned.labels_unused == 0


def test_without_labels_everything_is_unknown(rsna_spec):
    planned = plan.build_plan(index(row("a")), [], rsna_spec)
    [only] = planned.slices.to_pylist()
    assert only["labels"] == [-1] * 6
    assert rsna_spec.labels.strata[only["stratum"]] == "unlabelled"


def test_what_is_left_out_has_its_reason(rsna_spec):
    table = labels({"d": "label_conflict"}, a=NEGATIVE, unused=NEGATIVE)
    rows = [
        row("a"),
        row("a", name="copy/a.dcm"),
        row("d"),
        row("e"),
        row("", name="bad.dcm", reason="truncated", detail="3 of 4"),
    ]
    planned = plan.build_plan(index(*rows), [table], rsna_spec)
    assert planned.repeats.select(["name", "sop_uid"]).to_pylist() == [{"name": "copy/a.dcm", "sop_uid": "a"}]
    assert plan.foreseen(planned)["name"].to_pylist()[-1] == "copy/a.dcm"
    assert rejects(planned) == {
        "d.dcm": "label_conflict",
        "e.dcm": "no_label",
        "bad.dcm": "truncated",
    }
    assert planned.slices["name"].to_pylist() == ["a.dcm"]
    assert planned.labels_unused == 1


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.booleans()), max_size=12))
def test_one_file_a_uid_is_kept_against_plain_sorting(files):
    good = sorted((sop, name) for sop, name, is_good in files if is_good)
    rows = [row(sop, name=name) if is_good else row("", name=name, reason="bad") for sop, name, is_good in files]
    rows.append(row("e", name="v"))  # nothing to convert is an error
    planned = plan.build_plan(index(*rows), [], load("rsna_ich"))
    kept = {sop: min(name for other, name in good if other == sop) for sop, _ in good} | {"e": "v"}
    assert dict(zip(planned.slices["sop_uid"].to_pylist(), planned.slices["name"].to_pylist())) == kept
    found = zip(*(plan.foreseen(planned)[column].to_pylist() for column in ("reason", "sop_uid", "name")))
    bad = [("bad", "", name) for _, name, is_good in files if not is_good]
    again = [("duplicate_slice", *good[at]) for at in range(1, len(good)) if good[at][0] == good[at - 1][0]]
    assert sorted(found) == sorted(bad + again)
    assert planned.rejects.num_rows == len(bad)


@pytest.mark.slow
@given(st.sets(st.sampled_from("abcdef"), min_size=1), st.lists(st.sampled_from("abcdefgh"), max_size=10))
def test_unused_labels_against_counting(ids, stems):
    rows = [row(f"1.{at}", name=f"{at}/{stem}.dcm") for at, stem in enumerate([*stems, "only"])]
    table = labels(by_file_name=True, **dict.fromkeys([*ids, "only"], NEGATIVE))
    planned = plan.build_plan(index(*rows), [table], load("rsna_ich"))
    files = Counter(stems)
    assert planned.labels_unused == sum(files[name] != 1 for name in ids)


def test_labels_by_file_name_reach_slices_with_other_uids(rsna_spec):
    table = labels(by_file_name=True, IM_7=SUBDURAL)
    planned = plan.build_plan(index(row("1.2.3", name="x/IM_7.dcm")), [table], rsna_spec)
    assert planned.slices["labels"].to_pylist() == [SUBDURAL]


def wide(*rows: tuple[str, list[int]], column: str = "filename") -> LabelTable:
    """The table that `read_labels` makes of these file names (or UIDs) and values."""
    label_spec = load("rsna_ich").labels
    lines = [",".join([column, *label_spec.names]), *(",".join([name, *map(str, values)]) for name, values in rows)]
    return read_labels(io.BytesIO("\n".join(lines).encode()), label_spec, "l.csv")


def labelled(planned: plan.Plan) -> dict[str, list[int]]:
    return dict(zip(planned.slices["name"].to_pylist(), planned.slices["labels"].to_pylist(), strict=True))


TWINS = (row("1.2.1", name="p1/IM1.dcm"), row("1.2.2", name="p2/IM1.dcm"))


def test_a_file_name_with_its_folder_labels_that_file_alone(rsna_spec):
    planned = plan.build_plan(index(*TWINS), [wide(("p1/IM1.dcm", SUBDURAL))], rsna_spec)
    assert labelled(planned) == {"p1/IM1.dcm": SUBDURAL}
    assert rejects(planned) == {"p2/IM1.dcm": "no_label"}


@pytest.mark.parametrize("first", ["p1/IM1.dcm", "./p1/IM1.dcm", "p1\\IM1.dcm", ".\\p1\\IM1.PNG", "p1/IM1"])
def test_files_of_one_name_in_two_folders_each_have_their_label(rsna_spec, first):
    planned = plan.build_plan(index(*TWINS), [wide((first, SUBDURAL), ("p2/IM1.dcm", NEGATIVE))], rsna_spec)
    assert labelled(planned) == {"p1/IM1.dcm": SUBDURAL, "p2/IM1.dcm": NEGATIVE}
    assert planned.rejects.num_rows == planned.labels_unused == 0


def test_a_bare_name_of_two_files_labels_neither(rsna_spec):
    planned = plan.build_plan(index(*TWINS, row("ID_c")), [wide(("IM1.dcm", SUBDURAL), ("ID_c", BOTH))], rsna_spec)
    assert labelled(planned) == {"ID_c.dcm": BOTH}
    assert rejects(planned) == {"p1/IM1.dcm": "ambiguous_label", "p2/IM1.dcm": "ambiguous_label"}
    detail = "2 files fit the label of IM1; write file names with their folders there"
    assert planned.rejects["detail"].to_pylist() == [detail] * 2
    assert planned.labels_unused == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("1.2.1", name="IM1.dcm"), row("1.2.2", name="p2/IM1.dcm")),  # by path and by name
        (row("1.2.1", name="a/IM1.dcm"), row("1.2.2", name="a/IM1.ima")),
        (row("1.2.1", name="a/IM1.dcm"), row("1.2.2", name="a/IM1.dcm", container="other")),
        (row("IM1", name="a.dcm"), row("1.2.2", name="b/IM1.dcm")),  # by UID and by name
    ],
    ids=["root", "suffix", "container", "uid"],
)
def test_no_two_slices_share_a_label_of_a_file_name(rsna_spec, one, other):
    table = wide(("IM1.dcm", SUBDURAL), ("ID_c", BOTH))
    planned = plan.build_plan(index(one, other, row("ID_c")), [table], rsna_spec)
    assert labelled(planned) == {"ID_c.dcm": BOTH}
    assert planned.rejects["reason"].to_pylist() == ["ambiguous_label"] * 2


def test_the_path_is_meant_before_the_name_alone(rsna_spec):
    table = wide(("IM1.dcm", NEGATIVE), ("p1/IM1.dcm", SUBDURAL))
    planned = plan.build_plan(index(TWINS[0], row("9", name="IM1.dcm")), [table], rsna_spec)
    assert labelled(planned) == {"IM1.dcm": NEGATIVE, "p1/IM1.dcm": SUBDURAL}


def test_a_uid_that_looks_like_a_path_takes_no_label_of_that_file(rsna_spec):
    rows = index(row("p1/IM1", name="x.dcm"), TWINS[0])
    planned = plan.build_plan(rows, [wide(("p1/IM1.dcm", SUBDURAL))], rsna_spec)
    assert labelled(planned) == {"p1/IM1.dcm": SUBDURAL}
    assert rejects(planned) == {"x.dcm": "no_label"}


def test_dotted_names_without_a_suffix_stay_whole(rsna_spec):
    rows = [row(f"9.{i}", name=f"a/1.2.3.{i}") for i in (1, 2)]
    table = wide(("1.2.3.1", SUBDURAL), ("1.2.3.2", NEGATIVE), ("1.2.3", BOTH))
    planned = plan.build_plan(index(*rows), [table], rsna_spec)
    assert labelled(planned) == {"a/1.2.3.1": SUBDURAL, "a/1.2.3.2": NEGATIVE}
    assert planned.labels_unused == 1


def test_uids_of_a_label_file_are_no_file_names(rsna_spec):
    rows = index(row("1.2.1", name="1.2.2.dcm"), row("1.2.3", name="c.dcm"))
    by_uid = wide(("1.2.2", SUBDURAL), ("1.2.3", NEGATIVE), column="sop_uid")
    planned = plan.build_plan(rows, [by_uid], rsna_spec)
    assert labelled(planned) == {"c.dcm": NEGATIVE}
    assert rejects(planned) == {"1.2.2.dcm": "no_label"}


def test_png_names_reach_the_uids_first_then_files_anywhere(rsna_spec):
    table = wide(("ID_a.png", SUBDURAL), ("ID_b.png", NEGATIVE))
    rows = index(row("ID_a", name="0001.dcm"), row("1.2.3", name="deep/er/ID_b.dcm"))
    assert labelled(plan.build_plan(rows, [table], rsna_spec)) == {"0001.dcm": SUBDURAL, "deep/er/ID_b.dcm": NEGATIVE}


def test_dropped_rows_of_file_names_keep_their_reason(rsna_spec):
    table = wide(("p1/IM1.dcm", NEGATIVE), ("p1/IM1.dcm", SUBDURAL), ("b.dcm", [1, 0, 0, 0, 0, 0]), ("c", NEGATIVE))
    rows = [TWINS[0], row("1.2.5", name="x/b.dcm"), row("c"), row("1.2.6", name="e.dcm")]
    planned = plan.build_plan(index(*rows), [table], rsna_spec)
    assert labelled(planned) == {"c.dcm": NEGATIVE}
    expected = {"p1/IM1.dcm": "label_conflict", "x/b.dcm": "label_any_contradiction", "e.dcm": "no_label"}
    assert rejects(planned) == expected
    incomplete = labels({"a/b": "label_incomplete"}, by_file_name=True, c=NEGATIVE)
    planned = plan.build_plan(index(row("1.2.5", name="a/b.dcm"), row("c")), [incomplete], rsna_spec)
    assert rejects(planned) == {"a/b.dcm": "label_incomplete"}


def test_nothing_left_is_an_error_with_the_reasons(rsna_spec):
    bad = row("", name="x.dcm", reason="truncated", detail="")
    with pytest.raises(plan.PlanError, match=r"no slice can be converted: 1 truncated \(first: x.dcm\)"):
        plan.build_plan(index(bad), [], rsna_spec)


def test_the_commonest_reason_of_lost_slices_is_explained(rsna_spec):
    """Nothing is written where nothing can be converted, so the line alone tells how to go on."""
    rows = [row("", name=f"{number}.dcm", reason="missing_id", detail="PatientID is empty") for number in range(2)]
    rows.append(row("", name="x.dcm", reason="truncated", detail="cut"))
    rows.append(row("", name="m", reason="not_ct", detail="MR"))
    with pytest.raises(plan.PlanError) as refused:
        plan.build_plan(index(*rows), [], rsna_spec)
    told = "2 missing_id (first: 0.dcm; PatientID is empty), 1 truncated (first: x.dcm), 1 not_ct (first: m)"
    assert str(refused.value) == f"no slice can be converted: {told}"
    with pytest.raises(plan.PlanError, match=r"1 not_ct \(first: m\)"):
        plan.build_plan(index(rows[-1]), [], rsna_spec)


def test_spatial_order_within_a_series(rsna_spec):
    rows = [row(f"s{i}", position_mm=float(z)) for i, z in enumerate([5, -3, 9, 0])]
    rows.append(row("t", series_uid="e2", position_mm=1.0))
    planned = plan.build_plan(index(*rows), [], rsna_spec)
    order = {r["sop_uid"]: (r["slice_index"], r["slice_count"]) for r in planned.slices.to_pylist()}
    assert order == {"s1": (0, 4), "s3": (1, 4), "s0": (2, 4), "s2": (3, 4), "t": (0, 1)}


def many(count: int) -> list[dict]:
    return [
        row(f"s{i}", patient_key=f"p{i % 29}", study_uid=f"u{i % 58}", series_uid=f"e{i % 58}") for i in range(count)
    ]


def test_the_plan_does_not_depend_on_the_order_of_the_index(rsna_spec):
    rows = many(300)
    forward, backward = (plan.build_plan(index(*some), [], rsna_spec).slices for some in (rows, rows[::-1]))
    assert forward.to_pylist() == backward.to_pylist()


def test_no_patient_stands_in_two_splits(rsna_spec):
    planned = plan.build_plan(index(*many(300)), [], rsna_spec).slices.to_pylist()
    seen: dict[str, set[int]] = {}
    for slice_row in planned:
        seen.setdefault(slice_row["patient_key"], set()).add(slice_row["split"])
    assert len(seen) == 29
    assert all(len(found) == 1 for found in seen.values())
    assert len({split for found in seen.values() for split in found}) == 3


def test_the_subset_draws_its_numbers_and_counts_the_rest(rsna_spec):
    values = to_dict(rsna_spec)
    values["split"]["subset"] = {"train": 50, "test": 10}
    spec = from_dict(values)
    whole = plan.build_plan(index(*many(300)), [], rsna_spec)
    drawn = plan.build_plan(index(*many(300)), [], spec)
    names = splits.split_names(spec.split)
    counts = np.bincount(drawn.slices["split"].to_numpy(), minlength=3)
    assert (counts[names.index("train")], counts[names.index("test")]) == (50, 10)
    assert drawn.not_drawn == whole.slices.num_rows - drawn.slices.num_rows
    values["split"]["subset"] = {"train": 5000}
    with pytest.raises(
        splits.SubsetError,
        match=r"asks for 5,000 train slices; that split holds \d+, so go on with --subset train=\d+,",
    ):
        plan.build_plan(index(*many(300)), [], from_dict(values))


def test_planned_shards_cover_the_plan_in_order(rsna_spec):
    planned = plan.build_plan(index(*many(300)), [], rsna_spec)
    shards = list(plan.planned_shards(planned, rsna_spec))
    assert pa.concat_tables([shard.slices for shard in shards]).equals(planned.slices)
    assert len({shard.name for shard in shards}) == len(shards)
    for shard in shards:
        assert shard.slices["row"].to_pylist() == list(range(shard.slices.num_rows))
        assert shard.name.startswith(f"rsna_ich-{shard.split}.tfrecord-")
        assert shard.stratum == "unlabelled"


# one SOP UID, several files


DIFFERENT = [
    ({"patient_key": "p2"}, "patients"),
    ({"study_uid": "s2"}, "studies"),
    ({"series_uid": "e2"}, "series"),
    ({"position_mm": 1e-9}, "positions"),
    ({"rows": 9}, "sizes"),
    ({"columns": 9}, "sizes"),
    ({"rows": 9, "columns": 9, "series_uid": "e2"}, "series, sizes"),
]


@pytest.mark.parametrize(("change", "words"), DIFFERENT)
def test_files_of_one_uid_with_other_headers_are_no_copies(rsna_spec, change, words):
    rows = [row("a"), row("a", name="b.dcm", **change), row("a", name="c.dcm"), row("d")]
    for some in (rows, rows[::-1]):
        planned = plan.build_plan(index(*some), [labels(a=SUBDURAL, d=NEGATIVE)], rsna_spec)
        assert rejects(planned) == dict.fromkeys(["a.dcm", "b.dcm", "c.dcm"], "uid_conflict")
        detail = f"SOPInstanceUID a stands in 3 files with different {words}, so it names none"
        assert set(planned.rejects["detail"].to_pylist()) == {detail}
        assert (labelled(planned), planned.repeats.num_rows) == ({"d.dcm": NEGATIVE}, 0)
        assert planned.labels_unused == 1


@pytest.mark.parametrize("change", [{"size_bytes": 12}, {"crc32": 7}, {"method": 8}, {"version": 2}])
def test_what_does_not_tell_slices_apart_is_left_to_their_pixels(rsna_spec, change):
    planned = plan.build_plan(index(row("a"), row("a", name="b.dcm", **change)), [], rsna_spec)
    assert (planned.rejects.num_rows, planned.repeats["name"].to_pylist()) == (0, ["b.dcm"])


def test_no_file_can_be_converted_where_all_bear_one_uid(rsna_spec):
    rows = [row("a", name=f"{number}.dcm", position_mm=float(number)) for number in range(6)]
    with pytest.raises(plan.PlanError, match=r"no slice can be converted: 6 uid_conflict \(first: 0.dcm; SOPInst"):
        plan.build_plan(index(*rows), [], rsna_spec)


def test_a_copy_of_a_slice_without_a_label_is_a_row_that_says_it_was_not_compared(rsna_spec):
    rows = index(row("a"), row("a", name="b.dcm"), row("d"))
    planned = plan.build_plan(rows, [labels(d=NEGATIVE)], rsna_spec)
    assert rejects(planned) == {"a.dcm": "no_label", "b.dcm": "duplicate_slice"}
    assert planned.rejects["detail"].to_pylist()[-1].endswith("pixels were not compared, as that one gives no record")


FILES = st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xyz")), max_size=40)


@pytest.mark.slow
@given(FILES, st.integers(1, 10))
def test_each_repeat_is_planned_beside_its_slice(files, wanted):
    """Oracle: of each UID the files in order of their names, the first a slice, the others with it in one shard."""
    rows = [row(f"s{uid}", name=f"{uid:02}{name}") for uid, name in files] + [
        row(f"o{n}", name=f"o{n}") for n in range(10)
    ]
    values = to_dict(load("rsna_ich"))
    values["split"] |= {"weights": {"train": 1}, "subset": {"train": wanted}}
    values["shards"]["min_shards"] = 5
    spec = from_dict(values)
    planned = plan.build_plan(index(*rows), [], spec)
    kept, found = set(planned.slices["sop_uid"].to_pylist()), []
    for shard in plan.planned_shards(planned, spec):
        own = shard.slices["sop_uid"].to_pylist()
        for copy in shard.repeats.to_pylist():
            assert own[copy["row"]] == copy["sop_uid"]
            found.append((copy["sop_uid"], copy["name"]))
    names = sorted((f"s{uid}", f"{uid:02}{name}") for uid, name in files)
    later = [names[at] for at in range(1, len(names)) if names[at][0] == names[at - 1][0]]
    assert sorted(found) == [(uid, name) for uid, name in later if uid in kept]
    assert planned.rejects["reason"].to_pylist() == ["duplicate_slice"] * (len(later) - len(found))
    assert len(kept) + len(later) + planned.not_drawn == len(rows)


# patients that belong together


def split_of_slices(planned: plan.Plan) -> dict[str, int]:
    return dict(zip(planned.slices["sop_uid"].to_pylist(), planned.slices["split"].to_pylist(), strict=True))


def test_a_study_under_two_patient_ids_stands_in_one_split(rsna_spec):
    """A merge in the archive: a study has slices under the old id and under the new one (RSNA/anonymizer#18)."""
    rows = [
        row(f"{study}.{number}", patient_key=f"p{study}{number % 2}", study_uid=f"u{study}", series_uid=f"e{study}")
        for study in range(40)
        for number in range(4)
    ]
    for some in (rows, rows[::-1]):
        planned = plan.build_plan(index(*some), [], rsna_spec)
        found = split_of_slices(planned)
        own = splits.split_of([f"p{study}0" for study in range(40)], rsna_spec.split).tolist()
        assert all(found[f"{study}.{number}"] == own[study] for study in range(40) for number in range(4))
        assert planned.groups == sorted([f"p{study}0", f"p{study}1"] for study in range(40))
        told = (
            "80 patient ids (40 studies) are tied, as a study or series bears several of them: 40 groups, each in one"
        )
        assert planned.notes == [f"{told} split"]
    assert len(set(found.values())) == 3


def test_a_tie_counts_though_its_slice_gives_no_record(rsna_spec):
    """A slice without a label still tells whose study it is of."""
    keys = [f"p{number}" for number in range(20)]
    one = splits.split_of(keys, rsna_spec.split).tolist()
    other = next(key for key, split in zip(keys, one) if split != one[0])
    rows = [row("a", patient_key="p0"), row("b", patient_key=other, study_uid="s2", series_uid="e2")]
    table = labels(a=NEGATIVE, b=NEGATIVE)
    assert len(set(split_of_slices(plan.build_plan(index(*rows), [table], rsna_spec)).values())) == 2
    tie = row("c", patient_key=other)
    planned = plan.build_plan(index(*rows, tie), [table], rsna_spec)
    assert set(split_of_slices(planned).values()) == {one[0]}
    assert planned.groups == [["p0", other]]


def test_without_ties_each_patient_has_the_split_of_its_key_and_nothing_is_told(rsna_spec):
    planned = plan.build_plan(index(*many(300)), [], rsna_spec)
    keys = planned.slices["patient_key"].to_pylist()
    assert planned.slices["split"].to_pylist() == splits.split_of(keys, rsna_spec.split).tolist()
    assert (planned.groups, planned.notes) == ([], [])


def test_one_patient_id_for_all_is_told_with_a_way_out(rsna_spec):
    rows = [row(f"{n}", patient_key="ANONYMOUS", study_uid=f"u{n // 5}", series_uid=f"e{n // 5}") for n in range(40)]
    (note,) = plan.build_plan(index(*rows), [], rsna_spec).notes
    name = splits.split_names(rsna_spec.split)[splits.split_of(["ANONYMOUS"], rsna_spec.split)[0]]
    assert note == (
        "40 of 40 slices (8 of 8 studies) are of one PatientID, or of some that share a study or series, so all of "
        f"these are in split {name} and training will lack the others; give each person a PatientID of their own and "
        "convert again"
    )
    (note,) = plan.build_plan(index(*rows, row("other", patient_key="p", series_uid="e99")), [], rsna_spec).notes
    assert note.startswith("40 of 41 slices (8 of 9 studies) are of one PatientID")


def test_a_subset_that_one_patient_id_makes_impossible_says_so(rsna_spec):
    values = to_dict(rsna_spec)
    values["split"]["subset"] = {"train": 1, "validation": 1, "test": 1}
    rows = [row(f"{n}", study_uid=f"u{n}", series_uid=f"e{n}") for n in range(4)]
    with pytest.raises(splits.SubsetError, match=r"asks for 1 .*; 4 of 4 slices .* are of one PatientID"):
        plan.build_plan(index(*rows), [], from_dict(values))


@pytest.mark.parametrize("rows", [many(4), [row("a"), row("b")], [row("a"), row("b", patient_key="p2")]])
def test_a_small_or_a_mixed_set_is_not_told_of_one_patient(rsna_spec, rows):
    assert not any("of one PatientID" in note for note in plan.build_plan(index(*rows), [], rsna_spec).notes)
