"""A file of items is read in every usual dress, in bounded memory, and each mistake is named by its line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from sidecar.offline.item import Headers
from sidecar.offline.item_file import FAULTS_SHOWN_MAX, STDIN, Checked, ItemFileError, check, opened
from sidecar.offline.item_reader import BOM
from sidecar.triton.tokenizer import Tokens
from tests.fakes.log import WordTokens
from tests.offline.test_item import RULES, batch

ITEMS = [json.dumps({"id": str(number), "prompt": f"item {number}"}).encode() for number in range(3)]
PLAIN = b"\n".join(ITEMS) + b"\n"


def read(path: Path, line_bytes_max: int = 1000) -> list[tuple[int, bytes]]:
    with opened(path, line_bytes_max) as file:
        found = list(file.lines())
        assert list(file.lines()) == found  # twice, for it is checked before it is sent
    return found


def checked(path: Path, *, headers: Headers = (), tokens: Tokens | None = None, **options: Any) -> Checked:
    rules = {"record_bytes_max": 2000, "allow_duplicates": False} | options
    with opened(path, 1000) as file:
        return check(file, RULES, tokens, headers, **rules)


def tarred(name: str) -> bytes:
    """An archive of one file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(PLAIN)
        tar.addfile(entry, io.BytesIO(PLAIN))
    return archive.getvalue()


def written(directory: Path, content: bytes) -> Path:
    path = directory / "items.jsonl"
    path.write_bytes(content)
    return path


def skipped(plain: bytes) -> bytes:
    """Compressed by pzstd: a frame that is skipped comes first."""
    return b"\x50\x2a\x4d\x18\x04\0\0\0...." + zstd.compress(plain)


@pytest.mark.parametrize("dress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress, skipped])
@pytest.mark.parametrize("before", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_file_in_any_dress_has_the_same_lines(
    tmp_path: Path, dress: Callable[[bytes], bytes], before: bytes, end: bytes
) -> None:
    path = written(tmp_path, dress(before + PLAIN.replace(b"\n", end)))
    assert read(path) == list(enumerate(ITEMS, start=1))
    assert checked(path).digest == checked(written(tmp_path, PLAIN[:-1])).digest


def test_empty_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    assert read(written(tmp_path, b"\n \n" + ITEMS[0] + b"\n\n" + ITEMS[1])) == [(3, ITEMS[0]), (5, ITEMS[1])]


def test_a_pipe_is_read_twice_as_well(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(PLAIN),))
    writer.start()
    assert read(pipe) == list(enumerate(ITEMS, start=1))
    writer.join()


def test_a_line_of_any_length_costs_bounded_memory(tmp_path: Path) -> None:
    huge = gzip.compress(b"x" * 5_000_000 + b"\n" + ITEMS[0])
    [(_, cut), second] = read(written(tmp_path, huge))
    assert (len(cut), second) == (1002, (2, ITEMS[0]))
    assert checked(written(tmp_path, b'{"id": "1", "prompt": "%s"}' % (b"x" * 1000))).faulty == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PLAIN.decode().encode("utf-16"), "UTF-16 or UTF-32; send it as: iconv"),
        (PLAIN.decode().encode("utf-16-be"), "no UTF-8 text"),
        (PLAIN.decode().encode("utf-32"), "UTF-16 or UTF-32"),
        # Without the time of day: each process that shares the tests must give them the same names.
        (gzip.compress(PLAIN.decode().encode("utf-16"), mtime=0), "UTF-16 or UTF-32"),
        (b"\x28\xb5\x2f\xfd....", "cannot read"),
        (zstd.compress(PLAIN)[:-9], "cannot read"),
        (b"\x04\x22\x4d\x18....", "compressed by lz4; send it as: lz4 -dc"),
        (b"\xff\x06\x00\x00sNaPpY....", "compressed by snappy; send it as: snzip -dc"),
        (b"\x1f\x9d....", "compressed by compress; send it as: gzip -dc"),
        (b"LZIP\x01....", "compressed by lzip; send it as: lzip -dc"),
        (b"7z\xbc\xaf\x27\x1c....", "a 7z archive; send it as: 7z x -so"),
        (tarred("items.jsonl"), "a tar archive; send it as: tar -xOf"),
        (gzip.compress(tarred("a" * 90), mtime=0), "a tar archive"),
        (BOM + b"\r" + PLAIN.replace(b"\n", b"\r"), "ends its lines with CR alone; send it as: tr"),
        (PLAIN.replace(b"\n", b" \r") * 1000, "ends its lines with CR alone"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"PAR1....", "a Parquet file"),
        (BOM + b" [" + ITEMS[0] + b"]", "a JSON array; one object a line is needed: jq -c"),
        (gzip.compress(PLAIN, mtime=0)[:-9], "cannot read"),
        (gzip.compress(PLAIN, mtime=0)[:12] + b"\xff" * 40, "cannot read"),
    ],
)
def test_what_is_no_file_of_items_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ItemFileError, match=message):
        read(written(tmp_path, content))


