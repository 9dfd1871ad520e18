"""Files to batches of images: a thread reads, decodes and windows while the model works on the batch before.

At most `AHEAD` batches wait, so memory does not depend on how many files there are, but for 32 to 64 bytes a slice
that tell a SOP UID that comes again, and whether with the same slice. A file of many slices is unpacked once, and its
slices come one by one.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
from isal import isal_zlib

from ich_tfrecords import pixels
from ich_tfrecords.dataset import repeats
from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.dicom import facts as header_facts
from ich_tfrecords.dicom.facts import SliceFacts
from ich_tfrecords.dicom.header import HoldsFrames
from ich_tfrecords.pixels import Tensor
from ich_tfrecords.problems import Problem
from ich_tfrecords.spec import DatasetSpec, ImageSpec
from ich_tfrecords.storage import sources
from ich_tfrecords.storage.slice_reader import slice_name
from ich_tfrecords.volumes.reader import FrameReader

AHEAD = 2  # batches decoded before they are wanted: one hides a slow file, more only take memory
HEAD_BYTES = 1 << 16  # holds the ids of a file, whatever private elements stand in front of them
ANY_SIZE = 1 << 62


class FoundSlice(NamedTuple):
    """One readable slice: where it lies and who it is.

    `input`: the number of its folder or archive, as `input_numbers` gives it. `beside`: where it and its neighbours
    lie, from below to above, where the model sees those. `facts`: what its header says of the scan. `patient`: stands
    for its patient in memory, and is written nowhere; 0 where its header names none.
    """

    ref: sources.SliceRef
    input: int
    sop_uid: str
    study_uid: str
    series_uid: str
    position_mm: float
    beside: tuple[sources.SliceRef, ...] = ()
    facts: SliceFacts | None = None
    patient: int = 0


class Reject(NamedTuple):
    """A file that gives no slice; `reason` is a fixed word, `detail` is for people, `study_uid` is "" where unknown."""

    input: int
    file: str
    study_uid: str
    reason: str
    detail: str


class Batch(NamedTuple):
    """`images` [k, size, size, channels] of `slices`, in order of the files, and the rejects among those.

    `contents`: `content` of each slice. `files`: how many files end with it.
    """

    slices: list[FoundSlice]
    images: Tensor
    rejects: list[Reject]
    contents: list[int]
    files: int


class SeenSlices:
    """Tells whether a UID came before, and with which slice, in at most 64 bytes each of `most` UIDs, or of more.

    An open table of `uid_hash`, never more than half full.
    """

    def __init__(self, most: int) -> None:
        self._clear((1 << (2 * most).bit_length()) - 1)

    def _clear(self, mask: int) -> None:
        self._mask, self._count = mask, 0
        self._slots, self._contents = (array.array("Q", bytes(8 * (mask + 1))) for _ in range(2))

    def earlier(self, uid: str, content: int) -> int | None:
        """The content that `uid` came with first; None where that is now, and then it is remembered."""
        return self._earlier(uid_hash(uid) or 1, content)  # 0 marks a free slot

    def _earlier(self, key: int, content: int) -> int | None:
        at = key & self._mask
        while self._slots[at]:
            if self._slots[at] == key:
                return self._contents[at]
            at = (at + 1) & self._mask
        self._slots[at], self._contents[at] = key, content
        self._count += 1
        if 2 * self._count > self._mask + 1:  # a file of many slices holds more UIDs than there are files
            self._grow()
        return None

    def _grow(self) -> None:
        slots, contents = self._slots, self._contents
        self._clear(2 * self._mask + 1)
        for key, content in zip(slots, contents):
            if key:
                self._earlier(key, content)


def content(ct: ct_slice.CtSlice, image: Tensor) -> int:
    """64 bits that tell slices of one SOP UID apart as the converter does: by study, series, place and HU.

    A crc32 stands for the HU, and a crc32c for the image that the model sees: together they cost a hundredth of what
    decoding does. Another slice passes for a copy with a probability of 2**-64, and of 2**-32 where the model cannot
    see the difference, were it drawn at random. No patient id: nothing here needs it.
    """
    sums = (isal_zlib.crc32(np.ascontiguousarray(ct.hu).data), google_crc32c.value(image.tobytes()))
    header = ct.header
    facts = (header.study_uid, header.series_uid, header.position_mm, ct.hu.shape, sums)
    return _hash64(repr(facts).encode())


def uid_hash(uid: str) -> int:
    """64 bits that stand for a UID: two of a million are taken for one with a probability below 1e-7."""
    return _hash64(uid.encode(errors="surrogatepass"))


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def read_image(ref: sources.SliceRef, frames: FrameReader, image: ImageSpec) -> tuple[ct_slice.CtSlice, Tensor]:
    """A slice, until the reader reads again, and its image tensor [size, size, channels]. Raises `Problem`."""
    ct = frames.slice(ref)
    return ct, pixels.image_of(ct.hu, image)


def read_slices(
    refs: Iterable[sources.SliceRef], frames: FrameReader
) -> Iterator[tuple[sources.SliceRef, ct_slice.CtSlice | Problem, bool]]:
    """Each slice, until the next is asked for, or what keeps it from being one; and whether it is the last of its file.

    A reference without a frame stands for all slices of its file.
    """
    for ref in refs:
        try:
            found: ct_slice.CtSlice | Problem = frames.slice(ref)
        except HoldsFrames:
            yield from _slices_inside(ref, frames)
            continue
        except Problem as problem:
            found = problem
        yield ref, found, True


def _slices_inside(
    file: sources.SliceRef, frames: FrameReader
) -> Iterator[tuple[sources.SliceRef, ct_slice.CtSlice | Problem, bool]]:
    try:
        inside = frames.frames(file)
    except Problem as problem:
        yield file, problem, True
        return
    for ref, found, _ in read_slices(inside, frames):
        yield ref, found, ref == inside[-1]


def input_numbers(listing: pa.Table) -> dict[str, int]:
    """Path of each folder and archive of a listing -> 1, 2, ... in order of the paths."""
    return {path: number for number, path in enumerate(sorted(listing["container"].unique().to_pylist()), 1)}


def batches(
    listing: pa.Table, spec: DatasetSpec, batch_size: int, numbers: Mapping[str, int] | None = None
) -> Generator[Batch, None, None]:
    """One batch for every `batch_size` slices of a listing (`sources.LISTING_SCHEMA`), in its order.

    The listing may have a column `frame` (`SliceRef`). A batch has fewer slices where files are rejected, perhaps none.
    Of slices with one SOP UID the first counts; the others are rejects, as copies or, where they are other slices, as
    in conflict with it. An unforeseen failure of the thread is raised here. Close the iterator (`contextlib.closing`)
    to end the thread early. `numbers`: `input_numbers` of the whole where `listing` is a part of it.
    """
    seen, numbers = SeenSlices(listing.num_rows), numbers or input_numbers(listing)
    with contextlib.closing(decoded(sources.refs(listing), spec, batch_size, numbers)) as found:
        for batch in found:
            yield _without_repeats(batch, seen)


def decoded(
    refs: Iterator[sources.SliceRef], spec: DatasetSpec, batch_size: int, numbers: Mapping[str, int]
) -> Generator[Batch, None, None]:
    """`batches` of slices in any order, whatever SOP UIDs they bear; `numbers`: `input_numbers`."""
    waiting: deque[Future[Batch]] = deque()
    with (
        sources.SliceReader() as reader,
        FrameReader(reader, spec.accept) as frames,
        ThreadPoolExecutor(1, "decode") as pool,  # the readers are for one thread
    ):
        found = read_slices(refs, frames)
        try:
            while True:
                while len(waiting) <= AHEAD:
                    waiting.append(pool.submit(_decode, found, batch_size, spec.image, numbers))
                batch = waiting.popleft().result()
                if not batch.slices and not batch.rejects:
                    return
                yield batch
        finally:
            for unwanted in waiting:
                unwanted.cancel()


def _decode(
    found: Iterator[tuple[sources.SliceRef, ct_slice.CtSlice | Problem, bool]],
    batch_size: int,
    image: ImageSpec,
    numbers: Mapping[str, int],
) -> Batch:
    """A batch of the next slices, an empty one at their end."""
    slices: list[FoundSlice] = []
    rejects: list[Reject] = []
    contents: list[int] = []
    images, files = np.empty((batch_size, *image.shape), image.dtype), 0
    for ref, ct, is_last in islice(found, batch_size):
        number = numbers[ref.container]
        files += is_last
        if isinstance(ct, Problem):
            rejects.append(unread(ref, number, ct))
            continue
        images[len(slices)] = pixels.image_of(ct.hu, image)
        contents.append(content(ct, images[len(slices)]))
        ids = (ct.header.sop_uid, ct.header.study_uid, ct.header.series_uid)
        told = header_facts.of(ct.header.facts)
        patient = uid_hash(ct.header.patient_id) if ct.header.patient_id else 0
        slices.append(FoundSlice(ref, number, *ids, ct.header.position_mm, facts=told, patient=patient))
    return Batch(slices, images[: len(slices)], rejects, contents, files)


def unread(ref: sources.SliceRef, number: int, problem: Problem) -> Reject:
    """The reject of a file of the input `number` that gives no slice."""
    return Reject(number, slice_name(ref), _study_uid(ref), problem.reason, problem.detail)


def _study_uid(ref: sources.SliceRef) -> str:
    """The study of a file that gives no slice; "" where its first bytes do not tell it, or cannot be had."""
    with sources.SliceReader(ANY_SIZE) as reader:  # only the head is read, so a file of any size will do
        try:
            return ct_slice.study_uid(reader.read_head(ref, HEAD_BYTES))
        except sources.UnreadableSource:
            return ""


def refused(found: FoundSlice, reason: str, detail: str) -> Reject:
    """The reject of a slice that could be read."""
    return Reject(found.input, slice_name(found.ref), found.study_uid, reason, detail)


def _without_repeats(batch: Batch, seen: SeenSlices) -> Batch:
    earlier = [seen.earlier(found.sop_uid, now) for found, now in zip(batch.slices, batch.contents, strict=True)]
    new = np.array([before is None for before in earlier], bool)
    if new.all():
        return batch
    rejects = [
        _repeat(found, before == now)
        for found, before, now in zip(batch.slices, earlier, batch.contents, strict=True)
        if before is not None
    ]
    kept = np.flatnonzero(new)
    slices, contents = [batch.slices[at] for at in kept], [batch.contents[at] for at in kept]
    return Batch(slices, batch.images[new], [*batch.rejects, *rejects], contents, batch.files)


def _repeat(found: FoundSlice, is_copy: bool) -> Reject:
    if is_copy:
        return refused(found, repeats.COPY, repeats.copy_detail(found.sop_uid))
    detail = f"SOPInstanceUID {found.sop_uid} stands in an earlier file too, which is another slice and was used"
    return refused(found, repeats.CONFLICT, detail)
