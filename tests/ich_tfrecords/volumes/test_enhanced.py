"""Enhanced CT beside the single-frame files that it is made from; and what is refused, once a file."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import volume_files
from codestreams import jpeg
from dicom_files import IMPLICIT, J2K_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, RLE, codestream
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from volume_files import BIG, DEFLATED, LITTLE, enhanced, frames_of, head, single_files, written

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.ct_slice import CtSlice, SliceProblem
from ich_tfrecords.volumes.enhanced import EnhancedCt
from ich_tfrecords.volumes.volume import MAX_FRAMES

HEAD = head()
SINGLE = [ct_slice.read_slice(data) for data in single_files(HEAD)]


def slices(data: bytes) -> list[CtSlice]:
    volume = EnhancedCt(io.BytesIO(data))
    found = [volume.slice(frame) for frame in range(1, volume.frames + 1)]
    assert [ct.header for ct in found] == [volume.header(frame) for frame in range(1, volume.frames + 1)]
    return found


def same_slices(found: list[CtSlice], wanted: list[CtSlice]) -> None:
    """The same HU, place and ids but for the scale, which is the file's own business."""
    assert len(found) == len(wanted)
    for ct, single in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ct.hu, single.hu)
        for name in ("sop_uid", "patient_id", "study_uid", "series_uid", "position_mm", "rows", "columns"):
            assert getattr(ct.header, name) == getattr(single.header, name), name


def refused(data: bytes) -> SliceProblem:
    with pytest.raises(SliceProblem) as problem:
        EnhancedCt(io.BytesIO(data))
    return problem.value


@pytest.mark.parametrize("syntax", [IMPLICIT, LITTLE, BIG, DEFLATED])
def test_frames_are_the_slices_that_they_were_made_from(syntax):
    same_slices(slices(written(enhanced(HEAD), syntax)), SINGLE)


def test_forty_frames_in_any_order_are_numbered_as_they_lie_in_the_file():
    whole = head(40)
    order = np.random.default_rng(3).permutation(40).tolist()
    found = slices(written(enhanced(whole, order=order)))
    assert [ct.header.sop_uid for ct in found] == [f"1.2.3.77.3.{frame}" for frame in range(1, 41)]
    assert [ct.header.position_mm for ct in found] == [20.0 + 5 * number for number in order]
    np.testing.assert_array_equal(np.stack([ct.hu for ct in found]), whole[order])


@pytest.mark.parametrize("shared", [(), ("rescale",), ("rescale", "orientation", "measures")])
def test_each_group_may_be_shared_or_the_frame_s_own(shared):
    same_slices(slices(written(enhanced(HEAD, shared=shared))), SINGLE)


def test_each_frame_has_its_own_rescale():
    scales = ((1.0, -1024.0), (0.5, -100.0), (2.0, 7.0))
    even = HEAD // 2 * 2
    found = slices(written(enhanced(even + 1, rescale=scales[2:])))
    np.testing.assert_array_equal(np.stack([ct.hu for ct in found]), even + 1)
    found = slices(written(enhanced(even, rescale=scales[:2])))
    assert [(ct.header.slope, ct.header.intercept) for ct in found[:2]] == list(scales[:2])
    np.testing.assert_array_equal(np.stack([ct.hu for ct in found]), even)


def test_a_frame_s_own_group_wins_over_the_shared_one():
    ds = enhanced(HEAD, shared=("rescale", "orientation"))
    own = Dataset()
    own.RescaleSlope, own.RescaleIntercept = "1", "76"
    ds.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence = [own]
    found = slices(written(ds))
    assert [ct.header.intercept for ct in found] == [-1024, -1024, 76, -1024, -1024, -1024]
    np.testing.assert_array_equal(found[2].hu, HEAD[2] + 1100)


def test_one_frame_keeps_its_uid_and_a_long_uid_is_hashed():
    (only,) = slices(written(enhanced(HEAD[:1])))
    assert only.header.sop_uid == "1.2.3.77.3"
    long = "1.2." + "3" * 59  # with a frame behind it too long for a UID
    uids = [ct.header.sop_uid for ct in slices(written(enhanced(HEAD, uid=long)))]
    assert len(set(uids)) == 6
    assert all(uid.startswith("2.25.") and len(uid) <= 64 and uid[5] != "0" for uid in uids)
    assert uids == [ct.header.sop_uid for ct in slices(written(enhanced(HEAD, uid=long)))]


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS_SV1, JPEG_LS, J2K_LOSSLESS])
def test_compressed_frames(syntax, table):
    ds = enhanced(HEAD, BitsStored=12, HighBit=11, PixelRepresentation=0)
    cells = frames_of(ds).astype(np.uint16)
    streams = [jpeg(one, 12, 1) if syntax == JPEG_LOSSLESS_SV1 else codestream(one, syntax, 12) for one in cells]
    streams = [stream + bytes(len(stream) % 2) for stream in streams]
    same_slices(slices(volume_files.compressed(ds, syntax, streams, table)), SINGLE)


