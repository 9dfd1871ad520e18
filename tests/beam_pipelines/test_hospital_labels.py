"""Labels as hospitals have them, from the command line to the data set: levels, gaps, readers, contradictions."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from volume_files import head, nifti

from ich_tfrecords.dataset import manifest
from ich_tfrecords.dataset.studies import STUDIES
from ich_tfrecords.dataset.verify import verify
from ich_tfrecords.spec import load

NAMES = load("rsna_ich").labels.names  # any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural
NEGATIVE, UNKNOWN = [0] * 6, [-1] * 6
BLEED = [1, 0, 0, 0, 0, 1]
LACKS = 0.9  # of the slices may


def put(path: Path, seed: int, **ids: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    elements = slice_elements(head_slice(8, seed=seed), **{name: text.encode() for name, text in ids.items()})
    path.write_bytes(dicom_file(elements))


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Patient A with study 1 (series 1, 2), patient B with studies 2 and 3, patient C with study 4; two slices each."""
    series = {"A": [(1, 1), (1, 2)], "B": [(2, 1), (3, 1)], "C": [(4, 1)]}
    for patient, found in series.items():
        for study, number in found:
            for at in range(2):
                ids = {"PatientID": f"MRN-{patient}", "StudyInstanceUID": f"1.{study}"}
                ids |= {"SeriesInstanceUID": f"1.{study}.{number}", "SOPInstanceUID": f"1.{study}.{number}.{at}"}
                ids["ImagePositionPatient"] = f"-125\\-120\\{5 * at}"
                elements = slice_elements(
                    head_slice(8, seed=study), **{name: text.encode() for name, text in ids.items()}
                )
                path = tmp_path / "in" / f"ward/{patient}/study{study}/{number}/{at}.dcm"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(dicom_file(elements))
    return tmp_path


def label_file(path: Path, column: str, *rows: tuple[str, object], sign: str = ",") -> Path:
    """A wide file; a row is an id and its labels, or one text of all cells."""
    lines = [sign.join([column, *NAMES])]
    for name, values in rows:
        lines.append(sign.join([name, *(str(value) for value in values)]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(convert, folder: Path, *labels: Path, more: tuple[object, ...] = (), out: str = "out") -> int:
    given = [flag for path in labels for flag in ("--labels", path)]
    limit = ("--max_reject_fraction", LACKS)
    return convert("--input", folder / "in", *given, "--output", folder / out, *limit, *more)


def slice_labels(folder: Path, out: str = "out") -> dict[str, list[int]]:
    rows = pq.read_table(folder / out / manifest.SLICES).to_pylist()
    return {row["sop_uid"]: [row[name] for name in NAMES] for row in rows}


def study_labels(folder: Path, out: str = "out") -> dict[str, list[int]]:
    rows = pq.read_table(folder / out / STUDIES).to_pylist()
    return {row["study_uid"]: [row[name] for name in NAMES] for row in rows}


def rejects(folder: Path, out: str = "out") -> dict[str, tuple[str, str]]:
    with (folder / out / manifest.REJECTS).open(newline="", encoding="utf-8") as file:
        return {row["sop_uid"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)}


def last_line(capfd) -> str:
    return capfd.readouterr().err.splitlines()[-1]


STUDY_ROWS = [("1.1", BLEED), ("1.2", NEGATIVE), ("1.3", NEGATIVE), ("1.4", BLEED)]


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_labels_of_studies(hospital, convert, capfd, sign):
    """A study without blood makes all its slices known; one with blood says nothing of a single slice."""
    labels = label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS, sign=sign)
    assert run(convert, hospital, labels) == 0
    found = slice_labels(hospital)
    assert len(found) == 10
    for uid, values in found.items():
        positive = uid.startswith(("1.1.", "1.4."))
        assert values == ([-1, 0, 0, 0, 0, -1] if positive else NEGATIVE), uid
    assert study_labels(hospital) == {"1.1": BLEED, "1.2": NEGATIVE, "1.3": NEGATIVE, "1.4": BLEED}
    output = capfd.readouterr().out
    assert "labels of 4 studies, positive of known: any 2 of 4, epidural 0 of 4," in output
    assert verify(hospital / "out").problems == []
    done = manifest.read(hospital / "out")
    assert done.files[STUDIES] == hashlib.sha256((hospital / "out" / STUDIES).read_bytes()).hexdigest()
    assert sum(split["study_labels"]["any"]["positive"] for split in done.splits.values()) == 2
    assert "Labels of studies, positive / known" in (hospital / "out" / manifest.CARD).read_text()


def test_studies_parquet_is_as_promised(hospital, convert):
    assert run(convert, hospital, label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS[::-1])) == 0
    table = pq.read_table(hospital / "out" / STUDIES)
    assert table.column_names == ["study_uid", *NAMES]
    assert [str(field.type) for field in table.schema] == ["string", *["int8"] * 6]
    assert table["study_uid"].to_pylist() == ["1.1", "1.2", "1.3", "1.4"]


