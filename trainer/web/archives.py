"""Archives among what came: read as they are, and refused where they hold more than may be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from ich_tfrecords.storage import sources, zip_directory
from ich_tfrecords.storage.zip_directory import SourceError
from trainer.web.limits import MOST_FILES, UNPACKED
from trainer.web.refusal import Refusal
from trainer.worklist.spool import Entry


def require_readable(entry: Entry, names: Sequence[str], most_bytes: int) -> None:
    """Raise `Refusal` for archives that are damaged, hold no slice, or unpack to too much; nothing is unpacked here.

    `names`: what the files were called; `most_bytes`: of an upload.
    """
    inputs = entry.inputs()
    archives = [Path(place) for place in inputs if place != str(entry.files)]
    try:
        _require_small(archives, most_bytes)
        if archives:
            sources.list_inputs(inputs)
    except SourceError as error:
        text = str(error)
        for path in archives:
            text = text.replace(str(path), names[int(path.stem)])
        raise Refusal(400, text.replace(str(entry.files), "the upload")) from error


def _require_small(archives: Sequence[Path], most_bytes: int) -> None:
    members = size_bytes = 0
    for path in archives:
        for batch in zip_directory.member_batches(path):  # a block of the directory at a time, however long it is
            members += len(batch)
            size_bytes += pc.sum(batch.column("size_bytes")).as_py() or 0
            if members > MOST_FILES:
                raise Refusal(413, f"the archives hold more than {MOST_FILES:,} files; send several uploads")
            if size_bytes > UNPACKED * most_bytes:
                raise Refusal(
                    413, f"the archives unpack to more than {UNPACKED * most_bytes:,} bytes; send fewer files"
                )
