"""One HTML page that shows a data set: counts, balance, co-occurrence, windows, pictures, rejects and duplicates.

The same data set gives the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from ich_tfrecords import __version__
from ich_tfrecords.dataset.manifest import REJECTS, Manifest
from ich_tfrecords.dataset.summary import (
    Duplicates,
    Share,
    cooccurrence,
    find_duplicates,
    flat,
    megabytes,
    plain,
    prevalence,
    reject_examples,
    series_sizes,
    total_counts,
    totals,
)
from ich_tfrecords.spec import NO_HEMORRHAGE, UNLABELLED, canonical_json
from ich_tfrecords.storage import atomic
from ich_tfrecords.storage.bucket_path import AnyPath
from ich_tfrecords.views import charts, html_page, montage
from ich_tfrecords.views.html_page import Table

PAGE = "index.html"
PICTURES_A_LABEL = 4
EXAMPLES = 3
PANEL_PX = 128
Values = Mapping[str, object]  # of one thing on the page


def write(directory: AnyPath, manifest: Manifest, generator: str, output: Path) -> Path:
    """Write the page of a data set into the folder `output`; returns its path.

    Raises `DatasetError`, `montage.DamagedSlice`, `OSError`.
    """
    text = page(directory, manifest, generator)
    output.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(output / PAGE, text.encode())
    return output / PAGE


def page(directory: AnyPath, manifest: Manifest, generator: str) -> str:
    """HTML text of the page. `generator`: what wrote the data set."""
    spec = manifest.spec
    rows = montage.slice_rows(directory, spec)
    return html_page.page(
        "report.html",
        title=f"{spec.name} {spec.version}",
        tensor=spec.image,
        fingerprint=manifest.fingerprint,
        facts=_facts(manifest),
        splits=_splits(manifest),
        prevalence=_prevalence(manifest),
        unknown=_unknown(manifest),
        labels=spec.labels.names,
        together=_together(cooccurrence(rows, spec.labels.names)),
        windows=charts.window_ramps(spec.image.windows, "Windows over HU"),
        panels=montage.panel_heads(spec),
        pictures=_pictures(directory, rows, manifest),
        series=_series(series_sizes(rows)),
        duplicates=_duplicates(find_duplicates(rows, spec.labels.names, EXAMPLES)),
        rejects=_rejects(directory, manifest) if manifest.rejects else None,
        reject_list=REJECTS,
        made_from=_made_from(manifest, generator),
        spec=json.dumps(json.loads(canonical_json(spec)), indent=2, ensure_ascii=False),
    )


def _facts(manifest: Manifest) -> dict[str, str]:
    total = totals(manifest)
    facts = {name: f"{total[name]:,}" for name in ("slices", "patients", "studies", "series")}
    return facts | {"shards": f"{len(manifest.shards):,}", "size": megabytes(total["bytes"])}


def _splits(manifest: Manifest) -> Table:
    names = manifest.spec.labels.names
    whole = {**totals(manifest), "labels": {name: total_counts(manifest, name) for name in names}}
    columns = {**manifest.splits, "all": whole} if len(manifest.splits) > 1 else manifest.splits
    counted = ("slices", "patients", "studies", "series", "shards")
    rows = [[fact, *(f"{values[fact]:,}" for values in columns.values())] for fact in counted]
    rows += [
        [f"prevalence of {name}", *(prevalence(values["labels"][name]).percent for values in columns.values())]
        for name in names
    ]
    return Table(["", *columns], rows)


def _prevalence(manifest: Manifest) -> Markup | None:
    """Bars of each label in each split; None where no label is known."""
    groups = [
        (name, {split: prevalence(of["labels"][name]) for split, of in manifest.splits.items()})
        for name in manifest.spec.labels.names
    ]
    if not any(share.total for _, shares in groups for share in shares.values()):
        return None
    return charts.bars(groups, "Prevalence of each label in each split")


def _unknown(manifest: Manifest) -> list[str]:
    counts = {name: total_counts(manifest, name)["unknown"] for name in manifest.spec.labels.names}
    return [f"{name} {count:,}" for name, count in counts.items() if count]


def _together(counts: npt.NDArray[np.int64]) -> list[list[Values]] | None:
    """A row of cells a label; None where no slice is positive."""
    if not counts.any():
        return None
    return [
        [_cell(Share(count, row[at]), own=at == column) for column, count in enumerate(row)]
        for at, row in enumerate(counts.tolist())
    ]


def _cell(share: Share, own: bool) -> Values:
    """The darker the blue, the greater the share; white text where it is dark."""
    mixed = ",".join(str(round(255 + (dark - 255) * share.part)) for dark in (8, 69, 148))
    style = f"background:rgb({mixed});color:{'#fff' if share.part > 0.5 else '#1b1f24'}"
    return {"slices": share.count, "percent": share.percent, "style": None if own else style}


def _pictures(directory: AnyPath, rows: pa.Table, manifest: Manifest) -> list[Values]:
    """Of each label, and of its absence: name, number of slices, and figures of a few of them."""
    labels = manifest.spec.labels
    groups = [(label, pc.equal(rows[label], 1)) for label in labels.names if label != labels.any]
    groups += [(stratum, pc.equal(rows["stratum"], stratum)) for stratum in (NO_HEMORRHAGE, UNLABELLED)]
    return [
        {"name": name, "slices": members.num_rows, "figures": list(_figures(directory, members, manifest))}
        for name, mask in groups
        if (members := rows.filter(mask)).num_rows
    ]


def _figures(directory: AnyPath, members: pa.Table, manifest: Manifest) -> Iterator[Values]:
    drawn = montage.draw(members, PICTURES_A_LABEL, seed=0)
    for picture in montage.read_pictures(directory, drawn, manifest.spec):
        strip = montage.strip(picture.image, PANEL_PX)
        uid, labels = picture.row["sop_uid"], montage.positive_labels(picture.row, manifest.spec)
        words = f"{montage.shortened(uid)}, {montage.place(picture.row)}"
        image = html_page.image(montage.png_bytes(strip), "png", f"{labels}: {words}", strip.width)
        yield {"image": image, "labels": labels, "uid": uid, "words": words}


def _series(sizes: list[int]) -> Values | None:
    """`sizes`: slices of each series, ascending."""
    if not sizes:
        return None
    chart = charts.histogram(sizes, "slices in the series (across), number of series (up)", "Slices a series")
    return {
        "number": len(sizes),
        "least": sizes[0],
        "most": sizes[-1],
        "median": float(np.median(sizes)),
        "chart": chart,
    }


def _duplicates(found: Duplicates) -> tuple[Table, Table] | None:
    """How many there are, and the first groups; None where there are none."""
    if not found.groups:
        return None
    facts = [
        ["groups of identical images", f"{found.groups:,}"],
        ["slices in them", f"{found.slices:,}"],
        ["groups across patients", f"{found.across_patients:,}"],
        ["groups across splits", f"{found.across_splits:,}"],
        ["groups whose labels differ", f"{found.conflicting:,}"],
    ]
    shown = [
        [str(number), row["sop_uid"], row["split"], row["patient_key"][:12], row["stratum"]]
        for number, group in enumerate(found.examples, 1)
        for row in group[:_MEMBERS]
    ]
    heads = ["group", "sop_uid", "split", "patient_key (begin)", "stratum"]
    return Table(["what", "number"], facts), Table(heads, shown, words=len(heads))


_MEMBERS = 6  # of a group, shown


def _rejects(directory: AnyPath, manifest: Manifest) -> Table:
    """The reasons by their number of files, each with its first files."""
    examples = reject_examples(directory / REJECTS, EXAMPLES)
    ranked = sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        [reason if number == 0 else "", f"{count:,}" if number == 0 else "", row["name"], row["detail"]]
        for reason, count in ranked
        for number, row in enumerate(examples.get(reason) or [{"name": "", "detail": ""}])
    ]
    return Table(["reason", "files", "first files", "detail"], rows, words=4)


def _made_from(manifest: Manifest, generator: str) -> Table:
    facts = {**flat(manifest.made_from), "outside the subset": manifest.not_drawn}
    facts |= {"label rows of no slice": manifest.labels_unused, "data set written by": generator}
    versions = {"ich_tfrecords": __version__, "python": platform.python_version()}
    versions |= {"numpy": np.__version__, "pyarrow": pa.__version__, "pillow": PIL.__version__}
    facts["this page by"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Table(["what", "value"], [[name, plain(value)] for name, value in facts.items()], words=2)
