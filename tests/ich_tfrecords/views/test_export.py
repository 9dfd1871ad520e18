"""PNG files and label tables: exact pixels, safe names, whole or not there."""

from __future__ import annotations

import csv
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import odd_dataset
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from ich_tfrecords import inspect
from ich_tfrecords.dataset import manifest
from ich_tfrecords.labels.table import read_labels
from ich_tfrecords.views import export, montage


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("odd") / "data")


def run(*argv: object) -> int:
    return inspect.main(["export", *(str(arg) for arg in argv)])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class TestNames:
    @pytest.mark.parametrize(
        ("uid", "stem"),
        [
            ("ID_6431af929", "ID_6431af929"),
            ("1.2.840.1", "1.2.840.1"),
            ("../x", "%2E.%2Fx"),
            ("=1+1", "%3D1%2B1"),
            ("-a", "%2Da"),
            (".", "%2E"),
            ("", "%"),
            ("%41", "%2541"),
            ("a\\b\0", "a%5Cb%00"),
            ("é", "%C3%A9"),
        ],
    )
    def test_literal_stems(self, uid, stem):
        assert export.safe_stem(uid) == stem

    @given(st.text(max_size=80))
    @example("CON/..")
    def test_stems_are_plain_and_lead_back_to_their_text(self, uid):
        stem = export.safe_stem(uid)
        assert Path(stem).name == stem
        assert stem[0] not in "=+-@.\t\r"
        assert len(f"{stem}.png") <= 255
        if "~" not in stem:
            assert unquote_to_bytes(stem if stem != "%" else "").decode(errors="surrogatepass") == uid

    def test_long_ids_keep_apart(self):
        stems = {export.safe_stem("/" * 300 + end) for end in ("a", "b", "")}
        assert len(stems) == 3
        assert max(map(len, stems)) <= 180

    def test_a_window_in_the_name_cannot_collide(self):
        names = [export.file_names(uid, odd_dataset.small_spec(2)) for uid in ("a", "a.brain", "a_brain")]
        assert names[0] == ["a.brain.png", "a.subdural.png"]
        assert len({name for some in names for name in some}) == 6


class TestFiles:
    def test_every_slice_is_a_png_with_the_bytes_of_its_record(self, dataset, tmp_path):
        assert run(dataset, "--output", tmp_path / "png") == 0
        done = manifest.read(dataset)
        rows = montage.slice_rows(dataset, done.spec)
        for picture in montage.read_pictures(dataset, rows.slice(0, 12), done.spec):
            path = tmp_path / "png" / picture.row["split"] / f"{picture.row['sop_uid']}.png"
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), picture.image)
        for split, values in done.splits.items():
            assert len(list((tmp_path / "png" / split).iterdir())) == values["slices"]

    def test_the_table_is_wide_and_reads_back_as_labels(self, dataset, tmp_path):
        assert run(dataset, "--output", tmp_path / "png", "--split", "train") == 0
        done = manifest.read(dataset)
        path = tmp_path / "png" / "labels_train.csv"
        assert path.read_text().splitlines()[0] == ",".join(["filename", *done.spec.labels.names])
        table = read_labels(path, done.spec.labels)
        assert table.ids.to_pylist() == sorted(row["filename"].removesuffix(".png") for row in read_csv(path))
        assert int((table.values == 1).sum()) == sum(
            counts["positive"] for counts in done.splits["train"]["labels"].values()
        )
        assert sorted(entry.name for entry in (tmp_path / "png").iterdir()) == ["labels_train.csv", "train"]

    def test_hostile_ids_stay_in_their_folder(self, odd, tmp_path):
        assert run(odd, "--output", tmp_path / "out" / "png") == 0
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["png"]
        written = {path.name for path in (tmp_path / "out" / "png").rglob("*.png")}
        assert written == {f"{export.safe_stem(uid)}.png" for uid in (*odd_dataset.HOSTILE, odd_dataset.TWIN)}
        for split in ("test", "train"):
            for row in read_csv(tmp_path / "out" / "png" / f"labels_{split}.csv"):
                assert (tmp_path / "out" / "png" / split / row["filename"]).is_file()
                assert row["filename"][0] not in "=+-@"

    def test_an_empty_split_has_a_head_only(self, odd, tmp_path):
        assert run(odd, "--output", tmp_path / "png", "--split", "spare") == 0
        assert list((tmp_path / "png" / "spare").iterdir()) == []
        assert read_csv(tmp_path / "png" / "labels_spare.csv") == []

    def test_unknown_labels_stay_minus_one(self, tmp_path):
        folder = odd_dataset.make(tmp_path / "data", labelled=False)
        assert run(folder, "--output", tmp_path / "png", "--split", "train") == 0
        rows = read_csv(tmp_path / "png" / "labels_train.csv")
        assert rows
        assert {row["any"] for row in rows} == {"-1"}

    @pytest.mark.parametrize("windows", [1, 2])
    def test_other_numbers_of_windows_are_grey(self, tmp_path, windows):
        folder = odd_dataset.make(tmp_path / "data", windows=windows)
        assert run(folder, "--output", tmp_path / "png") == 0
        files = sorted((tmp_path / "png").rglob("*.png"))
        assert len(files) == 7 * windows
        with Image.open(files[0]) as image:
            assert image.mode == "L"
        listed = [
            row["filename"] for split in ("test", "train") for row in read_csv(tmp_path / f"png/labels_{split}.csv")
        ]
        assert sorted(listed) == sorted(path.name for path in files)


class TestRefusals:
    def test_an_output_that_is_not_empty(self, odd, tmp_path, capsys):
        (tmp_path / "kept").write_text("mine")
        for output in (tmp_path, tmp_path / "kept", odd):
            assert run(odd, "--output", output) == 2
            assert "not an empty folder" in capsys.readouterr().err
        assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]

    def test_damage_gives_1_and_no_table(self, dataset_copy, tmp_path, capsys):
        shard = next(shard for shard in manifest.read(dataset_copy).shards if shard["split"] == "train")
        path = dataset_copy / shard["name"]
        whole = path.read_bytes()
        for damage in (whole[:-5], whole[:0]):
            path.write_bytes(damage)
            output = tmp_path / f"png{len(damage)}"
            assert run(dataset_copy, "--output", output, "--split", "train") == 1
            assert shard["name"] in capsys.readouterr().err
            assert not (output / "labels_train.csv").exists()
            assert not list(output.rglob("*.tmp"))

    def test_lost_files_are_noticed(self, odd, tmp_path, monkeypatch, capsys):
        """As on a file system that takes upper and lower case for one."""
        monkeypatch.setattr(export, "safe_stem", lambda uid: "same")
        assert run(odd, "--output", tmp_path / "png", "--split", "train") == 2
        assert "names for one" in capsys.readouterr().err
        assert not (tmp_path / "png" / "labels_train.csv").exists()
