from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from ich_tfrecords import spec

GOOD = yaml.safe_load(
    """
name: tiny
version: 1.0.0
image: {size_px: 16, pad_hu: -1000, windows: [{name: brain, level_hu: 40, width_hu: 80}]}
labels: {any: any, names: [any, a, b], rarest_first: [b, a]}
split: {salt: s, weights: {train: 1}, subset: {}}
shards: {seed: 0, target_bytes: 1000, min_shards: 1}
"""
)


def changed(path: str, value: object) -> dict:
    values = json.loads(json.dumps(GOOD))
    *folders, last = path.split(".")
    place = values
    for folder in folders:
        place = place[int(folder)] if isinstance(place, list) else place[folder]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return values


def test_the_thesis_windows_and_labels(rsna_spec):
    windows = [(window.name, window.level_hu, window.width_hu) for window in rsna_spec.image.windows]
    assert windows == [("brain", 40, 80), ("subdural", 80, 200), ("bone", 40, 380)]
    assert rsna_spec.image.shape == (128, 128, 3)
    assert rsna_spec.labels.names[0] == "any"
    assert rsna_spec.labels.strata == (
        "epidural", "intraventricular", "subarachnoid", "intraparenchymal", "subdural", "none", "unlabelled",
    )  # fmt: skip


def test_the_thesis_subset_differs_in_name_and_subset_alone(rsna_spec):
    lines = spec.differences(rsna_spec, spec.load("thesis_subset"))
    assert [line.split(":")[0] for line in lines] == [
        "name", "split.subset.test", "split.subset.train", "split.subset.validation",
    ]  # fmt: skip
    subset = spec.load("thesis_subset").split.subset
    assert subset["train"] + subset["validation"] == 50_000
    assert subset["validation"] / 50_000 == 0.15
    assert subset["test"] == 5_000


@pytest.mark.slow
def test_every_packaged_spec_loads_and_returns_from_its_dict():
    assert spec.config_names() == ["hospital", "rsna_hu", "rsna_ich", "thesis_subset", "unlabelled"]
    for name in spec.config_names():
        loaded = spec.load(name)
        assert spec.from_dict(spec.to_dict(loaded)) == loaded


def test_the_fingerprint_is_stable_and_follows_every_value():
    """The manifest of every converted data set holds such a value."""
    base = spec.from_dict(GOOD)
    assert spec.canonical_json(base).startswith('{"image":{"pad_hu":-1000,"size_px":16,"windows":[{"level_hu":40')
    assert spec.fingerprint(base) == spec.fingerprint(spec.from_dict(dict(reversed(GOOD.items()))))
    other = spec.from_dict(changed("image.windows.0.width_hu", 81))
    assert spec.fingerprint(base) != spec.fingerprint(other)
    assert spec.differences(base, base) == []
    assert spec.differences(base, spec.from_dict(changed("shards.seed", 7))) == ["shards.seed: 0, now 7"]


def test_a_spec_from_before_there_was_a_choice_of_slices_keeps_its_fingerprint():
    """The sums are those of the version before; data sets and trained models hold them."""
    before = {
        "rsna_ich": "06b56ece51c995b4ca7b6b4a3885bed69275634f7f4785e61a46794e3d75f452",
        "thesis_subset": "9f2bd8dfb125961e4ea6325fafc3ca17d68c71dd9f18fa4a748cebf68cb9c097",
        "unlabelled": "b3d13f605e04749a00324b1450ca8bc3ac7d548e9fedf174de51e3c456a1b609",
    }
    assert {name: spec.fingerprint(spec.load(name)) for name in before} == before
    assert "accept" not in GOOD
    assert spec.from_dict(GOOD).accept == ("original",)
    assert spec.from_dict(GOOD | {"accept": ["original"]}) == spec.from_dict(GOOD)


