"""The two JSON files by which TensorFlow Datasets opens a converted directory; TFDS itself is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ich_tfrecords.dataset import records
from ich_tfrecords.spec import DatasetSpec

INFO = "dataset_info.json"
FEATURES = "features.json"
# what `as_supervised=True` gives: (image, labels)
_SUPERVISED = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "labels"}]}}


def info(
    spec: DatasetSpec, splits: Mapping[str, Mapping[str, Any]], shards: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """`dataset_info.json` of TensorFlow Datasets (proto3 JSON of its DatasetInfo message)."""
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    entries = [
        {
            "name": name,
            "filepathTemplate": template,
            "shardLengths": [str(shard["slices"]) for shard in shards if shard["split"] == name],
            "numBytes": str(values["bytes"]),
        }
        for name, values in splits.items()
        if values["shards"]
    ]
    head = {"name": spec.name, "version": spec.version, "fileFormat": "tfrecord", "moduleName": "ich_tfrecords"}
    told = {"description": description(spec), "supervisedKeys": _SUPERVISED}
    return {**head, **told, "splits": entries}


def description(spec: DatasetSpec) -> str:
    """What the records hold, in a sentence."""
    image = spec.image
    windows = ", ".join(map(str, image.windows))
    return (
        f"CT slices of the head: image {image.dtype} {list(image.shape)}, {image.holds} (level/width in HU) {windows}; "
        f"labels in the order {', '.join(spec.labels.names)} (1, 0, or -1 for unknown)."
    )


def features(spec: DatasetSpec) -> dict[str, Any]:
    """`features.json` of TensorFlow Datasets, from the record table."""
    prefix = "tensorflow_datasets.core.features"
    table = {feature.name: _feature(feature, prefix) for feature in records.features(spec)}
    return {"pythonClassName": f"{prefix}.features_dict.FeaturesDict", "featuresDict": {"features": table}}


def _feature(feature: records.Feature, prefix: str) -> dict[str, Any]:
    if feature.dtype == "string":
        # a Text feature would have to be UTF-8, which a digest is not
        tensor = {"shape": {}, "dtype": "object", "encoding": "none"}
        return {"pythonClassName": f"{prefix}.scalar.Scalar", "tensor": tensor}
    encoding = "bytes" if feature.is_tensor else "none"
    if not feature.shape:
        return {
            "pythonClassName": f"{prefix}.scalar.Scalar",
            "tensor": {"shape": {}, "dtype": feature.dtype, "encoding": encoding},
        }
    shape = {"dimensions": [str(side) for side in feature.shape]}
    tensor = {"shape": shape, "dtype": feature.dtype, "encoding": encoding}
    return {"pythonClassName": f"{prefix}.tensor_feature.Tensor", "tensor": tensor}
