"""How a model windows HU by itself: by the settings of its run, and as it learned to."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ich_tfrecords.spec import HU, ImageSpec, Window
from trainer.shell.problems import WrongUse

FORMS = CLIPPED, SIGMOID = "clipped", "sigmoid"
LEARNED = "learned"
_PAIR = re.compile(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


@dataclasses.dataclass(frozen=True)
class Shown:
    """One window by the settings of a run or as it was learned: level and width in HU."""

    name: str
    level_hu: float
    width_hu: float

    def __str__(self) -> str:
        return f"{self.name} {self.level_hu:.4g}/{self.width_hu:.4g}"


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a model windows HU: the windows that it begins with, their form, and whether they are trained."""

    shown: tuple[Shown, ...]
    form: str
    learned: bool


def of_settings(windows: str, form: str, image: ImageSpec) -> Windows | None:
    """How the model of a run windows what `image` describes; None where the data set did that already.

    `windows`: "" for those of the data set, or `level/width` of each in HU, as `40/80 80/200`; after the word
    `learned` they are where training begins. Raises `WrongUse`.
    """
    if image.kind != HU:
        _refuse_any(windows, form, image)
        return None
    words = windows.replace(",", " ").split()
    learned = words[:1] == [LEARNED]
    given = tuple(_parsed(word, number) for number, word in enumerate(words[learned:], 1))
    usual = tuple(Shown(one.name, float(one.level_hu), float(one.width_hu)) for one in image.windows)
    return Windows(given or usual, form, learned)


def _refuse_any(windows: str, form: str, image: ImageSpec) -> None:
    for name, value, usual in (("windows", windows, ""), ("window_form", form, CLIPPED)):
        if value != usual:
            held = ", ".join(map(str, image.windows))
            raise WrongUse(
                f"{name} is {value!r}, and the data set holds windows already ({held}); leave it at {usual!r}, or "
                "convert again with image.kind: hu"
            )


def _parsed(word: str, number: int) -> Shown:
    found = _PAIR.fullmatch(word)
    if not found or not float(found[2]) > 0 or not all(math.isfinite(float(part)) for part in found.groups()):
        raise WrongUse(
            f"windows: {word!r} is no level/width in HU; write such as '40/80 80/200', or 'learned', or "
            "'learned 40/80 80/200'"
        )
    return Shown(f"window_{number}", float(found[1]), float(found[2]))


def seen(windows: Windows | None, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of what the rest of a model gets of images [*`shape`], [size, size, channels]."""
    return tuple(shape) if windows is None else (*shape[:2], shape[2] * len(windows.shown))


def learned(facts: Mapping[str, Any]) -> str:
    """From where to where training moved each window, in words; `facts`: `window_layer.facts`."""
    now = (Shown(**one) for one in facts["now"])
    return ", ".join(f"{begun} to {one.level_hu:.4g}/{one.width_hu:.4g}" for begun, one in zip(facts["begun"], now))


def told(facts: Mapping[str, Any]) -> str:
    """A model's windows in words."""
    if facts["learned"]:
        return f"learned, {facts['form']}: {learned(facts)}"
    return f"{facts['form']}: {', '.join(str(Shown(**one)) for one in facts['now'])}"


def shown(image: ImageSpec, facts: Mapping[str, Any]) -> ImageSpec:
    """`image` with the windows that a model sees, in whole HU and clipped; as it is where that cannot be shown.

    `facts`: of the model; they speak of `windows` where it windows HU by itself.
    """
    if "windows" not in facts:
        return image
    wanted = [Shown(**one) for one in facts["windows"]["now"]]
    if any(one.width_hu < 1 or abs(one.level_hu) + one.width_hu / 2 > 30_000 for one in wanted):
        return image
    whole = tuple(Window(one.name, round(one.level_hu), round(one.width_hu)) for one in wanted)
    return dataclasses.replace(image, windows=whole)
