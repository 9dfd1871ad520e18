"""A data set in words: the card beside its shards, and the lines that commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ich_tfrecords import NOT_A_DEVICE
from ich_tfrecords.dataset import studies
from ich_tfrecords.dataset.manifest import SLICES, Manifest
from ich_tfrecords.plural import counted
from ich_tfrecords.storage.bucket_path import AnyPath

# what `datasets.load_dataset(FOLDER)` of Hugging Face looks for: the table of slices, of all splits as one
FRONT_MATTER = (
    "---",
    "configs:",
    "- config_name: slices",
    "  data_files:",
    "  - split: slices",
    f"    path: {SLICES}",
    "---",
)


def card(manifest: Manifest) -> str:
    """Data-set card in Markdown: what it holds, how the pixels were made, how to read it."""
    spec, image = manifest.spec, manifest.spec.image
    windows = ", ".join(map(str, image.windows))
    head = f"| split | slices | patients | studies | {' | '.join(spec.labels.names)} |"
    rule = "|---|" + "---:|" * (3 + len(spec.labels.names))
    return "\n".join(
        [
            *FRONT_MATTER,
            f"# {spec.name} {spec.version}",
            "",
            f"{manifest.slices:,} CT slices of the head as TFRecords: {image.dtype} {list(image.shape)}, {image.holds}",
            f"(level/width in HU) {windows}; labels in the order {', '.join(spec.labels.names)}",
            "(1, 0, or -1 for unknown).",
            "",
            head,
            rule,
            *(_card_row(name, values) for name, values in manifest.splits.items()),
            "",
            "Numbers under a label count its positive slices. Patients stand in one split only.",
            *(f"No slices fell into: {', '.join(names)}." for names in [_empty(manifest)] if names),
            f"{sum(manifest.rejects.values()):,} files gave no record; `rejects.csv` names each with its reason.",
            *_card_studies(manifest),
            *_card_fixes(manifest),
            "",
            f"Fingerprint `{manifest.fingerprint}`. `manifest.json` holds the spec and the sha256 of every shard;",
            "`python -m ich_tfrecords.inspect verify .` checks them all.",
            "",
            "```python",
            "import tensorflow_datasets as tfds",
            f'slices = tfds.builder_from_directory(".").as_dataset(split="{_sample_split(manifest)}")',
            "```",
            "",
            NOT_A_DEVICE,
            "",
        ]
    )


def _empty(manifest: Manifest) -> list[str]:
    return [name for name, values in manifest.splits.items() if not values["slices"]]


def _sample_split(manifest: Manifest) -> str:
    """A split that holds slices, `train` where it does; TFDS knows no empty ones."""
    filled = [name for name, values in manifest.splits.items() if values["slices"]]
    return "train" if "train" in filled or not filled else filled[0]


def _card_row(name: str, values: Mapping[str, Any]) -> str:
    cells = [values["slices"], values["patients"], values["studies"]]
    cells += [counts["positive"] for counts in values["labels"].values()]
    return f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |"


def _card_fixes(manifest: Manifest) -> list[str]:
    """That labels were corrected, where they were."""
    fixes = manifest.made_from.get("label_fixes")
    if not fixes:
        return []
    rows = counted(fixes["rows"], "row")
    return ["", f"**Not the original labels**: corrected by {rows} of a file with sha256 `{fixes['sha256']}`."]


def _card_studies(manifest: Manifest) -> list[str]:
    """A table of the labels of studies, where the set has any."""
    names = manifest.spec.labels.names
    rows = [(name, values[studies.COUNTS]) for name, values in manifest.splits.items() if studies.COUNTS in values]
    if not rows:
        return []
    cells = [
        [name, *(f"{counts[label]['positive']:,} / {_known(counts, label):,}" for label in names)]
        for name, counts in rows
    ]
    head = [f"| studies | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    body = [f"| {' | '.join(row)} |" for row in cells]
    return ["", *head, *body, "", f"Labels of studies, positive / known: `{studies.STUDIES}` has a row a study."]


def _known(counts: Mapping[str, Mapping[str, int]], label: str) -> int:
    return counts[label]["positive"] + counts[label]["negative"]


def describe(directory: AnyPath, done: Manifest) -> str:
    """Lines that say what a data set holds."""
    lines = [f"{directory}: {counted(done.slices, 'slice')} in {counted(len(done.shards), 'shard')}"]
    lines[0] += f", fingerprint {done.fingerprint[:16]}"
    for name, values in done.splits.items():
        if values["slices"]:
            slices = counted(values["slices"], "slice")
            lines.append(f"  {name}: {slices} of {counted(values['patients'], 'patient')}; {_labels(values)}")
    lines += _studies(done)
    if fixes := done.made_from.get("label_fixes"):
        lines.append(f"  labels corrected by a file of {counted(fixes['rows'], 'row')}, sha256 {fixes['sha256'][:16]}")
    if empty := _empty(done):
        lines.append(f"  no slices fell into: {', '.join(empty)}")
    if done.rejects:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(done.rejects.items()))
        lines.append(f"  no record: {counted(sum(done.rejects.values()), 'file')} ({reasons}); see rejects.csv")
    if done.not_drawn:
        lines.append(f"  outside the subset: {counted(done.not_drawn, 'slice')}")
    if done.labels_unused:
        lines.append(f"  labels of slices that are not in the data set: {done.labels_unused:,}")
    return "\n".join(lines)


def _studies(done: Manifest) -> list[str]:
    """A line about the labels of studies, where the set has any."""
    found = [values for values in done.splits.values() if studies.COUNTS in values]
    if not found:
        return []
    total = {
        label: {word: sum(values[studies.COUNTS][label][word] for values in found) for word in counts}
        for label, counts in found[0][studies.COUNTS].items()
    }
    studies_counted = counted(sum(values["studies"] for values in found), "study", "studies")
    told = ", ".join(f"{label} {total[label]['positive']:,} of {_known(total, label):,}" for label in total)
    return [f"  labels of {studies_counted}, positive of known: {told}; see {studies.STUDIES}"]


def _labels(values: Mapping[str, Any]) -> str:
    if all(counts["unknown"] == values["slices"] for counts in values["labels"].values()):
        return "labels unknown"
    return "positive: " + ", ".join(f"{label} {counts['positive']:,}" for label, counts in values["labels"].items())
