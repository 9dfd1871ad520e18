"""What a header says of the scanner and the scan, in closed words and numbers, so that no person's name comes along.

Damage or a careless writer may put the words of any element in the place of these. So a manufacturer is one of the
known ones, a kernel has the form of a kernel, a model holds words of known models, and what is neither is `OTHER`.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

OTHER = "other"
NO_CONTRAST = frozenset(("", "NO", "NONE", "N", "0", "NO CONTRAST", "WITHOUT", "WITHOUT CONTRAST", "NATIVE", "PLAIN"))
VENDORS = {  # how each calls itself in its files -> one word
    "siemens": "siemens",
    "ge medical": "ge",
    "ge healthcare": "ge",
    "philips": "philips",
    "marconi": "philips",
    "picker": "philips",
    "toshiba": "toshiba",
    "canon": "canon",
    "hitachi": "hitachi",
    "fujifilm": "fujifilm",
    "neusoft": "neusoft",
    "united imaging": "united_imaging",
    "uih": "united_imaging",
    "samsung": "samsung",
    "neurologica": "neurologica",
    "shimadzu": "shimadzu",
    "synthetic": "synthetic",
}
_MODELS = """
somatom sensation definition emotion perspective force drive edge confidence scope spirit balance biograph naeotom
alpha pro flash go up now all top sim open vision mct lightspeed brightspeed hispeed optima revolution discovery
prospeed evo hd apex ct pet vct xt ultra plus select elite ace frontier brilliance ingenuity ict iqon mx idt
incisive access big bore tf core spectral precedence gemini aquilion asteion activion one prime lightning precision
lb cxl rxl serve exceed genesis neuviz uct uexplore scenaria supria eclos presto pratico ceretom bodytom
omnitom phantom dual single smart
"""
_KERNELS = "STANDARD SOFT BONE BONEPLUS DETAIL LUNG EDGE CHST ULTRA BRAIN HEAD STND SMOOTH SHARP"
MODEL_WORDS, KERNEL_WORDS = frozenset(_MODELS.split()), frozenset(_KERNELS.split())
_KERNEL = re.compile(r"[A-Z]{1,4}[0-9]{1,3}[A-Z]{0,3}|[A-Z]{1,3}\+?")  # H30S, FC21, QR36D, UB, STD+
_MOST_BYTES = 64  # PS3.5 6.2: LO has at most 64 characters


class SliceFacts(NamedTuple):
    """What the header of a slice says of how it was made; None where it says nothing that can be used.

    `manufacturer`: one of the words of `VENDORS`, or `OTHER`, as are `model` and `kernel` that are not understood.
    `kvp` in kV, `spacing_mm` between rows, `tilt_deg` of the gantry. `contrast`: whether an agent is named.
    """

    manufacturer: str | None
    model: str | None
    kernel: str | None
    kvp: float | None
    thickness_mm: float | None
    spacing_mm: float | None
    tilt_deg: float | None
    contrast: bool


def of(raw: Mapping[str, bytes]) -> SliceFacts:
    """Facts of the bytes of elements by keyword (`header.FACTS`). Never raises: what is damaged is not known."""
    return _of(tuple(raw.items()))


@functools.lru_cache(256)  # the slices of a series say the same
def _of(items: tuple[tuple[str, bytes], ...]) -> SliceFacts:
    raw = dict(items)
    return SliceFacts(
        _manufacturer(_text(raw, "Manufacturer")),
        _model(_text(raw, "ManufacturerModelName")),
        _kernel(_text(raw, "ConvolutionKernel")),
        _number(raw, "KVP", 10, 500),
        _number(raw, "SliceThickness", 0.01, 200),
        _number(raw, "PixelSpacing", 0.01, 20),
        _number(raw, "GantryDetectorTilt", -90, 90),
        _text(raw, "ContrastBolusAgent").upper() not in NO_CONTRAST,
    )


def _text(raw: Mapping[str, bytes], keyword: str) -> str:
    return raw.get(keyword, b"")[:_MOST_BYTES].decode("ascii", "replace").strip(" \0")


def _number(raw: Mapping[str, bytes], keyword: str, low: float, high: float) -> float | None:
    """First value of a DS text (PS3.5 6.2), where it lies in a range that makes sense."""
    text = _text(raw, keyword).partition("\\")[0]
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if low <= value <= high else None


def _manufacturer(text: str) -> str | None:
    if not text:
        return None
    return next((word for name, word in VENDORS.items() if text.lower().startswith(name)), OTHER)


def _model(text: str) -> str | None:
    """The model where each of its words is known, or short and with digits, as in `Optima CT660`."""
    if not text:
        return None
    words = [word for word in re.split(r"[ ./+\-_]+", text) if word]
    is_plain = re.fullmatch(r"[A-Za-z0-9 ./+\-_]{1,32}", text) is not None
    return text if is_plain and words and all(map(_is_model_word, words)) else OTHER


def _is_model_word(word: str) -> bool:
    letters = re.sub(r"[0-9]", "", word).lower()
    digits = len(word) - len(letters)
    return digits <= 4 and (len(letters) <= 2 or letters in MODEL_WORDS)


def _kernel(text: str) -> str | None:
    """The first value, in capitals: Siemens writes the strength of its iteration behind it (`J40s\\3`)."""
    if not text:
        return None
    word = text.partition("\\")[0].strip().upper()
    return word if word in KERNEL_WORDS or _KERNEL.fullmatch(word) else OTHER