def test_labels_of_slices_alone_make_no_table_of_studies(hospital, convert):
    rows = [(uid, NEGATIVE) for uid in ("1.1.1.0", "1.1.1.1")]
    assert run(convert, hospital, label_file(hospital / "l.csv", "sop_uid", *rows)) == 0
    assert not (hospital / "out" / STUDIES).exists()
    done = manifest.read(hospital / "out")
    assert STUDIES not in done.files
    assert not any("study_labels" in split for split in done.splits.values())


@pytest.mark.parametrize(
    ("column", "rows", "zeros", "studies"),
    [
        ("series_uid", [("1.1.1", NEGATIVE), ("1.1.2", BLEED)], {"1.1.1."}, {"1.1": BLEED}),
        ("patient_id", [("MRN-A", BLEED), ("MRN-B", NEGATIVE)], {"1.2.", "1.3."}, {"1.1": BLEED}),
        ("patient_id", [("MRN-B", BLEED), ("MRN-C", NEGATIVE)], {"1.4."}, {}),  # of which of its two studies?
        ("folder", [("ward/B", NEGATIVE), ("study1", BLEED)], {"1.2.", "1.3."}, {"1.1": BLEED}),
        ("folder", [("./ward\\B\\study2/", NEGATIVE), ("ward", UNKNOWN)], {"1.2."}, {}),
        ("folder", [("ward", BLEED), ("A", NEGATIVE)], {"1.1."}, {}),
    ],
)  # fmt: skip
def test_labels_of_other_levels(hospital, convert, column, rows, zeros, studies):
    """Those above a slice give it zeros alone; a study has what all slices of something within it have."""
    labels = label_file(hospital / "l.csv", column, *rows)
    assert run(convert, hospital, labels, more=("--labels_may_miss",)) == 0
    found = slice_labels(hospital)
    assert len(found) == 10
    for uid, values in found.items():
        assert 1 not in values
        assert (values == NEGATIVE) == uid.startswith(tuple(zeros)), uid
    of_studies = study_labels(hospital)
    assert len(of_studies) == 4
    for uid, values in of_studies.items():
        whole = {"1.1.1.", "1.1.2."} <= zeros if uid == "1.1" else False
        expected = NEGATIVE if f"{uid}." in zeros or whole else None
        assert values == studies.get(uid, expected or [v if v == 0 else -1 for v in values]), uid
        assert (values[0] == 0) == (expected is not None)
    assert verify(hospital / "out").problems == []


def test_a_label_known_at_one_level_is_known(hospital, convert):
    """Slices by name, half of the studies; `any` alone for one of them."""
    slices = label_file(hospital / "s.csv", "filename", ("ward/A/study1/1/0.dcm", BLEED))
    studies = label_file(
        hospital / "t.csv", "study_uid", ("1.1", [1, "", "", "", "", ""]), ("1.2", [0, "", -1, "", "", ""])
    )
    assert run(convert, hospital, slices, studies, more=("--labels_may_miss",)) == 0
    found = slice_labels(hospital)
    assert found["1.1.1.0"] == BLEED
    assert found["1.1.1.1"] == UNKNOWN
    assert found["1.2.1.0"] == found["1.2.1.1"] == NEGATIVE
    assert found["1.4.1.0"] == UNKNOWN
    assert study_labels(hospital) == {
        "1.1": [1, -1, -1, -1, -1, 1], "1.2": NEGATIVE, "1.3": UNKNOWN, "1.4": UNKNOWN,
    }  # fmt: skip


