"""Names and ids in the forms in which the two sides of a join are compared; what is stored and opened keeps its own."""

from __future__ import annotations

import unicodedata
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Texts = TypeVar("Texts", pa.Array, pa.ChunkedArray)

# White space (Unicode, White_Space), and what has no width: spaces and joiners, marks of direction, the BOM.
_BLANK = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
_NOT_OF_THE_NAME = r"(?i)^(\./)+|\.(dcm|dicom|ima|png|jpg|nii|nii\.gz)$"


def composed(texts: Texts) -> Texts:
    """The texts in Unicode NFC: macOS writes file names decomposed, and people write lists composed."""
    if isinstance(texts, pa.ChunkedArray):
        return pa.chunked_array([composed(chunk) for chunk in texts.chunks], texts.type)
    other = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(other).as_py():
        return texts
    # By Python: utf8_normalize of Arrow 25 leaves NFC decomposed.
    fresh = [unicodedata.normalize("NFC", text) for text in texts.filter(other).to_pylist()]
    return pc.replace_with_mask(texts, other, pa.array(fresh, texts.type))


def trimmed(texts: Texts) -> Texts:
    """The texts without white space and characters of no width around them."""
    return pc.utf8_trim(texts, _BLANK)


def bare(names: Texts) -> Texts:
    """File names as both sides of the join write them: NFC, folders kept, parted by `/`, and without one suffix.

    Only `.dcm .dicom .ima .png .jpg .nii .nii.gz` are suffixes; any other dot belongs to the name, as in
    `p1/1.2.840.7`.
    """
    return pc.replace_substring_regex(pc.replace_substring(composed(names), "\\", "/"), _NOT_OF_THE_NAME, "")


def folder(names: Texts) -> Texts:
    """Paths of folders as both sides of the join write them: NFC, parted by `/`, and without one at either end."""
    return pc.replace_substring_regex(pc.replace_substring(composed(names), "\\", "/"), r"^(\./|/)+|/+$", "")


def without_folders(names: Texts) -> Texts:
    """What stands behind the last `/`."""
    return pc.replace_substring_regex(names, "^.*/", "")


def lenient(ids: Texts) -> Texts:
    """Ids and `bare` names in the form that forgives letter case, white space around them, and a suffix."""
    return pc.utf8_lower(trimmed(bare(trimmed(ids))))


def found(texts: Texts, among: pa.Array) -> np.ndarray:
    """int32 [texts], the position of each in `among`, whose values are unique; -1 where it is not there."""
    return pc.fill_null(pc.index_in(texts, value_set=among), -1).to_numpy()


def lenient_forms(ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Distinct `lenient` forms of `ids`, and int64 [forms], the position of the one id of a form; -1 where several."""
    encoded = lenient(ids).dictionary_encode()
    codes = encoded.indices.to_numpy()
    only = np.full(len(encoded.dictionary), -1, np.int64)
    only[codes] = np.arange(len(ids))
    only[np.bincount(codes, minlength=len(only)) > 1] = -1
    return encoded.dictionary, only
