"""The folder of `--dicom`: a report and a captured picture of each study, put in place whole.

It grows beside its place under another name, and takes it once all studies are written.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ich_tfrecords.dicom import ct_slice
from ich_tfrecords.plural import counted
from ich_tfrecords.problems import Problem
from ich_tfrecords.storage import atomic, sources
from ich_tfrecords.storage.slice_reader import SliceRef, slice_name
from ich_tfrecords.views.montage import shortened
from ich_tfrecords.volumes.reader import FrameReader, is_nifti
from trainer.models.model_file import About
from trainer.prediction import picture_files, slice_stream
from trainer.prediction.picture_files import Maps
from trainer.prediction.triage import Study, Triage, rounded
from trainer.shell import command
from trainer.shell.problems import WrongUse

if TYPE_CHECKING:
    from trainer.prediction.dicom_objects import MadeBy, Source

HEAD_BYTES = 1 << 20  # of a file of many slices: whose it is stands in front of its geometry
REPORT, PICTURE = "report.dcm", "picture.dcm"


class Written(NamedTuple):
    """Of how many studies there is a report and a picture, and of how many of those a UID was replaced.

    `nifti`: how many studies have no patient to be filed under; `failed`: how many could not be read again.
    """

    studies: int
    replaced: int
    nifti: int
    failed: int

    def lines(self) -> Iterator[str]:
        """What is told of it."""
        yield f"{counted(self.studies, 'study', 'studies')} as DICOM, each a report and a picture in new series"
        if self.replaced:
            studies = counted(self.replaced, "study", "studies")
            yield f"UIDs of {studies} are none that DICOM allows; there 2.25. ones stand, which follow from them"
        if self.nifti:
            yield f"{counted(self.nifti, 'study', 'studies')} of NIfTI without a DICOM result: no patient is known"


class DicomFolder:
    """Where results as DICOM go: a folder that is new or empty."""

    def __init__(self, path: Path, output: Path) -> None:
        """`output`: the folder of the other results. Raises `WrongUse` for another `path`, or without highdicom."""
        self.path = path
        try:
            import highdicom  # noqa: F401
        except ImportError as error:
            raise WrongUse(
                "--dicom needs highdicom, which is not installed: pip install 'ich-tfrecords[dicom]'"
            ) from error
        command.require_local("--dicom", path)
        if path.resolve() == output.resolve() or output.resolve() in path.resolve().parents:
            raise WrongUse(
                f"--dicom {path} lies in --output {output}, which names no patient; choose a folder elsewhere"
            )
        if path.exists() and not path.is_dir():
            raise WrongUse(f"--dicom {path} is a file, not a folder; choose another")
        if path.is_dir() and (first := min((entry.name for entry in path.iterdir()), default="")):
            raise WrongUse(f"--dicom {path} is not empty, it holds {shortened(first)}; choose a new folder")

    @contextlib.contextmanager
    def growing(self) -> Iterator[Path]:
        """A folder that becomes this one when the block ends well, and vanishes when it does not. Raises `WrongUse`."""
        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}{atomic.TEMPORARY_SUFFIX}")
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise WrongUse(f"--dicom {self.path} cannot be made: {error.strerror}; choose another") from error
        try:
            yield temporary
            temporary.replace(self.path)
        except BaseException:
            shutil.rmtree(temporary)
            raise


def write(
    place: Path, found: Triage, about: About, maps: picture_files.Maps | None, by: MadeBy, method: str
) -> Written:
    """Write a folder with report and picture of each study into `place`; of the pictures see `picture_files`."""
    studies = replaced = nifti = failed = 0
    with sources.SliceReader() as reader, FrameReader(reader, about.spec.accept) as frames:
        for study in found.studies():
            ref = study.driver.found.ref
            if is_nifti(ref.name):
                nifti += 1
                continue
            try:
                source = _write_study(place, study, about, by, frames, maps, method)
            except Problem as problem:
                called = shortened(slice_name(ref), 70)
                print(f"predict: no DICOM result of the study of {called}: {problem}", file=sys.stderr)
                failed += 1
                continue
            studies, replaced = studies + 1, replaced + source.replaced
    return Written(studies, replaced, nifti, failed)


def _write_study(
    place: Path,
    study: Study,
    about: About,
    by: MadeBy,
    frames: FrameReader,
    maps: Maps | None,
    method: str,
) -> Source:
    from trainer.prediction import dicom_objects

    driver = study.driver
    image = picture_files.seen(driver.found, frames, about)
    source = dicom_objects.source(_elements(driver.found.ref, dicom_objects.LAST), driver.found)
    explanation = None if maps is None else picture_files.explained(image, driver, about, maps, method)
    picture = picture_files.picture(image, driver, study.warning, about, explanation)
    numbers = map(float, rounded(study.probabilities))
    probabilities = dict(zip(about.spec.labels.names, numbers, strict=True))
    folder = place / source.study_uid
    folder.mkdir()
    dicom_objects.report(source, by, probabilities, study).save_as(folder / REPORT)
    dicom_objects.capture(source, by, picture).save_as(folder / PICTURE)
    return source


def _elements(ref: SliceRef, last: int) -> Any:
    """The elements of a slice's file up to the tag `last`. Raises `Problem`."""
    with sources.SliceReader(slice_stream.ANY_SIZE if ref.frame else sources.MAX_SLICE_BYTES) as reader:
        file = ref._replace(frame=0)
        return ct_slice.elements_of(reader.read_head(file, HEAD_BYTES) if ref.frame else reader.read(file), last)
