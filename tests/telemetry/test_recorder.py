"""What is recorded replays to the same actions; what was changed afterwards does not."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.errors import SettingsError
from sidecar.core.events import Arrived, Closing, Ended, EngineUp, Event, Failed, Progressed, Woke
from sidecar.core.record import decode_event, encode
from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim.replay import Replay, recorded, replay
from sidecar.sim.segment import RecordingError
from sidecar.telemetry import recorder as module
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.segment_files import SegmentFiles, segments

SETTINGS = SchedulerSettings(window_ms=0.1)
ENGINES = (EngineSettings(name="a", slots=2),)


def request(number: int) -> Request:
    lane = Lane.ONLINE if number % 3 else Lane.OFFLINE
    return Request(
        id=f"w{number}", lane=lane, model="tensorrt_llm", arrived_s=number / 7, prompt_tokens=9, output_tokens_max=50
    )


def events() -> Iterator[tuple[float, Event]]:
    """Forty works on two slots; what is dispatched ends, or fails, in order."""
    yield 0.0, EngineUp(engine="a")
    for number in range(40):
        yield number / 7, Arrived(request=request(number))
    yield 6.0, Progressed(engine="a", tokens=(("w0", 3),), first_tokens=("w0",), gaps_s=(0.01, 0.1 + 0.2))
    yield 6.1, Ended(request_id="w0", reason=EndReason.END_ID, output_tokens=5)
    yield 6.2, Woke()
    yield 6.3, Closing()


def record(directory: Path, **settings: int) -> None:
    scheduler = Scheduler(SETTINGS, ENGINES)
    recorder = Recorder(RecorderSettings(directory=directory, **settings), scheduler)
    for now_s, event in events():
        recorder.handled(now_s, event, scheduler.handle(event, now_s))
    recorder.close()


def replayed(file: Path) -> Replay:
    return replay([file])


def rewrite(path: Path, change: Callable[[list[str]], None]) -> None:
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    change(lines)
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def test_an_arrival_has_its_trace_and_replays_with_it(tmp_path: Path) -> None:
    scheduler = Scheduler(SETTINGS, ENGINES)
    recorder = Recorder(RecorderSettings(directory=tmp_path), scheduler, trace_of=lambda name: f"trace-of-{name}")
    for now_s, event in events():
        recorder.handled(now_s, event, scheduler.handle(event, now_s))
    recorder.close()
    (file,) = segments(tmp_path)
    with gzip.open(file, "rt") as opened:
        traces = [line for line in opened if "trace-of-" in line]
    assert len(traces) == 40
    assert traces[3].rstrip().endswith(',"trace-of-w3"]')
    assert (replayed(file).mismatches, replayed(file).truncated) == (0, False)


def test_a_recording_replays_without_a_mismatch(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    result = replayed(file)

    assert (result.records, result.mismatches, result.truncated) == (45, 0, False)
    assert result.actions > 2


def test_each_segment_replays_by_itself_and_old_ones_are_deleted(tmp_path: Path) -> None:
    record(tmp_path, segment_records_max=10, segments_max=3)
    found = segments(tmp_path)

    assert [file.name for file in found] == [f"decisions-00000{number}.jsonl.gz" for number in (3, 4, 5)]
    assert [(each.records, each.mismatches) for each in map(replayed, found)] == [(10, 0), (10, 0), (5, 0)]


def first_record(lines: list[str]) -> int:
    """The line of the first record: behind the header and the state."""
    header = json.loads(lines[0])
    nodes = [number for number, each in enumerate(lines[1:], 1) if each.startswith("[")]
    return nodes[int(header["nodes"])]


@pytest.mark.parametrize("number", range(0, 45, 4))
def test_one_changed_action_or_event_is_found(tmp_path: Path, number: int) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    def change(lines: list[str]) -> None:
        at = first_record(lines) + number
        now_s, event, actions = json.loads(lines[at])
        actions = actions[1:] if actions else [["PauseIntake", "tensorrt_llm"]]
        lines[at] = json.dumps([now_s, event, actions])

    rewrite(file, change)
    assert replayed(file).mismatches >= 1


def test_a_record_that_is_no_record_counts_as_a_mismatch_and_the_rest_goes_on(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    def change(lines: list[str]) -> None:
        lines[-3] = json.dumps([6.2, ["Woken"], []])

    rewrite(file, change)
    result = replayed(file)

    assert (result.records, result.mismatches) == (45, 1)
    assert result.first_mismatch is not None
    assert "Woken" in result.first_mismatch


def test_a_file_cut_off_by_a_crash_replays_up_to_the_cut(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)
    file.write_bytes(file.read_bytes()[:-12])

    result = replayed(file)

    assert result.truncated
    assert result.mismatches == 0


def test_events_survive_the_round_trip() -> None:
    for value in (Failed(request_id="x", reason="gone", retryable=True), Arrived(request=request(1))):
        assert decode_event(json.loads(json.dumps(encode(value)))) == value


# ---- what goes wrong -------------------------------------------------------------------------------------------------


class Disk(SegmentFiles):
    """The files of the recorder, on a disk that may be full."""

    full = False

    def begin(self, *arguments: Any) -> None:
        self._take()
        super().begin(*arguments)

    def write(self, lines: Sequence[bytes]) -> None:
        if lines:
            self._take()
        super().write(lines)

    def _take(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")


class Run:
    """A scheduler and its recorder over the usual events, in which the thread looks after each step."""

    def __init__(self, directory: Path) -> None:
        self.scheduler = Scheduler(SETTINGS, ENGINES)
        self.recorder = Recorder(RecorderSettings(directory=directory), self.scheduler, retry_s=0.0, in_thread=False)
        self.events = list(events())

    def step(self, count: int) -> str:
        self.handle(count)
        self.recorder.look()
        return self.recorder.state

    def handle(self, count: int) -> None:
        for now_s, event in self.events[:count]:
            self.recorder.handled(now_s, event, self.scheduler.handle(event, now_s))
        del self.events[:count]

    def rest(self) -> None:
        self.handle(len(self.events))
        self.recorder.close()


def stopped(why: str) -> str:
    return f"stopped: {why}"


def test_a_full_disk_is_said_once_and_a_new_segment_begins_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "SegmentFiles", Disk)
    caplog.set_level(logging.INFO)
    run = Run(tmp_path)
    assert run.step(10) == "running"
    monkeypatch.setattr(Disk, "full", True)
    assert [run.step(3) for _ in range(4)] == [stopped("No space left on device")] * 4
    monkeypatch.setattr(Disk, "full", False)
    assert run.step(2) == "running"
    run.rest()

    assert ["No space" in each for each in caplog.messages] == [True, False]
    assert "writes again" in caplog.messages[1]
    found = replay(segments(tmp_path))
    assert (found.records + found.missing, found.missing, found.mismatches) == (45, run.recorder.dropped, 0)
    assert any("No space left on device" in each for each in found.notes)


def test_events_faster_than_the_disk_end_the_segment_and_the_next_says_how_many_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUEUE_MAX", 8)
    run = Run(tmp_path)
    run.handle(20)
    assert run.recorder.state == stopped("the disk does not keep up with the events")
    assert run.step(0) == stopped("the disk does not keep up with the events")
    assert run.step(4) == "running"
    while run.events:
        run.step(4)
    run.rest()

    found = replay(segments(tmp_path))
    assert (found.records + found.missing, found.mismatches) == (45, 0)
    assert found.missing == run.recorder.dropped > 10
    assert sum("ended early: the disk does not keep up" in each for each in found.notes) == 1
    with pytest.raises(RecordingError, match="records are missing between"):
        recorded(segments(tmp_path))


def test_the_queue_is_bounded_by_what_its_records_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTS_MAX", 30)
    run = Run(tmp_path)
    run.handle(4)
    assert run.recorder.state == "running"
    long = Progressed(engine="a", tokens=(("w0", 1),), gaps_s=(0.01,) * 40)
    run.recorder.handled(3.0, long, run.scheduler.handle(long, 3.0))
    assert run.recorder.state == stopped("the disk does not keep up with the events")


def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "decisions")
    run.step(10)
    shutil.rmtree(tmp_path / "decisions")
    run.recorder._segment_records_max = 1  # the next record asks for a new segment
    assert run.step(3) == "running"


def test_a_state_that_cannot_be_recorded_stops_the_recorder_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step(3)
    run.recorder._segment_records_max = 1
    run.scheduler._odd = object()  # type: ignore[attr-defined]
    run.handle(1)
    assert run.recorder.state == stopped("RecordError: builtins.object has no place in a recording")
    del run.scheduler._odd  # type: ignore[attr-defined]
    run.step(1)
    assert run.step(1) == "running"


def test_a_disk_that_hangs_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, let_go = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        entered.set()
        let_go.wait()

    monkeypatch.setattr(SegmentFiles, "write", hang)
    scheduler = Scheduler(SETTINGS, ENGINES)
    recorder = Recorder(RecorderSettings(directory=tmp_path), scheduler, close_timeout_s=0.01)
    for now_s, event in events():
        recorder.handled(now_s, event, scheduler.handle(event, now_s))
    entered.wait()
    recorder.close()
    let_go.set()

    assert "the disk hangs" in caplog.messages[-1]


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_a_mistake_in_the_settings(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="recorder: cannot write to"):
        Recorder(RecorderSettings(directory=tmp_path / name), Scheduler(SETTINGS, ENGINES))
