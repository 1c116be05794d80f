"""The files of a recording: begun whole, bounded in number, and never another's."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from sidecar import __version__
from sidecar.core.checkpoint import capture
from sidecar.core.scheduler import Scheduler
from sidecar.telemetry import segment_files
from sidecar.telemetry.segment_files import FLUSH_S, SegmentFiles, line, segment_number, segments
from tests.telemetry.test_recorder import ENGINES, SETTINGS, Run, replayed


def test_whatever_else_lies_in_the_directory_is_left_alone(tmp_path: Path) -> None:
    for name in ("decisions-x.jsonl.gz", "decisions-000007.jsonl.gz.part", "notes.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "decisions-000005.jsonl.gz").mkdir()
    run = Run(tmp_path)
    assert run.step(10) == "running"
    run.rest()

    assert [each.name for each in segments(tmp_path)] == ["decisions-000001.jsonl.gz"]
    assert (tmp_path / "decisions-x.jsonl.gz").read_text() == "mine"


def test_a_name_that_another_process_has_just_taken_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decisions-000001.jsonl.gz").write_text("theirs")
    monkeypatch.setattr(segment_files, "segments", lambda _directory: [])
    run = Run(tmp_path)
    run.rest()

    assert (tmp_path / "decisions-000001.jsonl.gz").read_text() == "theirs"
    assert replayed(tmp_path / "decisions-000002.jsonl.gz").mismatches == 0


def files(directory: Path, segments_max: int = 3) -> SegmentFiles:
    return SegmentFiles(directory, segments_max, "a run")


def begun(made: SegmentFiles, missing: dict[str, Any] | None = None) -> None:
    made.begin(capture(Scheduler(SETTINGS, ENGINES)), SETTINGS, ENGINES, missing)


def content(path: Path) -> list[Any]:
    with gzip.open(path, "rt") as file:
        return [json.loads(each) for each in file]


def test_a_segment_begins_with_its_header_and_state_and_ends_with_its_count(tmp_path: Path) -> None:
    made = files(tmp_path)
    begun(made, {"records": 3, "why": "a full disk"})
    assert made.is_open
    made.write([line([1.0, "event", []]), line([2.0, "event", []])])
    made.end("it was told to")
    assert not made.is_open
    header, *state = content(made.path)
    assert (header["segment"], header["run"], header["sidecar"]) == (1, "a run", __version__)
    assert header["missing"] == {"records": 3, "why": "a full disk"}
    assert len([each for each in state if isinstance(each, list)]) == header["nodes"] + 2  # and the two records
    assert state[-1] == {"end": 2, "why": "it was told to"}


def test_the_next_segment_ends_the_one_before_and_goes_on_behind_the_highest_number(tmp_path: Path) -> None:
    (tmp_path / "decisions-000041.jsonl.gz").write_bytes(b"")
    made = files(tmp_path, segments_max=2)
    begun(made)
    first = made.path
    begun(made)
    assert [each.name for each in segments(tmp_path)] == ["decisions-000042.jsonl.gz", "decisions-000043.jsonl.gz"]
    assert content(first)[-1] == {"end": 0, "why": None}
    made.end(None)


def test_segments_are_in_the_order_of_their_numbers_also_beyond_six_digits(tmp_path: Path) -> None:
    for number in (1_000_000, 999_999, 12):
        (tmp_path / f"decisions-{number:06}.jsonl.gz").write_bytes(b"")
    assert [segment_number(each) for each in segments(tmp_path)] == [12, 999_999, 1_000_000]


@pytest.mark.parametrize(
    "name", ["decisions-1.jsonl.gz", "decisions-0000001234567.jsonl.gz", "x", "decisions-٠٠٠٠٠١.jsonl.gz.x"]
)
def test_a_file_of_another_name_has_no_number(name: str) -> None:
    with pytest.raises(ValueError, match="is no segment"):
        segment_number(Path(name))


def test_a_directory_without_segments_or_none_at_all_has_none(tmp_path: Path) -> None:
    assert segments(tmp_path) == []
    assert segments(tmp_path / "nowhere") == []


def test_a_segment_without_its_state_is_taken_back_and_pushes_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = files(tmp_path, segments_max=1)
    begun(made)
    made.end(None)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "flush", full)
        with pytest.raises(OSError, match="No space left"):
            begun(made)
    assert not made.is_open
    assert [each.name for each in segments(tmp_path)] == ["decisions-000001.jsonl.gz"]


def test_when_all_names_are_taken_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "NUMBERS_TRIED", 3)
    monkeypatch.setattr(segment_files, "segments", lambda _directory: [])
    for number in (1, 2, 3):
        (tmp_path / f"decisions-{number:06}.jsonl.gz").write_bytes(b"")
    with pytest.raises(FileExistsError, match="3 names of segments are taken"):
        begun(files(tmp_path))


def test_without_a_segment_there_is_nothing_to_write_end_flush_or_give_up(tmp_path: Path) -> None:
    made = files(tmp_path)
    made.write([b"lost\n"])
    made.end("why")
    made.flush_if_due()
    assert made.give_up() == 0
    assert segments(tmp_path) == []


def test_who_gives_up_says_how_many_records_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    made = files(tmp_path)
    begun(made)
    made.write([b"1\n", b"2\n"])
    now_s = FLUSH_S
    made.flush_if_due()
    made.write([b"3\n"])

    close = gzip.GzipFile.close

    def broken(file: gzip.GzipFile) -> None:
        close(file)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "close", broken)
        assert made.give_up() == 1
    assert not made.is_open


def test_what_was_flushed_can_be_read_although_the_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    made = files(tmp_path)
    begun(made)
    made.write([line(["kept"])])
    now_s = FLUSH_S
    made.flush_if_due()
    made.write([line(["lost"])])
    copy = tmp_path / "copy"
    copy.write_bytes(made.path.read_bytes())  # as the disk has it
    found = zlib.decompressobj(wbits=31).decompress(copy.read_bytes())
    assert b'["kept"]\n' in found
    assert b"lost" not in found
    made.end(None)


def test_an_old_segment_that_cannot_be_deleted_is_said_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(_: Path, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    made = files(tmp_path, segments_max=1)
    begun(made)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", denied)
        begun(made)
    assert made.is_open
    assert "cannot delete" in caplog.text
    assert "Permission denied" in caplog.text
    made.end(None)


def test_a_line_that_no_reader_would_take_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert line({"a": [1, "é"]}) == b'{"a":[1,"\\u00e9"]}\n'
    monkeypatch.setattr(segment_files, "LINE_BYTES_MAX", 50)
    assert len(line("x" * 47)) == 50
    with pytest.raises(ValueError, match="a line of 51 bytes is longer than 50"):
        line("x" * 48)
