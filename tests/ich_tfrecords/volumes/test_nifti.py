"""NIfTI volumes in every orientation beside the DICOM slices that they are made from; and what is refused."""

from __future__ import annotations

import builtins
import gzip
import io
import itertools
import math
import tempfile
from typing import Any, BinaryIO

import nibabel
import numpy as np
import pytest
import volume_files
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_files import head, nifti, single_files

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.ct_slice import CtSlice, SliceProblem
from ich_tfrecords.volumes import volume as volumes
from ich_tfrecords.volumes.nifti import Nifti

HEAD = head()
SINGLE = [ct_slice.read_slice(data) for data in single_files(HEAD)]
EIGHT = ["".join(signs) for signs in itertools.product("RL", "AP", "SI")]
OTHER_AXES = ["SRA", "PSR", "PIL", "ARS", "ASR", "LSP"]


def file(data: bytes) -> BinaryIO:
    made = tempfile.TemporaryFile()  # noqa: SIM115  # the volume closes it
    made.write(data)
    made.seek(0)
    return made


def by_place(data: bytes) -> list[CtSlice]:
    """Every slice, from feet to head."""
    volume = Nifti(file(data))
    found = [volume.slice(frame) for frame in range(1, volume.frames + 1)]
    assert [ct.header for ct in found] == [volume.header(frame) for frame in range(1, volume.frames + 1)]
    volume.close()
    return sorted(found, key=lambda ct: ct.header.position_mm)


def same_slices(data: bytes) -> None:
    found = by_place(data)
    for ct, single in zip(found, SINGLE, strict=True):
        np.testing.assert_array_equal(ct.hu, single.hu)
        assert (ct.header.rows, ct.header.columns) == (single.header.rows, single.header.columns)
        assert ct.header.position_mm == pytest.approx(single.header.position_mm, abs=1e-4)


def refused(data: bytes) -> SliceProblem:
    with pytest.raises(SliceProblem) as problem:
        Nifti(file(data))
    return problem.value


def image(data: bytes) -> Any:
    return nibabel.Nifti1Image.from_bytes(data)


@pytest.mark.parametrize("axes", EIGHT)
def test_each_of_the_eight_orientations(axes):
    same_slices(nifti(HEAD, axes))


@pytest.mark.parametrize("axes", OTHER_AXES)
def test_slices_along_another_axis_of_the_file(axes):
    same_slices(nifti(HEAD, axes))


@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "int32", ">i2"])
@pytest.mark.parametrize("packed", [False, True])
def test_each_kind_of_voxel(kind, packed):
    same_slices(nifti(HEAD, "LAS", kind, packed))


def test_a_scale_gives_hu_rounded_to_even():
    same_slices(nifti(HEAD, "LPS", "uint16", scale=(1.0, -1024.0)))
    same_slices(nifti(HEAD, "LPS", "int16", scale=(0.5, -1000.0)))
    voxels = np.full((8, 8, 2), -1000, np.float32)
    voxels[0, :4, 0] = [0.5, 1.5, 2.5, 70_000 / 7]
    found = by_place(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 1, 1])).to_bytes())
    assert found[0].hu[:4, 0].tolist() == [0, 2, 2, 10_000]


def test_a_volume_of_four_axes_of_which_the_last_is_one():
    made = image(nifti(HEAD))
    same_slices(nibabel.Nifti1Image(np.asarray(made.dataobj)[..., None], made.affine).to_bytes())


def test_nifti_of_the_second_version():
    made = image(nifti(HEAD, "RPI"))
    same_slices(nibabel.Nifti2Image(np.asarray(made.dataobj), made.affine).to_bytes())


