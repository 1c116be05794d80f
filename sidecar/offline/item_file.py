"""A file of items, one JSON object a line: read in bounded memory, as often as needed, and checked as the lane would.

Plain, gzip, bzip2, xz and zstd; a byte order mark, CRLF and empty lines are skipped. What cannot be read twice
(standard input, a pipe) is copied to a temporary file first.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import importlib
import lzma
import shutil
import stat
import sys
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from sidecar.core.errors import SettingsError
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Headers, ItemRules, Record, check_item
from sidecar.offline.item_reader import BOM
from sidecar.triton.tokenizer import Tokens

STDIN = Path("-")
FAULTS_SHOWN_MAX = 20
HEAD_BYTES = 512  # a tar archive names itself behind the name of its first file
HASH_BYTES = 8  # of a custom_id: two of a million differing ones are equal once in 40 million files
_OPENERS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ZSTD = (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))  # pzstd: a skip first


def _optional(name: str) -> Any:
    """The module of an extra; None if it is not installed."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


_zstd = _optional("backports.zstd")
_UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    *(() if _zstd is None else (_zstd.ZstdError,)),
)
_NO_ZSTD = "{path} is compressed by zstd: pip install 'backfill-sidecar[files]', or zstd -dc {path} | sidecar submit -"
_NO_TEXT = {
    b"\x04\x22\x4d\x18": "compressed by lz4; send it as: lz4 -dc {path} | sidecar submit -",
    b"\xff\x06\x00\x00sNaPpY": "compressed by snappy; send it as: snzip -dc {path} | sidecar submit -",
    b"\x1f\x9d": "compressed by compress; send it as: gzip -dc {path} | sidecar submit -",
    b"LZIP": "compressed by lzip; send it as: lzip -dc {path} | sidecar submit -",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; send it as: 7z x -so {path} | sidecar submit -",
    b"PK\x03\x04": "a zip archive; send it as: unzip -p {path} | sidecar submit -",
    b"PAR1": "a Parquet file; write its rows as JSON, one object a line",
    b"\xff\xfe": "UTF-16 or UTF-32; send it as: iconv -f UTF-16 -t UTF-8 {path} | sidecar submit -",
    b"\xfe\xff": "UTF-16; send it as: iconv -f UTF-16 -t UTF-8 {path} | sidecar submit -",
    b"[": "a JSON array; one object a line is needed: jq -c '.[]' {path} | sidecar submit -",
}


_TAR_AT, _TAR = 257, b"ustar"


class ItemFileError(SettingsError):
    """The file cannot be read as items; nothing of it was sent."""


class ItemLines(Protocol):
    """Items, one a line, that can be read again and again."""

    @property
    def name(self) -> str:
        """What people call the file."""

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(its number, its bytes) of each item; numbers grow. Raises ItemFileError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFile:
    """An open file. `lines` may be called again and again."""

    name: str
    raw: IO[bytes]
    line_bytes_max: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(its number, its bytes) of each line that is not empty; one that is too long is cut, and still too long.

        Raises ItemFileError.
        """
        with self.plain() as text:
            self._refuse_other_kinds(text)
            number = 0
            while line := text.readline(self.line_bytes_max + 2):  # with CR and LF
                number += 1
                rest = line
                while not rest.endswith(b"\n") and (rest := text.readline(self.line_bytes_max)):
                    pass  # too long: its end is not kept
                if value := (line.removeprefix(BOM) if number == 1 else line).strip():
                    self._refuse_bare_returns(value)
                    yield number, value

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The file from its beginning, decompressed. Raises ItemFileError, also for what the caller's reads raise."""
        try:
            self.raw.seek(0)
            yield self._plain(self.raw)
        except _UNREADABLE as error:
            raise ItemFileError(f"cannot read {self.name}: {getattr(error, 'strerror', None) or error}") from None

    def _plain(self, raw: IO[bytes]) -> Any:
        head = raw.read(HEAD_BYTES)
        raw.seek(0)
        if head.startswith(_ZSTD):
            return self._zstd(raw)
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        return raw if opener is None else opener(raw)

    def _zstd(self, raw: IO[bytes]) -> Any:
        if _zstd is None:
            raise ItemFileError(_NO_ZSTD.format(path=self.name))
        return _zstd.ZstdFile(raw)

    def _refuse_other_kinds(self, text: Any) -> None:
        head = text.read(HEAD_BYTES)
        text.seek(0)
        for magic, kind in _NO_TEXT.items():
            if head.removeprefix(BOM).lstrip().startswith(magic):
                raise ItemFileError(f"{self.name} is {kind.format(path=self.name)}")
        if head[_TAR_AT:].startswith(_TAR):
            raise ItemFileError(f"{self.name} is a tar archive; send it as: tar -xOf {self.name} | sidecar submit -")
        if b"\0" in head:
            raise ItemFileError(f"{self.name} is no UTF-8 text; each line has to be a JSON object in UTF-8")

    def _refuse_bare_returns(self, value: bytes) -> None:
        """Raises ItemFileError if several items stand in one line, with CR alone between them."""
        first, end, rest = value.partition(b"\r")
        if end and first.rstrip().endswith(b"}") and rest.lstrip().startswith(b"{"):
            convert = f"tr '\\r' '\\n' < {self.name} | sidecar submit -"
            raise ItemFileError(f"{self.name} ends its lines with CR alone; send it as: {convert}")


