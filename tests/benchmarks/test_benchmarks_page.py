"""The arithmetic behind docs/benchmarks.md, and the page from made-up figures. Nothing is timed here."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks import bench_processes, bench_tfds, page, projection, projection_section, runs, timed_job
from benchmarks.projection import Place, Prices, Terms
from benchmarks.timed_job import Job

TERMS = Terms(
    index_core_s=0.001,
    convert_core_s=0.003,
    efficiency=0.8,
    launcher_s=30,
    slice_bytes=1e5,
    request_core_s=(0.0005, 0.001),
)
CLOUD = Place("cloud", machines=2, cores=4, start_s=100, read_mb_per_s=400, reads_per_s=8000, speed=0.5, memory_gb=10,
              disk_gb=5, prices=Prices(1, 0.1, 0.01, 0.5, "made up"))  # fmt: skip


def test_a_projection_by_hand():
    """2 x 4 cores, half as fast, 80% efficient: 3.2 core-seconds a second; 32,000 reads take 4 s, 3.2 GB take 4 s."""
    found = projection.project(TERMS, CLOUD, 32_000)
    assert (found.start_s, found.launcher_s) == (100, 30)
    assert dataclasses.astuple(found.index) == pytest.approx((15, 0, 4))
    assert dataclasses.astuple(found.convert) == pytest.approx((40, 4, 4))
    assert found.total_s == pytest.approx(185)
    machine_hours = 2 * 155 / 3600  # the launcher is not paid for
    hours = (found.vcpu_hours, found.memory_gb_hours, found.disk_gb_hours)
    assert hours == pytest.approx((4 * machine_hours, 10 * machine_hours, 5 * machine_hours))
    assert found.reads == 64_000
    assert found.usd == pytest.approx(machine_hours * (4 * 1 + 10 * 0.1 + 5 * 0.01) + 64 * 0.5)


@pytest.mark.parametrize(
    ("change", "seconds", "slowest"),
    [
        ({}, 40, "cores"),
        ({"read_mb_per_s": 32}, 50, "reading"),
        ({"reads_per_s": 640}, 50, "requests"),
        ({"cores": 8}, 20, "cores"),
        ({"machines": 1}, 80, "cores"),  # one of two
        ({"speed": 1.0}, 20, "cores"),
        ({"reads_per_s": math.inf}, 30, "cores"),  # no bucket, so no client of one
    ],
)
def test_the_slowest_need_decides(change, seconds, slowest):
    found = projection.project(TERMS, dataclasses.replace(CLOUD, **change), 32_000)
    assert found.convert.seconds == pytest.approx(seconds)
    assert found.convert.slowest == slowest


def test_a_read_lies_on_the_line_through_the_two_measured():
    rows = {"requests": [{"bytes": 16_000, "core_ms": 1.0}, {"bytes": 516_000, "core_ms": 2.0}]}
    assert projection_section._request_core_s(rows, 266_000) == pytest.approx((0.001, 0.0015))


def test_nobody_sends_a_bill_for_a_laptop():
    found = projection.project(TERMS, dataclasses.replace(CLOUD, prices=None), 1000)
    assert found.usd is None


def test_the_price_of_the_list():
    """One n1-standard-4 with 30 GB of disk for an hour and 50,000 reads, as the price lists add it up."""
    found = projection.price(4, 15, 30, 50_000, projection.DATAFLOW_BATCH)
    assert found == pytest.approx(0.224 + 0.053355 + 0.00162 + 0.02)


def test_terms_share_out_the_core_time_by_the_workers_clocks():
    row = {"core_ms_per_slice": 2.0, "worker_ms": {"header": 0.25, "read": 0.25, "window": 0.5}}
    found = projection.terms_of(row, 0.9, 12, 1e5, (0.1, 0.2))
    assert found == Terms(pytest.approx(0.0005), pytest.approx(0.0015), 0.9, 12, 1e5, (0.1, 0.2))


def test_launcher_seconds_are_those_measured_or_scaled_from_the_greatest():
    seconds = {100: 2.0, 1000: 10.0}
    assert projection.launcher_seconds(seconds, 100) == (2.0, 100)
    assert projection.launcher_seconds(seconds, 3000) == (30.0, 1000)


def job(index_s: float, convert_s: float, cpu_s: float) -> Job:
    lines = (
        f"seconds  list 0.1, index {index_s}, convert {convert_s}\nms a slice in one worker: read 0.10; header 0.05\n"
    )
    return Job(9.0, cpu_s, 10**8, lines)


def test_start_up_is_taken_off_rates_and_core_seconds():
    row = bench_processes.curve_row(2, 1004, job(3, 4, 11), job(3.5, 6, 14))
    assert (row["convert_slices_per_s"], row["both_slices_per_s"]) == (500, 400)
    assert (row["convert_start_s"], row["both_start_s"]) == (4, 7)
    assert row["core_ms_per_slice"] == pytest.approx(3)
    assert row["worker_ms"] == {"read": 0.10, "header": 0.05}


def test_two_processes_against_twice_one():
    rows = [process_row(1, 0.6), process_row(2, 0.7) | {"convert_slices_per_s": 2400.0}]
    assert bench_processes.efficiency_of_two(rows) == pytest.approx({"convert": 0.8, "both": 1.0})


def test_a_machine_too_busy_to_tell_is_told():
    with pytest.raises(bench_processes.TooBusy, match=r"convert took 7 s for 4 slices, 6 s for 1,004"):
        bench_processes.curve_row(2, 1004, job(3, 7, 11), job(3.5, 6, 14))


def test_a_job_without_the_line_says_so():
    with pytest.raises(ValueError, match=r"no line begins with 'seconds '"):
        _ = Job(1, 1, 1, "nothing of the kind").stage_s


def test_a_child_is_timed_and_its_failure_is_told():
    found = timed_job.run(["sh", "-c", "echo seen"])
    assert found.stdout == "seen\n"
    assert found.wall_s > 0
    with pytest.raises(RuntimeError, match="ended with 3: torn"):
        timed_job.run(["sh", "-c", "echo torn >&2; exit 3"])


@pytest.mark.parametrize(("cores", "counts"), [(1, [1, 2]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_process_counts_end_at_the_cores(cores, counts):
    assert bench_processes.process_counts(cores) == counts


TFDS_ROWS = [
    {"way": way, "slices": slices, "seconds": 10 + slices / rate, "core_s": 9 + slices / rate,
     "peak_bytes": 3e8 + slices * kept, "output_bytes": slices * 5e4}
    for slices in (500, 1500) for way, rate, kept in (("tfds", 500, 2e5), ("convert", 1000, 1e3))
]  # fmt: skip


def test_slopes_leave_out_what_is_there_without_slices():
    found = bench_tfds.slopes(TFDS_ROWS)
    assert found["tfds"] == pytest.approx({"slices_per_s": 500, "core_ms_per_slice": 2, "memory_bytes_per_slice": 2e5})
    assert found["convert"]["memory_bytes_per_slice"] == pytest.approx(1e3)


def process_row(processes: int, core_ms: float) -> dict:
    clocks = {"header": 0.1, "read": 0.1, "decode": 0.1, "window": 0.2, "encode": 0.1}
    rates = {"both_slices_per_s": 1300.0 * processes, "convert_slices_per_s": 1500.0 * processes}
    starts = {"convert_start_s": 4.0, "both_start_s": 7.0, "start_core_s": 9.0}
    return {"processes": processes, "slices": 8000, **rates, **starts, "core_ms_per_slice": core_ms,
            "worker_ms": clocks, "peak_bytes": 10**8}  # fmt: skip


def made_figures() -> dict[str, dict]:
    """Figures of every benchmark, as they write them."""
    stages = ("start", "list", "plan", "sum")
    scale = {str(size): {stage: {"seconds": size / 3e4, "cpu_seconds": 1.0, "peak_mb": 200 + size / 2e3}
                         for stage in stages} for size in (10_000, 762_131)}  # fmt: skip
    size = {"slices": 720, "planned": 1, "table": 60.0}
    sizes = [{**size, "size_px": px, "shards": 3.0 * px**2} for px in (64, 128)]
    points = [(cores, *point) for cores in (1, 2) for point in ((100, 6), (500, 1), (500, 6))]
    return {
        "scale": {"runs": scale, "exponents": {"seconds": {"list": 1.0, "sum": 1.01}}, "passed": True},
        "zip": {"entries": 874_035, "ratio": 7.0, "passed": True,
                "summary": {name: {"seconds": 1.5, "peak_rss_mb": 200.0} for name in ("zipfile", "sources")}},
        "processes": {"rows": [process_row(1, 0.6), process_row(2, 0.7)], "zip": process_row(1, 1.4),
                      "zip_bytes_per_slice": 2e5, "sizes": sizes, "efficiency_of_two": {"convert": 0.91, "both": 0.93}},
        "tfds": {"rows": TFDS_ROWS, "slopes": bench_tfds.slopes(TFDS_ROWS), "memory_share": 0.005},
        "requests": {"requests": [{"bytes": 16_000, "core_ms": 0.9}, {"bytes": 526_000, "core_ms": 1.9}]},
        "streams": {"epoch_slices": 24_000, "rows": [
            {"cores": cores, "shards": shards, "strata": strata, "reader": reader, "images_per_s": 2e4}
            for cores, shards, strata in points for reader in ("number", "stream")]},
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with figures of every benchmark."""
    folder = tmp_path / "results"
    folder.mkdir()
    machine = dict.fromkeys(("processor", "cores", "memory", "system", "python", "libraries"), "some")
    for name, figures in made_figures().items():
        run = {"command": f"python benchmarks/bench_{name}.py", "date": "2026-11-23", "seconds": 1234.0}
        told = {**run, "quick": False, "kept": name != "zip", "machine": machine}
        (folder / f"{name}.json").write_text(json.dumps(figures))
        (folder / f"{name}.run.json").write_text(json.dumps(told))
    return folder


