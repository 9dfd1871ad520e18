"""The command with a series model: what it says, beside evaluation; which files it needs, and what may be lost."""

from __future__ import annotations

import csv
import functools
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import blob_dataset
import numpy as np
import pytest
from dicom_files import dicom_file, head_slice, slice_elements
from PIL import Image

from trainer import predict
from trainer.data.dataset import open_dataset
from trainer.models import model_file, networks
from trainer.models.model_file import About
from trainer.prediction import networks as asked
from trainer.prediction import series_stream, slice_stream, triage
from trainer.prediction.networks import Networks
from trainer.series import judging

PATIENTS = range(4)  # of whom the files of most tests are
SLICES = 20  # of each
NAMES = blob_dataset.small_spec().labels


pytestmark = pytest.mark.slow  # the whole command, again and again


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """Each folder's networks are loaded and compiled once, which would take most of the time of so many runs."""
    load, loaded = asked.load, {}

    def known(folder: Path, about: About) -> Networks:
        return loaded[folder] if folder in loaded else loaded.setdefault(folder, load(folder, about))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asked, "load", known)
        for way in ("seer", "in_series"):
            patch.setattr(Networks, way, functools.cache(getattr(Networks, way)))
        yield


@pytest.fixture(scope="module")
def files(runs_of_blobs) -> Path:
    return runs_of_blobs.parent / f"{runs_of_blobs.name}-dicom"


