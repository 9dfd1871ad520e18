"""Bytes, header and columns of a CSV file of labels, with errors that point at its lines."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ich_tfrecords.labels import names

# spreadsheets and pandas turn whole columns into floats
TRUE_CELLS, FALSE_CELLS = ("1", "1.0"), ("0", "0.0")
_UNKNOWN_CELLS = ("", "-1", "-1.0")
_DELIMITERS = ",;\t"  # the first wins where a header holds as many of several
_PUBLIC = "ID"  # RSNA's column: rows of other files may hold names of patients and are not shown
MAY_MISS = "--labels_may_miss"
_CUT_OFF = "is the file cut off or edited?"
_HEAD_BYTES = 4096
MAX_TEXT_BYTES = 1 << 30  # RSNA's labels are 120 MB


class LabelError(ValueError):
    """A label CSV that cannot be used; the message names the file, the line, the value and the next step."""


@dataclasses.dataclass(frozen=True)
class CsvFile:
    """The bytes of a CSV with its header, and the errors that point into it."""

    name: str
    data: bytes
    header: list[str]
    delimiter: str

    def columns(self, text: str, flags: Sequence[str], may_miss: bool = False) -> tuple[pa.Array, list[np.ndarray]]:
        """Large-string array of column `text` (`tidy`), an int8 array of each label column; blank lines are no rows.

        Labels are 1 and 0, and -1 for a cell that is blank or -1 where it `may_miss`.
        """
        wanted = [text, *flags]
        twice = [column for column in wanted if self.header.count(column) > 1]
        if twice:
            raise LabelError(f"{self.name}: column {twice[0]!r} stands twice in the header; remove one")
        if next(self.rows(), None) is None:
            raise LabelError(f"{self.name}: has a header and no rows; is the download complete?")
        options = pa_csv.ConvertOptions(
            column_types={text: pa.large_string(), **dict.fromkeys(flags, pa.bool_())},
            include_columns=wanted,
            null_values=_UNKNOWN_CELLS if may_miss else [],
            true_values=TRUE_CELLS,
            false_values=FALSE_CELLS,
        )
        parted = pa_csv.ParseOptions(delimiter=self.delimiter)
        try:
            table = pa_csv.read_csv(pa.BufferReader(self.data), parse_options=parted, convert_options=options)
        except pa.ArrowInvalid as error:
            raise self._parse_error(error, flags, may_miss) from error
        texts = self.tidy(table.column(text).combine_chunks())
        columns = texts, [_codes(table.column(flag).combine_chunks()) for flag in flags]
        del table
        pa.default_memory_pool().release_unused()  # the parser's small blocks: as much again as the columns
        return columns

    def tidy(self, texts: pa.Array) -> pa.Array:
        """Texts of the file as their writer meant them: in Unicode NFC, without white space around them."""
        return texts if self._is_tidy else names.composed(names.trimmed(texts))

    @functools.cached_property
    def _is_tidy(self) -> bool:
        """Whether no text of the file can need it: a look at the bytes is far cheaper than one at each text."""
        return self.data.isascii() and not any(blank in self.data for blank in (b" ", b"\t"))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and fields of each row below the header."""
        return itertools.islice(_rows(self.data, self.name, self.delimiter), 1, None)

    def ignored(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Columns of the header that are not `wanted`."""
        return tuple(column for column in self.header if column not in wanted)

    def error_at(self, row: int, message: str) -> LabelError:
        """Error about data row `row` (0 is the first below the header), with its line in the file."""
        line, _ = next(itertools.islice(self.rows(), row, None))
        return LabelError(f"{self.name}, line {line:,}: {message}")

    def _parse_error(self, error: pa.ArrowInvalid, flags: Sequence[str], may_miss: bool) -> LabelError:
        """What a person can act on, found by reading again slowly, in place of the parser's message."""
        try:
            self.data.decode("utf-8")
        except UnicodeDecodeError as bad:
            line, byte = self.data.count(b"\n", 0, bad.start) + 1, self.data[bad.start]
            return LabelError(f"{self.name}, line {line:,}: byte 0x{byte:02x} is not UTF-8; save it as UTF-8 CSV")
        for line, fields in self.rows():
            wrong = self._wrong_row(fields, flags, may_miss)
            if wrong:
                return LabelError(f"{self.name}, line {line:,}: {wrong}")
        return LabelError(f"{self.name}: cannot be read as CSV: {' '.join(str(error).split())}")

    def _wrong_row(self, fields: list[str], flags: Sequence[str], may_miss: bool) -> str:
        """What is wrong with a row, or nothing."""
        if fields == self.header:
            return "is the header once more; remove that line"
        if len(fields) != len(self.header):
            shown = shorten(self.delimiter.join(fields)) if _PUBLIC in self.header else "the row"
            other = next((sign for sign in _DELIMITERS if len(fields) == 1 and sign in fields[0]), "")
            why = f"it is parted by {other!r}, the header by {self.delimiter!r}" if other else _CUT_OFF
            return f"{shown} has {len(fields)} columns, the header has {len(self.header)}; {why}"
        row = dict(zip(self.header, fields))
        known = (*TRUE_CELLS, *FALSE_CELLS, *(_UNKNOWN_CELLS if may_miss else ()))
        for flag in flags:
            if row[flag] not in known:
                return f"{flag} is {shorten(row[flag])}; {_what_next(row[flag])}"
        return ""


def _what_next(cell: str) -> str:
    if cell in _UNKNOWN_CELLS:
        return f"it must be 0 or 1 (leave out images not labelled, or convert with {MAY_MISS}, which makes it unknown)"
    return "it must be 0 or 1 (leave out images not labelled)"


def open_csv(source: str | Path | BinaryIO, name: str | None = None) -> CsvFile:
    """The CSV at a path or in an open binary file, plain or gzipped; an empty one has an empty header.

    `name` stands for the file in messages. Raises `LabelError` for a file that cannot be read
    and for one whose first bytes are no text.
    """
    name = name or _display_name(source)
    data = _csv_bytes(source, name)
    delimiter = _delimiter(data)
    return CsvFile(name, data, next(_rows(data, name, delimiter), (0, []))[1], delimiter)


def _delimiter(data: bytes) -> str:
    """Comma, semicolon or tab: what the first line that is not blank holds most of."""
    head = next((line for line in io.BytesIO(data) if line.strip()), b"")[:_HEAD_BYTES].splitlines()
    first = next((line for line in head if line.strip()), b"")
    return max(_DELIMITERS, key=lambda sign: first.count(sign.encode()))


def _display_name(source: str | Path | BinaryIO) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "name", "label CSV"))


