"""Conversion of a hospital's export: which series and which ImageTypes count, and the facts that are kept."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from series_files import write_series

from ich_tfrecords.conversion import job
from ich_tfrecords.conversion.plan import FACTS_SCHEMA, INDEX_SCHEMA
from ich_tfrecords.storage import atomic
from ich_tfrecords.synthetic import hospital

DERIVED = b"DERIVED\\SECONDARY\\AXIAL"
PLANTED = ("MUELLER", "Hans", "19580412", "ACC4711")


def rejects(output: Path) -> list[dict[str, str]]:
    with (output / "rejects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def taken(output: Path) -> Counter[str]:
    return Counter(pq.read_table(output / "slices.parquet")["series_uid"].to_pylist())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital")
    return hospital.generate(folder, patients=3, test_patients=0, slices_per_study=13, every_label=True, seed=4)


@pytest.mark.parametrize("flags", [(), ("--series", "best")])
def test_of_a_hospital_the_plain_series_alone_are_taken(made, convert, tmp_path, capsys, flags):
    output = tmp_path / "out"
    assert convert("--input", made.output / "ct", "--labels", "none", *flags, "--output", output) == 0
    studies = {one.study_uid for one in made.slices}
    table = pq.read_table(output / "slices.parquet")
    assert table.num_rows == len(made.slices) // 3
    assert set(table["kernel"].to_pylist()) == {"H31S"}
    assert len(taken(output)) == len(studies)
    lost = rejects(output)
    whys = Counter((row["reason"], row["detail"].partition(";")[0], row["name"].split("/")[1]) for row in lost)
    assert whys == {
        ("localizer", "ImageType is ORIGINAL\\PRIMARY\\LOCALIZER", "localizer"): len(studies),
        ("other_series", "contrast agent", "contrast"): table.num_rows,
        ("other_series", "sharp kernel H60S", "bone"): table.num_rows,
    }
    line = f"{2 * table.num_rows} slices of {2 * len(studies)} series left out, as a better series of the study"
    assert capsys.readouterr().err.count(line) == 1


def test_all_series_are_taken_where_that_is_asked_for(made, convert, tmp_path):
    output = tmp_path / "out"
    assert convert("--input", made.output / "ct", "--labels", "none", "--series", "all", "--output", output) == 0
    assert sum(taken(output).values()) == len(made.slices)
    assert {row["reason"] for row in rejects(output)} == {"localizer"}


def test_the_facts_of_a_scan_stand_behind_the_digest(made, convert, tmp_path):
    output = tmp_path / "out"
    assert convert("--input", made.output / "ct", "--labels", "none", "--output", output) == 0
    table = pq.read_table(output / "slices.parquet")
    names = table.column_names
    assert names[names.index("pixel_digest") + 1 :] == FACTS_SCHEMA.names
    assert [str(table.schema.field(name).type) for name in FACTS_SCHEMA.names] == ["string"] * 3 + ["float"] * 4
    (first, *_) = table.select(FACTS_SCHEMA.names).to_pylist()
    assert first["manufacturer"] == "synthetic"
    assert first["model"] == "Phantom 2"
    assert first["kvp"] == 130
    assert first["thickness_mm"] > 8
    assert {round(tilt) for tilt in table["tilt_deg"].to_pylist()} == {-18, -12, 0}
    done = json.loads((output / "manifest.json").read_text())
    assert "accept" not in done["spec"]
    assert "series" not in done["made_from"]


def test_where_headers_say_nothing_all_series_stay(convert, tmp_path):
    for name in ("a", "b"):
        write_series(tmp_path / "ct", name, 14 if name == "a" else 5)
    assert convert("--input", tmp_path / "ct", "--labels", "none", "--output", tmp_path / "out") == 0
    assert taken(tmp_path / "out") == {"a": 14, "b": 5}
    assert (
        convert("--input", tmp_path / "ct", "--labels", "none", "--series", "best", "--output", tmp_path / "one") == 0
    )
    assert taken(tmp_path / "one") == {"a": 14}
    assert {row["detail"] for row in rejects(tmp_path / "one")} == {"5 slices, 12 are the least; series a was taken"}


def test_nothing_qualifies(convert, tmp_path, capsys):
    write_series(tmp_path / "ct", "late", ContrastBolusAgent=b"IOMEPROL")
    write_series(tmp_path / "ct", "short", 3)
    flags = ("--input", tmp_path / "ct", "--labels", "none", "--series", "best", "--output", tmp_path / "out")
    assert convert(*flags) == 2
    told = capsys.readouterr().err
    study = "study study (series late: contrast agent, series short: 3 slices, 12 are the least)"
    assert f"no series qualifies in 1 study: {study}; --series all takes them" in told
    assert "Traceback" not in told
    write_series(tmp_path / "ct", "plain", study="other")  # one study goes on without the other
    assert convert(*flags[:-1], tmp_path / "new") == 0
    assert taken(tmp_path / "new") == {"plain": 12}
    assert Counter(row["reason"] for row in rejects(tmp_path / "new")) == {"unfit_series": 15}
    assert study in capsys.readouterr().err


def test_a_finished_data_set_of_one_choice_is_not_taken_for_that_of_another(convert, tmp_path, capsys):
    write_series(tmp_path / "ct", "a")
    flags = ("--input", tmp_path / "ct", "--labels", "none", "--output", tmp_path / "out", "--series")
    assert convert(*flags, "best") == 0
    assert convert(*flags, "best") == 0
    assert convert(*flags, "all") == 2
    assert "series: best, now all" in capsys.readouterr().err


def test_labels_decide_before_headers_do(convert, tmp_path):
    """Slices of the thin series alone have labels: they are not thrown away for a thicker one."""
    write_series(tmp_path / "ct", "thin", SliceThickness=b"0.6")
    write_series(tmp_path / "ct", "thick", SliceThickness=b"5")
    names = ("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
    lines = [f"study.thin.{index}," + ",".join("0" * 6) for index in range(12)]
    (tmp_path / "labels.csv").write_text("\n".join(["sop_uid," + ",".join(names), *lines]) + "\n")
    flags = ("--input", tmp_path / "ct", "--labels", tmp_path / "labels.csv", "--series", "best")
    assert convert(*flags, "--output", tmp_path / "out") == 0
    assert taken(tmp_path / "out") == {"thin": 12}
    assert {row["detail"] for row in rejects(tmp_path / "out")} == {"no slice has a label; series thin was taken"}


def test_derived_slices_count_where_the_spec_says_so(convert, tmp_path, capsys):
    write_series(tmp_path / "ct", "a", ImageType=DERIVED)
    flags = ("--input", tmp_path / "ct", "--labels", "none")
    assert convert(*flags, "--output", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "12 derived_secondary" in told
    assert "a spec with accept: [original, derived], such as hospital, takes these" in told
    write_series(tmp_path / "ct", "mip", 2, ImageType=b"DERIVED\\SECONDARY\\MIP")
    write_series(tmp_path / "ct", "capture", 2, ImageType=DERIVED, SOPClassUID=b"1.2.840.10008.5.1.4.1.1.7")
    write_series(tmp_path / "ct", "scout", 1, ImageType=b"DERIVED\\SECONDARY\\LOCALIZER")
    write_series(tmp_path / "ct", "coronal", 2, ImageType=DERIVED, ImageOrientationPatient=b"1\\0\\0\\0\\0\\-1")
    assert convert(*flags, "--spec", "hospital", "--output", tmp_path / "new") == 0
    assert taken(tmp_path / "new") == {"a": 12}
    reasons = Counter(row["reason"] for row in rejects(tmp_path / "new"))
    assert reasons == {"derived_secondary": 4, "localizer": 1, "not_axial": 2}
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["spec"]["accept"] == ["original", "derived"]


def test_an_original_series_is_preferred_to_what_was_made_from_it(convert, tmp_path):
    write_series(tmp_path / "ct", "a", 30, ImageType=DERIVED)
    write_series(tmp_path / "ct", "z")
    flags = ("--input", tmp_path / "ct", "--labels", "none", "--spec", "hospital")
    assert convert(*flags, "--output", tmp_path / "out") == 0
    assert taken(tmp_path / "out") == {"z": 12}


def test_names_in_the_place_of_facts_go_nowhere(convert, tmp_path, capfd):
    planted = {
        "Manufacturer": b"MUELLER^Hans",
        "ManufacturerModelName": b"MUELLER Hans",
        "ConvolutionKernel": b"MUELLER",
        "ContrastBolusAgent": b"ACC4711",
        "KVP": b"19580412",
    }
    write_series(tmp_path / "ct", "a", **planted)
    write_series(tmp_path / "ct", "b", ConvolutionKernel=b"19580412")
    assert convert("--input", tmp_path / "ct", "--labels", "none", "--output", tmp_path / "out") == 0
    said = "".join(capfd.readouterr())
    table = pq.read_table(tmp_path / "out" / "slices.parquet").select(FACTS_SCHEMA.names).to_pylist()
    texts = [said, str(table), *(path.read_bytes().decode("latin-1") for path in (tmp_path / "out").iterdir())]
    for text in texts:
        assert not [word for word in PLANTED if word in text]


def test_an_index_of_other_columns_is_read_again(tmp_path):
    """As a version before the facts left it, in a run that was interrupted."""
    work = job.WorkDir(tmp_path)
    work.create()
    for number, dropped in enumerate(([], ["kernel"])):
        job.write_part(work.index(number), INDEX_SCHEMA.empty_table().drop_columns(dropped))
    assert list(job.read_index(work, [0, 1])) == [0]
    assert atomic.read_many([work.index(1)])[0] is not None
