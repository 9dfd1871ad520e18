"""What a data set is: frozen dataclasses read from YAML, with one canonical JSON form and fingerprint.

The dataclasses have no defaults: every number comes from a file in `configs/`, or from the manifest of
a converted data set.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

NO_HEMORRHAGE = "none"
UNLABELLED = "unlabelled"
ORIGINAL, DERIVED = "original", "derived"
KINDS = WINDOWS, HU = "windows", "hu"
STEPS_A_HU = 4  # of an image of HU: a step is 0.8 grey levels of the brain window
CROPS = WHOLE, HEAD = "none", "head"
# What a spec means that leaves a key out, by section. Its canonical form leaves the key out then too, so that data sets
# from before there was such a key keep their fingerprint.
_LEFT_OUT: dict[str, dict[str, Any]] = {"": {"accept": (ORIGINAL,)}, "image": {"kind": WINDOWS, "crop": WHOLE}}


class SpecError(ValueError):
    """A spec that cannot be used; the message names the file, the key and the value."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def _require_word(what: str, value: str) -> None:
    _require(
        re.fullmatch(r"[a-z][a-z0-9_]*", value) is not None,
        f"{what} is {value!r}; use lower-case letters, digits and _, beginning with a letter",
    )


@dataclasses.dataclass(frozen=True)
class Window:
    """One grey-scale window (DICOM PS3.3 C.11.2.1.2): level and width in HU, whole numbers."""

    name: str
    level_hu: int
    width_hu: int

    def __post_init__(self) -> None:
        _require_word("window name", self.name)
        low, high = 2 * self.level_hu - self.width_hu, 2 * self.level_hu + self.width_hu
        _require(self.width_hu > 0, f"window {self.name}: width_hu is {self.width_hu}; it must be positive")
        _require(
            low >= -2 * 32768 and high <= 2 * 32767,
            f"window {self.name}: {low / 2:g} to {high / 2:g} HU leaves the int16 range of HU",
        )

    def __str__(self) -> str:
        return f"{self.name} {self.level_hu}/{self.width_hu}"


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The image tensor: `size_px` rows and columns, padding in HU.

    `kind`: `windows` for grey levels uint8, one channel a window; `hu` for HU in quarters, int16 in one channel, with
    `windows` for what is shown of it, and for where a model begins that windows by itself.
    `crop`: `none`, or `head` for the square around the head (`crop.head_square`) in place of the whole slice.
    """

    size_px: int
    pad_hu: int
    windows: tuple[Window, ...]
    crop: str
    kind: str

    def __post_init__(self) -> None:
        _require(self.kind in KINDS, f"kind is {self.kind!r}; write {' or '.join(KINDS)}")
        _require(8 <= self.size_px <= 1024, f"size_px is {self.size_px}; use 8 to 1024")
        _require(-32768 <= self.pad_hu <= 32767, f"pad_hu is {self.pad_hu}; HU are int16")
        _require(self.crop in CROPS, f"crop is {self.crop!r}; write {' or '.join(CROPS)}")
        _require(len(self.windows) > 0, "windows is empty; name at least one")
        names = [window.name for window in self.windows]
        _require(len(set(names)) == len(names), f"two windows have the same name in {names}")

    @property
    def shown(self) -> str:
        """What of a slice is shown, in words."""
        return "the square around the head" if self.crop == HEAD else "the whole slice"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels of the image tensor."""
        return (self.size_px, self.size_px, 1 if self.kind == HU else len(self.windows))

    @property
    def dtype(self) -> str:
        """Of the image tensor, as numpy and TensorFlow name it."""
        return "int16" if self.kind == HU else "uint8"

    @property
    def size_bytes(self) -> int:
        """Of the image tensor."""
        return math.prod(self.shape) * (2 if self.kind == HU else 1)

    @property
    def air(self) -> int:
        """What lies outside of a picture, as its tensor says it."""
        return min(max(STEPS_A_HU * self.pad_hu, -32768), 32767) if self.kind == HU else 0

    @property
    def holds(self) -> str:
        """What the tensor holds, in words that the windows follow."""
        return "quarters of a HU, shown in windows" if self.kind == HU else "windows"


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """The labels in record order, which of them says "any", and the order that decides the stratum."""

    any: str
    names: tuple[str, ...]
    rarest_first: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            _require_word("label name", name)
        _require(len(set(self.names)) == len(self.names), f"a label stands twice in {list(self.names)}")
        _require(self.any in self.names, f"labels.any is {self.any!r}, which is not among {list(self.names)}")
        others = set(self.names) - {self.any}
        _require(
            set(self.rarest_first) == others and len(self.rarest_first) == len(others),
            f"rarest_first is {list(self.rarest_first)}; it must hold each of {sorted(others)} once",
        )
        reserved = {NO_HEMORRHAGE, UNLABELLED} & set(self.names)
        _require(not reserved, f"{sorted(reserved)} name strata and cannot be labels")

    @property
    def strata(self) -> tuple[str, ...]:
        """Every stratum a shard can hold, rarest label first."""
        return (*self.rarest_first, NO_HEMORRHAGE, UNLABELLED)