def test_frames_that_pydicom_encodes_in_rle():
    ds = enhanced(HEAD)
    written(ds)
    ds.compress(RLE, generate_instance_uid=False)
    out = io.BytesIO()
    ds.save_as(out)
    same_slices(slices(out.getvalue()), SINGLE)


def fragmented(ds: Dataset, streams: list[bytes], with_table: bool) -> bytes:
    """Each stream in two fragments."""
    from pydicom.encaps import encapsulate

    ds.PixelData = encapsulate(streams, fragments_per_frame=2, has_bot=with_table)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return written(ds, JPEG_LS)


def test_frames_in_several_fragments_need_a_table():
    ds = enhanced(HEAD)
    streams = [codestream(one, JPEG_LS, 16) for one in frames_of(ds)]
    same_slices(slices(fragmented(ds, streams, with_table=True)), SINGLE)
    problem = refused(fragmented(ds, streams, with_table=False))
    assert str(problem) == "bad_frames: PixelData has 12 fragments for 6 frames and no table that parts them"


def test_a_table_that_lies_is_not_looked_at_where_each_fragment_is_a_frame():
    ds = enhanced(HEAD)
    data = volume_files.compressed(ds, JPEG_LS, [codestream(one, JPEG_LS, 16) for one in frames_of(ds)])
    at = data.index(struct.pack("<HHL", 0xFFFE, 0xE000, 24)) + 8
    same_slices(slices(data[:at] + b"\x07" * 24 + data[at + 24 :]), SINGLE)


def test_a_damaged_frame_is_lost_alone():
    ds = enhanced(HEAD)
    streams = [codestream(one, JPEG_LS, 16) for one in frames_of(ds)]
    streams[3] = streams[3][:200]
    volume = EnhancedCt(io.BytesIO(volume_files.compressed(ds, JPEG_LS, streams)))
    with pytest.raises(SliceProblem, match="truncated"):
        volume.slice(4)
    np.testing.assert_array_equal(volume.slice(5).hu, HEAD[4])
    np.testing.assert_array_equal(volume.slice(1).hu, HEAD[0])


def test_a_localizer_among_the_frames_is_lost_alone():
    ds = enhanced(HEAD)
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    ds.PerFrameFunctionalGroupsSequence[0].CTImageFrameTypeSequence = [kind]
    volume = EnhancedCt(io.BytesIO(written(ds)))
    with pytest.raises(SliceProblem, match="localizer"):
        volume.header(1)
    assert volume.header(2).position_mm == 25.0


def test_a_frame_with_two_places_is_lost_alone():
    volume = EnhancedCt(io.BytesIO(groups(lambda ds: own(ds)[0].PlanePositionSequence.append(Dataset()))))
    with pytest.raises(SliceProblem, match="bad_frames"):
        volume.slice(1)
    np.testing.assert_array_equal(volume.slice(2).hu, HEAD[1])


def test_an_axial_image_type_stands_for_an_orientation_that_no_group_tells():
    ds = enhanced(HEAD, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    same_slices(slices(written(ds)), SINGLE)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME"]
    assert refused(written(ds)).reason == "no_position"


def groups(change: Callable[[Dataset], object]) -> bytes:
    ds = enhanced(HEAD)
    change(ds)
    return written(ds)


def own(ds: Dataset) -> list[Dataset]:
    return ds.PerFrameFunctionalGroupsSequence


def unit(ds: Dataset) -> None:
    for one in own(ds):
        one.PixelValueTransformationSequence[0].RescaleType = "MGML"


def sagittal(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, 1]


BYTES = HEAD[0].nbytes
WRONG: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "no groups at all": (
        lambda ds: (delattr(ds, "SharedFunctionalGroupsSequence"), delattr(ds, "PerFrameFunctionalGroupsSequence")),
        "bad_frames: NumberOfFrames is 6, PerFrameFunctionalGroupsSequence has 0 items (PS3.3 C.7.6.16)",
    ),
    "a group too few": (
        lambda ds: own(ds).pop(),
        "bad_frames: NumberOfFrames is 6, PerFrameFunctionalGroupsSequence has 5 items (PS3.3 C.7.6.16)",
    ),
    "a group in two items": (
        lambda ds: ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence.append(Dataset()),
        "bad_frames: the group (0020,9116) has 2 items, not one (PS3.3 C.7.6.16)",
    ),
    "two shared items": (
        lambda ds: ds.SharedFunctionalGroupsSequence.append(Dataset()),
        "bad_frames: SharedFunctionalGroupsSequence has 2 items, not one (PS3.3 C.7.6.16)",
    ),
    "no positions": (
        lambda ds: [delattr(one, "PlanePositionSequence") for one in own(ds)],
        "no_position: ImagePositionPatient or ImageOrientationPatient is absent or unusable",
    ),
    "no rescale": (
        lambda ds: [delattr(one, "PixelValueTransformationSequence") for one in own(ds)],
        "no_rescale: RescaleSlope is 'absent', so stored values give no HU",
    ),
    "densities": (unit, "no_rescale: RescaleType is MGML, so stored values give no HU (PS3.3 C.11.1.1.2)"),
    "sagittal": (sagittal, "not_axial: the slice normal (1.00, 0.00, 0.00) is more than 45 degrees off the body axis"),
    "a part of a concatenation": (
        lambda ds: setattr(ds, "ConcatenationUID", "1.2.3"),
        "concatenation: the file is a part of a concatenation (PS3.3 C.7.6.16.2.2.4); export it as one file",
    ),
    "100,000 frames": (
        lambda ds: setattr(ds, "NumberOfFrames", 100_000),
        f"too_large: NumberOfFrames is 100,000; at most {MAX_FRAMES:,} slices of a file are read",
    ),
    "no frame": (lambda ds: setattr(ds, "NumberOfFrames", 0), "bad_frames: NumberOfFrames is 0"),
    "fewer bytes than frames": (
        lambda ds: setattr(ds, "PixelData", ds.PixelData[:-BYTES]),
        f"wrong_pixel_length: PixelData has {5 * BYTES:,} bytes, the 6 frames need {6 * BYTES:,}",
    ),
    "no pixels": (
        lambda ds: delattr(ds, "PixelData"),
        "no_pixel_data: no PixelData element behind the functional groups",
    ),
    "colours": (
        lambda ds: setattr(ds, "SamplesPerPixel", 3),
        "color: 3 samples a pixel, MONOCHROME2 photometric interpretation",
    ),
    "a localizer": (
        lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]),
        r"localizer: ImageType is ORIGINAL\PRIMARY\LOCALIZER\NONE",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_gives_no_slice_has_one_reason(name):
    change, words = WRONG[name]
    assert str(refused(groups(change))) == words


