"""Prediction of enhanced CT and NIfTI: the same probabilities as of the single-frame files that they are made from."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import volume_files
from dicom_files import JPEG_LS, codestream
from volume_files import enhanced, frames_of, head, nifti, single_files, written

from trainer import predict
from trainer.models import model_file
from trainer.prediction import slice_stream
from trainer.prediction.heads import Heads

pytestmark = pytest.mark.slow  # the whole command, again and again

PACKED, WHOLE = head(7, seed=1), head(5, seed=3)
FILES = {"e/whole.dcm": written(enhanced(WHOLE)), "n/head.nii.gz": nifti(PACKED, "LAI", packed=True)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["slices", "series"])
def model(request) -> Path:
    return request.getfixturevalue("blob_run" if request.param == "slices" else "series_run")


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """run(*inputs, flags) -> folder of the results of a command that ends well."""

    def predicted(*inputs: object, **flags: object) -> Path:
        out = tmp_path_factory.mktemp("predicted") / "out"
        given = [part for one in inputs for part in ("--input", str(one))]
        given += [part for name, value in {"pictures": 0, **flags}.items() for part in (f"--{name}", str(value))]
        assert predict.main(["--model", str(model), "--output", str(out), *given]) == 0
        return out

    return predicted


def by_place(out: Path, labels: list[str]) -> dict[str, np.ndarray]:
    """Probabilities [slices, labels] from feet to head, of each study by its number of slices."""
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows(out / "predictions.csv"):
        found.setdefault(row["study_uid"], []).append(row)
    return {
        str(len(study)): np.array(
            [[float(row[name]) for name in labels] for row in sorted(study, key=lambda row: float(row["position_mm"]))]
        )
        for study in found.values()
    }


@pytest.fixture(scope="module")
def labels(model) -> list[str]:
    return list(model_file.read_about(model_file.find(str(model))).spec.labels.names)


@pytest.fixture(scope="module")
def singles(run, labels, tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("singles")
    for number, hu in enumerate((WHOLE, PACKED)):
        files = single_files(hu, f"1.2.{number}", patient_id=f"p{number}")
        write(folder, {f"{number}_{at}.dcm": data for at, data in enumerate(files)})
    return by_place(run(folder), labels)


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys() == {"5", "7"}
    for study, values in found.items():
        np.testing.assert_allclose(values, wanted[study], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_a_folder(run, labels, singles, tmp_path, batch_size):
    out = run(write(tmp_path / "in", FILES), batch_size=batch_size)
    assert_same(by_place(out, labels), singles)
    names = [row["file"] for row in rows(out / "predictions.csv")]
    whole = [f"e/whole.dcm#{frame}" for frame in range(1, 6)]
    assert sorted(names) == sorted([*whole, *(f"n/head.nii.gz#{frame}" for frame in range(1, 8))])
    assert rows(out / "rejects.csv") == []
    studies = rows(out / "triage.csv")
    assert sorted(row["slices"] for row in studies) == ["5", "7"]
    driven = {row["sop_uid"]: row["file"] for row in rows(out / "predictions.csv")}
    assert [row["file"] for row in studies] == [driven[row["driven_by"]] for row in studies]
    facts = json.loads((out / "run.json").read_text())
    assert (facts["slices"], facts["input"]["files"]) == (12, 2)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip(run, labels, singles, tmp_path, method):
    with zipfile.ZipFile(tmp_path / "in.zip", "w", method) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    assert_same(by_place(run(tmp_path / "in.zip"), labels), singles)


def test_a_bucket(run, labels, singles, gcs):
    name = gcs.bucket()
    for key, data in FILES.items():
        gcs.client().bucket(name).blob(f"in/{key}").upload_from_string(data)
    assert_same(by_place(run(f"gs://{name}/in"), labels), singles)


def test_what_is_lost_names_file_and_frame(run, tmp_path, capsys):
    ds = enhanced(WHOLE)
    streams = [codestream(one, JPEG_LS, 16) for one in frames_of(ds)]
    streams[2] = streams[2][:300]
    files = {"lame.dcm": volume_files.compressed(ds, JPEG_LS, streams), "cut.nii": nifti(PACKED)[:-50]}
    files |= {"mask.nii.gz": nifti((PACKED > 0).astype(np.int16), packed=True), "head.nii": nifti(PACKED)}
    out = run(write(tmp_path / "in", files))
    lost = {row["file"]: (row["reason"], row["study_uid"]) for row in rows(out / "rejects.csv")}
    assert lost == {
        "cut.nii": ("truncated", ""),
        "lame.dcm#3": ("truncated", "1.2.3.77.1"),
        "mask.nii.gz": ("not_ct", ""),
    }
    partial = {row["study_uid"]: row["partial"] for row in rows(out / "triage.csv")}
    assert partial["1.2.3.77.1"] == "4 of 5 slices (missing: 1 truncated)"
    assert "1 file that tells no study could not be read" in capsys.readouterr().out


def test_copies_of_a_volume(run, tmp_path):
    files = {"a.nii.gz": FILES["n/head.nii.gz"], "b.nii.gz": FILES["n/head.nii.gz"]}
    out = run(write(tmp_path / "in", files))
    assert len(rows(out / "predictions.csv")) == 7
    reasons = {(row["file"], row["reason"]) for row in rows(out / "rejects.csv")}
    assert reasons == {(f"b.nii.gz#{frame}", "duplicate_slice") for frame in range(1, 8)}


def test_pictures_of_slices_of_a_volume(run, tmp_path):
    out = run(write(tmp_path / "in", FILES), pictures=4)
    assert len(list((out / "pictures").iterdir())) == 4


def test_no_identity_leaves(run, tmp_path):
    out = run(write(tmp_path / "in", FILES))
    for path in out.rglob("*"):
        if path.is_file():
            held = repr(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text()
            assert not [word for word in ("Doe", "Jane", "19700101", "A77", "someone") if word in held]


def test_a_volume_is_unpacked_once_for_its_slices(rsna_spec, tmp_path, monkeypatch):
    from ich_tfrecords.storage import sources
    from ich_tfrecords.volumes import nifti as nifti_reader

    unpacked, real = [], nifti_reader._unpacked
    monkeypatch.setattr(nifti_reader, "_unpacked", lambda file: (unpacked.append(1), real(file))[1])
    listing = sources.list_inputs([str(write(tmp_path / "in", FILES))]).table
    batches = list(slice_stream.batches(listing, rsna_spec, 2))
    assert unpacked == [1]
    assert [len(batch.slices) for batch in batches] == [2] * 6
    assert sum(batch.files for batch in batches) == 2
    heads = Heads(listing, rsna_spec.accept)
    assert sum(outcome.files for outcome in heads.read()) == 2
    assert len(heads) == 12
    assert len(list(slice_stream.decoded(heads.refs(), rsna_spec, 5, heads.inputs))) == 3
    assert len(unpacked) == 3  # once for the heads, once for the pixels


def test_a_volume_after_contrast_is_left_out_whole(rsna_spec, tmp_path):
    """What its header says of the scan stands at the top, or in the groups of its frames."""
    from ich_tfrecords.storage import sources

    same = {"PatientID": "one", "StudyInstanceUID": "1.2.3.99"}
    files = {
        "a_contrast": enhanced(
            head(12, seed=4), uid="1.2.3.99.1", SeriesInstanceUID="1.2.3.99.11", **same, ContrastBolusAgent="yes"
        ),
        "b_plain": enhanced(head(12, seed=5), uid="1.2.3.99.2", SeriesInstanceUID="1.2.3.99.12", **same),
    }
    listing = sources.list_inputs(
        [str(write(tmp_path / "in", {name: written(ds) for name, ds in files.items()}))]
    ).table
    heads = Heads(listing, rsna_spec.accept)
    assert sum(len(outcome.rejects) for outcome in heads.read()) == 0
    left_out = heads.choose("best").rejects
    assert {(one.file.partition("#")[0], one.reason) for one in left_out} == {("a_contrast", "other_series")}
    assert sorted(int(one.file.partition("#")[2]) for one in left_out) == list(range(1, 13))
    assert heads.kept()["name"].to_pylist() == ["b_plain"]
    assert [ref.name for ref in heads.refs()] == ["b_plain"] * 12
    (found,) = slice_stream.batches(heads.kept(), rsna_spec, 12, heads.inputs)
    assert (len(found.slices), len(found.rejects)) == (12, 0)
