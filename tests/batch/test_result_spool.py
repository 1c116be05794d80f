"""Outcomes on disk: each place once, in the order of the input, and a reader that is killed goes on where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.batch.outcome_lines import LinePlace, OutcomeLine
from sidecar.batch.result_spool import ResultSpool
from sidecar.core.errors import SettingsError

JOB = ("lab", "nightly")


def outcome(line: int, value: bytes = b"result", *, ok: bool = True, retry: int = 0) -> OutcomeLine:
    return OutcomeLine(place=LinePlace(True, line), partition=0, offset=line, retry=retry, ok=ok, value=value)


def by_source(partition: int, offset: int) -> OutcomeLine:
    place = LinePlace(False, partition, offset)
    value = f"{partition}/{offset}".encode()
    return OutcomeLine(place=place, partition=partition, offset=offset, retry=0, ok=True, value=value)


def test_lines_come_back_in_the_order_of_the_input_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        spool.add([outcome(line, b"%d" % line) for line in (10, 2, 30, 1)], {})
        spool.add([by_source(1, 5), by_source(0, 7), by_source(1, 4)], {})
        assert [*spool.lines(ok=True)] == [b"1", b"2", b"10", b"30", b"0/7", b"1/4", b"1/5"]
        assert spool.count() == (7, 0)


def test_a_second_outcome_for_a_line_is_not_a_second_line(tmp_path: Path) -> None:
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        spool.add([outcome(1, b"first"), outcome(1, b"second")], {})
        spool.add([outcome(1, b"third")], {})
        assert [*spool.lines(ok=True)] == [b"first"]
        assert spool.count() == (1, 0)


def test_the_outcome_of_a_retry_stands_in_the_place_of_the_one_before(tmp_path: Path) -> None:
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        spool.add([outcome(1, b"dead", ok=False), outcome(2, b"dead", ok=False)], {})
        spool.add([outcome(1, b"result", retry=1), outcome(2, b"dead again", ok=False, retry=1)], {})
        spool.add([outcome(2, b"late", retry=0)], {})
        assert ([*spool.lines(ok=True)], [*spool.lines(ok=False)]) == ([b"result"], [b"dead again"])
        assert spool.count() == (1, 1)


def test_who_opens_it_again_reads_on_where_it_was(tmp_path: Path) -> None:
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        spool.add([outcome(1)], {"results": {0: 5, 1: 7}})
        spool.add([outcome(2)], {"results": {0: 9}})
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        assert spool.places() == {"results": {0: 9, 1: 7}}
        assert spool.count() == (2, 0)


def test_what_fails_while_outcomes_are_added_leaves_neither_them_nor_their_place(tmp_path: Path) -> None:
    def outcomes() -> object:
        yield outcome(1)
        raise RuntimeError

    with ResultSpool(tmp_path / "spool", JOB) as spool:
        with pytest.raises(RuntimeError):
            spool.add(outcomes(), {"results": {0: 5}})  # type: ignore[arg-type]
        assert (spool.count(), spool.places()) == ((0, 0), {})


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("of yesterday\n")
    with ResultSpool(tmp_path / "spool", JOB) as spool:
        spool.add([outcome(2, b"b"), outcome(1, b"a"), outcome(3, b"bad", ok=False)], {})
        spool.write(target, ok=True)
        spool.remove()
    assert target.read_bytes() == b"a\nb\n"
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_file_of_another_job_is_left_alone(tmp_path: Path) -> None:
    with ResultSpool(tmp_path / "spool", JOB):
        pass
    with pytest.raises(SettingsError, match="holds results of job 'nightly' of 'lab'"):
        ResultSpool(tmp_path / "spool", ("lab", "weekly"))


def test_a_file_that_is_no_spool_is_named(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"a diary\n" * 1000)
    with pytest.raises(SettingsError, match="is not ours"):
        ResultSpool(tmp_path / "spool", JOB)