def test_what_may_miss_is_an_error_without_the_flag(hospital, convert, capfd):
    labels = label_file(hospital / "l.csv", "study_uid", ("1.1", [1, "", 0, 0, 0, 0]))
    assert run(convert, hospital, labels) == 2
    assert last_line(capfd) == (
        f"convert: {labels}, line 2: epidural is ''; it must be 0 or 1 (leave out images not labelled, or convert "
        "with --labels_may_miss, which makes it unknown)"
    )


def test_rows_and_columns_that_miss(hospital, convert, capfd):
    """A hospital that knows `any` alone; two of its studies have no row."""
    path = hospital / "l.csv"
    path.write_text("study_uid;any;report\n1.2;0;x\n1.4;1;y\n")
    assert run(convert, hospital, path) == 2
    assert last_line(capfd).endswith("known are study_uid, any, report; --labels_may_miss makes it unknown")
    assert run(convert, hospital, path, more=("--labels_may_miss",)) == 0
    err = capfd.readouterr().err
    assert f"{path}: no column for epidural, intraparenchymal, intraventricular, subarachnoid, subdural; unknown" in err
    assert "\n6 slices have no row, so their labels are unknown (-1)\n" in err
    assert slice_labels(hospital)["1.2.1.0"] == NEGATIVE
    assert slice_labels(hospital)["1.4.1.0"] == UNKNOWN
    assert study_labels(hospital)["1.4"] == [1, -1, -1, -1, -1, -1]


def test_a_misspelt_column_is_not_taken_for_a_missing_one(hospital, convert, capfd):
    path = hospital / "l.csv"
    path.write_text("study_uid,any,subdurl\n1.2,0,0\n")
    assert run(convert, hospital, path, more=("--labels_may_miss",)) == 2
    path.write_text("study_uid,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdurl\n1.2,0,0,0,0,0,0\n")
    assert run(convert, hospital, path, more=("--labels_may_miss",)) == 2
    assert "no column for label 'subdural' (a spec may ask for other labels); did you mean 'subdurl'?" in last_line(
        capfd
    )


def test_slices_without_a_row(hospital, convert):
    """Rejects as ever; unknown where labels may miss."""
    labels = label_file(hospital / "l.csv", "sop_uid", ("1.1.1.0", BLEED))
    assert run(convert, hospital, labels) == 0
    assert {reason for reason, _ in rejects(hospital).values()} == {"no_label"}
    assert run(convert, hospital, labels, more=("--labels_may_miss",), out="all") == 0
    assert rejects(hospital, "all") == {}
    assert list(slice_labels(hospital, "all").values()).count(UNKNOWN) == 9


def test_the_long_form_with_rows_that_miss(hospital, convert):
    path = hospital / "l.csv"
    path.write_text("ID,Label\n1.1.1.0_any,1\n1.1.1.0_subdural,1\n1.1.1.1_any,0\n1.1.2.0_any,\n1.1.2.1_epidural,-1\n")
    assert run(convert, hospital, path) == 2
    assert run(convert, hospital, path, more=("--labels_may_miss",)) == 0
    found = slice_labels(hospital)
    assert found["1.1.1.0"] == [1, -1, -1, -1, -1, 1]
    assert found["1.1.1.1"] == NEGATIVE
    assert found["1.1.2.0"] == found["1.1.2.1"] == UNKNOWN


# --- contradictions ---


def test_a_slice_against_its_study(hospital, convert, capfd):
    """Nobody knows which of them is right, so the whole study is left out and told."""
    slices = label_file(hospital / "s.csv", "sop_uid", ("1.2.1.0", BLEED))
    studies = label_file(hospital / "t.csv", "study_uid", *STUDY_ROWS)
    assert run(convert, hospital, slices, studies) == 0
    found = rejects(hospital)
    assert found.keys() == {"1.2.1.0", "1.2.1.1"}
    detail = f"any is 0 for study_uid 1.2 in {studies}, and 1 for ward/B/study2/1/0.dcm in {slices}"
    assert set(found.values()) == {("label_conflict", detail)}
    assert (
        "2 slices are left out, as their labels contradict each other (first: ward/B/study2/1/0.dcm; "
        f"{detail})\n" in capfd.readouterr().err
    )
    assert study_labels(hospital).keys() == {"1.1", "1.3", "1.4"}
    assert verify(hospital / "out").problems == []


