"""Values of settings as YAML and flags give them, before any of them means anything."""

from __future__ import annotations

from typing import Any

import yaml

from trainer.shell.problems import WrongUse


def require(condition: bool, message: str) -> None:
    """Raises `WrongUse` unless `condition` holds."""
    if not condition:
        raise WrongUse(message)


def parse_set(text: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE`; the value is YAML, and empty text when nothing follows. Raises `WrongUse`."""
    key, equals, value = text.partition("=")
    require(bool(equals and key.strip()), f"--set {text}: write KEY=VALUE, such as --set learning_rate=0.001")
    try:
        return key.strip(), _number(yaml.safe_load(value)) if value.strip() else ""
    except yaml.YAMLError as error:
        raise WrongUse(f"--set {text}: the value is not YAML") from error


def _number(value: Any) -> Any:
    """`1e-4` is text in YAML 1.1 (no point); read it as the number it is meant to be."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def nested(key: str, value: Any) -> dict[str, Any]:
    """`value` under a dotted key, one mapping inside the other."""
    head, dot, rest = key.partition(".")
    return {head: nested(rest, value)} if dot else {head: value}


def typed(key: str, value: Any, kind: Any) -> Any:
    """`value` as a setting of type `kind`; 3 and 3.0 are both numbers. Raises `WrongUse`."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if str(kind).startswith("dict"):
        require(isinstance(value, dict), f"{key} is {value!r}; it must be a mapping")
        of_numbers = str(kind).endswith("float]")
        return {name: typed(f"{key}.{name}", one, float) if of_numbers else one for name, one in value.items()}
    if str(kind).startswith("list"):
        require(isinstance(value, list), f"{key} is {value!r}; it must be a list, such as [1, 3]")
        return [typed(key, one, float) for one in value]
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(fits, f"{key} is {value!r}; it must be {_KINDS[kind]}")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
