"""A trained model run over the slices of a converted data set."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ich_tfrecords import spec as specs
from ich_tfrecords.dataset.manifest import Manifest
from ich_tfrecords.plural import counted
from ich_tfrecords.storage.file_lock import FileLock
from ich_tfrecords.views import progress_line
from trainer.data import input_pipeline, neighbours
from trainer.data.dataset import Dataset, Slices
from trainer.data.input_pipeline import Share
from trainer.models import model_file
from trainer.models.model_file import About, Embedder
from trainer.results import vectors
from trainer.results.predictions import IDS, Predictions
from trainer.results.vectors import Source, Store, Vectors
from trainer.shell import folder_lock
from trainer.shell.problems import WorkFailed, WrongUse
from trainer.training.metrics import Scores
from trainer.trust import portraits, scope
from trainer.trust.scope import Scope

if TYPE_CHECKING:
    import keras

STREAMED = 64  # slices at a time
EMBEDDED = 64  # in a batch, always: a part must have the same bytes whenever it is made


def check_spec(about: About, manifest: Manifest, place: str) -> None:
    """Refuse a data set whose pixels or labels are defined otherwise than the model's. Raises `WrongUse`."""
    if differs := specs.sample_differences(about.spec, manifest.spec):
        raise WrongUse(
            f"the model was trained on another definition than that of {place} ({'; '.join(differs)}); convert the "
            "slices with the model's spec, or take another model"
        )


def predict_split(
    score: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    about: About,
    slices: Slices,
    batch_size: int,
    tell: Callable[[int, int], None],
) -> Predictions:
    """`Predictions` for every slice of a split, in the order of its table.

    `score`: as `model_file.scorer` makes it. `tell(done, total)` is called after each batch with numbers of
    slices. Raises `TrainerError` for records that cannot be read and for logits that are not finite.
    """
    slices, scores = slices.with_neighbours(about.context_slices), Scores()
    for batch in _batches(slices, batch_size):
        scores.add(batch["labels"], score(batch["image"]), batch["weight"], batch["row"])
        tell(len(scores), len(slices))
    rows, labels, logits = scores.arrays()
    if len(rows) != len(slices):
        raise WorkFailed(f"{slices.place}: {len(rows):,} of the {len(slices):,} slices of {slices.split} were read")
    ids, names = slices.table.select(list(IDS)), about.spec.labels
    found = (labels.astype(np.int8), logits, about.probabilities(logits), slices.study_labels)
    return Predictions(names.names, names.any, ids, *found)


def embed(job_dir: str, about: About, data: Dataset, names: Sequence[str], flip: bool) -> None:
    """Make what is missing of the vectors of the named splits of `data`, in the run's folder, and tell it on stdout.

    `job_dir`: the run or export, `about`: of its model. `flip`: of the mirror images too. Raises `TrainerError`:
    where the run cannot be written to or is in use, the disk has no room, a record cannot be read or a value is not
    finite; and `OSError`.
    """
    folder = model_file.find(job_dir)
    with contextlib.closing(_lock(model_file.run_folder(folder) / vectors.FOLDER)):
        model = model_file.load_model(folder, about)
        dim, labels = model_file.vector_dim(model), about.spec.labels.names
        work: dict[bool, list[tuple[Slices, Store]]] = {}
        for part in data.parts:
            for found in part.those_of(names):
                slices = found.with_neighbours(about.context_slices)
                for view in sources(job_dir, about, part, flip):
                    store = Store(view, slices.split, len(slices), dim, labels)
                    work.setdefault(view.mirrored, []).append((slices, store))
        vectors.require_room([store for of_view in work.values() for _, store in of_view])
        for mirrored, of_view in work.items():
            forward = model_file.embedder(model, mirrored)
            for slices, store in of_view:
                _embed_split(forward, slices, store)


