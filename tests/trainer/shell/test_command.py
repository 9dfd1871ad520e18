"""What the commands share: complaints in one line, exit codes, help as it is written."""

from __future__ import annotations

import argparse

import pytest

from trainer.shell import command
from trainer.shell.problems import TrainingFailed, WorkFailed, WrongUse


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (WrongUse("no such run"), 2, "predict: no such run\n"),
        (WorkFailed("nothing could be read"), 1, "predict: nothing could be read\n"),
        (TrainingFailed("out of memory"), 1, "predict: out of memory\n"),
        (OSError(28, "No space left on device", "out.csv"), 1, "predict: No space left on device: out.csv; rerun\n"),
        (OSError("odd"), 1, "predict: odd; rerun\n"),
        (KeyboardInterrupt(), 130, "predict: interrupted; rerun\n"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(error, code, line, capsys):
    assert command.run("predict", raising(error), "rerun") == code
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command.run("predict", raising(ZeroDivisionError()))


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (3, 3)])
def test_work_says_its_own_exit_code(given, code):
    assert command.run("predict", lambda: given) == code


@pytest.fixture
def parser():
    made = command.Parser(prog="python -m trainer.predict", epilog="Example:\n    predict  x")
    made.add_argument("--model", required=True)
    return made


def test_flags_come_through(parser):
    assert command.parse(parser, ["--model", "runs/cnn"]).model == "runs/cnn"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--model", "x", "--modle=y"], "unknown flag --modle; did you mean '--model'?"),
        (["--model", "x", "stray"], "stray follows no flag; name its flag, and quote a glob (*)"),
        ([], "the following arguments are required: --model; python -m trainer.predict --help tells more"),
        (["--mod", "x"], "the following arguments are required: --model; "),  # no abbreviations
    ],
)
def test_wrong_flags_are_told_in_one_line(parser, line, words):
    with pytest.raises(WrongUse) as caught:
        command.parse(parser, line)
    assert str(caught.value).startswith(words)


def test_the_help_keeps_its_lines_and_ends_with_the_exit_codes(parser):
    text = parser.format_help()
    assert "Example:\n    predict  x\n\nexit codes:\n    0  done\n" in text


def test_the_data_set_is_the_flag_then_the_run_then_the_environment_then_the_usual_place(monkeypatch, tmp_path):
    monkeypatch.setenv("ICH_DATA_DIR", "/environment")
    run = str(tmp_path)
    assert command.data_places(["/flag", "/other"], "/gone") == ["/flag", "/other"]
    assert command.data_places(None, run) == [run]
    assert command.data_places(None, [run, "gs://bucket/other"]) == [run, "gs://bucket/other"]
    with pytest.raises(WrongUse, match=r"the run was trained on /gone, which is not there; .* --data_dir$"):
        command.data_places(None, [run, "/gone"])
    assert command.data_places(None) == [command.data_place(None)] == ["/environment"]
    monkeypatch.delenv("ICH_DATA_DIR")
    assert command.data_places(None) == [command.data_place("")] == ["data/rsna_ich"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("007", 7),
        ("8", None),
        ("-1", None),
        ("", None),
        (" 7", None),
        ("7.0", None),
        ("\u0663", None),
    ]
    + [("1" * 5000, None)],
)
def test_a_whole_number_in_its_bounds(text, number):
    read = command.whole_number(0, 7)
    if number is not None:
        assert read(text) == number
        return
    with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 0 to 7") as found:
        read(text)
    assert len(str(found.value)) < 80


def test_an_empty_path_is_none():
    assert command.path("a b") == "a b"
    with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
        command.path("")