def test_a_file_that_is_cut_says_how_much_is_there():
    data = written(enhanced(HEAD))
    assert str(refused(data[:-100])) == f"truncated: PixelData has {6 * BYTES - 100:,} of {6 * BYTES:,} bytes"
    assert refused(data[:600]).reason in ("truncated", "bad_frames", "no_pixel_data")
    deflated = written(enhanced(HEAD), DEFLATED)
    assert refused(deflated[: len(deflated) // 2]).reason == "truncated"


def test_encoded_frames_that_are_cut(tmp_path):
    ds = enhanced(HEAD)
    data = volume_files.compressed(ds, JPEG_LS, [codestream(one, JPEG_LS, 16) for one in frames_of(ds)])
    assert refused(data[:-300]).reason == "truncated"
    few = enhanced(HEAD)
    streams = [codestream(one, JPEG_LS, 16) for one in frames_of(few)]
    problem = refused(volume_files.compressed(few, JPEG_LS, streams[:4]))
    assert str(problem) == "truncated: PixelData has 4 fragments, too few for 6 frames"


def test_no_detail_quotes_what_names_a_person():
    ds = enhanced(HEAD)
    for one in own(ds):
        one.PixelValueTransformationSequence[0].RescaleType = "Doe^Jane"
    assert "Doe" not in str(refused(written(ds)))


@pytest.mark.slow
@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_damage_gives_slices_or_a_typed_problem(seed):
    rng = np.random.default_rng(seed)
    ds = enhanced(HEAD[:3])
    syntax = (LITTLE, DEFLATED, JPEG_LS)[seed % 3]
    if syntax == JPEG_LS:
        data = bytearray(volume_files.compressed(ds, syntax, [codestream(one, JPEG_LS, 16) for one in frames_of(ds)]))
    else:
        data = bytearray(written(ds, syntax))
    for at in rng.integers(200, min(len(data), 2600), 4):
        data[at] = rng.integers(0, 256)
    if seed % 5 == 0:
        del data[int(rng.integers(150, len(data))) :]
    try:
        volume = EnhancedCt(io.BytesIO(bytes(data)))
        for frame in range(1, volume.frames + 1):
            try:
                volume.slice(frame)
            except SliceProblem:
                continue
    except SliceProblem:
        pass


@pytest.mark.real
def test_real_slices_as_one_file(real_dicom_dir: Path):
    import pydicom

    paths = sorted((real_dicom_dir / "ge_head").glob("*.dcm"))
    if not paths:
        pytest.skip("no folder ge_head/ below ICH_REAL_DICOM_DIR")
    read = [pydicom.dcmread(path) for path in paths]
    ds = enhanced(np.zeros((len(read), 512, 512), np.int16), PixelPaddingValue=read[0].PixelPaddingValue)
    for one, group in zip(read, own(ds), strict=True):
        group.PlanePositionSequence[0].ImagePositionPatient = one.ImagePositionPatient
        item = group.PixelValueTransformationSequence[0]
        item.RescaleIntercept, item.RescaleSlope = one.RescaleIntercept, one.RescaleSlope
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = read[0].ImageOrientationPatient
    ds.PixelData = b"".join(one.PixelData for one in read)
    for ct, path in zip(slices(written(ds)), paths, strict=True):
        single = ct_slice.read_slice(path.read_bytes())
        np.testing.assert_array_equal(ct.hu, single.hu)
        assert ct.header.position_mm == single.header.position_mm