def _csv_bytes(source: str | Path | BinaryIO, name: str) -> bytes:
    """All bytes of the CSV, unpacked when gzipped."""
    try:
        if isinstance(source, (str, Path)):
            with Path(source).open("rb") as file:
                data = _read_text_like(file, name)
        else:
            data = _read_text_like(source, name)
    except FileNotFoundError as error:
        raise LabelError(f"{name}: no such file; check the path of the label CSV") from error
    except OSError as error:
        raise LabelError(f"{name}: cannot be read ({error}); expected a label CSV") from error
    return _gunzip(data, name) if data.startswith(b"\x1f\x8b") else data


def _read_text_like(file: BinaryIO, name: str) -> bytes:
    """Bytes of an open file, unless its first ones are no text: a 180 GB zip must not be read to find out."""
    head = file.read(_HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        return head + file.read()
    _require_text(head, name)
    return head + file.read()


def _gunzip(data: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            text = file.read(MAX_TEXT_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LabelError(f"{name}: damaged gzip file ({error}); fetch it again") from error
    if len(text) > MAX_TEXT_BYTES:
        raise LabelError(f"{name}: unpacks to more than {MAX_TEXT_BYTES:,} bytes; unpack it and give the CSV")
    _require_text(text[:_HEAD_BYTES], name)
    return text


def _require_text(head: bytes, name: str) -> None:
    if head.startswith(b"PK"):
        raise LabelError(f"{name}: is a zip archive or a workbook, not CSV; unpack it and give the CSV inside")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LabelError(f"{name}: is UTF-16 text; save it as UTF-8 CSV")
    if b"\0" in head:
        raise LabelError(f"{name}: is binary (byte {head.index(0):,} is zero), not CSV; give the label CSV")


def _rows(data: bytes, name: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of each line that is not blank. Slow: for the header and for errors."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", errors="replace", newline="")
    reader = csv.reader(text, delimiter=delimiter)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise LabelError(f"{name}, line {reader.line_num:,}: cannot be read as CSV: {error}") from error


def shorten(text: str, limit: int = 80) -> str:
    """`text` quoted for a message, cut after `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def bools(values: pa.Array) -> np.ndarray:
    """numpy bools of an Arrow bool array, which holds bits."""
    return values.to_numpy(zero_copy_only=False)


def _codes(values: pa.Array) -> np.ndarray:
    """int8 of an Arrow bool array: 1, 0, and -1 for null."""
    if not values.null_count:
        return bools(values).view(np.int8)
    codes = bools(values.fill_null(False)).astype(np.int8)
    codes[bools(values.is_null())] = -1
    return codes
