"""CSV and Parquet as items: each row becomes one line of the short form, by a mapping of columns to its fields.

Rows are read a few at a time and as often as needed, as the lines of a JSONL file are; a row's number is that of its
line, so that a fault can be found, and results come back in the order of the rows.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from sidecar.core.errors import SettingsError
from sidecar.offline.item_file import ItemFile, ItemFileError
from sidecar.offline.item_format import ShortItem

FORMATS = ("jsonl", "csv", "tsv", "parquet")
ROWS_AT_ONCE = 1000
PARQUET_MAGIC = b"PAR1"
FIELDS = tuple(name for name in ShortItem.model_fields if name != "custom_id")
_TEXTS = ("id", "prompt", "model")  # read as text even where they look like numbers
_PROMPTS = {"prompt", "messages", "input_ids"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
_NO_PYARROW = "a Parquet file needs pyarrow: pip install 'backfill-sidecar[files]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemTable:
    """An open table, read like an `ItemFile`. `columns` maps fields of an item to columns; empty: equal names."""

    file: ItemFile
    form: str
    columns: Mapping[str, str]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.name

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(its number, its item) of each row; the row behind the header line has the number 2. Raises ItemFileError."""
        mapping: dict[str, str] | None = None
        rows = _parquet_rows(self.file) if self.form == "parquet" else _csv_rows(self.file, _DELIMITERS[self.form])
        for number, row in rows:
            if mapping is None:
                mapping = self._mapping(list(row))
            yield number, _item(number, row, mapping)

    def _mapping(self, found: Sequence[str]) -> dict[str, str]:
        """The column of each field that is stated. Raises ItemFileError for a column that is missing or unknown."""
        if self.columns:
            if missing := sorted(set(self.columns.values()) - set(found)):
                raise ItemFileError(f"{self.name} has no column {missing[0]!r}; it has {', '.join(found)}")
            return dict(self.columns)
        mapping = {"id" if name == "custom_id" else name: name for name in found if name in (*FIELDS, "custom_id")}
        if not _PROMPTS & mapping.keys():
            raise ItemFileError(f"{self.name} has the columns {', '.join(found)}: say --map prompt=COLUMN")
        if unknown := [name for name in found if name not in mapping.values()]:
            raise ItemFileError(
                f"{self.name}: column {unknown[0]!r} is no field of an item; name those to use, as --map prompt=COLUMN"
            )
        return mapping


def table_of(file: ItemFile, form: str | None, columns: Mapping[str, str]) -> ItemFile | ItemTable:
    """`file` read in the given form, by default in that of its name. Raises SettingsError for a mapping of no table."""
    form = form or form_of(file)
    if form == "jsonl":
        if columns:
            raise SettingsError("--map is for the columns of a table: CSV, TSV or Parquet (see --format)")
        return file
    return ItemTable(file=file, form=form, columns=columns)


def form_of(file: ItemFile) -> str:
    """The form that the file's name says, compressed or not, or its first bytes."""
    file.raw.seek(0)
    if file.raw.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
        return "parquet"
    parts = file.name.lower().split(".")[1:]
    return next((part for part in reversed(parts) if part in ("csv", "tsv", "parquet")), "jsonl")


def columns_of(stated: Sequence[str]) -> dict[str, str]:
    """The mapping of `--map FIELD=COLUMN`, repeated. Raises SettingsError."""
    mapping: dict[str, str] = {}
    for each in stated:
        name, separator, column = each.partition("=")
        if not separator or not column or name not in FIELDS:
            raise SettingsError(f"--map {each}: it must be FIELD=COLUMN, FIELD one of {', '.join(FIELDS)}")
        if name in mapping:
            raise SettingsError(f"--map {name}: stated twice")
        mapping[name] = column
    if mapping and not _PROMPTS & mapping.keys():
        raise SettingsError("--map: one of prompt, messages and input_ids needs a column")
    return mapping


def _item(number: int, row: Mapping[str, Any], mapping: Mapping[str, str]) -> bytes:
    item: dict[str, Any] = {"id": f"row-{number}"}
    for name, column in mapping.items():
        value = row[column]
        if value is None or value == "":
            continue  # an empty cell states nothing
        if name in _TEXTS:
            item[name] = value if isinstance(value, str) else str(value)
        else:
            item[name] = _parsed(value) if isinstance(value, str) else value
    return json.dumps(item, ensure_ascii=False, separators=(",", ":"), default=str).encode(errors="surrogatepass")


def _parsed(text: str) -> Any:
    """A cell as JSON, or as the text that it is: the lane's reader says what is wrong with it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _csv_rows(file: ItemFile, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.plain() as raw:
        csv.field_size_limit(min(file.line_bytes_max + 1, sys.maxsize))
        reader = csv.DictReader(_texts(raw), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ItemFileError(f"{file.name}:{reader.line_num}: as many cells as columns are needed")
                yield reader.line_num, row
        except csv.Error as error:
            raise ItemFileError(f"{file.name}:{reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise ItemFileError(f"{file.name}:{reader.line_num}: no UTF-8 text") from None


def _texts(raw: IO[bytes]) -> Iterator[str]:
    """The lines of UTF-8, without a byte order mark."""
    decode: Callable[[bytes], str] = codecs.getincrementaldecoder("utf-8-sig")().decode
    for line in raw:
        yield decode(line)


def _parquet_rows(file: ItemFile) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ItemFileError(_NO_PYARROW) from None
    file.raw.seek(0)
    number = 0
    try:
        for batch in parquet.ParquetFile(file.raw).iter_batches(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise ItemFileError(f"{file.name} is no Parquet file that can be read: {error}") from None