@contextmanager
def opened(path: Path, line_bytes_max: int) -> Iterator[ItemFile]:
    """The file at `path`, `-` for standard input. Raises ItemFileError."""
    name = "standard input" if path == STDIN else str(path)
    try:
        raw = _source(path)
    except OSError as error:
        raise ItemFileError(f"cannot read {name}: {error.strerror or error}") from None
    with raw:
        yield ItemFile(name=name, raw=raw, line_bytes_max=line_bytes_max)


def _is_terminal(path: Path) -> bool:
    with path.open("rb", buffering=0) as device:
        return device.isatty()


def _source(path: Path) -> IO[bytes]:
    if path != STDIN:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not _is_terminal(path)):
            raise ItemFileError(f"{path} is a device, and may never end; give a file, a pipe or -")
    if path == STDIN and sys.stdin is None:
        raise ItemFileError("standard input is closed; give the name of a file")
    once: AbstractContextManager[Any] = nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb")
    with once as source, contextlib.ExitStack() as unless_it_fails:
        copy = unless_it_fails.enter_context(tempfile.TemporaryFile())
        shutil.copyfileobj(source, copy)
        unless_it_fails.pop_all()
        return copy


@dataclass(slots=True)
class Checked:
    """What a file holds. `faults` are the first of `faulty` lines."""

    items: int = 0
    last_line: int = 0
    digest: str = ""  # of all items
    faulty: int = 0
    faults: list[str] = field(default_factory=list)
    unknown_models: bool = False
    no_json: bool = False

    def note(self, fault: str) -> None:
        """One more line is at fault."""
        self.faulty += 1
        if len(self.faults) < FAULTS_SHOWN_MAX:
            self.faults.append(fault)


def check(
    file: ItemLines,
    rules: ItemRules,
    tokens: Tokens | None,
    headers: Headers,
    *,
    record_bytes_max: int,
    allow_duplicates: bool,
) -> Checked:
    """Every line, read by the lane's own reader under these headers. Without `tokens` no length is checked."""
    checked, digest = Checked(), Digest()
    ids, numbers = array("Q"), array("Q")
    for number, value in file.lines():
        checked.items += 1
        checked.last_line = number
        digest.add(value)
        record = Record(topic="", partition=0, offset=number, timestamp_ms=0, key=None, value=value, headers=headers)
        try:
            if len(value) > rules.item_bytes_max:
                raise DeadItemError(DeadReason.TOO_LARGE, f"more than item_bytes_max {rules.item_bytes_max} bytes")
            custom_id = check_item(record, rules, tokens)
            _refuse_large(record, record_bytes_max)
        except DeadItemError as error:
            checked.unknown_models |= error.reason is DeadReason.UNKNOWN_MODEL
            checked.no_json |= error.reason is DeadReason.NOT_JSON
            checked.note(f"{file.name}:{number}: {error.reason}: {error}")
            continue
        ids.append(int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=HASH_BYTES).digest(), "little"))
        numbers.append(number)
    checked.digest = digest.text
    if not allow_duplicates:
        for number, first in _again(ids, numbers):
            checked.note(f"{file.name}:{number}: the id of line {first} again; results could not be told apart")
    return checked


class Digest:
    """What a file's items are, whatever the file is called, however it is compressed and where its lines break."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, value: bytes) -> None:
        """One more item."""
        self._hash.update(value)
        self._hash.update(b"\n")

    @property
    def text(self) -> str:
        """So far."""
        return self._hash.hexdigest()


def _refuse_large(record: Record, record_bytes_max: int) -> None:
    size = record_bytes(record.value or b"", record.headers)
    if size > record_bytes_max:
        message = f"a record of {size} bytes with its headers exceeds message_bytes_max {record_bytes_max}"
        raise DeadItemError(DeadReason.TOO_LARGE, message)


def record_bytes(value: bytes, headers: Headers) -> int:
    """Bytes of an item's record, a little more than what is sent."""
    return len(value) + sum(len(name) + len(text) + 10 for name, text in headers) + 100


def _again(ids: array[int], numbers: array[int]) -> Iterator[tuple[int, int]]:
    """(line, first line of this id) of each id that was there before, in the order of lines."""
    hashes = np.frombuffer(ids, np.uint64) if ids else np.zeros(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first, found = 0, {}
    for at in np.flatnonzero(ordered[1:] == ordered[:-1]) + 1:
        if at == 1 or ordered[at - 2] != ordered[at]:
            first = int(order[at - 1])
        found[numbers[int(order[at])]] = numbers[first]
    return iter(sorted(found.items()))


def names_of(headers: Mapping[str, str]) -> Headers:
    """The headers of a record as bytes."""
    return tuple((name, text.encode()) for name, text in headers.items())
