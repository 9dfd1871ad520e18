"""How far the readers of the studies agree: what a model can be held to, and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ich_tfrecords.dataset.studies import KEY, READERS, VOTES


def kappa(votes: npt.NDArray[np.int64], readers: npt.NDArray[np.int64]) -> float:
    """Fleiss' kappa (1971) of yes or no: 1 where readers are of one mind, 0 where they agree as by chance.

    `votes`: int64 [m], how many of the `readers` int64 [m] of each study said yes; at least two read it. nan where all
    of them said the same of every study, or there is none.
    """
    if not len(votes):
        return float("nan")
    alike = votes * (votes - 1) + (readers - votes) * (readers - votes - 1)
    observed = float(np.mean(alike / (readers * (readers - 1))))
    share = votes.sum() / readers.sum()
    by_chance = share**2 + (1 - share) ** 2
    return float("nan") if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))


def told(votes: npt.NDArray[np.int64], readers: npt.NDArray[np.int64]) -> dict[str, Any]:
    """`studies` with two readers or more, `one_mind` of them, `kappa`; None where it is not defined."""
    enough = readers >= 2
    votes, readers = votes[enough].astype(np.int64), readers[enough].astype(np.int64)
    found = kappa(votes, readers)
    return {
        "studies": len(votes),
        "one_mind": int(((votes == 0) | (votes == readers)).sum()),
        "kappa": None if np.isnan(found) else found,
    }


def of_studies(studies: pa.Table | None, uids: pa.ChunkedArray, names: tuple[str, ...]) -> dict[str, Any]:
    """Label -> `told` of those `studies` (`studies.parquet`) that `uids` name; {} where none tells votes."""
    if studies is None or READERS not in studies.column_names:
        return {}
    own = studies.filter(pc.is_in(studies[KEY], value_set=uids.combine_chunks()))
    readers = own[READERS].fill_null(0).to_numpy().astype(np.int64)
    every = {name: own[name + VOTES].fill_null(0) for name in names if name + VOTES in own.column_names}
    return {name: told(votes.to_numpy().astype(np.int64), readers) for name, votes in every.items()}