def scope_of(
    model: keras.Model,
    about: About,
    trained: Slices,
    held: Slices | None,
    tell: Callable[[int, int], None],
) -> Scope | None:
    """The scope of a slice model by slices of the split it was trained on, and of `held`, its validation split.

    Of each split whole series, drawn by a hash of the run's seed, within `scope.MOST_SLICES`. None where the slices
    come as streams, which cannot be drawn from. `tell(done, total)` is called after each batch with numbers of batches;
    what it raises ends the work.
    """
    seed, forward = int(about.settings.get("seed", 0)), model_file.embedder(model)
    drawn = [_drawn(slices, about, seed) for slices in (trained, held) if slices is not None]
    if not all(slices.random_access for slices in drawn):
        return None
    done, total, samples = 0, sum(-(-len(slices) // EMBEDDED) for slices in drawn), list[scope.Sample]()
    for slices in drawn:
        samples.append(_sample(forward, about, slices, done, total, tell))
        done += -(-len(slices) // EMBEDDED)
    return scope.fit("", samples[0], samples[1] if held is not None else None)


def _drawn(slices: Slices, about: About, seed: int) -> Slices:
    rows = np.zeros(len(slices), bool)
    rows[scope.drawn(slices.table, seed)] = True
    return slices.with_neighbours(about.context_slices).take(rows, slices.split)


def _sample(
    forward: Embedder, about: About, slices: Slices, done: int, total: int, tell: Callable[[int, int], None]
) -> scope.Sample:
    grey, vectors, logits = list[Any](), list[Any](), list[Any]()
    for number, batch in enumerate(_batches(slices, EMBEDDED), 1):
        kept = batch["weight"] > 0
        seen = forward(batch["image"])
        grey.append(portraits.grey_of(batch["image"].numpy()[kept], slices.spec.image))
        vectors.append(seen[0][kept])
        logits.append(seen[1][kept])
        tell(done + number, total)
    said = about.probabilities(np.concatenate(logits))
    return scope.Sample(slices.table, np.concatenate(grey), np.concatenate(vectors), said)


def views(job_dir: str, about: About, data: Dataset, slices: Slices, flip: bool) -> list[Vectors]:
    """Vectors of a split or fold of `data`, and with `flip` those of the mirror images; made before, else `WrongUse`.

    `job_dir`: the run or export, `about`: of its model.
    """
    of_parts = zip(*(sources(job_dir, about, part, flip) for part in data.parts))
    return [vectors.read(every, data, slices) for every in of_parts]


def source(job_dir: str, about: About, data: Dataset, mirrored: bool) -> Source:
    """Whose vectors they are that the model of a run or export gives for `data`, which is no joined one."""
    folder = model_file.find(job_dir)
    fingerprints = (data.manifest.fingerprint, about.fingerprint)
    return Source(
        model_file.run_folder(folder), job_dir, data.place, model_file.digest(folder), *fingerprints, mirrored
    )


def sources(job_dir: str, about: About, data: Dataset, flip: bool) -> list[Source]:
    """`source` of the slices, and with `flip` of their mirror images."""
    plain = source(job_dir, about, data, False)
    return [plain, *[dataclasses.replace(plain, mirrored=True)] * flip]


def _lock(folder: Path) -> FileLock:
    try:
        return folder_lock.take(folder, "--job_dir")
    except OSError as error:
        raise WrongUse(f"cannot write into {folder}: {error.strerror}; give a run that can be written to") from error


def _embed_split(forward: Embedder, slices: Slices, store: Store) -> None:
    """Make the parts that `store` lacks, each put in place when it is whole."""
    for line in store.notes():
        print(line, flush=True)
    there = store.present_slices
    store.begin()
    with progress_line.shown(store.folder.name, "slices", sys.stdout, first=there) as tell:
        for number, batches in _missing(slices, store):
            store.put(number, _part(forward, slices, store, number, batches, tell))
    print(
        f"{store.folder}: {counted(store.slices, 'vector')} of {store.dim:,} numbers, {there:,} of them already there"
    )


def _missing(slices: Slices, store: Store) -> Iterator[tuple[int, Iterator[dict[str, Any]]]]:
    """Each part that `store` lacks, with its batches, to be used up before the next.

    Parts in a row are read in one go. Of streams each is read for itself: in which order their slices come, and so
    the bytes of a part, follows from where reading begins and ends.
    """
    for run in store.missing_runs if slices.random_access else [[number] for number in store.missing]:
        batches = _batches(slices, EMBEDDED, (store.span(run[0])[0], store.span(run[-1])[1]))
        for number in run:
            begin, end = store.span(number)
            yield number, itertools.islice(batches, -(-(end - begin) // EMBEDDED))


def _part(
    forward: Embedder,
    slices: Slices,
    store: Store,
    number: int,
    batches: Iterator[dict[str, Any]],
    tell: Callable[[int, int], None],
) -> npt.NDArray[Any]:
    """The rows of a part, `store.dtype` [slices of its span], from its `batches`."""
    (begin, end), there = store.span(number), store.present_slices
    rows, filled = np.empty(end - begin, store.dtype), np.zeros(end - begin, bool)
    for batch in batches:
        kept = batch["weight"] > 0
        at = batch["row"][kept] - begin  # those of streams come out of order
        rows["vector"][at], rows["logits"][at] = (values[kept] for values in forward(batch["image"]))
        filled[at] = True
        tell(there + int(filled.sum()), store.slices)
    if not filled.all():
        raise WorkFailed(f"{slices.place}: {filled.sum():,} of {len(filled):,} slices of {slices.split} were read")
    vectors.require_finite(rows, slices.table["sop_uid"].slice(begin, len(rows)).to_pylist())
    return rows


def _batches(slices: Slices, batch_size: int, span: tuple[int, int] | None = None) -> Iterator[dict[str, Any]]:
    """What `evaluation_batches` gives, as arrays; `image` as a tensor, which the model takes without a copy."""
    import tensorflow as tf

    try:
        for batch in input_pipeline.evaluation_batches(slices, batch_size, Share.whole(), span):
            yield {name: value if name == "image" else value.numpy() for name, value in batch.items()}
    except tf.errors.OpError as error:
        problem = input_pipeline.problem(slices, error)
        if problem is None:
            raise
        raise problem from error


def images(slices: Slices, rows: Sequence[int]) -> dict[int, npt.NDArray[Any]]:
    """Row -> image [size, size, channels] of these rows of a split; one more pass where they come as streams."""
    if not rows:
        return {}
    if slices.random_access:
        found, _ = slices.read(np.array(rows, np.int64))
        return dict(zip(rows, np.array(neighbours.own(found, slices.spec.image.shape[2]))))
    wanted, kept = set(rows), dict[int, npt.NDArray[Any]]()
    for batch in _batches(slices, STREAMED):
        kept |= {row: image for row, image in zip(batch["row"].tolist(), batch["image"].numpy()) if row in wanted}
    return kept
