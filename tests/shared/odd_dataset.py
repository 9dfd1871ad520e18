"""Data sets of a few 32 px slices with ids that no page, table or file system should trust, made without Beam."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import Counter
from pathlib import Path

from dicom_files import dicom_file, head_slice, slice_elements

from ich_tfrecords import spec
from ich_tfrecords.conversion import commit, job, plan, steps
from ich_tfrecords.labels.table import LabelTable, read_labels
from ich_tfrecords.storage import sources

SCRIPT, FORMULA, CLIMBER = "<script>alert(1)</script>", "=1+1", "../x"
HOSTILE = (SCRIPT, FORMULA, CLIMBER, '"><img src=x>', "-a", "ID_plain")
TWIN = "ID_twin"  # the pixels of ID_plain under another patient, with other labels


def small_spec(windows: int = 3) -> spec.DatasetSpec:
    """The packaged spec at 32 px with its first windows, and a split so light that no patient falls into it."""
    packaged = spec.load("rsna_ich")
    image = dataclasses.replace(packaged.image, size_px=32, windows=packaged.image.windows[:windows])
    split = dataclasses.replace(packaged.split, weights={"spare": 1, "test": 10**6, "train": 10**6})
    return dataclasses.replace(packaged, image=image, split=split)


def make(output: Path, windows: int = 3, labelled: bool = True) -> Path:
    """A converted data set: the slices of `HOSTILE` and `TWIN`, and two rejects."""
    data_spec = small_spec(windows)
    source = output.parent / f"{output.name}-dicom"
    source.mkdir()
    for number, uid in enumerate((*HOSTILE, TWIN)):
        pixels = head_slice(seed=HOSTILE.index("ID_plain") if uid == TWIN else number)
        ids = dict.fromkeys(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), f"patient {number}".encode())
        elements = slice_elements(pixels, SOPInstanceUID=uid.encode(), **ids)
        (source / f"{number}.dcm").write_bytes(dicom_file(elements))
    (source / "<b>bad.dcm").write_bytes(b"no DICOM")
    (source / "=empty.dcm").write_bytes(b"")
    return convert(source, output, data_spec, label_table(data_spec) if labelled else None)


def label_table(data_spec: spec.DatasetSpec) -> LabelTable:
    """Labels of every slice: the first is negative, the others carry one label each; the last is negative."""
    names = data_spec.labels.names
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["ID", "Label"])
    for number, uid in enumerate((*HOSTILE, TWIN)):
        kind = number % len(names)
        writer.writerows([f"{uid}_{name}", int(kind > 0 and place in (0, kind))] for place, name in enumerate(names))
    return read_labels(io.BytesIO(out.getvalue().encode()), data_spec.labels, "labels.csv")


def convert(source: Path, output: Path, data_spec: spec.DatasetSpec, table: LabelTable | None) -> Path:
    """What the Beam job does, in this process."""
    work, tally = job.WorkDir(output), Counter()
    work.create()
    listing = sources.list_inputs([str(source)]).table
    with sources.SliceReader() as reader:
        how = (data_spec.accept, steps.unopened)
        index = steps.index_slices(listing, b"secret of the test", reader, tally, how)
        planned = plan.build_plan(index, [table] if table else [], data_spec)
        names = job.write_plan(work, planned, data_spec)
        for name in names:
            steps.write_shard(work, name, data_spec, reader, tally)
    done = dict(job.sidecars(work, names))
    lost = commit.all_rejects(data_spec, planned, done)
    commit.commit(output, data_spec, planned, done, lost, {"input": {"files": len(listing)}}, lambda: None)
    job.clear(work)
    return output
