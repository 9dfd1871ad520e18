"""`reads.csv` of CQ500 as it is published: what three readers saw in each study -> its labels by majority.

Its columns are `name,Category,R1:ICH,R1:IPH,...,R3:SAH` and others that are not read; a `name` is `CQ500-CT-12`, and
the folder of that study bears the same number.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.labels.csv_file import CsvFile, LabelError, shorten
from ich_tfrecords.plural import counted
from ich_tfrecords.spec import LabelSpec

NAME = "name"
FINDINGS = {
    "any": "ICH",
    "epidural": "EDH",
    "intraparenchymal": "IPH",
    "intraventricular": "IVH",
    "subarachnoid": "SAH",
    "subdural": "SDH",
}
READERS = ("R1", "R2", "R3")
MAJORITY = 2  # equal votes
# the number of a study in `name`, and in the path of a slice
NUMBER = r"(?i)(?:^|[^a-z0-9])cq500[-_ ]?ct[-_ ]?0*(?P<number>[0-9]+)(?:$|[^0-9])"

Int8 = npt.NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class Readers:
    """`count` int8 [n], how many readers judged `any` of a study; `votes` int8 [n, labels], how many said 1."""

    count: Int8
    votes: Int8
    notes: tuple[str, ...]

    def taken(self, rows: npt.NDArray[np.integer]) -> Readers:
        """Those of some rows."""
        return dataclasses.replace(self, count=self.count[rows], votes=self.votes[rows])


def are_in(header: Sequence[str]) -> bool:
    """Whether a header is that of a file of readers."""
    return NAME in header and any(re.fullmatch(r"R\d+:\w+", column) for column in header)


def read(file: CsvFile, labels: LabelSpec, may_miss: bool) -> tuple[pa.Array, Int8, Readers]:
    """Numbers of the studies (large strings), int8 [rows, labels] by majority, and the readers.

    Where `any` has a majority and no other label has, all others are unknown (-1). Raises `LabelError`.
    """
    strange = [name for name in labels.names if name not in FINDINGS]
    if strange:
        raise LabelError(
            f"{file.name}: its readers judged {', '.join(FINDINGS)}, and the spec asks for {strange[0]!r}; "
            "take a spec with these labels"
        )
    columns = [f"{reader}:{FINDINGS[name]}" for name in labels.names for reader in READERS]
    lacking = [column for column in columns if column not in file.header]
    if lacking:
        raise LabelError(
            f"{file.name}: no column {lacking[0]!r}; majorities need all three readers, "
            f"so fetch the whole file, or give labels of your own in a column for each label"
        )
    names, told = file.columns(NAME, columns, may_miss)
    said = np.stack(told).reshape(len(labels.names), len(READERS), -1)
    votes, against = (said == 1).sum(axis=1), (said == 0).sum(axis=1)
    codes = np.select([votes >= MAJORITY, against >= MAJORITY], [1, 0], -1).T.astype(np.int8)
    kindless = _kindless(codes, labels)
    either = labels.names.index(labels.any)
    differ = int(((votes[either] > 0) & (against[either] > 0)).sum())
    read_by = (said[either] >= 0).sum(axis=0).astype(np.int8)
    found = Readers(read_by, votes.T.astype(np.int8), tuple(_notes(differ, int(kindless.sum()), read_by, labels)))
    return _numbers(file, names), codes, found


def _kindless(codes: Int8, labels: LabelSpec) -> npt.NDArray[np.bool_]:
    """bool [rows], where `any` is 1 and no other label is; the others become unknown in `codes`."""
    others = [labels.names.index(name) for name in labels.rarest_first]
    found = (codes[:, labels.names.index(labels.any)] == 1) & ~(codes[:, others] == 1).any(axis=1)
    if others:
        codes[np.ix_(found, others)] = -1
    return found


def _notes(differ: int, kindless: int, read_by: Int8, labels: LabelSpec) -> list[str]:
    notes = [f"majority of {len(READERS)} readers, who differ about {labels.any} in {_studies(differ)}"]
    if kindless and labels.rarest_first:
        notes.append(f"{labels.any} has a majority and no kind has in {_studies(kindless)}: the kinds are unknown")
    if few := int((read_by < len(READERS)).sum()):
        notes.append(f"fewer than {len(READERS)} readers judged {labels.any} in {_studies(few)}")
    return notes


def _studies(number: int) -> str:
    return counted(number, "study", "studies")


def _numbers(file: CsvFile, names: pa.Array) -> pa.Array:
    numbers = numbers_in(names)
    if numbers.null_count:
        row = pc.index(pc.is_null(numbers), True).as_py()
        raise file.error_at(row, f"{NAME} is {shorten(names[row].as_py())}; expected such as CQ500-CT-12")
    return numbers.cast(pa.large_string())


def numbers_in(texts: pa.Array) -> pa.Array:
    """The number of the study in names and paths, without leading zeros; null where there is none."""
    return pc.struct_field(pc.extract_regex(texts, NUMBER), "number")