def test_a_positive_study_none_of_whose_slices_is(hospital, convert):
    slices = label_file(hospital / "s.csv", "sop_uid", ("1.4.1.0", NEGATIVE), ("1.4.1.1", NEGATIVE))
    studies = label_file(hospital / "t.csv", "study_uid", *STUDY_ROWS)
    assert run(convert, hospital, slices, studies) == 0
    detail = f"any is 1 for study_uid 1.4 in {studies}, and 0 for each of its 2 slices (by {slices})"
    assert rejects(hospital) == dict.fromkeys(("1.4.1.0", "1.4.1.1"), ("label_conflict", detail))


def test_a_positive_study_of_a_negative_patient(hospital, convert):
    """What the patient's label says of other studies is in doubt too."""
    patients = label_file(hospital / "p.csv", "patient_id", ("MRN-B", NEGATIVE), ("MRN-A", NEGATIVE))
    studies = label_file(hospital / "t.csv", "study_uid", ("1.2", BLEED), ("1.4", BLEED))
    assert run(convert, hospital, patients, studies) == 0
    found = rejects(hospital)
    assert found.keys() == {f"1.{study}.1.{at}" for study in (2, 3) for at in (0, 1)}
    detail = f"any is 1 for study_uid 1.2 in {studies}, and 0 for each of its 2 slices (by {patients})"
    assert set(found.values()) == {("label_conflict", detail)}
    assert "MRN" not in (hospital / "out" / manifest.REJECTS).read_text()


@pytest.mark.parametrize("column", ["sop_uid", "study_uid"])
def test_two_files_that_differ(hospital, convert, column):
    ids = ["1.4"] if column == "study_uid" else ["1.4.1.0", "1.4.1.1"]
    one = label_file(hospital / "a.csv", column, *((name, BLEED) for name in ids))
    other = label_file(hospital / "b.csv", column, *((name, NEGATIVE) for name in ids))
    rest = label_file(hospital / "c.csv", "study_uid", *STUDY_ROWS[:3])
    assert run(convert, hospital, one, other, rest) == 0
    found = rejects(hospital)
    assert found.keys() == {"1.4.1.0", "1.4.1.1"}
    for reason, detail in found.values():
        assert reason == "label_conflict"
        assert str(one) in detail
        assert str(other) in detail


def test_any_against_a_kind_in_two_files(hospital, convert):
    kinds = label_file(hospital / "a.csv", "sop_uid", ("1.1.1.0", ["", 0, 0, 0, 0, 1]))
    either = label_file(hospital / "b.csv", "series_uid", ("1.1.1", [0, "", "", "", "", ""]))
    assert run(convert, hospital, kinds, either, more=("--labels_may_miss",)) == 0
    assert {uid: reason for uid, (reason, _) in rejects(hospital).items()} == {
        "1.1.1.0": "label_conflict",
        "1.1.1.1": "label_conflict",
    }


def test_a_study_twice_with_rows_that_contradict(hospital, convert, capfd):
    labels = label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS, ("1.3", BLEED), ("1.2", NEGATIVE))
    assert run(convert, hospital, labels) == 0
    err = capfd.readouterr().err
    assert f"{labels}: left out 1 study, first 1.3: their rows contradict each other (label_conflict)" in err
    assert f"{labels}: merged 1 duplicate row of 1 study (they agree)" in err
    assert {uid: reason for uid, (reason, _) in rejects(hospital).items()} == {
        "1.3.1.0": "label_conflict",
        "1.3.1.1": "label_conflict",
    }
    assert "study_uid 1.3" in rejects(hospital)["1.3.1.0"][1]


def test_a_study_under_two_patients(hospital, convert):
    put(hospital / "in/other.dcm", 7, SOPInstanceUID="9.9", StudyInstanceUID="1.4", PatientID="MRN-D")
    assert run(convert, hospital, label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS)) == 0
    detail = "study_uid 1.4 stands under 2 patients; label its slices by sop_uid"
    assert rejects(hospital) == dict.fromkeys(("1.4.1.0", "1.4.1.1", "9.9"), ("ambiguous_label", detail))


