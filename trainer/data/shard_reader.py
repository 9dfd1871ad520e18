"""Records of local shards by number: any slice in any order, each checked by its crc32c.

A shard is read at offsets that the slice table knows, so a shuffled epoch costs no shuffle buffer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from ich_tfrecords.dataset import records
from ich_tfrecords.spec import DatasetSpec
from trainer.data import gather, warp
from trainer.shell.problems import TrainingFailed

FRAME_BYTES = 16  # length and its crc32c before the payload, the crc32c of the payload after it
_HEAD, _LENGTH, _CRC = struct.Struct("<QL"), struct.Struct("<Q"), struct.Struct("<L")
SLOW_S = 1e-4  # of waiting for a record, which one from memory does not need
WORTH_COMPILING = 32_768  # slices read by one reader before the compiler is asked, which takes two seconds
SPARE_FILES = 256  # open files left to TensorFlow, logs and checkpoints


@dataclasses.dataclass(frozen=True, eq=False)
class Located:
    """Where the records of n slices lie, sorted by shard and by place in the shard, and their labels.

    `place`: the data set. `names`, `paths`: its shards, in order of name; a path is a file or a `gs://` object.
    `shard` int32 [n]: index into them. `record` int32 [n]: number of the record in its shard. `offset`, `length`
    int64 [n]: first byte of the framed record, and bytes of its payload. `labels` int8 [n, L]: 1, 0, or -1 where
    unknown.
    """

    place: str
    spec: DatasetSpec
    names: tuple[str, ...]
    paths: tuple[str, ...]
    shard: npt.NDArray[np.int32]
    record: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.shard)

    @property
    def places(self) -> list[str]:
        """The data sets whose shards they are, several where `place` stands for several."""
        return list(dict.fromkeys(path.rpartition("/")[0] for path in self.paths))


class _Shard:
    """An open shard; its file is closed when nobody holds it any more."""

    def __init__(self, file: int) -> None:
        self.file = file
        weakref.finalize(self, os.close, file)


_shards: weakref.WeakValueDictionary[tuple[int, int], _Shard] = weakref.WeakValueDictionary()  # device and number
_shards_lock = threading.Lock()


class _Around(NamedTuple):
    """What stands around the pixels of records of one length: what it must be, and where it is read to.

    `head`: all bytes before the pixels, the framing included; `head_crc`: crc32c of those in the payload. `began`
    and `rest`: uint8, room for the bytes before and after the pixels; `body`: `rest` without the framing; `told`
    uint32 [1]: the masked crc32c of the payload, as it stands at the end of `rest`.
    """

    head: bytes
    head_crc: int
    began: npt.NDArray[np.uint8]
    rest: npt.NDArray[np.uint8]
    body: npt.NDArray[np.uint8]
    told: npt.NDArray[np.uint32]


class ShardReader:
    """Reads images and labels of a split's slices; several threads may read at once.

    `problem`: the first failure met, or None. TensorFlow turns an exception inside a `tf.data` map into an
    error of its own; the typed one waits here.
    """

    def __init__(self, slices: Located) -> None:
        self.problem: TrainingFailed | None = None
        self._slices = slices
        self._files: dict[int, _Shard] = {}
        self._lock = threading.Lock()
        self._waiting = False  # whether the last batch waited for the disk
        self._count = 0  # slices read
        self._image_bytes = slices.spec.image.size_bytes
        self._hands: list[dict[int, _Around]] = []  # length of a payload -> what is around its pixels
        self._rooms: list[tuple[npt.NDArray[np.uint8], weakref.ref[Any]]] = []
        self._table = records.features(slices.spec)
        self._front, self._pixels_at = _layout(slices.spec)
        self._heads: dict[int, bytes] = {}  # length of a payload -> all bytes before its pixels, once one was parsed
        self._known = gather.Heads.of({})  # the same as arrays

    def read(
        self, rows: npt.NDArray[np.int64], changes: npt.NDArray[np.float32] | None = None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Images [..., size, size, channels] and labels int64 [..., L] of the slices at `rows` [...] of the split.

        `changes` float32 [n, 15]: what happens to each of them, see `warp`, which needs numba. Raises `TrainingFailed`
        for a record that cannot be read, fails its checks or is no slice.
        """
        slices, each = self._slices, rows.ravel()
        if changes is not None and len(changes) != len(each):
            raise ValueError(f"{len(changes)} changes for {len(each)} slices")
        shards, offsets = slices.shard[each].tolist(), slices.offset[each].tolist()
        lengths = slices.length[each].tolist()
        begin = time.perf_counter() - time.thread_time()
        if self._waiting:
            self._announce(shards, offsets, lengths)
        images = self.room(len(each))
        places = list(zip(images, shards, offsets, lengths, strict=True))
        as_usual = self._compiled(images, each, changes) or functools.partial(self._one_by_one, images, places, changes)
        position = as_usual(0)
        while position < len(each):
            try:
                self._read_any(*places[position])
            except (OSError, ValueError) as error:
                raise self._failed(int(each[position]), error) from error
            self._change(images[position : position + 1], changes, position)
            position = as_usual(position + 1)
        self._waiting = time.perf_counter() - time.thread_time() - begin > SLOW_S * len(each)
        # the table's labels are those of the records, and its sha256 stands in the manifest
        shape = (*rows.shape, *slices.spec.image.shape)
        return images.view(slices.spec.image.dtype).reshape(shape), slices.labels[rows].astype(np.int64)

    def _announce(self, shards: list[int], offsets: list[int], lengths: list[int]) -> None:
        """Let a slow disk work on all records of a batch at once; several threads would wait for Python's lock."""
        for shard, offset, length in zip(shards, offsets, lengths, strict=True):
            if (kept := self._files.get(shard)) is not None:
                with contextlib.suppress(OSError):  # advice; the read itself tells what is wrong
                    os.posix_fadvise(kept.file, offset, length + FRAME_BYTES, os.POSIX_FADV_WILLNEED)

    def room(self, count: int) -> npt.NDArray[np.uint8]:
        """uint8 [count, bytes of an image], in memory of an earlier batch that nobody holds any more, if there is.

        TensorFlow takes aligned arrays as they are, without a copy, and lets go of them when a batch is done.
        Fresh memory would cost a page fault for every 4 kB.
        """
        size = count * self._image_bytes
        with self._lock:
            free = (at for at, (memory, lent) in enumerate(self._rooms) if lent() is None and memory.size >= size)
            at = next(free, len(self._rooms))
            memory = self._rooms[at][0] if at < len(self._rooms) else _aligned(size)
            # an array over a memoryview is what every view of it, however made, keeps alive
            lent = np.frombuffer(memory.data, np.uint8, size)
            self._rooms[at : at + 1] = [(memory, weakref.ref(lent))]
        return lent.reshape(count, self._image_bytes)

    def _compiled(
        self, images: npt.NDArray[np.uint8], each: npt.NDArray[np.int64], changes: npt.NDArray[np.float32] | None
    ) -> Callable[[int], int] | None:
        """What reads the records of rows `each` from a position on, to the first one that is not as usual.

        None while so few were read that compiling would take longer than it saves, and where it is not to be had.
        """
        if self._count < WORTH_COMPILING:
            self._count += len(each)
            return None
        image = self._slices.spec.image
        changed = None if changes is None else (image.size_px, image.shape[-1], np.dtype(image.dtype).itemsize)
        gather_all = gather.compiled(changed)
        if gather_all is None or not len(each):
            return None
        shards = self._slices.shard[each]
        numbers, back = np.unique(shards, return_inverse=True)
        held = [self._kept(shard) for shard in numbers.tolist()]
        files = np.array([gather.NO_FILE if kept is None else kept.file for kept in held], np.int32)
        where = gather.Records(files[back], self._slices.offset[each], self._slices.length[each])

        def read(first: int) -> int:
            # of a length that nobody has met yet one record is parsed, and its head is known then
            heads = self._known
            if len(heads.kind) < len(self._heads):
                heads = self._known = gather.Heads.of(dict(self._heads))
            return gather_all(where, heads, images, first, changes)

        return read

    def _one_by_one(
        self, images: npt.NDArray[np.uint8], places: list[Any], changes: npt.NDArray[np.float32] | None, first: int
    ) -> int:
        """The same in Python, which needs no compiler; `places`: what `_read_as_usual` takes, for each record."""
        hand, end = self._hand(), first
        while end < len(places) and self._read_as_usual(hand, *places[end]):
            end += 1
        self._hands.append(hand)
        self._change(images[first:end], changes, first)
        return end

    def _change(self, images: npt.NDArray[np.uint8], changes: npt.NDArray[np.float32] | None, first: int) -> None:
        """Change the flat `images`, which are those from position `first` on."""
        if changes is not None and len(images):
            image = self._slices.spec.image
            warp.change(images.view(image.dtype).reshape(-1, *image.shape), changes[first : first + len(images)])

    def _hand(self) -> dict[int, _Around]:
        """Room for what stands around pixels, which no other thread has meanwhile."""
        try:
            return self._hands.pop()
        except IndexError:
            return {}

    def _read_as_usual(
        self, hand: dict[int, _Around], image: npt.NDArray[np.uint8], shard: int, offset: int, length: int
    ) -> bool:
        """Read the pixels straight into `image` (flat); False for a record that `_read_any` has to judge.

        Of records as `records.encode` has them, all bytes before the pixels follow from the length.
        """
        around = hand.get(length) or self._around(hand, length)
        if around is None:
            return False
        head, head_crc, began, rest, body, told = around
        try:
            got = self._read_into((began, image, rest), shard, offset)
        except OSError:  # it is read once more, and what fails then is told
            return False
        if got < length + FRAME_BYTES or began.tobytes() != head:
            return False
        return records.masked(google_crc32c.extend(google_crc32c.extend(head_crc, image), body)) == told[0]

    def _around(self, hand: dict[int, _Around], length: int) -> _Around | None:
        """What stands around the pixels of records of this length, now in `hand`; None before one was parsed."""
        head = self._heads.get(length)
        if head is None:
            return None
        rest = np.empty(length + FRAME_BYTES - len(head) - self._image_bytes, np.uint8)
        began, crc = np.empty(len(head), np.uint8), google_crc32c.value(head[12:])
        hand[length] = _Around(head, crc, began, rest, rest[:-4], rest[-4:].view("<u4"))
        return hand[length]

    def _read_any(self, image: npt.NDArray[np.uint8], shard: int, offset: int, length: int) -> None:
        """Read and parse a record of any layout into `image` (flat). Raises `ValueError` for a damaged one."""
        framed = np.empty(length + FRAME_BYTES, np.uint8)
        got = self._read_into([framed], shard, offset)
        if damage := damage_of(framed[:got], length):
            raise ValueError(damage)
        image[:] = records.parse(framed[12:-4].tobytes(), self._table)["image"].reshape(-1).view(np.uint8)
        head = framed[: 12 + self._pixels_at].tobytes()
        if head.endswith(self._front):
            self._heads[length] = head

    def _read_into(self, parts: Sequence[Any], shard: int, offset: int) -> int:
        """Fill `parts`, uint8 arrays, one after the other from a shard; returns how many bytes there were."""
        kept = self._kept(shard)
        if kept is not None:
            return os.preadv(kept.file, parts, offset)
        with open(self._slices.paths[shard], "rb", buffering=0) as once:
            return os.preadv(once.fileno(), parts, offset)

    def _kept(self, shard: int) -> _Shard | None:
        """The shard, open; None where no more files may be kept open, or where opening fails, as reading will tell."""
        kept = self._files.get(shard)
        if kept is None:
            with self._lock, contextlib.suppress(OSError):
                if shard not in self._files and _may_keep_another():
                    self._files[shard] = _opened(self._slices.paths[shard])
            kept = self._files.get(shard)
        return kept

    def _failed(self, row: int, error: Exception) -> TrainingFailed:
        what = f"cannot be read: {error}" if isinstance(error, OSError) else str(error)
        problem = record_problem(self._slices, row, what)
        with self._lock:
            self.problem = self.problem or problem
        return problem