def test_a_spec_that_accepts_derived_slices_is_another_one():
    base, both = spec.from_dict(GOOD), spec.from_dict(GOOD | {"accept": ["original", "derived"]})
    assert spec.fingerprint(base) != spec.fingerprint(both)
    assert spec.from_dict(spec.to_dict(both)) == both
    assert spec.differences(base, both) == ["accept: ['original'], now ['original', 'derived']"]
    assert spec.load("hospital").accept == ("original", "derived")
    names = [line.split(":")[0] for line in spec.differences(spec.load("rsna_ich"), spec.load("hospital"))]
    assert names == ["accept", "name"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("accept", ["derived"], "accept is ['derived']; write [original], or [original, derived]"),
        ("accept", ["original", "secondary"], "write [original], or [original, derived]"),
        ("accept", [], "accept is []; write [original]"),
        ("accept", "derived", "accept is 'derived'; it must be a list"),
        ("imgae", {}, "unknown key 'imgae'; did you mean 'image'?"),
        ("image.size", 5, "unknown key 'size'; did you mean 'size_px'?"),
        ("image.size_px", None, "missing key 'size_px'"),
        ("image.size_px", "128", "image: size_px is '128'; it must be a whole number"),
        ("image.size_px", 128.0, "it must be a whole number"),
        ("image.size_px", True, "it must be a whole number"),
        ("image.size_px", 4, "size_px is 4; use 8 to 1024"),
        ("image.windows", [], "windows is empty"),
        ("image.windows", "brain", "it must be a list"),
        ("image.windows.0.width_hu", 0, "window brain: width_hu is 0; it must be positive"),
        ("image.windows.0.level_hu", 32760, "leaves the int16 range"),
        ("image.windows.0.name", "Brain!", "window name is 'Brain!'"),
        ("labels.any", "all", "labels.any is 'all'"),
        ("labels.rarest_first", ["a"], "it must hold each of ['a', 'b'] once"),
        ("labels.names", ["any", "a", "a"], "a label stands twice"),
        ("labels.names", ["any", "a", "none"], "rarest_first is ['b', 'a']"),
        ("split.weights", {}, "split.weights is empty"),
        ("split.weights", {"train": 0}, "split.weights.train is 0"),
        ("split.subset", {"tarin": 5}, "unknown key 'tarin'; did you mean 'train'?"),
        ("split.subset", {"train": 0}, "split.subset.train is 0"),
        ("split.salt", "", "split.salt is empty"),
        ("shards.seed", -1, "shards.seed is -1"),
        ("shards.min_shards", 0, "min_shards is 0"),
        ("shards.target_bytes", 0, "target_bytes is 0"),
        ("version", "1", "version is '1'; write three numbers"),
        ("name", "a b", "name is 'a b'"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(path, value, words):
    with pytest.raises(spec.SpecError) as caught:
        spec.from_dict(changed(path, value), "my.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("my.yaml")


def test_a_label_may_not_be_called_like_a_stratum():
    values = changed("labels", {"any": "any", "names": ["any", "none"], "rarest_first": ["none"]})
    with pytest.raises(spec.SpecError, match="name strata"):
        spec.from_dict(values)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("- 1", "must be a mapping"), ("extends: nothing_known", "unknown key 'nothing_known'")],
)
def test_a_bad_file_is_refused(tmp_path, text, words):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(spec.SpecError, match=words):
        spec.load(str(path))


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(spec.SpecError, match="cannot read the spec"):
        spec.load(str(tmp_path / "none.yaml"))
    with pytest.raises(spec.SpecError, match="did you mean 'rsna_ich'"):
        spec.load("rsna_ihc")


def test_extends_merges_sections_and_replaces_splits(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("extends: rsna_ich\nimage: {size_px: 64}\nsplit: {weights: {train: 3, test: 1}}\n")
    loaded = spec.load(str(path))
    assert loaded.image.size_px == 64
    assert len(loaded.image.windows) == 3
    assert loaded.split.weights == {"train": 3, "test": 1}
    path.write_text(f"extends: {path}\n")
    with pytest.raises(spec.SpecError, match="extends itself"):
        spec.load(str(path))


def test_dataclasses_have_no_defaults():
    kinds = (spec.Window, spec.ImageSpec, spec.LabelSpec, spec.SplitSpec, spec.ShardSpec, spec.DatasetSpec)
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert field.default is dataclasses.MISSING, f"{kind.__name__}.{field.name}"
            assert field.default_factory is dataclasses.MISSING
