"""The record of a slice: one table derived from the spec, which the encoder, the parser and TFDS all follow.

Encoding needs protobuf alone, so that a Beam worker never loads TensorFlow. A record is a
`tf.train.Example` (tensorflow/core/example/example.proto) inside the TFRecord framing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from ich_tfrecords.spec import DatasetSpec

IDS = ("sop_uid", "study_uid", "series_uid", "patient_key")
MAX_RECORD_BYTES = 1 << 28  # a length field beyond this is damage, refused before allocation
OVERHEAD_BYTES = 420  # ids, labels, map keys and framing beside the pixels, about
_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<L")


class DamagedRecord(ValueError):
    """A record that fails its checks; `index` is its number in the shard, `offset` its first byte."""

    def __init__(self, index: int, offset: int, what: str) -> None:
        super().__init__(f"record {index} at byte {offset:,}: {what}")
        self.index = index
        self.offset = offset


@dataclasses.dataclass(frozen=True)
class Feature:
    """One field of the record: `kind` is its list in the Example, `dtype` and `shape` what it decodes to."""

    name: str
    kind: str  # bytes_list, int64_list or float_list
    dtype: str  # uint8 or int16 (raw bytes of a tensor, little-endian), string, int64 or float32
    shape: tuple[int, ...]

    @property
    def is_tensor(self) -> bool:
        """Whether it stands in the record as the bytes of a tensor."""
        return self.dtype in ("uint8", "int16")


def features(spec: DatasetSpec) -> tuple[Feature, ...]:
    """The record table of a spec, in name order of the fields as this project speaks of them."""
    texts = ("sop_uid", "study_uid", "series_uid", "patient_key")
    return (
        Feature("image", "bytes_list", spec.image.dtype, spec.image.shape),
        Feature("labels", "int64_list", "int64", (len(spec.labels.names),)),
        *(Feature(name, "bytes_list", "string", ()) for name in texts),
        Feature("position_mm", "float_list", "float32", ()),
        Feature("slice_index", "int64_list", "int64", ()),
        Feature("slice_count", "int64_list", "int64", ()),
        Feature("pixel_digest", "bytes_list", "string", ()),
    )


def slice_bytes(spec: DatasetSpec) -> int:
    """Bytes that a record takes in a shard, about: the pixels are exact, the rest depends on the ids."""
    return spec.image.size_bytes + OVERHEAD_BYTES


def pixel_digest(image: npt.NDArray[Any]) -> bytes:
    """16 bytes that tell images apart: blake2b of the tensor in C order."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def encode(values: Mapping[str, Any], table: tuple[Feature, ...]) -> bytes:
    """Serialized `tf.train.Example` of one value a feature; the same values give the same bytes.

    An image is an array of its dtype, text is bytes, numbers are a number or a sequence of them.
    """
    example = _EXAMPLE()
    for feature in table:
        value = values[feature.name]
        target = getattr(example.features.feature[feature.name], feature.kind).value
        if feature.is_tensor:
            target.append(value.tobytes())
        elif feature.shape:
            target.extend(value)
        else:
            target.append(value)
    return example.SerializeToString(deterministic=True)


def parse(payload: bytes, table: tuple[Feature, ...]) -> dict[str, Any]:
    """Values of a serialized Example, shaped as the table says. Raises `ValueError` where they are not so."""
    example = _EXAMPLE()
    try:
        example.ParseFromString(payload)
    except DecodeError as error:
        raise ValueError(f"not a tf.train.Example: {error}") from error
    names, expected = set(example.features.feature), {feature.name for feature in table}
    if names != expected:
        raise ValueError(f"the features are {sorted(names)}, not {sorted(expected)}")
    return {feature.name: _parsed(example.features.feature[feature.name], feature) for feature in table}


def _parsed(field: Any, feature: Feature) -> Any:
    values = getattr(field, feature.kind).value
    size = int(np.prod(feature.shape))
    if feature.is_tensor:
        dtype = np.dtype(feature.dtype).newbyteorder("<")
        size_bytes = size * dtype.itemsize
        if len(values) != 1 or len(values[0]) != size_bytes:
            raise ValueError(f"{feature.name} holds {sum(map(len, values)):,} bytes, not {size_bytes:,}")
        return np.frombuffer(values[0], dtype).reshape(feature.shape)
    if len(values) != size:
        raise ValueError(f"{feature.name} holds {len(values)} values, not {size}")
    return np.asarray(values, feature.dtype) if feature.shape else values[0]


