"""What is recorded replays to the same actions; what was changed afterwards does not."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.events import Arrived, Closing, Ended, EngineUp, Event, Failed, Progressed, Woke
from sidecar.core.record import decode, encode
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.core.work import EndReason, Lane, Work
from sidecar.edge.recorder import Recorder, RecorderSettings, segments
from sidecar.lab.replay import ReplayError, replay

SETTINGS = SchedulerSettings(window_ms=0.1)
ENGINES = (EngineSettings(name="a", slots=2),)


def work(number: int) -> Work:
    lane = Lane.ONLINE if number % 3 else Lane.OFFLINE
    return Work(
        id=f"w{number}", lane=lane, model="tensorrt_llm", arrived_s=number / 7, prompt_tokens=9, output_tokens_max=50
    )


def events() -> Iterator[tuple[float, Event]]:
    """Forty works on two slots; what is dispatched ends, or fails, in order."""
    yield 0.0, EngineUp(engine="a")
    for number in range(40):
        yield number / 7, Arrived(work=work(number))
    yield 6.0, Progressed(engine="a", tokens=(("w0", 3),), first_tokens=("w0",), gaps_s=(0.01, 0.1 + 0.2))
    yield 6.1, Ended(work_id="w0", reason=EndReason.END_ID, output_tokens=5)
    yield 6.2, Woke()
    yield 6.3, Closing()


def record(directory: Path, **settings: int) -> None:
    scheduler = Scheduler(SETTINGS, ENGINES)
    recorder = Recorder(RecorderSettings(directory=directory, **settings), scheduler)
    for now_s, event in events():
        recorder.handled(now_s, event, scheduler.handle(event, now_s))
    recorder.close()


def rewrite(path: Path, change: Callable[[list[str]], None]) -> None:
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    change(lines)
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def test_a_recording_replays_without_a_mismatch(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    result = replay(file)

    assert (result.records, result.mismatches, result.truncated) == (45, 0, False)
    assert result.actions > 2


def test_each_segment_replays_by_itself_and_old_ones_are_deleted(tmp_path: Path) -> None:
    record(tmp_path, segment_records_max=10, segments_max=3)
    found = segments(tmp_path)

    assert [file.name for file in found] == [f"decisions-00000{number}.jsonl.gz" for number in (3, 4, 5)]
    assert [(each.records, each.mismatches) for each in map(replay, found)] == [(10, 0), (10, 0), (5, 0)]


@pytest.mark.parametrize("number", range(1, 46, 4))
def test_one_changed_action_or_event_is_found(tmp_path: Path, number: int) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    def change(lines: list[str]) -> None:
        now_s, event, actions = json.loads(lines[number])
        actions = actions[1:] if actions else [["PauseIntake", "tensorrt_llm"]]
        lines[number] = json.dumps([now_s, event, actions])

    rewrite(file, change)
    assert replay(file).mismatches >= 1


def test_a_record_that_is_no_record_counts_as_a_mismatch_and_the_rest_goes_on(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)

    def change(lines: list[str]) -> None:
        lines[44] = json.dumps([6.2, ["Woken"], []])

    rewrite(file, change)
    result = replay(file)

    assert result.mismatches == 1
    assert result.first_mismatch is not None
    assert "Woken" in result.first_mismatch


def test_a_file_cut_off_by_a_crash_replays_up_to_the_cut(tmp_path: Path) -> None:
    record(tmp_path)
    (file,) = segments(tmp_path)
    file.write_bytes(file.read_bytes()[:-12])

    result = replay(file)

    assert result.truncated
    assert result.mismatches == 0


def test_what_is_no_recording_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    state = base64.b64encode(pickle.dumps(Evil())).decode()
    for text in ("", "{}", json.dumps({"format": 1, "state": state}), json.dumps({"format": 2, "state": ""})):
        file = tmp_path / "x.jsonl.gz"
        file.write_bytes(gzip.compress(text.encode() + b"\n"))
        with pytest.raises(ReplayError):
            replay(file)
    assert not (tmp_path / "ran").exists()


def test_a_queue_that_is_full_ends_the_segment_and_the_next_one_replays(tmp_path: Path) -> None:
    scheduler = Scheduler(SETTINGS, ENGINES)
    recorder = Recorder(RecorderSettings(directory=tmp_path), scheduler)
    for now_s, event in events():
        if isinstance(event, Progressed):
            recorder._open = False  # as after queue.Full
        recorder.handled(now_s, event, scheduler.handle(event, now_s))
    recorder.close()

    assert sum(replay(file).mismatches for file in segments(tmp_path)) == 0


def test_events_survive_the_round_trip() -> None:
    for value in (Failed(work_id="x", reason="gone", retryable=True), Arrived(work=work(1))):
        assert decode(json.loads(json.dumps(encode(value)))) == value
