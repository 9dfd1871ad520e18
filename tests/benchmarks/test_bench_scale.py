from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import bench_scale

STAGES = ["list", "labels", "index", "plan", "commit", "sum"]


def test_a_small_run_has_every_stage(tmp_path):
    output = tmp_path / "scale.json"
    command = [sys.executable, bench_scale.__file__, "--sizes=2500", "--rounds=1", f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    figures = result["runs"]["2500"]
    assert list(figures) == ["start", *STAGES]
    assert all(figures[stage]["cpu_seconds"] > 0 for stage in STAGES)
    assert figures["sum"]["seconds"] == pytest.approx(sum(figures[stage]["seconds"] for stage in STAGES[:-1]))
    assert result["exponents"] == {"seconds": {}, "cpu_seconds": {}}  # one size has no slope


def runs(seconds: dict[int, float], peak_mb: float = 100) -> dict[int, bench_scale.Figures]:
    return {size: {"sum": {"seconds": value, "peak_mb": peak_mb}} for size, value in seconds.items()}


def test_the_exponent_is_a_slope_from_100k_on():
    growing = runs({10_000: 9.0, 100_000: 1.0, 200_000: 4.0, 400_000: 16.0})
    assert bench_scale.exponents(growing, "seconds") == {"sum": pytest.approx(2.0)}
    assert bench_scale.exponents(runs({10_000: 1.0, 100_000: 9.0}), "seconds") == {}


@pytest.mark.parametrize(
    ("seconds", "peak_mb", "exponent", "holds"),
    [
        (120.0, 2000, 1.1, [True, True]),
        (120.1, 2000, 1.1, [False, True]),
        (120.0, 2001, 1.1, [False, True]),
        (120.0, 2000, 1.11, [True, False]),
    ],
)
def test_what_was_promised(seconds, peak_mb, exponent, holds):
    found = bench_scale.verdicts(runs({762_131: seconds}, peak_mb), {"sum": exponent})
    assert [kept for _, kept in found] == holds


def test_sizes_that_promise_nothing_have_no_verdict():
    assert bench_scale.verdicts(runs({10_000: 999.0}), {}) == []
