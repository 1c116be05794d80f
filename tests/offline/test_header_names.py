"""Batches as a broker gives them, whose headers have names that aiokafka cannot decode."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from sidecar.offline.header_names import make_readable, readable

CODECS: list[Any] = [bytes, gzip_encode, snappy_encode, lz4_encode, zstd_encode]
ATTRIBUTES, CRC, HEADER = 21, 17, 61
NAMES = {b"AAAA": b"\xff\xfe\x00z", b"BBBB": b"x\xc3\xa9\xe9", b"CCCC": b"\xed\xa0\xbdz"}


def batch(codec: int, *, transactional: bool = False, first: int = 5, bad: bool = True) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, transactional, 77, 3, 9, 1 << 20)
    builder.append(0, timestamp=1_000, key=b"k", value=b"v" * 200, headers=[("x-tenant", b"AAAA"), ("é", None)])
    builder.append(1, timestamp=1_001, key=None, value=None, headers=[("AAAA", b"\xff"), ("x", b"1"), ("BBBB", None)])
    builder.append(2, timestamp=1_900, key=b"", value=b"", headers=[])
    builder.append(3, timestamp=900, key=b"k", value=b"w", headers=[("CCCC", b"")])
    made = bytearray(builder.build())
    struct.pack_into(">q", made, 0, first)
    body = bytes(made[HEADER:])
    if bad:
        for name, instead in NAMES.items():
            body = body.replace(b"\x08" + name + b"\x02", b"\x08" + instead + b"\x02")
            body = body.replace(b"\x08" + name + b"\x01", b"\x08" + instead + b"\x01")
            body = body.replace(b"\x08" + name + b"\x00", b"\x08" + instead + b"\x00")
    made[HEADER:] = CODECS[codec](body)
    attributes = struct.unpack_from(">h", made, ATTRIBUTES)[0] | codec
    struct.pack_into(">h", made, ATTRIBUTES, attributes)
    struct.pack_into(">i", made, 8, len(made) - 12)
    struct.pack_into(">I", made, CRC, calc_crc32c(bytes(made[ATTRIBUTES:])))
    return bytes(made)


def read(batches: bytes) -> list[Any]:
    records, found = MemoryRecords(batches), []
    while (each := records.next_batch()) is not None:
        assert each.validate_crc()
        known = (each.producer_id, each.is_transactional, each.next_offset)
        found += [(*known, r.offset, r.timestamp, r.key, r.value, tuple(r.headers)) for r in each]
    return found


@pytest.mark.parametrize("codec", range(len(CODECS)))
@pytest.mark.parametrize("transactional", [False, True])
def test_a_name_that_is_not_utf8_has_question_marks_and_all_else_stays(codec: int, transactional: bool) -> None:
    broken = batch(codec, transactional=transactional)
    with pytest.raises(UnicodeDecodeError):
        read(broken)
    known = (77, transactional, 9)
    assert read(readable(broken)) == [
        (*known, 5, 1_000, b"k", b"v" * 200, (("x-tenant", b"AAAA"), ("é", None))),
        (*known, 6, 1_001, None, None, (("??\0z", b"\xff"), ("x", b"1"), ("xé?", None))),
        (*known, 7, 1_900, b"", b"", ()),
        (*known, 8, 900, b"k", b"w", (("???z", b""),)),
    ]


def test_batches_without_such_a_name_stay_as_they_are() -> None:
    good = batch(3, bad=False) + batch(0, first=9, bad=False)
    assert readable(good) is good
    assert readable(b"") == b""


def test_all_batches_of_an_answer_are_mended_and_a_cut_one_is_kept() -> None:
    whole = batch(0, bad=False) + batch(4, first=9) + batch(0, first=13, bad=False)
    mended = readable(whole + batch(0, first=17)[:90])
    assert [each[3] for each in read(mended)] == [*range(5, 17)]
    assert mended.endswith(batch(0, first=17)[:90])


def test_a_damaged_batch_stays_damaged() -> None:
    damaged = bytearray(batch(0))
    damaged[-1] ^= 1
    assert readable(bytes(damaged)) == damaged
    assert readable(b"\xff" * 200) == b"\xff" * 200


def test_an_answer_keeps_all_else() -> None:
    answer = SimpleNamespace(topics=[("t", [(0, 0, 9, batch(0)), (1, 3, -1, None)])])
    make_readable(answer)
    [(topic, [(*known, mended), empty])] = answer.topics
    assert (topic, known, empty) == ("t", [0, 0, 9], (1, 3, -1, b""))
    assert len(read(mended)) == 4
    make_readable(other := SimpleNamespace(brokers=[]))
    assert other == SimpleNamespace(brokers=[])