def test_the_page_holds_every_table_and_picture(results, tmp_path, capsys):
    assert page.main(["--results", str(results), "--docs", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    for name in ("scale", "processes", "tfds", "streams", "projection"):
        assert f"(benchmarks/{name}.png)" in text
        assert (tmp_path / "docs" / "benchmarks" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for name in runs.NAMES:
        assert f"`python benchmarks/bench_{name}.py`, 2026-11-23, 1,234 s in all" in text
    assert text.count("**It missed what it promises.**") == 1
    assert "| TFDS Beam builder | 500 | 2.00 | 200.0 | 152.4 |" in text  # 0.2 MB a slice, 762,131 slices
    assert "nan" not in text
    assert "None" not in text


def test_the_arithmetic_on_the_page_comes_to_the_price_in_its_table(results):
    loaded = runs.load(results)
    text = projection_section.whole(loaded)
    place, found = next((place, found) for (place, source), found in projection_section.projected(loaded).items()
                        if place.prices and source == "zip")  # fmt: skip
    assert f"together {found.usd:.2f} USD" in text
    assert f"| {found.vcpu_hours:.1f} | {found.usd:.2f} |" in text
    assert place.machines * place.cores == 32


def test_the_same_figures_give_the_same_pictures(results):
    assert page.pictures(runs.load(results)) == page.pictures(runs.load(results))


@pytest.mark.parametrize(("file", "content"), [("tfds.json", None), ("tfds.run.json", None), ("tfds.json", "{")])
def test_missing_or_damaged_figures_are_named(results, tmp_path, capsys, file, content):
    (results / file).unlink()
    if content:
        (results / file).write_text(content)
    assert page.main(["--results", str(results), "--docs", str(tmp_path / "docs")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert file in lines[0]
    assert lines[0].endswith("python benchmarks/page.py --run tfds")
    assert not (tmp_path / "docs").exists()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose only benchmark is what the test writes into this file."""
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    return tmp_path / "benchmarks" / "bench_zip.py"


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_keeps_figures_and_what_they_were_measured_on(program, tmp_path, code):
    program.write_text(f"import sys; open(sys.argv[-1], 'w').write('[7]'); sys.exit({code})")
    assert runs.run("zip", tmp_path / "out", quick=True) == (code == 0)
    assert json.loads((tmp_path / "out" / "zip.json").read_text()) == [7]
    told = json.loads((tmp_path / "out" / "zip.run.json").read_text())
    assert told["command"] == "python benchmarks/bench_zip.py --entries 100000 --runs 1"
    assert (told["kept"], told["quick"]) == (code == 0, True)
    assert set(told["machine"]) == {"processor", "cores", "memory", "system", "python", "libraries"}


def test_a_run_that_fails_leaves_no_figures_of_an_older_one(program, tmp_path):
    program.write_text("import sys; sys.exit(1)")
    (tmp_path / "zip.json").write_text("[6]")
    with pytest.raises(runs.ResultError, match="without figures"):
        runs.run("zip", tmp_path, quick=False)
    assert not (tmp_path / "zip.json").exists()


@pytest.mark.parametrize("code", [0, 1])
def test_a_promise_missed_is_on_the_page_and_in_the_exit_code(results, program, tmp_path, code):
    (tmp_path / "kept.json").write_text(json.dumps(made_figures()["zip"]))
    program.write_text(
        f"import shutil, sys; shutil.copy({str(tmp_path / 'kept.json')!r}, sys.argv[-1]); sys.exit({code})"
    )
    assert page.main(["--run", "zip", "--results", str(results), "--docs", str(tmp_path / "docs")]) == code
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert ("**It missed what it promises.**" in text) == bool(code)


def test_a_benchmark_that_fails_stops_the_page(results, program, tmp_path, capsys):
    program.write_text("raise SystemExit(1)")
    assert page.main(["--run", "zip", "--results", str(results), "--docs", str(tmp_path / "docs")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["page: python benchmarks/bench_zip.py ended with 1 and without figures; run it alone to see why"]
    assert not (tmp_path / "docs").exists()
