"""Names of headers that are not UTF-8: Kafka takes any bytes, aiokafka (0.14) reads none of a partition from there on.

So a fetched batch with such a name is written anew before aiokafka reads it, with `?` for each byte at fault.
Layout: https://kafka.apache.org/documentation/#messageformat
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from aiokafka.codec import gzip_decode, lz4_decode, snappy_decode, zstd_decode
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c, decode_varint

# base offset, length of what follows it, epoch of the leader, magic, CRC of what follows it | attributes, last offset
# delta, first and last timestamp, producer's id and epoch, first sequence, count of records
_BATCH = struct.Struct(">qiibI")
_CHECKED = struct.Struct(">hiqqqhii")
_HEADER = _BATCH.size + _CHECKED.size
_LENGTH_AT = 12  # what stands before is not counted in the length
_MAGIC_WITH_HEADERS = 2
_CODEC_MASK = 0x07
_CODECS: dict[int, Callable[[bytes], bytes]] = {
    0: bytes,
    1: gzip_decode,
    2: snappy_decode,
    3: lz4_decode,
    4: zstd_decode,
}


def make_readable(answer: Any) -> None:
    """aiokafka can read every record of this FetchResponse, as far as the names of headers go."""
    if hasattr(answer, "topics"):
        answer.topics = [
            (topic, [(*each[:-1], readable(each[-1] or b"")) for each in partitions])
            for topic, partitions in answer.topics
        ]


def readable(batches: bytes) -> bytes:
    """These batches, with `?` for each byte of a header's name that is not UTF-8."""
    if _is_readable(batches):
        return batches
    made, at = bytearray(), 0
    while len(batches) - at >= _HEADER:
        end = at + _LENGTH_AT + int(_BATCH.unpack_from(batches, at)[1])
        if not at + _HEADER <= end <= len(batches):
            break  # the last one is cut off where the answer was full; aiokafka leaves it out
        made += _renamed(batches[at:end])
        at = end
    return bytes(made + batches[at:])


def _is_readable(batches: bytes) -> bool:
    records = MemoryRecords(batches)
    try:
        while (batch := records.next_batch()) is not None:
            for _ in batch:
                pass
    except Exception:  # what else is at fault will be found, and said, by aiokafka
        return False
    return True


def _renamed(batch: bytes) -> bytes:
    offset, _, epoch, magic, checksum = _BATCH.unpack_from(batch)
    if magic != _MAGIC_WITH_HEADERS or checksum != calc_crc32c(batch[_BATCH.size :]):
        return batch  # of a damaged one nothing is known, and a new checksum would hide it
    attributes, *numbers, count = _CHECKED.unpack_from(batch, _BATCH.size)
    body = batch[_HEADER:]
    records = bytearray(_CODECS[attributes & _CODEC_MASK](body))
    for name in _names(records, count):
        records[name] = _utf8(bytes(records[name]))
    checked = _CHECKED.pack(attributes & ~_CODEC_MASK, *numbers, count) + records
    length = _BATCH.size + len(checked) - _LENGTH_AT
    return _BATCH.pack(offset, length, epoch, magic, calc_crc32c(checked)) + checked


def _names(records: bytearray, count: int) -> Iterator[slice]:
    """Where the names of headers stand."""
    at = 0
    for _ in range(count):
        _, at = decode_varint(records, at)  # length
        at += 1  # attributes
        for _ in ("timestamp", "offset"):
            _, at = decode_varint(records, at)
        for _ in ("key", "value"):
            at = _after(records, at).stop
        headers, at = decode_varint(records, at)
        for _ in range(headers):
            name = _after(records, at)
            yield name
            at = _after(records, name.stop).stop


def _after(records: bytearray, at: int) -> slice:
    """The bytes whose length stands at `at`; a length below 0 is null."""
    size, begin = decode_varint(records, at)
    return slice(begin, begin + max(0, size))


def _utf8(name: bytes) -> bytes:
    while True:
        try:
            name.decode()
            return name
        except UnicodeDecodeError as error:
            name = name[: error.start] + b"?" * (error.end - error.start) + name[error.end :]