def frame(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """TFRecord framing of a payload: length with its masked crc32c, payload, its masked crc32c."""
    length = _LENGTH.pack(len(payload))
    return length + _CRC.pack(_masked_crc(length)), payload, _CRC.pack(_masked_crc(payload))


class ShardWriter:
    """Writes framed records to an open file and keeps the size and checksums of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._crc32c = 0
        self.size_bytes = 0

    def write(self, payload: bytes) -> int:
        """Append one record; returns the offset of its first byte."""
        offset = self.size_bytes
        framed = b"".join(frame(payload))
        self._file.write(framed)
        self._sha256.update(framed)
        self._crc32c = google_crc32c.extend(self._crc32c, framed)
        self.size_bytes += len(framed)
        return offset

    def sha256(self) -> str:
        """sha256 of the shard so far, 64 hexadecimal digits."""
        return self._sha256.hexdigest()

    def crc32c(self) -> str:
        """crc32c of the shard so far, 8 hexadecimal digits (what Cloud Storage calls crc32c, there in base64)."""
        return f"{self._crc32c:08x}"


def read_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Byte offset and payload of each record of an open shard. Raises `DamagedRecord`."""
    offset, index = file.tell(), 0
    while head := file.read(12):
        payload = _read_payload(file, head, index, offset)
        yield offset, payload
        offset, index = offset + 16 + len(payload), index + 1


def _read_payload(file: BinaryIO, head: bytes, index: int, offset: int) -> bytes:
    if len(head) < 12:
        raise DamagedRecord(index, offset, "the shard ends inside the length field")
    if _CRC.unpack_from(head, 8)[0] != _masked_crc(head[:8]):
        raise DamagedRecord(index, offset, "the length field fails its crc32c")
    (length,) = _LENGTH.unpack_from(head)
    if length > MAX_RECORD_BYTES:
        raise DamagedRecord(index, offset, f"a length of {length:,} bytes is beyond the cap of {MAX_RECORD_BYTES:,}")
    body = file.read(length + 4)
    if len(body) < length + 4:
        raise DamagedRecord(index, offset, f"the shard ends after {len(body):,} of {length + 4:,} bytes")
    if _CRC.unpack_from(body, length)[0] != _masked_crc(body[:length]):
        raise DamagedRecord(index, offset, "the payload fails its crc32c")
    return body[:length]


def parsing_features(spec: DatasetSpec) -> dict[str, Any]:
    """The table as `tf.io.parse_example` takes it (imports TensorFlow)."""
    import tensorflow as tf

    kinds = {"bytes_list": tf.string, "int64_list": tf.int64, "float_list": tf.float32}
    return {
        feature.name: tf.io.FixedLenFeature(() if feature.is_tensor else feature.shape, kinds[feature.kind])
        for feature in features(spec)
    }


def decode_batch(serialized: Any, spec: DatasetSpec) -> dict[str, Any]:
    """Tensors of a batch of serialized records [n]: `image` [n, size, size, channels], the rest as in the table.

    Works eagerly and inside `tf.data.Dataset.map` (imports TensorFlow).
    """
    import tensorflow as tf

    parsed = tf.io.parse_example(serialized, parsing_features(spec))
    flat = tf.io.decode_raw(parsed["image"], spec.image.dtype, fixed_length=spec.image.size_bytes)
    return {**parsed, "image": tf.reshape(flat, (-1, *spec.image.shape))}


def _masked_crc(data: bytes) -> int:
    return masked(google_crc32c.value(data))


def masked(crc: int) -> int:
    """A crc32c as TFRecords store it: rotated by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _example_class() -> Any:
    """Message class with the field numbers of `tf.train.Example`, in a descriptor pool of its own."""
    file = descriptor_pb2.FileDescriptorProto(name="ich_tfrecords/example.proto", package="ich", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    numbers = (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64))
    for name, kind in numbers:
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, kind_name) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        feature.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, type_name=f".ich.{kind_name}", oneof_index=0, label=1
        )
    feature_map = file.message_type.add(name="Features")
    entry = feature_map.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".ich.Feature", label=1)
    feature_map.field.add(
        name="feature", number=1, type=field.TYPE_MESSAGE, type_name=".ich.Features.FeatureEntry", label=3
    )
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=field.TYPE_MESSAGE, type_name=".ich.Features", label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ich.Example"))


_EXAMPLE = _example_class()