def test_a_return_inside_an_item_is_white_space(tmp_path: Path) -> None:
    spread = b'{"id": "1",\r"prompt": "p", "metadata": {}\r}\n'
    assert read(written(tmp_path, spread + ITEMS[0])) == [(1, spread.strip()), (2, ITEMS[0])]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemFileError, match=r"cannot read .*nowhere: No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(ItemFileError, match="Is a directory"):
        read(tmp_path)
    assert Path("-") == STDIN


def test_a_device_is_refused_before_it_is_read() -> None:
    with pytest.raises(ItemFileError, match=r"^/dev/zero is a device, and may never end; give a file, a pipe or -$"):
        read(Path("/dev/zero"))


def test_what_fails_beside_the_file_is_not_laid_on_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the output is full"), opened(written(tmp_path, b"{}"), 9):
        raise OSError("the output is full")


def test_standard_input_that_is_closed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ItemFileError, match="standard input is closed"), opened(STDIN, 9):
        pass


def test_each_mistake_is_named_by_its_line_up_to_a_limit(tmp_path: Path) -> None:
    bad = [b'{"id": "1", "prompt": "secret", "seed": -1}'] * 500
    found = checked(written(tmp_path, b"\n".join([ITEMS[0], *bad])))
    assert (found.items, found.faulty, len(found.faults)) == (501, 500, FAULTS_SHOWN_MAX)
    assert found.faults[0].endswith(
        "items.jsonl:2: invalid: seed must be an integer in 0..18446744073709551615, not -1"
    )
    assert "secret" not in "".join(found.faults)


def test_an_id_that_is_there_again_is_told_with_the_line_of_the_first(tmp_path: Path) -> None:
    again = [ITEMS[0], ITEMS[1], ITEMS[0], ITEMS[2], ITEMS[1], ITEMS[0]]
    path = written(tmp_path, b"\n\n" + b"\n".join(again))
    places = [fault.split(":", 1)[1] for fault in checked(path).faults]
    assert places == [
        "5: the id of line 3 again; results could not be told apart",
        "7: the id of line 4 again; results could not be told apart",
        "8: the id of line 3 again; results could not be told apart",
    ]
    assert checked(path, allow_duplicates=True).faulty == 0


def test_a_prompt_is_tokenised_only_if_its_bytes_leave_a_doubt(tmp_path: Path) -> None:
    class Counting(WordTokens):
        encoded = 0

        def encode_prompt(self, text: str) -> tuple[int, ...]:
            self.encoded += 1
            return super().encode_prompt(text)

    tokens = Counting()
    path = written(tmp_path, b"\n".join(ITEMS))
    assert checked(path, tokens=tokens).faulty == tokens.encoded == 0
    small = [batch({"prompt": "word " * 10, "max_tokens": 5}), batch({"prompt": "word " * 20, "max_tokens": 5})]
    small[1]["custom_id"] = "c-2"
    path = written(tmp_path, b"\n".join(json.dumps(each).encode() for each in small))
    found = checked(path, tokens=tokens, headers=(("x-model", b"small"),))
    assert (found.faulty, tokens.encoded) == (1, 2)
    assert "2: too_long: prompt of 21 tokens + max_tokens 5 exceed the 20 tokens of small" in found.faults[0]


def test_headers_count_for_the_size_of_a_record(tmp_path: Path) -> None:
    found = checked(written(tmp_path, ITEMS[0]), headers=(("x-job", b"j" * 200),), record_bytes_max=300)
    assert "too_large: a record of" in found.faults[0]


def test_headers_are_held_against_the_rules_as_well(tmp_path: Path) -> None:
    found = checked(written(tmp_path, ITEMS[0]), headers=(("x-model", b"gpt-4o-mini"),))
    assert found.unknown_models
    assert "unknown_model: no engine for model 'gpt-4o-mini'" in found.faults[0]


def test_without_the_extra_it_is_said_how_to_read_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.offline.item_file._zstd", None)
    path = tmp_path / "items.jsonl.zst"
    path.write_bytes(zstd.compress(PLAIN))
    with (
        opened(path, 100) as file,
        pytest.raises(ItemFileError, match=r"zstd: pip install 'backfill-sidecar\[files\]'"),
    ):
        next(file.lines())
