"""Rows of a table as items."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from sidecar.batch.tables import ItemTable, columns_of, form_of, table_of
from sidecar.core.errors import SettingsError
from sidecar.offline.item_file import ItemFileError, opened
from sidecar.offline.item_reader import read_line

CSV = 'review,text,n\nr-1,"How far, ""really""?",4\n7,"two\nlines",\n'


def rows(path: Path, *mapped: str, form: str | None = None) -> list[tuple[int, dict[str, Any]]]:
    with opened(path, 1 << 20) as file:
        table = table_of(file, form, columns_of(mapped))
        found = [*table.lines()]
        assert [*table.lines()] == found  # as often as needed
    for _, value in found:
        read_line(value, 1 << 20)
    return [(number, json.loads(value)) for number, value in found]


def test_a_row_becomes_an_item_by_its_mapping(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(CSV)
    assert rows(path, "id=review", "prompt=text", "max_tokens=n") == [
        (2, {"id": "r-1", "prompt": 'How far, "really"?', "max_tokens": 4}),
        (4, {"id": "7", "prompt": "two\nlines"}),
    ]


def test_columns_of_an_items_own_names_need_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text('custom_id\tprompt\tstop\ttemperature\n1\ta\t["x"]\t0.5\n', encoding="utf-8-sig")
    assert rows(path) == [(2, {"id": "1", "prompt": "a", "stop": ["x"], "temperature": 0.5})]


def test_a_row_without_an_id_has_its_number(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("prompt\na\nb\n")
    assert [item["id"] for _, item in rows(path)] == ["row-2", "row-3"]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
def test_a_compressed_table_is_read_as_a_plain_one(tmp_path: Path, compress: Any) -> None:
    path = tmp_path / "in.csv.packed"
    path.write_bytes(compress(CSV.encode()))
    assert len(rows(path, "prompt=text")) == 2


def test_a_parquet_file_keeps_its_types(tmp_path: Path) -> None:
    path = tmp_path / "data"
    ids = [[1, 2], [3], None]
    table = pyarrow.table({"key": [1, 2, 3], "ids": ids, "text": [None, None, "a"], "t": [0.5, 1.0, None]})
    parquet.write_table(table, path, row_group_size=2)
    assert rows(path, "id=key", "input_ids=ids", "prompt=text", "temperature=t") == [
        (1, {"id": "1", "input_ids": [1, 2], "temperature": 0.5}),
        (2, {"id": "2", "input_ids": [3], "temperature": 1.0}),
        (3, {"id": "3", "prompt": "a"}),
    ]


@pytest.mark.parametrize(
    ("text", "mapped", "said"),
    [
        ("a,b\n1,2\n", (), "has the columns a, b: say --map prompt=COLUMN"),
        ("prompt,note\n1,2\n", (), "column 'note' is no field of an item"),
        ("a,b\n1,2\n", ("prompt=c",), "has no column 'c'; it has a, b"),
        ("prompt,id\n1\n", (), ":2: as many cells as columns are needed"),
        ("prompt\n1,2\n", (), ":2: as many cells as columns are needed"),
        ('prompt\n"a\n', (), "unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_items_is_named(tmp_path: Path, text: str, mapped: tuple[str, ...], said: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text(text)
    with pytest.raises(ItemFileError, match=said.replace("(", r"\(")):
        rows(path, *mapped)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b"prompt\n\xff\n")
    with pytest.raises(ItemFileError, match="no UTF-8 text"):
        rows(path)


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ItemFileError, match="is no Parquet file that can be read"):
        rows(path, "prompt=a")


def test_without_pyarrow_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ItemFileError, match=r"pip install 'backfill-sidecar\[files\]'"):
        rows(path)


@pytest.mark.parametrize("stated", [["prompt"], ["prompt="], ["color=a"], ["prompt=a", "prompt=b"], ["id=a"], ["=a"]])
def test_a_mapping_that_makes_no_sense_is_refused(stated: list[str]) -> None:
    with pytest.raises(SettingsError, match="--map"):
        columns_of(stated)


def test_lines_have_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("{}\n")
    with opened(path, 100) as file, pytest.raises(SettingsError, match="--map is for the columns of a table"):
        table_of(file, None, {"prompt": "a"})


def test_the_form_follows_from_the_name_unless_it_is_said(tmp_path: Path) -> None:
    forms = {"a.jsonl": "jsonl", "a.csv.gz": "csv", "a.TSV": "tsv", "a": "jsonl", "a.parquet": "parquet"}
    for name in forms:
        (tmp_path / name).write_text("prompt\n")
        with opened(tmp_path / name, 100) as file:
            assert form_of(file) == forms[name]
    with opened(tmp_path / "a", 100) as file:
        assert isinstance(table_of(file, "csv", {}), ItemTable)
