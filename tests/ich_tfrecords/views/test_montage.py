"""Pictures of slices: what is drawn, what stands beside it, and what damage does."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import odd_dataset
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ich_tfrecords import spec
from ich_tfrecords.dataset import manifest, records
from ich_tfrecords.views import montage


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("odd") / "data")


def row(**changes):
    values = dict.fromkeys(("any", "epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"), 0)
    return {**values, "split": "train", "slice_index": 2, "slice_count": 32, "sop_uid": "ID_1", **changes}


class TestDraw:
    @given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(0, 12), st.integers(0, 3))
    def test_it_draws_distinct_rows_of_as_many_patients_as_there_are(self, patients, count, seed):
        rows = pa.table({"patient_key": pa.array(patients, pa.string()), "number": pa.array(range(len(patients)))})
        drawn = montage.draw(rows, count, seed)
        numbers = drawn["number"].to_pylist()
        assert numbers == sorted(set(numbers))
        assert len(numbers) == min(count, len(patients))
        assert len(set(drawn["patient_key"].to_pylist())) == min(count, len(set(patients)))
        assert drawn.equals(montage.draw(rows, count, seed))

    def test_strata_come_rarest_first_and_without_empty_ones(self, odd):
        done = manifest.read(odd)
        rows = montage.slice_rows(odd, done.spec)
        drawn = list(montage.draw_strata(rows, done.spec, 1, 0))
        assert [stratum for stratum, _, _ in drawn] == list(done.spec.labels.strata[:-1])
        assert {stratum: count for stratum, count, _ in drawn}["none"] == 2
        assert all(table.num_rows == 1 for _, _, table in drawn)


class TestReadPictures:
    def test_images_are_those_of_the_records(self, dataset):
        done = manifest.read(dataset)
        rows = montage.slice_rows(dataset, done.spec).slice(3, 5)
        for picture in montage.read_pictures(dataset, rows, done.spec):
            assert records.pixel_digest(picture.image).hex() == picture.row["pixel_digest"]

    def test_an_offset_into_another_record_is_damage(self, odd):
        done = manifest.read(odd)
        rows = montage.slice_rows(odd, done.spec)
        for offset, said in ((1, "crc32c"), (10**9, "no record at byte 1,000,000,000")):
            moved = rows.set_column(
                rows.column_names.index("offset"), "offset", pa.array([offset] * rows.num_rows, pa.int64())
            )
            with pytest.raises(montage.DamagedSlice, match=said):
                montage.read_pictures(odd, moved.slice(0, 1), done.spec)

    def test_a_record_of_another_slice_is_damage(self, odd):
        done = manifest.read(odd)
        rows = montage.slice_rows(odd, done.spec)
        renamed = rows.set_column(rows.column_names.index("sop_uid"), "sop_uid", pa.array(["ID_other"] * rows.num_rows))
        with pytest.raises(montage.DamagedSlice, match="not ID_other"):
            montage.read_pictures(odd, renamed.slice(0, 1), done.spec)

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".."])
    def test_a_shard_name_cannot_leave_the_data_set(self, tmp_path, name):
        with pytest.raises(montage.DamagedSlice, match="leads out"):
            montage.shard_path(tmp_path, name)

    def test_a_table_without_a_label_is_refused(self, odd, rsna_spec):
        labels = spec.LabelSpec(any="any", names=("any", "fracture"), rarest_first=("fracture",))
        with pytest.raises(manifest.DatasetError, match="fracture"):
            montage.slice_rows(odd, dataclasses.replace(rsna_spec, labels=labels))

    def test_rows_of_some_splits(self, odd):
        rows = montage.slice_rows(odd, manifest.read(odd).spec)
        assert montage.of_splits(rows, ["spare"]).num_rows == 0
        kept = montage.of_splits(rows, ["train"])
        assert kept.num_rows == pc.sum(pc.equal(rows["split"], "train")).as_py() > 0


class TestPanels:
    @pytest.mark.parametrize(
        ("windows", "channels"),
        [(1, (0, 0, 0)), (2, (0, 1, 1)), (3, (0, 1, 2)), (5, (0, 1, 2))],
    )
    def test_composite_takes_the_first_windows(self, windows, channels):
        image = np.random.default_rng(0).integers(0, 256, (8, 8, windows), np.uint8)
        assert np.array_equal(montage.composite(image), np.stack([image[..., i] for i in channels], -1))

    @pytest.mark.parametrize(("windows", "count"), [(1, 1), (2, 3), (3, 4)])
    def test_one_panel_a_window_and_the_composite(self, windows, count):
        image = np.random.default_rng(0).integers(0, 256, (16, 16, windows), np.uint8)
        parts = montage.panels(image, 16)
        assert len(parts) == count
        assert np.array_equal(np.asarray(parts[0])[..., 0], image[..., 0])
        assert np.array_equal(np.asarray(parts[-1]), montage.composite(image))
        assert len(montage.panel_heads(odd_dataset.small_spec(windows))) == count
        assert montage.strip(image, 24).size == (montage.strip_width_px(count, 24), 24)

    def test_heads_name_level_and_width(self, rsna_spec):
        assert montage.panel_heads(rsna_spec) == ["brain 40/80", "subdural 80/200", "bone 40/380", "composite RGB"]

    def test_png_is_lossless(self):
        image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
        with Image.open(io.BytesIO(montage.png_bytes(Image.fromarray(image)))) as back:
            assert np.array_equal(np.asarray(back), image)


class TestCaptions:
    def test_labels_in_words(self, rsna_spec):
        said = montage.positive_labels
        assert said(row(), rsna_spec) == "no hemorrhage"
        assert said(row(any=1, subdural=1, epidural=1), rsna_spec) == "epidural, subdural"
        assert said(row(any=1), rsna_spec) == "any, kind unknown"
        assert said({**row(), **dict.fromkeys(rsna_spec.labels.names, -1)}, rsna_spec) == "labels unknown"

    def test_slices_count_from_one(self):
        assert montage.place(row()) == "train, slice 3 of 32"

    @pytest.mark.parametrize(
        ("text", "short"),
        [
            ("ID_6431af929", "ID_6431af929"),
            ("1.2.840.113619.2.55.3", "1.2....19.2.55.3"),
            ("a\nb\x00", "a?b?"),
            ("", ""),
        ],
    )
    def test_ids_are_shortened_in_the_middle(self, text, short):
        assert montage.shortened(text, most=16) == short

    @given(st.text(max_size=40), st.integers(0, 60))
    def test_fitted_text_is_a_prefix_that_fits(self, text, width):
        found = montage.fitted(text, width, lambda part: float(len(part)))
        if len(text) <= width:
            assert found == text
        else:
            assert text.startswith(found.removesuffix("..."))
            assert len(found) <= max(width, 3)


class TestMontage:
    @pytest.mark.slow
    @pytest.mark.parametrize("windows", [1, 2, 3, 5])
    def test_every_panel_of_every_slice_is_seen_whole(self, odd, windows):
        """Each slice is filled with a grey of its own, whose pixels are counted."""
        done = manifest.read(odd)
        more = tuple(spec.Window(f"more{number}", 40, 80) for number in range(windows))
        image = dataclasses.replace(done.spec.image, windows=more)
        done = dataclasses.replace(done, spec=dataclasses.replace(done.spec, image=image))
        pictures = [montage.Picture(row(), np.full((32, 32, windows), 100 + 9 * n, np.uint8)) for n in range(7)]
        panels = len(montage.panel_heads(done.spec))
        for counts in ((1,), (7,), (2, 5)):
            groups = [("some", pictures[7 - count :]) for count in counts]
            canvas = np.asarray(montage.montage(done, groups, "subtitle"))
            assert canvas.shape[1] <= montage.MAX_ROW_PX
            for n in range(7 - max(counts), 7):
                shown = sum(count >= 7 - n for count in counts)
                assert (canvas == 100 + 9 * n).all(-1).sum() >= shown * panels * montage.PANEL_PX**2
