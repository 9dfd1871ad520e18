"""One HTML page that shows a data set: counts, balance, co-occurrence, windows, pictures, rejects and duplicates.

The same data set gives the same bytes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.compute as pc

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
from ich_tfrecords.views.html_page import escape, section, table

PAGE = "index.html"
PICTURES_A_LABEL = 4
EXAMPLES = 3
PANEL_PX = 128


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
    rows = montage.slice_rows(directory, manifest.spec)
    duplicates = find_duplicates(rows, manifest.spec.labels.names, EXAMPLES)
    title = f"{manifest.spec.name} {manifest.spec.version}"
    sections = [
        section(
            "Splits",
            _splits(manifest),
            "Patients stand in one split only; prevalence is that among slices with a known label.",
        ),
        section("Labels", _labels(manifest), "Positive slices among those whose label is known."),
        section("Labels together", _together(rows, manifest), _TOGETHER),
        section("Windows", charts.window_ramps(manifest.spec.image.windows, "Windows over HU"), _WINDOWS),
        section("Pictures", _pictures(directory, rows, manifest), _picture_note(manifest)),
        section("Slices a series", _series(rows), ""),
        section("Identical images", _duplicates(duplicates), _IDENTICAL),
        section("Files without a record", _rejects(directory, manifest), f"{REJECTS} names each file."),
        section("Made from", _made_from(manifest, generator), ""),
        section(
            "Spec", f"<pre>{escape(_pretty_spec(manifest))}</pre>", "manifest.json holds it; it decides every byte."
        ),
    ]
    return html_page.page(title, _head(title, manifest) + "".join(sections))


_TOGETHER = "Slices positive for both; the share is that of the row's label. The diagonal counts the label itself."
_WINDOWS = "The grey that each HU becomes. Below a window all is black, above it all is white."
_IDENTICAL = (
    "Slices whose image tensors agree in every byte. A group that crosses splits shows an image of the training "
    "in the evaluation; a group whose labels differ cannot be learned."
)


def _head(title: str, manifest: Manifest) -> str:
    total = totals(manifest)
    facts = {name: f"{total[name]:,}" for name in ("slices", "patients", "studies", "series")}
    facts |= {"shards": f"{len(manifest.shards):,}", "size": megabytes(total["bytes"])}
    size, _, windows = manifest.spec.image.shape
    image = f"uint8 {size} x {size} px, {windows} window{'s' if windows > 1 else ''}"
    return (
        f"<header><h1>{escape(title)}</h1><p>Head CT slices as TFRecords, {image}. "
        f"Fingerprint <code>{escape(manifest.fingerprint)}</code></p>"
        f"{html_page.tiles(facts)}</header>"
    )


def _splits(manifest: Manifest) -> str:
    names = manifest.spec.labels.names
    whole = {**totals(manifest), "labels": {name: total_counts(manifest, name) for name in names}}
    columns = {**manifest.splits, "all": whole} if len(manifest.splits) > 1 else manifest.splits
    counted = ("slices", "patients", "studies", "series", "shards")
    rows = [[fact, *(f"{values[fact]:,}" for values in columns.values())] for fact in counted]
    rows += [
        [f"prevalence of {name}", *(prevalence(values["labels"][name]).percent for values in columns.values())]
        for name in names
    ]
    return table(["", *columns], rows)


def _labels(manifest: Manifest) -> str:
    names = manifest.spec.labels.names
    groups = [
        (name, {split: prevalence(of["labels"][name]) for split, of in manifest.splits.items()}) for name in names
    ]
    unknown = {name: total_counts(manifest, name)["unknown"] for name in names}
    words = ", ".join(f"{name} {count:,}" for name, count in unknown.items() if count)
    note = f"<p>Slices whose label is unknown (-1): {escape(words)}.</p>" if words else ""
    if not any(share.total for _, shares in groups for share in shares.values()):
        return note
    return charts.bars(groups, "Prevalence of each label in each split") + note


def _together(rows: pa.Table, manifest: Manifest) -> str:
    names = manifest.spec.labels.names
    counts = cooccurrence(rows, names)
    if not counts.any():
        return "<p>No slice is positive.</p>"
    head = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in names)
    lines = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th>{"".join(_heat_cells(counts, row))}</tr>'
        for row, name in enumerate(names)
    )
    return f'<table class="heat"><thead><tr><th></th>{head}</tr></thead><tbody>{lines}</tbody></table>'


def _heat_cells(counts: npt.NDArray[np.int64], row: int) -> Iterator[str]:
    """Cells of one row: the darker the blue, the greater the share; white text where it is dark."""
    own = int(counts[row, row])
    for column, count in enumerate(counts[row].tolist()):
        if column == row:
            yield f'<td class="number own"><b>{count:,}</b></td>'
            continue
        share = Share(count, own)
        mixed = [round(255 + (dark - 255) * share.part) for dark in (8, 69, 148)]
        ink = "#fff" if share.part > 0.5 else "#1b1f24"
        color = f"background:rgb({','.join(map(str, mixed))});color:{ink}"
        yield f'<td class="number" style="{color}">{count:,}<small>{share.percent}</small></td>'


def _picture_note(manifest: Manifest) -> str:
    heads = ", ".join(montage.panel_heads(manifest.spec))
    return f"From left to right: {heads} (level/width in HU). Seeded draw, of as many patients as possible."


def _pictures(directory: AnyPath, rows: pa.Table, manifest: Manifest) -> str:
    labels = manifest.spec.labels
    groups = [(label, pc.equal(rows[label], 1)) for label in labels.names if label != labels.any]
    groups += [(stratum, pc.equal(rows["stratum"], stratum)) for stratum in (NO_HEMORRHAGE, UNLABELLED)]
    return "".join(_picture_group(directory, rows.filter(mask), name, manifest) for name, mask in groups)


def _picture_group(directory: AnyPath, members: pa.Table, name: str, manifest: Manifest) -> str:
    if not members.num_rows:
        return ""
    drawn = montage.draw(members, PICTURES_A_LABEL, seed=0)
    figures = [_figure(picture, manifest) for picture in montage.read_pictures(directory, drawn, manifest.spec)]
    count = f"{members.num_rows:,} slice{'s' if members.num_rows > 1 else ''}"
    return f'<h3>{escape(name)} <small>{count}</small></h3><div class="pictures">{"".join(figures)}</div>'


def _figure(picture: montage.Picture, manifest: Manifest) -> str:
    image = montage.strip(picture.image, PANEL_PX)
    uid, labels = picture.row["sop_uid"], montage.positive_labels(picture.row, manifest.spec)
    words = f"{montage.shortened(uid)}, {montage.place(picture.row)}"
    shown = html_page.image(montage.png_bytes(image), "png", f"{labels}: {words}", image.width)
    return (
        f"<figure>{shown}<figcaption><b>{escape(labels)}</b><br>"
        f'<span title="{escape(uid)}">{escape(words)}</span></figcaption></figure>'
    )


def _series(rows: pa.Table) -> str:
    sizes = series_sizes(rows)
    if not sizes:
        return "<p>No slice.</p>"
    words = f"{len(sizes):,} series of {sizes[0]:,} to {sizes[-1]:,} slices, median {float(np.median(sizes)):g}."
    chart = charts.histogram(sizes, "slices in the series (across), number of series (up)", "Slices a series")
    return f"<p>{words}</p>{chart}"


def _duplicates(found: Duplicates) -> str:
    if not found.groups:
        return "<p>No two slices have the same image.</p>"
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
    return table(["what", "number"], facts) + "<h3>First groups</h3>" + table(heads, shown, words=len(heads))


_MEMBERS = 6  # of a group, shown


def _rejects(directory: AnyPath, manifest: Manifest) -> str:
    if not manifest.rejects:
        return "<p>Every file gave a record.</p>"
    examples = reject_examples(directory / REJECTS, EXAMPLES)
    ranked = sorted(manifest.rejects.items(), key=lambda item: (-item[1], item[0]))
    rows = [
        [reason if number == 0 else "", f"{count:,}" if number == 0 else "", row["name"], row["detail"]]
        for reason, count in ranked
        for number, row in enumerate(examples.get(reason) or [{"name": "", "detail": ""}])
    ]
    return table(["reason", "files", "first files", "detail"], rows, words=4)


def _made_from(manifest: Manifest, generator: str) -> str:
    facts = {**flat(manifest.made_from), "outside the subset": manifest.not_drawn}
    facts |= {"label rows of no slice": manifest.labels_unused, "data set written by": generator}
    versions = {"ich_tfrecords": __version__, "python": platform.python_version()}
    versions |= {"numpy": np.__version__, "pyarrow": pa.__version__, "pillow": PIL.__version__}
    facts["this page by"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return table(["what", "value"], [[name, plain(value)] for name, value in facts.items()], words=2)


def _pretty_spec(manifest: Manifest) -> str:
    return json.dumps(json.loads(canonical_json(manifest.spec)), indent=2, ensure_ascii=False)
