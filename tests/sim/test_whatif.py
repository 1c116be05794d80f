"""A recording is read back as the world it was made in, and other settings are tried on it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Arrived, Cancelled, Event, Progressed
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim import recording, whatif
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.gaps import TooFewGapsError
from sidecar.sim.policies import parse_overrides
from sidecar.sim.replay import recorded
from sidecar.sim.segment import RecordingError
from sidecar.sim.whatif import machine_of
from sidecar.sim.workloads import SimulatedRequest, by_name, offline_job
from sidecar.telemetry.recorder import Recorder
from sidecar.telemetry.segment_files import segments

PROFILE = PROFILES["70b-tp4-a100"]
SETTINGS = SchedulerSettings(offline_queue_max=64, offline_queue_low=32)
ENGINE = EngineSettings(name="e0", slots=8, tokens_max=4096, kv_tokens=100_000, yield_rows=4)
SECONDS = 60.0


class Recording(Observer):
    """Hands everything to the recorder, with a gap for each token if asked, as the real driver has them."""

    def __init__(self, recorder: Recorder, *, per_token: bool) -> None:
        self.recorder, self.per_token = recorder, per_token
        self.last_s: dict[str, float] = {}  # when each stream gave its newest token

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        if isinstance(event, Progressed) and self.per_token:
            event = replace(event, gaps_s=tuple(self._gaps_s(event, driver.now_s)))
        self.recorder.handled(driver.now_s, event, actions)

    def _gaps_s(self, event: Progressed, now_s: float) -> Iterator[float]:
        for request_id, tokens in event.tokens:
            if request_id not in event.first_tokens:
                yield from [(now_s - self.last_s[request_id]) / tokens] * tokens
            elif tokens > 1:
                yield from [PROFILE.iteration_s(8, 0)] * (tokens - 1)
            self.last_s[request_id] = now_s


def jobs() -> list[SimulatedRequest]:
    online = by_name("constant-3").online(1, SECONDS / 3600)
    lengths = by_name("origin").offline(1)
    items = [
        offline_job(n, *next(lengths), arrived_s=0.05 * n, output_max=1024, resumable=True) for n in range(int(SECONDS))
    ]
    return sorted([*online, *items], key=lambda job: job.request.arrived_s)


def record(directory: Path, *, per_token: bool = True, **settings: int) -> list[Path]:
    """A minute of a simulated sidecar, recorded; one online request is cancelled."""
    scheduler = Scheduler(SETTINGS, [ENGINE])
    recorder = Recorder(RecorderSettings(directory=directory, **settings), scheduler)
    driver = SimulatedDriver(
        scheduler=scheduler,
        machines={"e0": machine_of(ENGINE, PROFILE)},
        observer=Recording(recorder, per_token=per_token),
        tick_s=0.01,
    )
    driver.begin(iter(jobs()))
    first = next(job.request for job in jobs() if job.request.lane is Lane.ONLINE)
    driver.at(first.arrived_s + 0.01, lambda: driver.cancel(first.id))
    driver.run(SECONDS)
    recorder.close()
    return segments(directory)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return record(tmp_path_factory.mktemp("parts"), segment_records_max=1000)


def test_arrivals_cancellations_and_true_lengths_are_read_back(files: list[Path]) -> None:
    found = recorded(files)
    sent = {job.request.id: job for job in jobs()}
    ended = [job for job in found.jobs if job.output_tokens == sent[job.request.id].output_tokens]

    assert [job.request for job in found.jobs] == [job.request for job in jobs()]
    assert len(ended) > 0.9 * len(sent)
    assert [request_id for _, request_id in found.cancels] == ["o0"]
    assert (found.settings, found.engines) == (SETTINGS, (ENGINE,))


def test_several_segments_in_order_tell_what_one_would(files: list[Path], parts: list[Path]) -> None:
    assert len(parts) > 2
    assert recorded(parts).jobs == recorded(files).jobs
    with pytest.raises(RecordingError, match="gzip"):
        recorded([*parts[:1], Path(__file__)])
    with pytest.raises(RecordingError, match="in their order"):
        recorded([parts[1], parts[0]])


def test_a_later_segment_alone_begins_with_the_request_that_was_alive(parts: list[Path]) -> None:
    found = recorded(parts[1:2])

    assert found.jobs[0].request.arrived_s == 0.0
    assert any(job.request.lane is Lane.OFFLINE and job.request.arrived_s == 0 for job in found.jobs)


def test_iteration_times_are_learnt_from_the_gaps(files: list[Path]) -> None:
    profile, error = recorded(files).gaps.profile()

    assert error < 0.05
    for rows, prompt in ((2, 0), (8, 0), (7, 100)):
        assert profile.iteration_s(rows, prompt) == pytest.approx(PROFILE.iteration_s(rows, prompt), rel=0.1)


def test_too_short_a_recording_asks_for_a_profile() -> None:
    with pytest.raises(TooFewGapsError, match="name a profile"):
        recording.read(Scheduler(SETTINGS, [ENGINE]), []).gaps.profile()


def test_a_request_that_comes_twice_is_from_another_run() -> None:
    request = Request(id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=0, prompt_tokens=1, output_tokens_max=9)
    twice = [(0.0, Arrived(request=request), ()), (1.0, Arrived(request=request), ())]

    with pytest.raises(RecordingError, match="different runs"):
        recording.read(Scheduler(SETTINGS, [ENGINE]), twice)


def test_a_request_without_an_end_is_longer_than_it_got() -> None:
    request = Request(id="a", lane=Lane.ONLINE, model="tensorrt_llm", arrived_s=5, prompt_tokens=0, output_tokens_max=9)
    found = recording.read(
        Scheduler(SETTINGS, [ENGINE]), [(5.0, Arrived(request=request), ()), (6.0, Cancelled(request_id="a"), ())]
    )

    assert [(job.request.arrived_s, job.request.prompt_tokens, job.output_tokens) for job in found.jobs] == [
        (0.0, 1, 1)
    ]
    assert found.cancels == [(1.0, "a")]


def test_the_same_settings_give_the_same_figures_and_others_do_not(files: list[Path]) -> None:
    found = recorded(files)
    same = whatif.compare(found, ["slots=8"], PROFILE)
    other = whatif.compare(found, ["slots=4", "yield_rows=0"], PROFILE)

    assert same["replayed"] == same["changed"] == other["replayed"]
    assert other["changed"]["offline_tokens_per_s"] < other["replayed"]["offline_tokens_per_s"]
    assert same["replayed"]["online"]["cancelled"] == 1
    assert other["what_if"] == {"slots": "4", "yield_rows": "0"}


def test_a_recording_simulated_again_meets_what_was_recorded(files: list[Path]) -> None:
    """The recording came out of the simulator, so with its own iteration times everything must come out again."""
    found = recorded(files)
    figures = whatif.run(found, found.settings, found.engines, PROFILE)

    online = [job for job in jobs() if job.request.lane is Lane.ONLINE]
    assert figures["online"]["n"] + figures["online"]["cancelled"] == len(online)
    fitted = whatif.compare(found, ["slots=8"], None)["replayed"]
    assert fitted["online"]["ttft_ms"]["p50"] == pytest.approx(figures["online"]["ttft_ms"]["p50"], rel=0.1)
    assert fitted["offline_tokens_per_s"] == pytest.approx(figures["offline_tokens_per_s"], rel=0.1)


def test_the_command_prints_both_side_by_side(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["preempt=false", "yield_rows=never"]
    arguments = ["replay", *map(str, files), "--what-if", *pairs, "--profile", PROFILE.name]

    assert main(arguments, {}, COMMANDS) == 0
    shown = capsys.readouterr().out
    assert "as recorded" in shown
    assert "replayed" in shown
    assert "preempt=False" in shown
    assert main([*arguments, "--json"], {}, COMMANDS) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["changed"]["preemptions"] == 0 < report["replayed"]["preemptions"]


def test_a_setting_that_does_not_exist_is_one_line_and_exit_code_2(
    files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(each) for each in files]
    for pair in ("slotz=4", "name=x", "model=x", "slots=many", "slots=0"):
        assert main(["replay", *paths, "--what-if", pair], {}, COMMANDS) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["replay", *paths, "--what-if", "slots=4", "--profile", "h100"], {}, COMMANDS) == 2
    assert "unknown profile" in capsys.readouterr().err
    with pytest.raises(SettingsError):
        parse_overrides(["tenant_weights=3"])


def test_a_check_of_several_segments_adds_up_and_prints_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = record(tmp_path, per_token=False, segment_records_max=1000)

    assert main(["replay", *map(str, parts), "--check", "--json"], {}, COMMANDS) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mismatches"] == 0
    assert report["records"] > 1500
    assert report["actions"] > 100

    with gzip.open(parts[1], "rt") as file:
        lines = file.read().splitlines()
    index = next(n for n, line in enumerate(lines) if '[["Dispatch"' in line)
    now_s, event, _ = json.loads(lines[index])
    lines[index] = json.dumps([now_s, event, []])
    with gzip.open(parts[1], "wt") as file:
        file.write("\n".join(lines) + "\n")
    assert main(["replay", *map(str, parts), "--check"], {}, COMMANDS) == 1
