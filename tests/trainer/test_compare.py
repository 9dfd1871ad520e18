"""The command line: what it writes and prints, and each refusal with its next step."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from evaluated_runs import folds, predictions, run, write

from trainer import compare

pytestmark = pytest.mark.slow  # the whole command, again and again


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / name, run(name, predictions(skill, seed)))
        for seed, (name, skill) in enumerate({"cnn": 2.0, "xception": 3.0}.items())
    ]


@pytest.fixture
def call(capsys, tmp_path):
    """call(*words) -> exit code, lines of stdout, lines of stderr; writes comparison.html."""

    def called(*words: object, output: Path = tmp_path / "out" / "comparison.html") -> tuple[int, list[str], list[str]]:
        code = compare.main([*map(str, words), "--output", str(output), "--resamples", "60"])
        shown = capsys.readouterr()
        return code, shown.out.splitlines(), shown.err.splitlines()

    return called


def test_it_writes_a_page_and_a_table_and_prints_the_verdict(two, call, tmp_path):
    code, out, err = call(*two)
    assert (code, err) == (0, [])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert (tmp_path / "out" / "comparison.csv").read_text().startswith("run,metric,value,low,high,")
    assert out[-3].startswith("xception has the lower log loss: ")
    assert f"<strong>{out[-3]}</strong>" in page
    assert out[-1] == f"wrote {tmp_path / 'out' / 'comparison.html'} and comparison.csv"


def test_the_same_command_gives_the_same_bytes(two, call, tmp_path):
    files = []
    for name in ("a", "b"):
        call(*two, output=tmp_path / f"{name}.html")
        files.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("html", "csv")])
    assert files[0] == files[1]


def test_patient_ids_are_not_in_the_page(two, call, tmp_path):
    call(*two)
    assert "key_0" not in (tmp_path / "out" / "comparison.html").read_text()


def test_folds_are_compared_pooled(tmp_path, call):
    runs = [write(tmp_path / one.name, one) for one in [*folds("a", 2.0, 10), *folds("b", 3.5, 30)]]
    code, out, _ = call(*runs, "--split", "validation")
    assert code == 0
    assert out[-3].startswith("b (4 folds) has the lower log loss: ")


def test_a_run_without_history_is_compared(two, call):
    (two[0] / "history.csv").unlink()
    assert call(*two)[0] == 0


# refusals


def refused(found: tuple[int, list[str], list[str]]) -> str:
    code, out, err = found
    assert (code, out, len(err)) == (2, [], 1)
    return err[0]


def test_a_run_that_is_not_evaluated_names_the_command(two, call, tmp_path):
    place = tmp_path / "not yet"
    place.mkdir()
    command = f"python -m trainer.evaluate --job_dir '{place}' --split test"
    assert refused(call(two[0], place)) == f"compare: {place} is not evaluated on 'test'; run `{command}`"
    line = refused(call(*two, "--split", "validation"))
    assert "2 of 2 runs are not evaluated on 'validation'" in line
    assert line.count("--split validation`") == 2


@pytest.mark.parametrize(
    ("split", "flags"),
    [
        ("test-flip", "--split test --flip"),
        ("test-0123abcd", "--split test --data_dir DIR"),
        ("a b-flip-0123abcd", "--split 'a b' --flip --data_dir DIR"),
        ("flip", "--split flip"),
    ],
)
def test_the_command_makes_the_folder_asked_for(two, call, split, flags):
    assert f"--job_dir {two[0]} {flags}`" in refused(call(*two, "--split", split))


def test_different_slices_need_anyway(two, call, tmp_path):
    other = write(tmp_path / "other", run("other", predictions(seed=9, patients=range(20, 60))))
    line = refused(call(two[0], other))
    assert "slices (cnn 480, other 480, all share 240)" in line
    assert "add --anyway" in line
    assert not (tmp_path / "out").exists()
    assert call(two[0], other, "--anyway")[0] == 0
    assert "Only what they share is compared: 240 slices." in (tmp_path / "out" / "comparison.html").read_text()


def test_the_same_run_twice(two, call, tmp_path):
    assert refused(call(two[0], two[0])) == f"compare: {two[0]} is named twice; name each run once"
    link = tmp_path / "link"
    link.symlink_to(two[0])
    assert refused(call(two[0], link)) == f"compare: {link} (as {two[0]}) is named twice; name each run once"


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs(two, call, count):
    assert refused(call(*two[:count])).startswith(f"compare: {count} runs named; a comparison needs at least two")


def test_a_place_that_is_no_folder(two, call, tmp_path):
    assert "is not the folder of a run" in refused(call(two[0], tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "is damaged (KeyError('format')"),
        ('{"format": 2, "what": {}, "measures": {}}', "is damaged (KeyError('split')"),
        ('{"format": 1}', "has format 1, this version reads 2"),
    ],
)
def test_damaged_metrics_name_the_command(two, call, text, words):
    (two[1] / "evaluation" / "test" / "metrics.json").write_text(text)
    line = refused(call(*two))
    assert words in line
    assert f"run `python -m trainer.evaluate --job_dir {two[1]} --split test`" in line


def test_predictions_of_other_labels_than_the_metrics(two, call):
    metrics = two[1] / "evaluation" / "test" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('{"labels": {"any"', '{"labels": {"all"'))
    assert "metrics.json has no threshold of any" in refused(call(*two))


def test_damaged_predictions(two, call):
    (two[1] / "evaluation" / "test" / "predictions.parquet").write_bytes(b"PAR1")
    assert "predictions.parquet is damaged" in refused(call(*two))


@pytest.mark.parametrize("name", ["page.csv", "page", "."])
def test_an_output_that_is_no_page(two, call, tmp_path, name):
    assert "does not end in .html" in refused(call(*two, output=tmp_path / name))


def test_an_output_in_a_bucket(two, call):
    assert "--output gs:/b/x.html is in a bucket; name a local folder" in refused(call(*two, output="gs://b/x.html"))


def test_an_output_that_is_a_folder(two, call, tmp_path):
    (tmp_path / "x.html").mkdir()
    assert "is a folder" in refused(call(*two, output=tmp_path / "x.html"))


def test_a_table_of_something_else_is_not_written_over(two, call):
    before = (two[0] / "history.csv").read_bytes()
    assert "history.csv is there already and not of a comparison" in refused(call(*two, output=two[0] / "history.html"))
    assert (two[0] / "history.csv").read_bytes() == before


@pytest.mark.parametrize("flags", [["--resamples", "39"], ["--resamples", "-1"], ["--seed", "x"], ["--splits", "a"]])
def test_wrong_flags(two, capsys, tmp_path, flags):
    code = compare.main([*map(str, two), "--output", str(tmp_path / "x.html"), *flags])
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# names


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["/r/cnn", "/r/xception"], ["cnn", "xception"]),
        (["/r/a/cnn", "/r/b/cnn", "/r/b/x"], ["a/cnn", "b/cnn", "x"]),
        (["/r/a/s/cnn", "/r/b/s/cnn"], ["a/s/cnn", "b/s/cnn"]),
        (["/r/cnn", "/r/cnn/cnn"], ["r/cnn", "cnn/cnn"]),
        (["/cnn", "/r/cnn"], ["/cnn", "r/cnn"]),
    ],
)
def test_names_take_as_many_parents_as_they_need(places, expected):
    assert compare.names([Path(place) for place in places]) == expected


def test_names_do_not_depend_on_how_a_run_is_written(two, monkeypatch):
    monkeypatch.chdir(two[0])
    assert compare.names([Path(), Path("../xception")]) == ["cnn", "xception"]


def test_a_copy_of_a_run_is_no_better(two, call, tmp_path):
    shutil.copytree(two[0], tmp_path / "copy")
    assert call(two[0], tmp_path / "copy")[1][-3].startswith("No difference can be claimed: ")


def test_tensorflow_is_not_needed(two, tmp_path):
    code = (
        "import sys; from trainer import compare; "
        f"assert compare.main({[*map(str, two), '--output', str(tmp_path / 'x.html'), '--resamples', '40']!r}) == 0; "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