def test_a_folder_that_is_two(hospital, convert):
    labels = label_file(hospital / "l.csv", "folder", ("1", NEGATIVE), ("study2", NEGATIVE))
    assert run(convert, hospital, labels, more=("--labels_may_miss",)) == 0
    found = rejects(hospital)
    assert found["1.1.1.0"] == (
        "ambiguous_label",
        "folder 1 names 4 folders, such as ward/A/study1/1 and ward/B/study2/1; write its path below the input",
    )
    assert len(found) == 8


# --- a file that does not fit ---


@pytest.mark.parametrize(
    ("column", "name", "told"),
    [
        ("study_uid", "1.2.1", "no study_uid fits a slice; its first is '1.2.1', and ward/A/study1/1/0.dcm has '1.1'"),
        ("series_uid", "1.2", "no series_uid fits a slice; its first is '1.2', and ward/A/study1/1/0.dcm has '1.1.1'"),
        ("folder", "ward/D", "no folder fits a slice; its first is 'ward/D', and ward/A/study1/1/0.dcm has that path"),
        (
            "patient_id", "4711",
            ("no patient_id fits a slice; none of its 1 ids is the PatientID of ward/A/study1/1/0.dcm or of another "
            "slice (a spreadsheet drops zeros)"),
        ),
    ],
)  # fmt: skip
def test_a_level_that_does_not_fit(hospital, convert, capfd, column, name, told):
    labels = label_file(hospital / "l.csv", column, (name, NEGATIVE))
    assert run(convert, hospital, labels) == 2
    assert last_line(capfd) == f"convert: {labels}: {told}"


def test_a_file_inside_a_zip_beside_one_outside(hospital, convert):
    inner = label_file(hospital / "inner.csv", "study_uid", *STUDY_ROWS[:2])
    outer = label_file(hospital / "outer.csv", "study_uid", *STUDY_ROWS[2:])
    with zipfile.ZipFile(hospital / "all.zip", "w") as archive:
        archive.write(inner, "tables/inner.csv")
        for path in sorted((hospital / "in").rglob("*.dcm")):
            archive.write(path, path.relative_to(hospital / "in"))
    assert run(convert, hospital, inner, outer) == 0
    given = ("--labels", "inner.csv", "--labels", outer)
    assert convert("--input", hospital / "all.zip", *given, "--output", hospital / "zipped") == 0
    assert slice_labels(hospital, "zipped") == slice_labels(hospital)
    names = [path.name for path in (hospital / "out").glob("*.tfrecord*")] + [STUDIES, manifest.SLICES]
    for name in names:
        assert (hospital / "zipped" / name).read_bytes() == (hospital / "out" / name).read_bytes()


def test_none_goes_alone(hospital, convert, capfd):
    labels = label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS)
    assert run(convert, hospital, labels, Path("none")) == 2
    assert last_line(capfd).startswith(
        "convert: --labels none goes without other label files and without --labels_may_miss"
    )


def test_no_id_of_a_patient_gets_out(hospital, convert, capfd):
    """Neither from a good file nor from the messages about bad ones."""
    labels = label_file(hospital / "l.csv", "patient_id", ("MRN-A", BLEED), ("MRN-B", NEGATIVE), ("MRN-Z", NEGATIVE))
    text = labels.read_text()
    assert run(convert, hospital, labels, out="good") == 0
    for bad in (
        text + "MRN-A,0,0,0,0,0,0\n",
        text + "MRN-A,1\n",
        text.replace("MRN-A,1", "MRN-A,7"),
        text.replace("MRN-A", "MRN-Q").replace("MRN-B", "MRN-R"),
        text + text,
        text.replace(",", ";", 8),
        text.partition("\n")[2],
    ):
        labels.write_text(bad)
        run(convert, hospital, labels, out=hashlib.sha256(bad.encode()).hexdigest()[:8])
    told = capfd.readouterr()
    assert "MRN" not in told.out + told.err
    written = [path for out in hospital.iterdir() if out.is_dir() and out.name != "in" for path in out.rglob("*")]
    assert not [path for path in written if path.is_file() and b"MRN" in path.read_bytes()]


# --- the same job, and another one ---