def _aligned(size: int) -> npt.NDArray[np.uint8]:
    """uint8 [size] that begins at a multiple of 64 bytes, as TensorFlow wants it."""
    memory = np.empty(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size]


def _layout(spec: DatasetSpec) -> tuple[bytes, int]:
    """The bytes that stand before the pixels of a record whatever it holds, and where the pixels begin.

    Parsing would copy an image three times more. The layout is read off two records that differ in their pixels;
    the tag and length of the whole message, which the texts change, are left out.
    """
    table = records.features(spec)
    text = dict.fromkeys((feature.name for feature in table if feature.dtype == "string"), b"0123456789")
    numbers = {feature.name: np.zeros(feature.shape, int).tolist() for feature in table if feature.dtype != "string"}
    dark, bright = (
        np.frombuffer(records.encode({**text, **numbers, "image": image}, table), np.uint8)
        for image in (np.full(spec.image.shape, level, spec.image.dtype) for level in (0, 255))
    )
    pixels_at = int(np.flatnonzero(dark != bright)[0])
    whole = 1 + int(np.flatnonzero(dark[1:] < 128)[0]) + 1  # a tag, then a length whose last byte is below 128
    return dark[whole:pixels_at].tobytes(), pixels_at


def damage_of(framed: Any, length: int) -> str:
    """What is wrong with a framed record (bytes or uint8 [n]), its payload of `length` bytes; empty if it is whole."""
    if len(framed) < length + FRAME_BYTES:
        return f"the shard ends after {len(framed):,} of {length + FRAME_BYTES:,} bytes"
    told, head_crc = _HEAD.unpack_from(framed)
    if records.masked(google_crc32c.value(_LENGTH.pack(told))) != head_crc:
        return "the length field fails its crc32c"
    if told != length:
        return f"it has {told:,} bytes, the slice table says {length:,}"
    if records.masked(google_crc32c.value(framed[12:-4])) != _CRC.unpack_from(framed, length + 12)[0]:
        return "the payload fails its crc32c"
    return ""