@dataclasses.dataclass(frozen=True)
class SplitSpec:
    """How patients fall into splits: a salt, whole-number weights, and how many slices to draw."""

    salt: str
    weights: dict[str, int]
    subset: dict[str, int]

    def __post_init__(self) -> None:
        _require(self.salt != "", "split.salt is empty; write any word")
        _require(len(self.weights) > 0, "split.weights is empty; name at least one split")
        for name, weight in self.weights.items():
            _require_word("split name", name)
            _require(weight > 0, f"split.weights.{name} is {weight}; weights are positive whole numbers")
        for name, count in self.subset.items():
            known_key(name, self.weights, "split.subset")
            _require(count > 0, f"split.subset.{name} is {count}; draw at least one slice or leave it out")


@dataclasses.dataclass(frozen=True)
class ShardSpec:
    """The order of the slices (`seed`) and the size of a shard."""

    seed: int
    target_bytes: int
    min_shards: int

    def __post_init__(self) -> None:
        _require(self.seed >= 0, f"shards.seed is {self.seed}; it must not be negative")
        _require(self.target_bytes > 0, f"shards.target_bytes is {self.target_bytes}; it must be positive")
        _require(self.min_shards > 0, f"shards.min_shards is {self.min_shards}; it must be positive")


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Everything that decides the bytes of a data set besides its input.

    `accept`: which slices count, by the first values of their ImageType (PS3.3 C.7.6.1.1.2): `ORIGINAL` alone, or
    `DERIVED` too.
    """

    name: str
    version: str
    accept: tuple[str, ...]
    image: ImageSpec
    labels: LabelSpec
    split: SplitSpec
    shards: ShardSpec

    def __post_init__(self) -> None:
        _require_word("name", self.name)
        _require(
            re.fullmatch(r"\d+\.\d+\.\d+", self.version) is not None,
            f"version is {self.version!r}; write three numbers, such as 1.0.0",
        )
        _require(
            self.accept in ((ORIGINAL,), (ORIGINAL, DERIVED)),
            f"accept is {list(self.accept)}; write [{ORIGINAL}], or [{ORIGINAL}, {DERIVED}]",
        )


def known_key(key: str, known: typing.Iterable[str], where: str) -> None:
    """Refuse `key` unless it is `known`; the `SpecError` names the nearest known one."""
    known = list(known)
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise SpecError(f"{where}: unknown key {key!r}; {hint}")


def from_dict(values: Any, where: str = "spec") -> DatasetSpec:
    """`DatasetSpec` of nested plain values. Unknown, missing or mistyped keys raise `SpecError`."""
    if isinstance(values, dict):
        inside = {
            name: {**more, **values[name]} for name, more in _LEFT_OUT.items() if isinstance(values.get(name), dict)
        }
        values = {**_LEFT_OUT[""], **values, **inside}
    return _build(DatasetSpec, values, where)


def to_dict(spec: DatasetSpec) -> dict[str, Any]:
    """Nested plain values of a spec; `from_dict` turns them back."""
    return json.loads(canonical_json(spec))


def canonical_json(spec: DatasetSpec) -> str:
    """The one JSON text of a spec: sorted keys, no spaces."""
    values = dataclasses.asdict(spec)
    for section, usual in _LEFT_OUT.items():
        inside = values[section] if section else values
        for key, value in usual.items():
            if inside[key] == value:
                del inside[key]
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def fingerprint(spec: DatasetSpec) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def config_names() -> list[str]:
    """Names of the data-set specs that come with the package."""
    return sorted(path.stem for path in config_dir().glob("*.yaml") if _is_dataset_spec(path))


def load(name_or_path: str) -> DatasetSpec:
    """Spec from a YAML file, or from the packaged config of that name. Raises `SpecError`."""
    path = _spec_path(name_or_path)
    return from_dict(_read_yaml(path), str(path))


def packaged(kind: Any, name: str) -> Any:
    """A dataclass of the values of `configs/NAME.yaml`, checked as a spec's are."""
    path = config_dir() / f"{name}.yaml"
    return _build(kind, _read_yaml(path), str(path))