def test_a_change_of_the_labels_or_the_flag_refuses_to_mix(hospital, convert, capfd):
    one = label_file(hospital / "a.csv", "study_uid", *STUDY_ROWS[:2])
    other = label_file(hospital / "b.csv", "study_uid", *STUDY_ROWS[2:])
    assert run(convert, hospital, one, other) == 0
    before = {path.name: path.read_bytes() for path in (hospital / "out").iterdir()}
    assert run(convert, hospital, one, other) == 0
    assert "is complete already" in capfd.readouterr().out
    assert run(convert, hospital, one, other, more=("--labels_may_miss",)) == 2
    assert "may_miss" in last_line(capfd)
    assert run(convert, hospital, one) == 2
    assert "labels: files 2 sha256" in last_line(capfd)
    label_file(other, "study_uid", *STUDY_ROWS[2:], ("1.9", NEGATIVE))
    assert run(convert, hospital, one, other) == 2
    assert {path.name: path.read_bytes() for path in (hospital / "out").iterdir()} == before


def test_verify_sees_a_table_of_studies_that_was_changed(hospital, convert):
    assert run(convert, hospital, label_file(hospital / "l.csv", "study_uid", *STUDY_ROWS)) == 0
    path = hospital / "out" / STUDIES
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert verify(hospital / "out").problems == [f"{STUDIES}: its sha256 is not the one in manifest.json"]
    path.unlink()
    assert verify(hospital / "out").problems == [f"{STUDIES}: is missing"]


# --- CQ500 ---

READS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")


def reads(*studies: tuple[str, list[str]]) -> str:
    """`reads.csv`: of each study what R1, R2 and R3 saw, as a text of six digits each."""
    out = io.StringIO()
    writer = csv.writer(out)
    others = ("BleedLocation-Left", "Fracture")
    writer.writerow(["name", "Category", *(f"R{n}:{word}" for n in (1, 2, 3) for word in (*READS, *others))])
    for name, seen in studies:
        writer.writerow([name, "B1", *(cell for text in seen for cell in [*text, "1", "0"])])
    return out.getvalue()


@pytest.fixture
def cq500(tmp_path: Path) -> Path:
    for study in (1, 12, 345):
        for series, at in ((series, at) for series in ("CT Plain", "CT Thin") for at in range(2)):
            ids = {
                "PatientID": f"p{study}",
                "StudyInstanceUID": f"9.{study}",
                "SeriesInstanceUID": f"9.{study}.{series[3:]}",
            }
            ids |= {"SOPInstanceUID": f"9.{study}.{series[3:]}.{at}", "ImagePositionPatient": f"-125\\-120\\{5 * at}"}
            put(tmp_path / "in" / f"CQ500CT{study} CQ500CT{study}/Unknown Study/{series}/CT{at:06}.dcm", study, **ids)
    return tmp_path


ALL_READ = [
    ("CQ500-CT-1", ["100100", "100100", "000000"]),  # subdural by two of three
    ("CQ500-CT-12", ["000000", "000000", "110000"]),
    ("CQ500-CT-345", ["110000", "100100", "100000"]),  # bleeding, and no kind by two
]


def test_reads_of_cq500(cq500, convert, capfd):
    (cq500 / "reads.csv").write_text(reads(*ALL_READ, ("CQ500-CT-99", ["000000"] * 3)))
    assert run(convert, cq500, cq500 / "reads.csv") == 0
    assert study_labels(cq500) == {"9.1": BLEED, "9.12": NEGATIVE, "9.345": [1, -1, -1, -1, -1, -1]}
    rows = {row["study_uid"]: row for row in pq.read_table(cq500 / "out" / STUDIES).to_pylist()}
    assert [row["readers"] for row in rows.values()] == [3, 3, 3]
    votes = {uid: [row[f"{name}_votes"] for name in NAMES] for uid, row in rows.items()}
    assert votes == {"9.1": [2, 0, 0, 0, 0, 2], "9.12": [1, 0, 1, 0, 0, 0], "9.345": [3, 0, 1, 0, 0, 1]}
    found = slice_labels(cq500)
    assert len(found) == 12
    assert found["9.12.Thin.1"] == NEGATIVE
    assert found["9.1.Plain.0"] == [-1, 0, 0, 0, 0, -1]
    assert found["9.345.Plain.0"] == UNKNOWN
    err = capfd.readouterr().err
    path = cq500 / "reads.csv"
    assert f"{path}: 4 rows give the labels of 4 studies\n" in err
    assert f"{path}: majority of 3 readers, who differ about any in 2 studies\n" in err
    assert f"{path}: any has a majority and no kind has in 1 study: the kinds are unknown\n" in err
    assert verify(cq500 / "out").problems == []


