"""Other tools open the data set: TensorFlow Datasets and plain tf.data."""

from __future__ import annotations

import pytest
import yaml

from ich_tfrecords.dataset import manifest, records

tf = pytest.importorskip("tensorflow")


def test_tfds_reads_every_split(dataset):
    tfds = pytest.importorskip("tensorflow_datasets")
    done = manifest.read(dataset)
    builder = tfds.builder_from_directory(str(dataset))
    assert builder.info.name == "rsna_ich"
    assert set(builder.info.splits) == {name for name, values in done.splits.items() if values["slices"]}
    features = builder.info.features
    assert features["image"].shape == done.spec.image.shape
    assert features["labels"].shape == (len(done.spec.labels.names),)
    for name, values in done.splits.items():
        if not values["slices"]:
            continue
        assert builder.info.splits[name].num_examples == values["slices"]
        examples = list(builder.as_dataset(split=name).as_numpy_iterator())
        assert len(examples) == values["slices"]
        for example in examples:
            assert set(example) == {feature.name for feature in records.features(done.spec)}
            assert (example["image"].dtype, example["image"].shape) == ("uint8", done.spec.image.shape)
            assert (example["labels"].dtype, example["labels"].shape) == ("int64", (6,))
            assert isinstance(example["sop_uid"], bytes)
            assert records.pixel_digest(example["image"]) == example["pixel_digest"]
        positive = sum(int(example["labels"][0]) for example in examples)
        assert positive == values["labels"]["any"]["positive"]


def test_tfds_tells_what_it_is_and_gives_pairs(dataset):
    tfds = pytest.importorskip("tensorflow_datasets")
    builder = tfds.builder_from_directory(str(dataset))
    assert "labels in the order any, epidural, intraparenchymal" in builder.info.description
    image, labels = next(iter(builder.as_dataset(split="train", as_supervised=True).as_numpy_iterator()))
    assert (image.dtype, labels.shape) == ("uint8", (6,))


def test_the_card_leads_hugging_face_to_the_table(dataset):
    """As its library reads a folder: YAML between two rules, and the files that it names."""
    _, front, rest = (dataset / "README.md").read_text().split("---\n", 2)
    [config] = yaml.safe_load(front)["configs"]
    [files] = config["data_files"]
    assert files == {"split": "slices", "path": manifest.SLICES}
    assert (dataset / files["path"]).is_file()
    assert rest.startswith("# rsna_ich 1.0.0\n")


def test_plain_tf_data_reads_the_records(dataset):
    done = manifest.read(dataset)
    for shard in done.shards:
        batches = tf.data.TFRecordDataset(str(dataset / shard["name"])).batch(32)
        count = 0
        for batch in batches:
            parsed = tf.io.parse_example(batch, records.parsing_features(done.spec))
            image = tf.io.decode_raw(parsed["image"], tf.uint8)
            assert image.shape[1] == 128 * 128 * 3
            count += len(image)
        assert count == shard["slices"]