def about(axis: int, degrees: float) -> np.ndarray:
    one, other = (at for at in range(3) if at != axis)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.eye(3)
    turn[one, one], turn[one, other], turn[other, one], turn[other, other] = cosine, -sine, sine, cosine
    return turn


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SRA"])
@pytest.mark.parametrize(("axis", "degrees"), [(0, 20), (0, -44), (1, 30), (2, 25)])
def test_oblique_volumes_lie_as_dicom_says_it(axes, axis, degrees):
    turn = about(axis, degrees)
    flip = np.diag([-1.0, -1.0, 1.0])
    in_dicom = flip @ turn @ flip
    row, column = in_dicom @ [1, 0, 0], in_dicom @ [0, 1, 0]
    found = by_place(nifti(HEAD, axes, turn=turn))
    wanted = single_files(HEAD)
    for number, (ct, _) in enumerate(zip(found, wanted, strict=True)):
        corner = in_dicom @ np.array(volume_files.place_mm(number))
        normal = np.cross(row, column)
        np.testing.assert_array_equal(ct.hu, HEAD[number])
        assert ct.header.position_mm == pytest.approx(float(corner @ normal) * math.copysign(1, normal[2]), abs=1e-3)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.sampled_from(EIGHT + OTHER_AXES),
    st.tuples(*[st.floats(-25, 25)] * 3),
    st.tuples(st.integers(2, 5), st.integers(9, 20), st.integers(9, 20)),
)
def test_every_orientation_is_brought_to_one_view(axes, degrees, shape):
    """Against nibabel's own reorientation: whatever the file's axes, its closest LPS form is what is read."""
    hu = np.random.default_rng(1).integers(-1000, 1500, shape).astype(np.int16)
    hu[0, 0, 0] = -1000
    hu[-1, -1, -1] = 1500
    turn = about(0, degrees[0]) @ about(1, degrees[1]) @ about(2, degrees[2])
    data = nifti(hu, axes, turn=turn)
    made = image(data)
    change = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(made.affine), nibabel.orientations.axcodes2ornt("LPS")
    )
    wanted = np.asarray(made.as_reoriented(change).dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(np.stack([ct.hu for ct in by_place(data)]), wanted)


def test_ids_are_hashes_of_the_bytes():
    data = nifti(HEAD)
    one, same, packed = by_place(data), by_place(data), by_place(nifti(HEAD, packed=True))
    assert [ct.header for ct in one] == [ct.header for ct in same]
    assert len({ct.header.sop_uid for ct in (*one, *packed)}) == 12
    for ct in one:
        uids = (ct.header.sop_uid, ct.header.study_uid, ct.header.series_uid)
        assert all(uid.startswith("2.25.") and len(uid) <= 44 for uid in uids)
        assert len(set(uids)) == 3
        assert (uids[1:], ct.header.patient_id) == ((one[0].header.study_uid, one[0].header.series_uid), ct.header[1])


def changed(**fields: Any) -> bytes:
    """The volume with other values in its header."""
    data = nifti(HEAD)
    header = nibabel.Nifti1Header(data[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + data[348:]


def colours() -> bytes:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nibabel.Nifti1Image(np.zeros((9, 9, 2), kind), np.eye(4)).to_bytes()


def of_values(values: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    return nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1]) if affine is None else affine).to_bytes()


def with_value(value: float) -> bytes:
    voxels = HEAD.transpose(2, 1, 0).astype(np.float32)
    voxels[5, 5, 3] = value
    return of_values(voxels)


def zero_affine() -> bytes:
    rows = {f"srow_{axis}": (0, 0, 0, 0) for axis in "xyz"}
    return changed(**rows)


NO_HEADER = "bad_nifti: the file has no NIfTI header with its voxels behind it"
DAMAGED = "bad_nifti: the NIfTI header is damaged: HeaderDataError"
CT_LIKE = "a head CT in HU has air below -500 and tissue above 0"
WRONG = {
    "cut short": (
        lambda: nifti(HEAD)[:-10],
        f"truncated: the voxels have {HEAD.nbytes - 10:,} of {HEAD.nbytes:,} bytes",
    ),
    "cut in the header": (lambda: nifti(HEAD)[:300], NO_HEADER),
    "empty": (lambda: b"", NO_HEADER),
    "not NIfTI": (lambda: bytes(2000), NO_HEADER),
    "a gzipped text": (lambda: gzip.compress(b"x" * 999), NO_HEADER),
    "four axes": (
        lambda: of_values(np.zeros((9, 9, 2, 3), np.int16)),
        "not_3d: the volume has 9 x 9 x 2 x 3 voxels; one of three axes is read",
    ),
    "two axes": (
        lambda: of_values(np.zeros((9, 9), np.int16)),
        "not_3d: the volume has 9 x 9 voxels; one of three axes is read",
    ),
    "colours": (colours, "color: the voxels are colours"),
    "complex": (lambda: of_values(np.zeros((9, 9, 2), np.complex64)), "bad_bits: voxels of kind complex64 give no HU"),
    "nan": (lambda: with_value(math.nan), "not_finite: the volume has voxels that are no finite numbers"),
    "inf": (lambda: with_value(math.inf), "not_finite: the volume has voxels that are no finite numbers"),
    "a mask": (lambda: of_values((HEAD > 0).astype(np.uint8)), f"not_ct: voxels run from 0 to 1; {CT_LIKE}"),
    "beyond int16": (lambda: with_value(1e9), f"not_ct: voxels run from -1,000 to 1e+09; {CT_LIKE}"),
    "air alone": (
        lambda: of_values(np.full((9, 9, 2), -1000, np.int16)),
        f"not_ct: voxels run from -1,000 to -1,000; {CT_LIKE}",
    ),
    "a zero affine": (zero_affine, "no_position: the affine of the volume is singular, so it has no axes"),
    "a flat affine": (
        lambda: changed(srow_z=(-1.0, 0, 0, 0), srow_x=(-1.0, 0, 0, 0)),
        "no_position: the affine of the volume is singular, so it has no axes",
    ),
    "an affine with nan": (
        lambda: changed(srow_x=(math.nan, 0, 0, 0)),
        "no_position: the affine of the volume is not finite, or beyond every scanner",
    ),
    "no orientation": (
        lambda: changed(sform_code=0, qform_code=0),
        "no_position: neither sform nor qform says how the volume lies, so left may be right",
    ),
    "metres": (lambda: changed(xyzt_units=1), "no_position: distances are in meter; only mm are read"),
    "a scale of nan": (lambda: changed(scl_inter=math.nan), DAMAGED),
    "a kind of voxel that is none": (lambda: changed(datatype=77), DAMAGED),
    "no voxels": (lambda: changed(dim=[3, 48, 0, 6, 1, 1, 1, 1]), "bad_geometry: an axis of the volume has 0 voxels"),
    "a giant": (
        lambda: changed(dim=[3, 4096, 4096, 4096, 1, 1, 1, 1]),
        "too_large: the volume has 4,096 x 4,096 x 4,096 voxels, 137,438,953,472 bytes; the limit is 4,294,967,296",
    ),
    "100,000 slices": (
        lambda: changed(dim=[3, 1, 1, 32767, 1, 1, 1, 1]),
        "too_large: the volume has 1 x 1 x 32,767 voxels, 65,534 bytes; the limit is 4,294,967,296",
    ),
    "45 degrees and more": (
        lambda: nifti(HEAD, turn=about(0, 40) @ about(1, 40)),
        "not_axial: the slice normal (0.00, -0.77, 0.64) is more than 45 degrees off the body axis",
    ),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_gives_no_slice_has_one_reason(name, packed):
    build, words = WRONG[name]
    data = build()
    if packed and data[:2] != b"\x1f\x8b":
        data = gzip.compress(data, 1)
        if name == "cut short":
            words = "truncated: the voxels have"
    assert str(refused(data)).startswith(words)


def test_a_gzip_that_is_cut_or_damaged():
    data = nifti(HEAD, packed=True)
    assert refused(data[: len(data) // 2]).reason == "truncated"
    assert refused(data[:-3]).reason == "truncated"
    wrong = data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]  # in the checksum
    assert refused(wrong).reason == "inflate_failed"
    middle = bytearray(data)
    middle[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
    assert refused(bytes(middle)).reason in ("inflate_failed", "truncated")


@pytest.mark.slow
def test_a_gzip_bomb_is_unpacked_no_further_than_its_header_says(monkeypatch):
    written = []

    class Watched(io.BytesIO):
        def write(self, data: Any) -> int:
            written.append(len(data))
            return super().write(data)

    monkeypatch.setattr(tempfile, "TemporaryFile", Watched)
    data = nifti(HEAD)
    with pytest.raises(SliceProblem, match="wrong_pixel_length"):
        Nifti(io.BytesIO(gzip.compress(data + bytes(200 << 20), 1)))
    assert sum(written) == len(data)
    written.clear()
    lying = gzip.compress(changed(dim=[3, 4096, 4096, 4096, 1, 1, 1, 1]) + bytes(100 << 20), 1)
    with pytest.raises(SliceProblem, match="too_large"):
        Nifti(io.BytesIO(lying))
    assert written == []


def test_without_nibabel_the_line_names_the_extra(monkeypatch):
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.split(".")[0] == "nibabel":
            raise ImportError(name)
        return real(name, *args)

    data = nifti(HEAD)
    monkeypatch.setattr(builtins, "__import__", absent)
    problem = refused(data)
    assert str(problem) == (
        "no_nibabel: NIfTI is read by nibabel, which is not installed: pip install 'ich-tfrecords[nifti]'"
    )


def test_a_volume_longer_than_the_cap_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(volumes, "MAX_FRAMES", 5)
    assert refused(nifti(HEAD, "RAS")).reason == "too_large"


@pytest.mark.slow
@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_damage_gives_slices_or_a_typed_problem(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(nifti(HEAD[:3], "RAS"))
    for at in rng.integers(0, 360, int(rng.integers(1, 6))):
        data[at] = rng.integers(0, 256)
    made = gzip.compress(bytes(data), 1) if seed % 2 else bytes(data)
    try:
        volume = Nifti(file(made))
        for frame in range(1, volume.frames + 1):
            assert volume.slice(frame).hu.dtype == np.int16
    except SliceProblem:
        pass