def test_a_reader_that_is_missing(cq500, convert, capfd):
    text = reads(*ALL_READ)
    path = cq500 / "reads.csv"
    path.write_text(text.replace("R3:", "X3:"))
    assert run(convert, cq500, path) == 2
    assert "no column 'R3:ICH'; majorities need all three readers" in last_line(capfd)
    path.write_text(text.replace("CQ500-CT-1,B1,1,0,0,1", "CQ500-CT-1,B1,,0,0,"))
    assert run(convert, cq500, path) == 2
    assert f"{path}, line 2: R1:ICH is ''; it must be 0 or 1" in last_line(capfd)
    assert run(convert, cq500, path, more=("--labels_may_miss",)) == 0
    assert f"{path}: fewer than 3 readers judged any in 1 study\n" in capfd.readouterr().err
    assert study_labels(cq500)["9.1"] == [-1, 0, 0, 0, 0, -1]  # one against one
    assert pq.read_table(cq500 / "out" / STUDIES)["readers"].to_pylist() == [2, 3, 3]


def test_labels_that_the_readers_did_not_judge(cq500, convert, capfd):
    spec = cq500 / "my.yaml"
    spec.write_text("extends: rsna_ich\nname: mine\nlabels: {names: [any, fracture], rarest_first: [fracture]}\n")
    (cq500 / "reads.csv").write_text(reads(*ALL_READ))
    assert run(convert, cq500, cq500 / "reads.csv", more=("--spec", spec)) == 2
    assert "and the spec asks for 'fracture'; take a spec with these labels" in last_line(capfd)


@pytest.mark.parametrize("name", ["CT-1", "CQ500-CT-", ""])
def test_a_name_that_is_none_of_cq500(cq500, convert, capfd, name):
    (cq500 / "reads.csv").write_text(reads((name, ["000000"] * 3)))
    assert run(convert, cq500, cq500 / "reads.csv") == 2
    assert f"reads.csv, line 2: name is {name!r}; expected such as CQ500-CT-12" in last_line(capfd)


def test_the_name_of_a_volume_is_the_label_of_all_its_slices(convert, tmp_path):
    """A 0 is that of each slice, a 1 is that of the study; a name that is two files is nobody's."""
    folder = tmp_path / "in"
    for seed, name in enumerate(("049.nii.gz", "050.nii", "a/051.nii", "b/051.nii")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        packed = name.endswith(".gz")
        (folder / name).write_bytes(nifti(head(4, seed=seed), "LAS", packed=packed))
    ids = {"StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1", "SOPInstanceUID": "1.9.1.1"}
    put(folder / "single.dcm", 9, PatientID="one", **ids)
    rows = [("049", NEGATIVE), ("050.nii", BLEED), ("single", BLEED), ("051", NEGATIVE)]
    assert run(convert, tmp_path, label_file(tmp_path / "scans.csv", "filename", *rows)) == 0
    found = pq.read_table(tmp_path / "out" / "slices.parquet").to_pylist()
    assert sorted([row[name] for name in NAMES] for row in found) == sorted(
        [NEGATIVE] * 4 + [[-1, 0, 0, 0, 0, -1]] * 4 + [BLEED]
    )
    studies = pq.read_table(tmp_path / "out" / STUDIES).to_pylist()
    assert sorted([row[name] for name in NAMES] for row in studies) == sorted([NEGATIVE, BLEED, BLEED])
    with (tmp_path / "out" / "rejects.csv").open(newline="") as file:
        lost = list(csv.DictReader(file))
    assert [row["reason"] for row in lost] == ["ambiguous_label"] * 8
    assert {"filename 051 names 2 files; write their paths below the input"} == {row["detail"] for row in lost}
    assert verify(tmp_path / "out").problems == []
