from __future__ import annotations

import io
import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ich_tfrecords import spec
from ich_tfrecords.dataset import records

TINY = spec.from_dict(
    {
        "name": "tiny",
        "version": "1.0.0",
        "image": {"size_px": 8, "pad_hu": -1000, "windows": [{"name": "brain", "level_hu": 40, "width_hu": 80}]},
        "labels": {"any": "any", "names": ["any", "a"], "rarest_first": ["a"]},
        "split": {"salt": "s", "weights": {"train": 1}, "subset": {}},
        "shards": {"seed": 0, "target_bytes": 1000, "min_shards": 1},
    }
)
TABLE = records.features(TINY)


def values(**changes) -> dict:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    base = {
        "image": image,
        "labels": [1, -1],
        "sop_uid": b"ID_1",
        "study_uid": b"ID_2",
        "series_uid": b"ID_3",
        "patient_key": b"00ff",
        "position_mm": -1.5,
        "slice_index": 0,
        "slice_count": 300,
        "pixel_digest": records.pixel_digest(image),
    }
    return base | changes


def shard(*payloads: bytes) -> bytes:
    file = io.BytesIO()
    writer = records.ShardWriter(file)
    for payload in payloads:
        writer.write(payload)
    return file.getvalue()


def test_golden_bytes():
    """Every converted data set, and the sha256 in every manifest, relies on these bytes."""
    payload = records.encode(values(), TABLE)
    assert len(payload) == 310
    assert google_crc32c.value(payload) == 0x6D5E8A35
    assert payload.startswith(b"\x0a\xb3\x02\x0a\x4d\x0a\x05image\x12\x44\x0a\x42\x0a\x40\x00\x01\x02\x03")


def test_tensorflow_reads_what_we_write_and_writes_the_same():
    tf = pytest.importorskip("tensorflow")
    payload = records.encode(values(), TABLE)
    example = tf.train.Example.FromString(payload)
    feature = example.features.feature
    assert feature["image"].bytes_list.value[0] == values()["image"].tobytes()
    assert list(feature["labels"].int64_list.value) == [1, -1]
    assert feature["sop_uid"].bytes_list.value[0] == b"ID_1"
    assert feature["position_mm"].float_list.value[0] == -1.5
    assert feature["slice_count"].int64_list.value[0] == 300
    assert set(feature) == {field.name for field in TABLE}
    assert example.SerializeToString(deterministic=True) == payload


@pytest.mark.slow
def test_decode_batch_eagerly_and_inside_map(tmp_path):
    tf = pytest.importorskip("tensorflow")
    payloads = [records.encode(values(slice_index=i), TABLE) for i in range(5)]
    path = tmp_path / "shard"
    path.write_bytes(shard(*payloads))
    eager = records.decode_batch(tf.constant(payloads), TINY)
    [mapped] = tf.data.TFRecordDataset(str(path)).batch(5).map(lambda batch: records.decode_batch(batch, TINY))
    for batch in (eager, mapped):
        assert batch["image"].shape == (5, 8, 8, 1)
        assert batch["image"].dtype == tf.uint8
        assert (batch["image"].numpy() == values()["image"]).all()
        assert batch["slice_index"].numpy().tolist() == [0, 1, 2, 3, 4]
        assert batch["labels"].numpy().tolist() == [[1, -1]] * 5
        assert batch["position_mm"].dtype == tf.float32


@given(
    st.binary(min_size=64, max_size=64),
    st.lists(st.integers(-1, 1), min_size=2, max_size=2),
    st.binary(max_size=40),
    st.floats(width=32, allow_nan=False),
)
def test_parse_returns_what_encode_took(pixels, labels, uid, position):
    image = np.frombuffer(pixels, np.uint8).reshape(8, 8, 1)
    given_values = values(image=image, labels=labels, sop_uid=uid, position_mm=position)
    parsed = records.parse(records.encode(given_values, TABLE), TABLE)
    assert (parsed["image"] == image).all()
    assert parsed["labels"].tolist() == labels
    assert (parsed["sop_uid"], parsed["position_mm"]) == (uid, position)


def test_parse_names_what_does_not_fit():
    with pytest.raises(ValueError, match="image holds 63 bytes, not 64"):
        records.parse(records.encode(values(image=np.zeros(63, np.uint8)), TABLE), TABLE)
    with pytest.raises(ValueError, match="labels holds 3 values, not 2"):
        records.parse(records.encode(values(labels=[1, 0, 0]), TABLE), TABLE)
    with pytest.raises(ValueError, match="the features are"):
        records.parse(records.encode(values(), TABLE[:3]), TABLE)
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        records.parse(b"\xff\xff\xff", TABLE)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_read_records_returns_what_was_written(payloads):
    data = shard(*payloads)
    assert [payload for _, payload in records.read_records(io.BytesIO(data))] == payloads
    offsets = [offset for offset, _ in records.read_records(io.BytesIO(data))]
    assert offsets == [sum(16 + len(p) for p in payloads[:i]) for i in range(len(payloads))]


def test_tensorflow_reads_the_framing(tmp_path):
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "shard"
    path.write_bytes(shard(b"", b"a", b"b" * 70_000))
    assert [item.numpy() for item in tf.data.TFRecordDataset(str(path))] == [b"", b"a", b"b" * 70_000]


@given(st.data())
def test_every_flipped_bit_is_noticed(data):
    good = bytearray(shard(b"abc", b"defgh" * 3))
    place = data.draw(st.integers(0, len(good) * 8 - 1))
    good[place // 8] ^= 1 << place % 8
    with pytest.raises(records.DamagedRecord):
        list(records.read_records(io.BytesIO(bytes(good))))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (5, "record 0 at byte 0: the shard ends inside the length field"),
        (14, "record 0 at byte 0: the shard ends after 2 of 7 bytes"),
        (25, "record 1 at byte 19: the shard ends inside the length field"),
    ],
)
def test_a_shortened_shard_names_its_record(cut, words):
    with pytest.raises(records.DamagedRecord, match=words):
        list(records.read_records(io.BytesIO(shard(b"abc", b"def")[:cut])))


def test_a_huge_length_is_refused_before_allocation():
    length = struct.pack("<Q", 1 << 40)
    head = length + struct.pack("<L", records._masked_crc(length))
    with pytest.raises(records.DamagedRecord, match="beyond the cap"):
        list(records.read_records(io.BytesIO(head)))


def test_shard_writer_sums_what_it_wrote():
    import hashlib

    file = io.BytesIO()
    writer = records.ShardWriter(file)
    assert [writer.write(b"abc"), writer.write(b"de")] == [0, 19]
    assert writer.size_bytes == len(file.getvalue()) == 37
    assert writer.sha256() == hashlib.sha256(file.getvalue()).hexdigest()
    assert writer.crc32c() == f"{google_crc32c.value(file.getvalue()):08x}"


def test_overhead_is_about_right(rsna_spec):
    uid = b"1.2.826.0.1.3680043.9.4245.3796287132707650689462822505588"
    table = records.features(rsna_spec)
    image = np.zeros(rsna_spec.image.shape, np.uint8)
    made = values(image=image, labels=[1] * 6, sop_uid=uid, study_uid=uid, series_uid=uid, patient_key=b"0" * 32)
    actual = len(b"".join(records.frame(records.encode(made, table))))
    assert actual == pytest.approx(records.slice_bytes(rsna_spec), abs=150)
