"""The command line on converted data sets; `odd_dataset` has the ids that nobody should trust."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import odd_dataset
import pytest
from PIL import Image

from ich_tfrecords import inspect
from ich_tfrecords.dataset import manifest


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("odd") / "data")


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("unlabelled") / "data", labelled=False)


def run(capsys, *argv: object) -> tuple[int, str, str]:
    code = inspect.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err: str) -> bool:
    return err.startswith("inspect: ") and err.count("\n") == 1 and "Traceback" not in err


class TestInfo:
    def test_text_names_splits_labels_windows_and_rejects(self, odd, capsys):
        code, out, err = run(capsys, "info", odd)
        done = manifest.read(odd)
        assert (code, err) == (0, "")
        assert done.fingerprint in out
        assert "brain 40/80" in out
        rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
        assert rows["spare"][1:6] == ["0"] * 5
        assert rows["all"][2] == str(done.slices) == "7"
        assert "1  not_dicom" in out
        assert "1  empty_file" in out

    def test_columns_are_aligned(self, odd, capsys):
        lines = run(capsys, "info", odd)[1].splitlines()
        begin = next(number for number, line in enumerate(lines) if line.startswith("split"))
        assert len({len(line) for line in lines[begin : begin + 5]}) == 1

    def test_an_empty_split_has_no_prevalence_and_unknown_labels_say_so(self, odd, unlabelled, capsys):
        line = next(line for line in run(capsys, "info", odd)[1].splitlines() if line.startswith("epidural"))
        assert line.split()[1] == "-"
        assert "7 unknown" in run(capsys, "info", unlabelled)[1]

    def test_json_holds_the_same_counts(self, odd, capsys):
        code, out, _ = run(capsys, "info", odd, "--json")
        known, done = json.loads(out), manifest.read(odd)
        assert code == 0
        assert known["splits"] == done.splits
        assert known["rejects"] == {"empty_file": 1, "not_dicom": 1}
        assert known["labels"]["any"] == {"positive": 5, "negative": 2, "unknown": 0}
        assert known["generator"].startswith("ich_tfrecords ")
        assert known["slices"] == 7
        assert known["windows"][0] == {"name": "brain", "level_hu": 40, "width_hu": 80}


class TestVerify:
    def test_a_whole_data_set(self, odd, capsys):
        code, out, err = run(capsys, "verify", odd)
        assert code == 0
        assert re.fullmatch(r"verify \[#+\] 7/7 shards, .* in all\n", err)
        assert "checked 7 slices" in out

    def test_damage_is_listed_and_gives_1(self, dataset_copy, capsys):
        shard = dataset_copy / manifest.read(dataset_copy).shards[0]["name"]
        shard.write_bytes(shard.read_bytes()[:-7])
        code, _, err = run(capsys, "verify", dataset_copy)
        assert code == 1
        assert shard.name in err
        assert "Traceback" not in err


class TestShow:
    def test_writes_a_png_the_same_each_time(self, odd, tmp_path, capsys):
        for name in ("a.png", "folder/b.png"):
            assert run(capsys, "show", odd, "--output", tmp_path / name, "--per_stratum", 2)[0] == 0
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "folder/b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.mode == "RGB"
            assert picture.width > 800

    def test_an_unlabelled_set_and_one_split(self, unlabelled, tmp_path, capsys):
        code, out, _ = run(capsys, "show", unlabelled, "--output", tmp_path / "a.png", "--split", "train")
        assert code == 0
        assert "of 1 strata" in out

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--split", "spare"], "no slice in spare, so there is nothing to draw; the splits with slices are "),
            (["--split", "training"], "the data set has spare, test, train"),
            (["--per_stratum", "0"], "use 1 to 50"),
            (["--per_stratum", "many"], "invalid int value"),
            (["--seed", "-1"], "use 0 or more"),
            (["--colour"], "unrecognized arguments: --colour"),
        ],
    )
    def test_wrong_use_is_one_line(self, odd, tmp_path, capsys, flags, said):
        code, _, err = run(capsys, "show", odd, "--output", tmp_path / "a.png", *flags)
        assert (code, one_line(err)) == (2, True)
        assert said in err
        assert not (tmp_path / "a.png").exists()

    def test_other_picture_formats_are_refused(self, odd, tmp_path, capsys):
        code, _, err = run(capsys, "show", odd, "--output", tmp_path / "a.jpg")
        assert (code, one_line(err)) == (2, True)
        assert ".png" in err

    def test_a_damaged_record_gives_1_and_names_the_shard(self, dataset_copy, tmp_path, capsys):
        for shard in manifest.read(dataset_copy).shards:
            path = dataset_copy / shard["name"]
            path.write_bytes(bytes(path.stat().st_size))
        code, _, err = run(capsys, "show", dataset_copy, "--output", tmp_path / "a.png")
        assert (code, one_line(err)) == (1, True)
        assert ".tfrecord-" in err
        assert "inspect verify" in err


class TestDoor:
    @pytest.mark.parametrize("command", ["info", "verify", "show", "report", "export"])
    def test_a_missing_manifest_is_one_line(self, tmp_path, capsys, command):
        (tmp_path / "empty").mkdir()
        output = [] if command in ("info", "verify") else ["--output", tmp_path / "out.png"]
        for folder in (tmp_path / "empty", tmp_path / "nowhere"):
            code, out, err = run(capsys, command, folder, *output)
            assert (code, out, one_line(err)) == (2, "", True)
            assert "holds no manifest.json" in err
        assert not (tmp_path / "out.png").exists()

    @pytest.mark.parametrize("command", ["show", "report", "export"])
    def test_a_missing_or_damaged_slice_table_is_one_line(self, dataset_copy, tmp_path, capsys, command):
        (dataset_copy / "slices.parquet").write_bytes(b"no table")
        assert run(capsys, command, dataset_copy, "--output", tmp_path / "a.png")[0] == 2
        (dataset_copy / "slices.parquet").unlink()
        code, _, err = run(capsys, command, dataset_copy, "--output", tmp_path / "b.png")
        assert (code, one_line(err)) == (2, True)
        assert "slices.parquet" in err

    @pytest.mark.parametrize("argv", [[], ["shw", "x"], ["info"], ["show", "x"]])
    def test_wrong_flags_are_one_line(self, capsys, argv):
        code, _, err = run(capsys, *argv)
        assert (code, one_line(err)) == (2, True)
        assert "--help" in err

    def test_help_teaches_each_command(self, capsys):
        for argv in (["--help"], ["export", "--help"]):
            with pytest.raises(SystemExit) as ended:
                inspect.main(argv)
            assert ended.value.code == 0
        out = capsys.readouterr().out
        for word in ("verify", "montage", "labels_<split>.csv", "Exit codes", "Example:"):
            assert word in " ".join(out.split())

    @pytest.mark.slow
    def test_it_runs_as_a_module(self, odd):
        argv = [sys.executable, "-m", "ich_tfrecords.inspect", "info", str(odd)]
        root = Path(__file__).parents[2]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=root, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "fingerprint" in done.stdout

    def test_the_report_does_not_go_into_the_data_set(self, odd, capsys):
        code, _, err = run(capsys, "report", odd, "--output", odd)
        assert (code, one_line(err)) == (2, True)
        assert not (odd / "index.html").exists()

    def test_an_output_that_cannot_be_written_is_one_line(self, odd, tmp_path, capsys):
        (tmp_path / "file").write_text("in the way")
        for command in ("report", "show"):
            code, _, err = run(capsys, command, odd, "--output", tmp_path / "file" / "a.png")
            assert (code, one_line(err)) == (2, True)

    @pytest.mark.parametrize("command", ["info", "verify", "show", "report", "export"])
    @pytest.mark.parametrize("field", ["shards", "splits", "files", "made_from", "rejects", "spec"])
    def test_a_damaged_manifest_is_one_line(self, dataset_copy, tmp_path, capsys, command, field):
        values = manifest.read_json(dataset_copy)
        (dataset_copy / manifest.MANIFEST).write_text(json.dumps({**values, field: None}))
        output = [] if command in ("info", "verify") else ["--output", tmp_path / "out.png"]
        code, out, err = run(capsys, command, dataset_copy, *output)
        assert (code, out, one_line(err)) == (2, "", True)
        assert f"is damaged: {field} of the manifest" in err


def test_aligned_sets_words_left_and_numbers_right():
    assert inspect.aligned([["split", "n"], ["a", "1,000"]]) == ["split      n", "a      1,000"]