def differences(old: DatasetSpec, new: DatasetSpec) -> list[str]:
    """One line for each value that differs, as `image.size_px: 128, now 64`."""
    before, after = (_leaves(json.loads(json.dumps(dataclasses.asdict(one))), "") for one in (old, new))
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)}, now {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def sample_differences(old: DatasetSpec, new: DatasetSpec) -> list[str]:
    """Those of `differences` that make another sample of the same slice: of its image or its labels."""
    lines = [line for line in differences(old, new) if line.startswith(("image.", "labels."))]
    if old.image.kind == new.image.kind == HU:  # its windows are for the eye
        return [line for line in lines if not line.startswith("image.windows:")]
    return lines


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    nested = (_leaves(item, f"{path}.{key}" if path else key) for key, item in value.items())
    return {key: item for leaves in nested for key, item in leaves.items()}


def config_dir() -> Path:
    """`configs/` as installed inside the package, or beside it in a checkout."""
    here = Path(__file__).parent
    return next(path for path in (here / "configs", here.parent / "configs") if path.is_dir())


def _is_dataset_spec(path: Path) -> bool:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return isinstance(values, dict) and bool({"image", "extends"} & values.keys())


def _spec_path(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return path
    known_key(name_or_path, config_names(), "spec (no file ending .yaml, so a packaged one)")
    return config_dir() / f"{name_or_path}.yaml"


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> Any:
    """Values of a YAML file laid over those of the spec that its key `extends` names."""
    _require(path not in seen, f"{path} extends itself")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the spec {path}: {error}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or "extends" not in values:
        return values
    base = _read_yaml(_spec_path(str(values.pop("extends"))), (*seen, path))
    return _overlay(base, values)


def _overlay(base: Any, values: Any) -> Any:
    """`values` over `base`; sections merge, but a mapping of splits is replaced whole."""
    if not (isinstance(base, dict) and isinstance(values, dict)):
        return values
    merged = {key: value if key in _WHOLE else _overlay(base.get(key), value) for key, value in values.items()}
    return {**base, **merged}


_WHOLE = ("weights", "subset")


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where} is {value!r}; it must be a list")
        return tuple(_build(typing.get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _require(isinstance(value, dict), f"{where} is {value!r}; it must be a mapping")
        item_kind = typing.get_args(kind)[1]
        return {str(key): _build(item_kind, item, f"{where}.{key}") for key, item in value.items()}
    whole = isinstance(value, kind) and not isinstance(value, bool)
    _require(whole, f"{where} is {value!r}; it must be {_KIND_WORDS[kind]}")
    return value


_KIND_WORDS = types.MappingProxyType({int: "a whole number", str: "text"})


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    _require(isinstance(value, dict), f"{where} is {value!r}; it must be a mapping")
    kinds = typing.get_type_hints(kind)
    for key in value:
        known_key(key, kinds, where)
    missing = [key for key in kinds if key not in value]
    _require(not missing, f"{where}: missing key {', '.join(map(repr, missing))}")
    parts = {key: _build(kinds[key], value[key], f"{where}: {key}") for key in kinds}
    try:
        return kind(**parts)
    except SpecError as error:
        raise SpecError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