def record_problem(slices: Located, row: int, what: str) -> TrainingFailed:
    """The problem with the record of a row: shard, record number, byte offset, and how to see all the damage."""
    place, _, name = slices.paths[slices.shard[row]].rpartition("/")
    where = f"{place}: shard {name}, record {slices.record[row]} at byte {slices.offset[row]:,}"
    return TrainingFailed(f"{where}: {what}; {advice(place)}")


def advice(*places: str) -> str:
    """What to do about a damaged data set, or one of several that is."""
    command = "python -m ich_tfrecords.inspect verify"
    far = f"{command} DIR on a copy of it"
    verify = [far if place.startswith("gs://") else f"{command} {place}" for place in places]
    return f"restore it or convert again; see what is damaged with: {' and '.join(dict.fromkeys(verify))}"


def _opened(path: str) -> _Shard:
    """The shard at `path`, open once in this process, however many read it: splits and folds share shards."""
    file = os.open(path, os.O_RDONLY)
    about = os.fstat(file)
    with _shards_lock:
        shard = _shards.get((about.st_dev, about.st_ino))
        if shard is None:
            _shards[about.st_dev, about.st_ino] = shard = _Shard(file)
            return shard
    os.close(file)
    return shard


def _may_keep_another() -> bool:
    """Whether one more shard may stay open in this process, after raising the soft limit of open files if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(_shards) + 1 + SPARE_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return True
    raised = wanted + SPARE_FILES if hard == resource.RLIM_INFINITY else min(wanted + SPARE_FILES, hard)
    if raised > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return wanted <= raised
