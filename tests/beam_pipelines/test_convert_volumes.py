"""Conversion of enhanced CT and NIfTI, end to end: the records are those of the single-frame files they come from."""

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

from ich_tfrecords import inspect
from ich_tfrecords.conversion import job
from ich_tfrecords.storage import slice_reader
from ich_tfrecords.volumes import nifti as nifti_reader

PACKED, LYING, WHOLE = head(seed=1), head(seed=2), head(seed=3)


def compressed() -> bytes:
    ds = enhanced(
        LYING, uid="1.2.3.88.3", PatientID="nobody", StudyInstanceUID="1.2.3.88.1", SeriesInstanceUID="1.2.3.88.2"
    )
    return volume_files.compressed(ds, JPEG_LS, [codestream(one, JPEG_LS, 16) for one in frames_of(ds)])


FILES = {
    "e/whole.dcm": written(enhanced(WHOLE)),
    "e/packed": compressed(),
    "n/head.nii.gz": nifti(PACKED, "LAS", packed=True),
}
DIGESTS = "pixel_digest"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def slices(output: object) -> list[dict]:
    rows = pq.read_table(str(output) + "/slices.parquet").to_pylist()
    return sorted(rows, key=lambda row: (row["series_uid"], row["position_mm"]))


def rejects(output: Path) -> list[list[str]]:
    with (output / "rejects.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def digests(output: object) -> list[str]:
    return sorted(row[DIGESTS] for row in slices(output))


@pytest.fixture(scope="module")
def singles(convert, tmp_path_factory) -> list[str]:
    """Digests of the images of all heads, from single-frame files."""
    folder = tmp_path_factory.mktemp("singles")
    for number, hu in enumerate((WHOLE, LYING, PACKED)):
        files = single_files(hu, f"1.2.{number}", patient_id=f"p{number}")
        write(folder / "in", {f"{number}_{at}.dcm": data for at, data in enumerate(files)})
    assert convert("--input", folder / "in", "--labels", "none", "--output", folder / "out") == 0
    return digests(folder / "out")


@pytest.fixture(scope="module")
def from_folder(convert, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    output = folder / "out"
    assert convert("--input", write(folder / "in", FILES), "--labels", "none", "--output", output) == 0
    return output


def test_a_folder_gives_the_records_of_single_files(from_folder, singles):
    assert digests(from_folder) == singles
    assert rejects(from_folder) == []
    assert not (from_folder / job.WORK).exists()
    found = slices(from_folder)
    for begin in range(0, 18, 6):
        series = found[begin : begin + 6]
        assert len({row["series_uid"] for row in series}) == 1
        assert [row["slice_index"] for row in series] == list(range(6))
        assert [row["position_mm"] for row in series] == pytest.approx([20.0 + 5 * at for at in range(6)])
        assert {row["split"] for row in series} == {series[0]["split"]}
    assert inspect.main(["verify", str(from_folder)]) == 0


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_the_same_data_set(from_folder, convert, tmp_path, method):
    archive = zipped(tmp_path / "in.zip", FILES, method)
    assert convert("--input", archive, "--labels", "none", "--output", tmp_path / "out") == 0
    assert slices(tmp_path / "out") == slices(from_folder)


TWO_PROCESSES = ("--direct_num_workers", "2", "--direct_running_mode", "multi_processing")


@pytest.mark.parametrize("more", [(), TWO_PROCESSES], ids=["one process", "two processes"])
def test_a_bucket_to_a_bucket_gives_the_same_data_set(from_folder, gcs, convert, more):
    name = gcs.bucket()
    there = gcs.client().bucket(name)
    for key, data in FILES.items():
        there.blob(f"in/{key}").upload_from_string(data)
    output = f"gs://{name}/out"
    assert convert("--input", f"gs://{name}/in", "--labels", "none", "--output", output, *more) == 0
    found = json.loads(there.blob("out/manifest.json").download_as_bytes())
    assert found["fingerprint"] == json.loads((from_folder / "manifest.json").read_bytes())["fingerprint"]
    assert not [blob.name for blob in there.list_blobs() if f"/{job.WORK}/" in blob.name]


def test_a_volume_is_unpacked_once_however_many_shards_take_its_slices(convert, tmp_path, monkeypatch):
    unpacked, real = [], nifti_reader._unpacked
    monkeypatch.setattr(nifti_reader, "_unpacked", lambda file: (unpacked.append(1), real(file))[1])
    folder = write(tmp_path / "in", {"head.nii.gz": FILES["n/head.nii.gz"]})
    assert convert("--input", folder, "--labels", "none", "--output", tmp_path / "out") == 0
    assert len({row["shard"] for row in slices(tmp_path / "out")}) == 6
    assert unpacked == [1]


def stopped_after_the_index(convert, folder: Path, output: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("beam_pipelines.convert._write_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert convert("--input", folder, "--labels", "none", "--output", output) == 130


def test_an_interrupted_conversion_goes_on_with_what_was_unpacked(from_folder, convert, tmp_path, monkeypatch):
    folder, output = write(tmp_path / "in", FILES), tmp_path / "out"
    stopped_after_the_index(convert, folder, output, monkeypatch)
    kept = {path.name: path.stat().st_mtime_ns for path in (output / job.WORK / "volumes").iterdir()}
    assert len(kept) == 3
    monkeypatch.setattr(nifti_reader, "_unpacked", lambda file: pytest.fail("unpacked again"))
    assert convert("--input", folder, "--labels", "none", "--output", output) == 0
    assert slices(output) == slices(from_folder)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_what_was_unpacked_and_is_gone_is_unpacked_again(from_folder, convert, tmp_path, monkeypatch, damage):
    folder, output = write(tmp_path / "in", FILES), tmp_path / "out"
    stopped_after_the_index(convert, folder, output, monkeypatch)
    damage(min((output / job.WORK / "volumes").iterdir()))
    assert convert("--input", folder, "--labels", "none", "--output", output) == 0
    assert slices(output) == slices(from_folder)


def test_a_bit_that_turned_in_what_was_unpacked_is_found(convert, tmp_path, monkeypatch):
    folder, output = write(tmp_path / "in", {"n.nii.gz": FILES["n/head.nii.gz"]}), tmp_path / "out"
    stopped_after_the_index(convert, folder, output, monkeypatch)
    (path,) = (output / job.WORK / "volumes").iterdir()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert convert("--input", folder, "--labels", "none", "--output", output, "--max_reject_fraction", 0.5) == 0
    ((name, uid, reason, detail),) = rejects(output)
    assert (name, reason) == ("n.nii.gz#1", "crc_mismatch")
    assert uid.startswith("2.25.")
    assert "the index says" in detail


def test_copies_of_a_volume_give_its_records_once(convert, tmp_path):
    folder = write(tmp_path / "in", {"a.nii.gz": FILES["n/head.nii.gz"], "b.nii.gz": FILES["n/head.nii.gz"]})
    output = tmp_path / "out"
    assert convert("--input", folder, "--labels", "none", "--output", output, "--max_reject_fraction", 0.5) == 0
    assert len(slices(output)) == 6
    assert [row[0::2] for row in rejects(output)] == [[f"b.nii.gz#{frame}", "duplicate_slice"] for frame in range(1, 7)]


def test_a_bad_file_is_one_reject_and_a_bad_frame_another(convert, tmp_path, capfd):
    ds = enhanced(LYING, uid="1.2.3.88.3")
    streams = [codestream(one, JPEG_LS, 16) for one in frames_of(ds)]
    streams[2] = streams[2][:300]
    lame = volume_files.compressed(ds, JPEG_LS, streams)
    all_lame = volume_files.compressed(enhanced(LYING), JPEG_LS, [stream[:300] for stream in streams])
    files = {"good.nii": nifti(PACKED), "cut.nii": nifti(PACKED)[:-40], "frame.dcm": lame, "all.dcm": all_lame}
    files |= {"many.dcm": written(enhanced(WHOLE, NumberOfFrames=100_000))}
    files |= {"mask.nii.gz": nifti((PACKED > 0).astype(np.int16), packed=True)}
    files |= {"nobody.dcm": written(enhanced(WHOLE, PatientID=""))}
    folder, output = write(tmp_path / "in", files), tmp_path / "out"
    assert convert("--input", folder, "--labels", "none", "--output", output, "--max_reject_fraction", 0.4) == 0
    assert [(name, reason) for name, _, reason, _ in rejects(output)] == [
        ("all.dcm", "truncated"),
        ("cut.nii", "truncated"),
        ("frame.dcm#3", "truncated"),
        ("many.dcm", "too_large"),
        ("mask.nii.gz", "not_ct"),
        ("nobody.dcm", "missing_id"),
    ]
    assert len(slices(output)) == 11
    assert "1 file is no axial CT slice, which is no fault of the input: 1 not_ct" in capfd.readouterr().err


def test_no_slice_at_all_names_the_reason(convert, tmp_path, capfd):
    folder = write(tmp_path / "in", {"a.dcm": written(enhanced(WHOLE, ConcatenationUID="1.2.3"))})
    assert convert("--input", folder, "--labels", "none", "--output", tmp_path / "out") == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert "1 concatenation (first: a.dcm; the file is a part of a concatenation" in line


def test_a_label_of_the_file_is_not_taken_for_one_of_its_slices(convert, tmp_path):
    folder = write(tmp_path / "in", {"head.nii.gz": FILES["n/head.nii.gz"]})
    (tmp_path / "labels.csv").write_text(
        "filename,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\nhead.nii.gz,1,0,1,0,0,0\n"
    )
    flags = ("--labels", tmp_path / "labels.csv", "--output", tmp_path / "out")
    assert convert("--input", folder, *flags) == 0
    assert {(row["any"], row["epidural"], row["intraparenchymal"]) for row in slices(tmp_path / "out")} == {(-1, 0, -1)}


def test_labels_by_the_uid_of_a_frame(convert, tmp_path):
    folder = write(tmp_path / "in", {"whole.dcm": FILES["e/whole.dcm"]})
    names = "any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural"
    rows = [f"1.2.3.77.3.{frame},{frame % 2},0,{frame % 2},0,0,0" for frame in range(1, 7)]
    (tmp_path / "labels.csv").write_text("\n".join([f"sop_uid,{names}", *rows, ""]))
    flags = ("--labels", tmp_path / "labels.csv", "--output", tmp_path / "out")
    assert convert("--input", folder, *flags) == 0
    assert [row["any"] for row in slices(tmp_path / "out")] == [1, 0, 1, 0, 1, 0]


def test_a_file_larger_than_a_slice_may_be(convert, tmp_path, monkeypatch):
    """The cap of a slice is that of many other files; the frames of enhanced CT are seen by the head of the file."""
    monkeypatch.setattr("ich_tfrecords.volumes.reader.MAX_SLICE_BYTES", 4096)
    real = slice_reader.SliceReader.read

    def only_ranges(own, row):
        assert row.method == slice_reader.RANGE, "read in one piece"
        return real(own, row)

    monkeypatch.setattr(slice_reader.SliceReader, "read", only_ranges)
    folder = write(tmp_path / "in", {"whole.dcm": FILES["e/whole.dcm"]})
    assert convert("--input", folder, "--labels", "none", "--output", tmp_path / "out") == 0
    assert len(slices(tmp_path / "out")) == 6


PLANTED = ("Doe", "Jane", "19700101", "A77", "someone")


def test_no_identity_leaves(from_folder):
    for path in from_folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in PLANTED if word.encode() in data], path.name
    text = pq.read_table(from_folder / "slices.parquet").to_pandas().to_csv()
    assert not [word for word in PLANTED if word in text]
