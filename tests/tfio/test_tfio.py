"""tensorflow-io, an independent DICOM decoder (DCMTK's), against `dicom`; and its older TensorFlow on our records.

Runs by `make test-tfio`, in an environment of its own. What `decode_dicom_image` does with `scale="preserve"` is not
in its documentation; measured on 0.37.1:

- Out comes [frames, rows, columns, channels] of an unsigned or float type. Signed types are refused, so HU are shifted.
- The value is HU stretched from all that BitsStored, sign and rescale can give, [low, high], to all that the bits
  DCMTK needs for that range can hold, and cut to a whole number. With RSNA's signed 16 bits and intercept -1024 that
  is 17 bits: about twice HU + 33,792, which uint16 does not hold.
- `on_error="strict"` then raises, "skip" gives an empty tensor, and "lossy" saturates without a word.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import odd_dataset
import pytest
from dicom_files import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    J2K_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    RLE,
    compressed_file,
    dicom_file,
    head_slice,
    slice_elements,
)

from ich_tfrecords.dataset import manifest, records
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom.writer import SliceFields, dicom_bytes
from ich_tfrecords.synthetic.rsna_layout import generate

WHY = "tensorflow-io 0.37.1 loads in TensorFlow 2.16 alone; `make test-tfio` runs this in an environment of its own"
tfio = pytest.importorskip("tensorflow_io", reason=WHY)
tf = pytest.importorskip("tensorflow", reason=WHY)

SIGNED_16, UNSIGNED_12 = head_slice(), head_slice(low=0, high=4095).astype(np.uint16)
KINDS = {"signed 16": (SIGNED_16, 16), "unsigned 12": (UNSIGNED_12, 12)}
HU_RANGE = {"signed 16": (-1224, 1376), "unsigned 12": (-1024, 3071)}  # of the slices above at intercept -1024

Values = npt.NDArray[np.int64]


def decoded(data: bytes, dtype: str = "uint32", on_error: str = "strict") -> Values:
    """What tensorflow-io gives, whatever its shape."""
    image = tfio.image.decode_dicom_image(data, dtype=tf.as_dtype(dtype), scale="preserve", on_error=on_error)
    return image.numpy().astype(np.int64)


def possible_hu(header: ct_slice.SliceHeader) -> tuple[int, int]:
    """Least and greatest HU that BitsStored, sign and rescale can give, for a whole positive slope."""
    least = -(1 << header.bits_stored - 1) if header.signed else 0
    ends = [(least + more) * header.slope + header.intercept for more in (0, (1 << header.bits_stored) - 1)]
    return int(ends[0]), int(ends[1])


def bits_for(low: int, high: int) -> int:
    """Bits that DCMTK takes for a range: with a sign where it goes below zero."""
    return (max(abs(low), abs(high)) - 1).bit_length() + (low < 0)


def hu_of(values: Values, header: ct_slice.SliceHeader) -> Values:
    """HU [rows, columns] of what `decoded` gives, exact where the slope is a whole number."""
    assert values.shape == (1, header.rows, header.columns, 1)
    low, high = possible_hu(header)
    top = (1 << bits_for(low, high)) - 1
    return low - (-values[0, ..., 0] * (high - low) // top)  # the ceiling undoes the cut


def check_equal(data: bytes) -> ct_slice.CtSlice:
    """Asserts that both decoders give the same HU for every pixel."""
    ours = ct_slice.read_slice(data)
    np.testing.assert_array_equal(hu_of(decoded(data), ours.header), ours.hu)
    return ours


def test_the_lane_is_the_pinned_pair():
    assert (tf.__version__, tfio.__version__) == ("2.16.2", "0.37.1")


# --- slices on which both agree, pixel by pixel ---


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG])
@pytest.mark.parametrize("kind", KINDS)
def test_native_syntaxes(kind, syntax):
    stored, bits = KINDS[kind]
    hu = check_equal(dicom_file(slice_elements(stored, bits), syntax)).hu
    assert (hu.min(), hu.max()) == HU_RANGE[kind]


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, J2K_LOSSLESS])
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_syntaxes(kind, syntax, tmp_path):
    stored, bits = KINDS[kind]
    hu = check_equal(compressed_file(stored, syntax, bits, tmp_path)).hu
    assert (hu.min(), hu.max()) == HU_RANGE[kind]


@pytest.mark.parametrize("explicit_vr", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_rsna_layout(kind, explicit_vr):
    stored, bits = KINDS[kind]
    fields = SliceFields(bits_stored=bits, signed=stored.dtype.kind == "i")
    check_equal(dicom_bytes(stored, fields, explicit_vr))


def test_a_synthetic_data_set(tmp_path):
    made = generate(tmp_path / "ct", patients=2, test_patients=1, slices_per_study=4, seed=1)
    files = sorted(made.output.rglob("*.dcm"))
    assert len(files) == len(made.slices) >= 12
    assert {check_equal(path.read_bytes()).hu.shape for path in files} == {(512, 512)}


@pytest.mark.parametrize(
    ("stored", "bits", "changes"),
    [
        (SIGNED_16, 16, {"RescaleIntercept": b"0"}),
        (np.linspace(-32768, 32767, 1024).astype(np.int16).reshape(32, 32), 16, {"RescaleIntercept": b"0"}),
        (head_slice(low=-1024, high=2047), 12, {"RescaleIntercept": b"0"}),
        (head_slice(low=0, high=3000).astype(np.uint16), 16, {}),
        ((UNSIGNED_12 | 0x5000).astype(np.uint16), 12, {}),
        (UNSIGNED_12, 12, {"RescaleSlope": b"2"}),
        (head_slice(low=0, high=255).astype(np.uint8), 8, {}),
    ],
    ids=["intercept 0", "every HU", "signed 12", "unsigned 16", "bits above BitsStored", "slope 2", "8 bits"],
)
def test_other_ways_to_store(stored, bits, changes):
    check_equal(dicom_file(slice_elements(stored, bits, **changes)))


@pytest.mark.real
def test_real_slices(real_dicom_dir):
    equal, refused = [], {}
    for path in sorted(path for path in real_dicom_dir.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if data[128:132] != b"DICM":
            continue
        try:
            check_equal(data)
            equal.append(path.name)
        except ct_slice.SliceProblem as problem:
            refused[path.name] = problem.reason
    assert equal, f"no slice under {real_dicom_dir}"
    assert set(refused.values()) <= set(PICTURES) | {"no_pixel_data"}


# --- where they differ, each with its reason ---

# What ours refuses with these reasons is a picture to tensorflow-io, which does not ask whether it has HU.
PICTURES = {"localizer": 1, "color": 3, "derived_secondary": 1}  # reason -> channels


def test_uint16_does_not_hold_what_preserve_makes_of_signed_slices():
    data = dicom_file(slice_elements(SIGNED_16))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(data, "uint16")
    assert decoded(data, "uint16", on_error="skip").size == 0
    assert decoded(data, "uint16", on_error="lossy").max() == 65535 < decoded(data).max()


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_signed_types_are_refused(dtype):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(dicom_file(slice_elements(UNSIGNED_12, 12)), dtype)


def test_wrapped_12_bit_slices_are_repaired_by_ours_alone():
    """The RSNA defect: values that were lowered by 1,000 and wrapped at 4,096."""
    data = dicom_file(slice_elements(UNSIGNED_12, 12, RescaleIntercept=b"0"))
    raw = decoded(data)[0, ..., 0]
    np.testing.assert_array_equal(raw, UNSIGNED_12)
    np.testing.assert_array_equal(ct_slice.read_slice(data).hu, (raw + 1000) % 4096 - 1000)


def test_hu_below_int16_saturate_in_ours_alone():
    data = dicom_file(slice_elements(np.array([[-32768, -32000], [-31744, 0]], np.int16)))
    ours = ct_slice.read_slice(data)
    theirs = hu_of(decoded(data), ours.header)
    np.testing.assert_array_equal(theirs, [[-33792, -33024], [-32768, -1024]])
    np.testing.assert_array_equal(ours.hu, np.maximum(theirs, -32768))


def test_monochrome1_is_inverted_by_theirs_alone():
    """They decode for display, where MONOCHROME1 shows small values white; HU are what they are."""
    data = dicom_file(slice_elements(UNSIGNED_12, 12, PhotometricInterpretation=b"MONOCHROME1"))
    shown, hu = decoded(data)[0, ..., 0], ct_slice.read_slice(data).hu.astype(np.int64)
    assert np.abs(shown - (8191 - 2 * (hu + 1024))).max() <= 1
    np.testing.assert_array_equal(hu, UNSIGNED_12.astype(np.int64) - 1024)


def test_padding_is_air_in_ours_alone():
    """PixelPaddingValue of 63536 (-2000 in unsigned cells) is 62,512 HU to them."""
    stored = (SIGNED_16 + 1024).astype(np.uint16)
    stored[:9] = 63536
    data = dicom_file(slice_elements(stored) | {0x00280120: ("US", b"\x30\xf8")})
    ours = ct_slice.read_slice(data)
    theirs = hu_of(decoded(data), ours.header)
    assert set(theirs[:9].ravel()) == {62512}
    np.testing.assert_array_equal(theirs[9:], ours.hu[9:])
    assert set(ours.hu[:9].ravel()) == {-1000}


def test_bits_beyond_those_declared_are_kept_by_ours_alone():
    """Signed cells that use 12 bits and declare 10: theirs drops two bits of each value."""
    data = dicom_file(slice_elements(SIGNED_16 - 1024, 10, RescaleIntercept=b"0"))
    ours = ct_slice.read_slice(data)
    np.testing.assert_array_equal(ours.hu, SIGNED_16 - 1024)
    dropped = (((SIGNED_16 - 1024).astype(np.int64) & 1023) ^ 512) - 512
    np.testing.assert_array_equal(hu_of(decoded(data), ours.header), dropped)


def test_a_slope_below_1_keeps_them_within_2_hu():
    """Ours rounds half HU; theirs cuts fractions twice, of HU and of what they are stretched to."""
    data = dicom_file(slice_elements(UNSIGNED_12, 12, RescaleSlope=b"0.5"))
    low, high, bits = -1024, 1023.5, 11
    theirs = low + decoded(data)[0, ..., 0] * (high - low) / ((1 << bits) - 1)
    assert np.abs(theirs - ct_slice.read_slice(data).hu).max() < 2


@pytest.mark.parametrize(("reason", "channels"), PICTURES.items())
def test_what_is_no_slice_to_ours_is_a_picture_to_theirs(reason, channels):
    kinds: dict[str, dict[str, bytes]] = {
        "localizer": {"ImageType": b"ORIGINAL\\PRIMARY\\LOCALIZER"},
        "color": {"SamplesPerPixel": b"\3\0", "PhotometricInterpretation": b"RGB"},
        "derived_secondary": {"ImageType": b"DERIVED\\SECONDARY\\MPR"},
    }
    stored = np.zeros((32, 32 * channels), np.uint8)
    elements = slice_elements(stored, 8, **kinds[reason], Columns=b"\40\0", PixelData=stored.tobytes())
    if channels == 3:
        elements[0x00280006] = ("US", b"\0\0")  # PlanarConfiguration
    data = dicom_file(elements)
    with pytest.raises(ct_slice.UnsupportedSlice) as refused:
        ct_slice.read_slice(data)
    assert refused.value.reason == reason
    assert decoded(data).shape == (1, 32, 32, channels)


@pytest.mark.parametrize("data", [b"", b"no DICOM" * 99, dicom_file(slice_elements(SIGNED_16, PixelData=None))])
def test_what_neither_reads(data):
    with pytest.raises(ct_slice.SliceProblem):
        ct_slice.read_slice(data)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded(data)


def test_a_cut_slice_is_refused_by_ours():
    """Theirs fills the missing rows and says nothing, so it is no check of completeness."""
    data = dicom_file(slice_elements(UNSIGNED_12, 12))[:-512]
    with pytest.raises(ct_slice.UnreadableSlice) as refused:
        ct_slice.read_slice(data)
    assert refused.value.reason == "truncated"
    shown = decoded(data)[0, ..., 0]
    np.testing.assert_array_equal(shown[:24], decoded(dicom_file(slice_elements(UNSIGNED_12, 12)))[0, :24, :, 0])
    assert shown.shape == (32, 32)


# --- a converted data set under the older TensorFlow ---


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd_dataset.make(tmp_path_factory.mktemp("converted") / "dataset")


def parsed_by_us(folder: Path, done: manifest.Manifest, shard: str) -> list[dict]:
    with (folder / shard).open("rb") as file:
        return [records.parse(payload, records.features(done.spec)) for _, payload in records.read_records(file)]


def test_parse_example_reads_what_parse_reads(converted):
    done = manifest.read(converted)
    assert done.slices == len(odd_dataset.HOSTILE) + 1
    for shard in done.shards:
        read = tf.data.TFRecordDataset(str(converted / shard["name"])).batch(4)
        examples = [tf.io.parse_example(batch, records.parsing_features(done.spec)) for batch in read]
        ours = parsed_by_us(converted, done, shard["name"])
        images = [image for batch in examples for image in batch["image"].numpy()]
        assert images == [record["image"].tobytes() for record in ours]
        labels = np.concatenate([batch["labels"].numpy() for batch in examples])
        np.testing.assert_array_equal(labels, [record["labels"] for record in ours])


def test_decode_batch_gives_every_field_inside_map(converted):
    done = manifest.read(converted)
    paths = [str(converted / shard["name"]) for shard in done.shards]
    ours = [record for shard in done.shards for record in parsed_by_us(converted, done, shard["name"])]
    read = tf.data.TFRecordDataset(paths).batch(3).map(lambda batch: records.decode_batch(batch, done.spec))
    theirs = list(read.unbatch().as_numpy_iterator())
    assert len(theirs) == len(ours) == done.slices
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert other["image"].dtype == np.uint8
        for name, value in mine.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)