@pytest.fixture(scope="module")
def few(files, tmp_path_factory) -> Path:
    """A folder with the slices of `PATIENTS`; read only."""
    folder = tmp_path_factory.mktemp("few")
    for patient in PATIENTS:
        for path in files.glob(f"ID_{patient:04d}*.dcm"):
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def plain(few, series_run, tmp_path_factory) -> Path:
    """What the command gives for them."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert predict.main(["--model", str(series_run), "--input", str(few), "--output", str(out)]) == 0
    return out


@pytest.fixture
def some(few, tmp_path) -> Path:
    """A copy of them to change."""
    return Path(shutil.copytree(few, tmp_path / "in"))


@pytest.fixture
def run(series_run, tmp_path):
    """run(*inputs, flags) -> exit code and the folder of the results."""

    def predicted(*inputs: object, output: str = "out", model: Path = series_run, **flags: object) -> tuple[int, Path]:
        given = [part for one in inputs for part in ("--input", str(one))]
        given += [part for name, value in flags.items() for part in (f"--{name}", str(value)) if part != "True"]
        code = predict.main(["--model", str(model), "--output", str(tmp_path / output), "--pictures", "0", *given])
        return code, tmp_path / output

    return predicted


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def facts(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


def values(out: Path, by: str = "sop_uid", table: str = "predictions.csv") -> dict[str, np.ndarray]:
    return {row[by]: np.array([float(row[name]) for name in NAMES.names]) for row in rows(out / table) if row["any"]}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key, found in one.items():
        np.testing.assert_allclose(found, other[key], rtol=0, atol=1e-4)


def uid(patient: int, number: int) -> str:
    return f"ID_{patient:04d}{number:02d}"


def put(folder: Path, name: str, patient: int, number: int, sop_uid: str = "", at: int | None = None) -> None:
    """A slice of a patient of its own series, of pixels that follow from `number`, at the place `at`."""
    hu = blob_dataset.image_hu(np.zeros(5, bool), np.random.default_rng(number))
    folder.mkdir(exist_ok=True)
    place = number if at is None else at
    (folder / name).write_bytes(blob_dataset.dicom(sop_uid or uid(patient, number), patient, place, hu))


@pytest.mark.long
@pytest.mark.parametrize("flip", [False, True])
def test_slices_and_studies_have_the_probabilities_of_evaluation(run, series_run, runs_of_blobs, files, flip):
    """The files through the command, beside the records through the vectors of the run."""
    code, out = run(files, **({"flip": True} if flip else {}))
    assert code == 0
    data, about = open_dataset(str(runs_of_blobs)), model_file.read_about(series_run / "export")
    part = data.split("test")
    judged = judging.judge_of(series_run / "export", about, data, flip)(part, 8, lambda done, total: None)
    wanted = dict(zip(part.table["sop_uid"].to_pylist(), judged.slices.probabilities, strict=True))
    assert_same({key: values(out)[key] for key in wanted}, wanted)
    studies, _ = judged.ways[judging.BLEND]
    wanted = dict(zip(sorted(set(part.table["study_uid"].to_pylist())), studies, strict=True))
    assert_same({key: values(out, "study_uid", "triage.csv")[key] for key in wanted}, wanted)


def test_rows_come_by_study_and_place_and_studies_by_their_own_probability(run, few, series_run, capsys):
    code, out = run(few)
    told = capsys.readouterr().out
    assert code == 0
    slices = rows(out / "predictions.csv")
    assert [row["sop_uid"] for row in slices] == [uid(patient, at) for patient in PATIENTS for at in range(SLICES)]
    studies = rows(out / "triage.csv")
    ranked = [float(row["any"]) for row in studies]
    assert ranked == sorted(ranked, reverse=True)
    for study in studies:
        own = [row for row in slices if row["study_uid"] == study["study_uid"]]
        assert study["slices"] == str(len(own)) == str(SLICES)
        assert study["driven_by"] == max(own, key=lambda row: float(row["any"]))["sop_uid"]
    assert [float(row["any"]) for row in studies] != [
        max(float(row["any"]) for row in slices if row["study_uid"] == study["study_uid"]) for study in studies
    ]
    assert "\nstudies, most urgent first, by their own probability of any hemorrhage, of the series head and " in told
    assert facts(out)["study_probability"] in told
    model = facts(out)["model"]
    assert (model["kind"], model["slice_model"]["kind"]) == ("series", "cnn")
    assert model["sha256"] == model_file.digest(series_run / "export")
    assert model["slice_model"]["sha256"] == model_file.digest(series_run / "export" / "slice") != model["sha256"]


def test_names_zips_batch_size_and_what_lies_beside_change_nothing(run, plain, few, files, tmp_path):
    rng, shuffled = np.random.default_rng(0), tmp_path / "shuffled"
    shuffled.mkdir()
    for number, path in enumerate(rng.permutation(sorted(few.iterdir()))):
        shutil.copy(path, shuffled / f"{number:03d}.dcm")
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in shuffled.iterdir():
            archive.write(path, path.name)
    whole, studies = values(plain), values(plain, "study_uid", "triage.csv")
    for place, size in ((shuffled, 7), (tmp_path / "in.zip", 32), (few, 1), (files, 64)):
        _, out = run(place, output=f"out{size}", batch_size=size)
        found = values(out), values(out, "study_uid", "triage.csv")
        assert_same({key: found[0][key] for key in whole}, whole)
        assert_same({key: found[1][key] for key in studies}, studies)
    assert len(found[0]) > len(whole)


def test_slices_of_one_series_stand_together_however_they_are_called(run, few, tmp_path):
    (tmp_path / "mixed").mkdir()
    for path in few.iterdir():
        shutil.copy(path, tmp_path / "mixed" / f"{path.stem[::-1]}.dcm")  # by place, and then by patient
    _, out = run(tmp_path / "mixed")
    studies = [row["study_uid"] for row in rows(out / "predictions.csv")]
    assert studies == sorted(studies)
    places = [float(row["position_mm"]) for row in rows(out / "predictions.csv")]
    assert places == [5.0 * at for at in range(SLICES)] * len(PATIENTS)


def test_a_missing_slice_is_a_gap_that_its_own_neighbours_see(run, some, plain):
    for patient in (1, 2):
        (some / f"{uid(patient, 9)}.dcm").unlink()
    code, out = run(some)
    assert (code, rows(out / "rejects.csv")) == (0, [])
    before, after = values(plain), values(out)
    assert before.keys() - after.keys() == {uid(1, 9), uid(2, 9)}
    changed = {key[:7] for key in after if not np.allclose(before[key], after[key], rtol=1e-5)}
    assert changed == {"ID_0001", "ID_0002"}


def test_a_damaged_slice_is_missing_and_its_study_partial(run, some, plain):
    """One whose head is whole, so that only decoding meets the damage, and one whose head tells of it."""
    for name, sop_uid, at in (("a", "1.1", 0), ("b", "1.2", 5), ("c", "1.3", 10), ("d", "1.4", 15)):
        ids = {"SOPInstanceUID": sop_uid.encode(), "StudyInstanceUID": b"1.5", "SeriesInstanceUID": b"1.6"}
        elements = slice_elements(head_slice(), ImagePositionPatient=f"-9\\-9\\{at}".encode(), **ids)
        (some / f"{name}.dcm").write_bytes(dicom_file(elements))
    (some / "b.dcm").write_bytes((some / "b.dcm").read_bytes()[:-100])
    with zipfile.ZipFile(some.parent / "in.zip", "w") as archive:
        for path in some.iterdir():
            archive.write(path, path.name)
    data = bytearray((some.parent / "in.zip").read_bytes())
    data[data.index((some / "c.dcm").read_bytes()) + 2000] ^= 1
    (some.parent / "in.zip").write_bytes(data)
    code, out = run(some.parent / "in.zip")
    assert code == 0
    told = {row["file"]: (row["reason"], row["study_uid"]) for row in rows(out / "rejects.csv")}
    assert told == {"b.dcm": ("truncated", "1.5"), "c.dcm": ("crc_mismatch", "1.5")}
    (study,) = [row for row in rows(out / "triage.csv") if row["study_uid"] == "1.5"]
    assert study["partial"] == "2 of 4 slices (missing: 1 crc_mismatch, 1 truncated)"
    found = values(out)
    assert_same({key: value for key, value in found.items() if key not in ("1.1", "1.4")}, values(plain))


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_of_files_with_one_sop_uid_the_first_counts_whatever_series_they_are_of(run, few, plain, names, tmp_path):
    """A copy, another slice of the same series, and one of a series that comes before."""
    copies = tmp_path / "zz_copies"  # behind the folder of the others
    copies.mkdir()
    shutil.copy(few / f"{uid(1, 3)}.dcm", copies / f"{names[0]}.dcm")
    put(copies, f"{names[1]}.dcm", 1, 50, uid(1, 4))
    put(copies, "c.dcm", 0, 60, uid(3, 0))
    first = tmp_path / "in"
    shutil.copytree(few, first)
    code, out = run(first, copies)
    assert code == 0
    told = {row["file"]: row["reason"] for row in rows(out / "rejects.csv")}
    copy, other = f"{names[0]}.dcm", f"{names[1]}.dcm"
    assert told == {copy: "duplicate_slice", other: "uid_conflict", "c.dcm": "uid_conflict"}
    assert {row["input"] for row in rows(out / "rejects.csv")} == {"2"}
    assert_same(values(out), values(plain))


def test_of_repeats_the_first_that_can_be_read_counts(run, some, plain):
    path = some / f"{uid(1, 3)}.dcm"
    shutil.copy(path, some / "later.dcm")
    path.write_bytes(path.read_bytes()[:-100])
    _, out = run(some)
    assert {row["file"]: row["reason"] for row in rows(out / "rejects.csv")} == {path.name: "truncated"}
    assert_same(values(out), values(plain))
    assert {row["sop_uid"]: row["file"] for row in rows(out / "predictions.csv")}[uid(1, 3)] == "later.dcm"


def test_slices_and_rejects_are_those_of_the_slice_model(run, some, series_run, defective_set):
    put(some, "copy.dcm", 0, 3, uid(3, 0))
    shutil.copy(some / f"{uid(1, 3)}.dcm", some / "twice.dcm")
    (some / "broken.dcm").write_bytes(b"nonsense")
    (some / "gone.dcm").symlink_to("nowhere")
    inputs = (some, defective_set.output / "stage_2_train")
    _, one = run(*inputs)
    _, other = run(*inputs, output="slices", model=series_run / "export" / "slice")
    for name in ("rejects.csv", "predictions.csv"):
        columns = list(slice_stream.Reject._fields) if name == "rejects.csv" else triage.slice_head(NAMES)[:6]
        found = [sorted(tuple(row[column] for column in columns) for row in rows(out / name)) for out in (one, other)]
        assert found[0] == found[1]
    assert len({row["reason"] for row in rows(one / "rejects.csv")}) > 4


def test_a_series_of_one_slice_is_judged_alone(run, tmp_path, capsys):
    put(tmp_path / "one", "a.dcm", 1, 3)
    code, out = run(tmp_path / "one")
    assert (code, len(rows(out / "predictions.csv")), rows(out / "rejects.csv")) == (0, 1, [])
    assert "has a probability" in capsys.readouterr().out


def test_slices_without_an_order_are_rejects_and_the_rest_goes_on(run, some, plain, capsys):
    for number in range(3):
        put(some, f"flat_{number}.dcm", 7, number, at=2)
    code, out = run(some, output="flat")
    assert code == 0
    rejects = rows(out / "rejects.csv")
    assert [(row["file"], row["study_uid"], row["reason"]) for row in rejects] == [
        (f"flat_{number}.dcm", "study 7", "no_order") for number in range(3)
    ]
    assert {row["detail"] for row in rejects} == {"series series 7 has 3 slices at one position, so they have no order"}
    assert rows(out / "triage.csv")[-1]["partial"] == "0 of 3 slices (missing: 3 no_order)"
    assert_same(values(out), values(plain))
    assert "\n3 files without a prediction: 3 no_order\n" in capsys.readouterr().out


def test_files_of_which_none_has_an_order_are_one_line(run, tmp_path, capsys):
    for number in range(3):
        put(tmp_path / "flat", f"{number}.dcm", 7, number, at=2)
    code, out = run(tmp_path / "flat")
    assert code == 2
    line = capsys.readouterr().err
    assert line.startswith("predict: no slice has a place among others (3 no_order); ")
    assert line.count("\n") == 1
    assert len(rows(out / "rejects.csv")) == 3


def test_files_of_which_none_is_a_slice(run, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.dcm").write_bytes(b"nonsense")
    code, out = run(tmp_path / "in", pictures=2)
    assert code == 1
    assert [row["reason"] for row in rows(out / "rejects.csv")] == ["not_dicom", "not_dicom"]
    assert "predict: no file gave a prediction (2 not_dicom); " in capsys.readouterr().err


def spoiled(export: Path, folder: Path, layer: int = -1) -> Path:
    """The export with a context that gives no number, as diverged training leaves it."""
    about = model_file.read_about(export)
    model = model_file.load_model(export, about)
    variable = model.get_layer("logits").bias
    variable.assign(np.full(variable.shape, np.nan))
    model_file.write(folder, model, about, export / "slice")
    return folder


def test_a_context_that_gives_nan_is_told(run, some, series_run, tmp_path, capsys):
    code, out = run(some, model=spoiled(series_run / "export", tmp_path / "model"))
    assert code == 1
    line = capsys.readouterr().err
    assert line.startswith("predict: the model gives no finite number for 80 slices; ")
    assert {row["reason"] for row in rows(out / "rejects.csv")} == {"no_probability"}
    assert rows(out / "predictions.csv") == []


def test_a_slice_model_of_another_run_is_refused(run, some, series_run, blob_run, tmp_path, capsys):
    model = Path(shutil.copytree(series_run / "export", tmp_path / "model"))
    shutil.rmtree(model / "slice")
    assert run(some, model=model)[0] == 2
    assert f"cannot use {model / 'slice'}/about.json" in capsys.readouterr().err
    other = model_file.read_about(blob_run / "export")
    wider = model_file.load_model(blob_run / "export", other)
    made = networks.build(
        "cnn", other.spec.image.shape, len(other.spec.labels.names), "none", {"filters": [4], "dense": [8]}
    )
    assert made.input_shape == wider.input_shape
    model_file.write(model / "slice", made, other)
    assert run(some, model=model)[0] == 2
    line = capsys.readouterr().err
    assert " is not the slice model that " in line
    assert line.count("\n") == 1


def test_pictures_show_the_map_and_where_the_series_head_looks(run, some, series_run):
    _, plain = run(some, pictures=2, model=series_run / "export" / "slice")
    _, out = run(some, pictures=2, output="series")
    names = facts(out)["pictures"]
    assert names[0] == f"001_{rows(out / 'triage.csv')[0]['driven_by']}.png"
    sizes = []
    for folder, pictures in ((plain, facts(plain)["pictures"]), (out, names)):
        with Image.open(folder / "pictures" / pictures[0]) as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > sizes[0][1] + 100


def test_an_interruption_ends_the_thread_and_leaves_nothing_half_written(run, some, monkeypatch, capsys):
    from test_predict import interrupted_at  # the same way of being interrupted

    monkeypatch.setattr(series_stream, "_outcome", interrupted_at(2, series_stream._outcome))
    code, out = run(some)
    assert code == 130
    assert sorted(path.name for path in out.iterdir()) == ["lock", "run.json"]
    monkeypatch.undo()
    assert run(some)[0] == 0
    assert len(rows(out / "predictions.csv")) == 80


def test_importing_the_command_loads_no_network_library():
    code = "import sys, trainer.predict; print([one for one in ('tensorflow', 'keras') if one in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_real_files_run_through(run, real_dicom_dir, series_run):
    code, out = run(real_dicom_dir, pictures=2)
    assert code == 0
    _, other = run(real_dicom_dir, output="slices", model=series_run / "export" / "slice")
    found = rows(out / "predictions.csv")
    assert sorted(row["sop_uid"] for row in found) == sorted(row["sop_uid"] for row in rows(other / "predictions.csv"))
    keys = [(row["study_uid"], row["series_uid"]) for row in found]
    assert [key for key, _ in groupby(keys)] == list(dict.fromkeys(keys))  # each in one piece
    for key in set(keys):
        places = [float(row["position_mm"]) for row in found if (row["study_uid"], row["series_uid"]) == key]
        assert places == sorted(places)
    assert len(facts(out)["pictures"]) == 2
