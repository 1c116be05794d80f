"""The mixed bench: what it sends, who decides in it, and what it makes of its runs. The servers are left out."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from dev.bench import mixed
from dev.bench._mixed_load import Prompts
from dev.bench._mixed_prediction import Run, World, predicted, prediction, simulate
from dev.bench._mixed_worker import BASELINES, Governed, governed
from dev.load import LoadResult
from engine.lengths import output_length
from sidecar.core.errors import SettingsError
from sidecar.core.events import Abort, Arrived, Cancelled, Dispatch, Ending, EngineUp, Finished, Stopped
from sidecar.core.request import Lane, Request
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim.driver import SimulatedDriver
from sidecar.sim.whatif import machine_of
from sidecar.sim.workloads import by_name
from sidecar.telemetry.recorder import Recorder
from tests.sim.recorded_minute import Recording

TOKENIZER = Path(__file__).parents[3] / "model_repository" / "tokenizer"
ENGINE = EngineSettings(name="a100", slots=2, tokens_max=4096)


def request(name: str, lane: Lane) -> Request:
    return Request(id=name, lane=lane, model="tensorrt_llm", arrived_s=0.0, prompt_tokens=9, output_tokens_max=50)


def dispatched(scheduler: Governed, name: str, lane: Lane, now_s: float) -> list[str]:
    actions = scheduler.handle(Arrived(request=request(name, lane)), now_s)
    return [each.request_id for each in actions if isinstance(each, Dispatch)]


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts.load(TOKENIZER)


def test_a_baseline_decides_and_the_page_still_knows_whether_the_engine_is_up() -> None:
    scheduler = governed("offline-only", SchedulerSettings(), [ENGINE])

    assert not scheduler.snapshot().engines["a100"].up
    assert scheduler.handle(EngineUp(engine="a100"), 0.0) == []
    assert scheduler.snapshot().engines["a100"].up
    assert [dispatched(scheduler, name, Lane.OFFLINE, 1.0) for name in "abc"] == [["a"], ["b"], []]
    assert scheduler.snapshot().now_s == 1.0


def test_a_caller_that_leaves_is_taken_out_of_a_baseline_for_good() -> None:
    scheduler = governed("offline-only", SchedulerSettings(), [ENGINE])
    for name in "abcd":
        dispatched(scheduler, name, Lane.OFFLINE, 0.0)

    over = Finished(request_id="c", outcome=Ending.CANCELLED)
    assert scheduler.handle(Cancelled(request_id="c"), 1.0) == [over]
    assert scheduler.handle(Cancelled(request_id="a"), 1.0) == [Abort(request_id="a", engine="a100")]
    after = scheduler.handle(Stopped(request_id="a", output_tokens=3), 1.1)
    assert [each.request_id for each in after if isinstance(each, Dispatch)] == ["d"]
    assert scheduler.handle(Cancelled(request_id="a"), 1.2) == []


def test_what_is_no_baseline_is_named() -> None:
    assert {"aimd", "offline-only", "static-cap"} <= set(BASELINES)
    assert "naive" not in BASELINES  # it needs the engine's own queue
    with pytest.raises(SettingsError, match="known: "):
        governed("ours", SchedulerSettings(), [ENGINE])


def test_online_requests_have_the_lengths_and_times_of_the_workload(prompts: Prompts) -> None:
    online = prompts.online("knee", 1, 60.0)
    wanted = by_name("knee").online(1, 60 / 3600)

    assert [job.request.arrived_s for job in online.jobs] == [job.request.arrived_s for job in wanted]
    assert [each.due_s for each in online.arrivals] == [job.request.arrived_s for job in wanted]
    lengths = [
        (job.request.prompt_tokens, other.request.prompt_tokens) for job, other in zip(online.jobs, wanted, strict=True)
    ]
    assert all(abs(theirs - ours) <= 8 for ours, theirs in lengths)


def test_the_origin_runs_eight_times_faster(prompts: Prompts) -> None:
    online = prompts.online("origin", 2, 30.0)
    wanted = by_name("origin").online(2, 240 / 3600)

    assert [each.due_s for each in online.arrivals] == [job.request.arrived_s / 8 for job in wanted]


def test_the_simulator_gets_the_lengths_that_the_engine_will_draw(prompts: Prompts) -> None:
    for value, job in islice(prompts.offline("knee", 20), 20):
        item = json.loads(value)
        ids = prompts.tokens.encode_prompt(item["prompt"])
        assert ids[0] == prompts.language.offline_id
        assert job.request.prompt_tokens == len(ids)
        assert job.output_tokens == min(item["max_tokens"], output_length(ids, prompts.language, 0))
    online = prompts.online("knee", 1, 20.0)
    for arrival, job in zip(online.arrivals, online.jobs, strict=True):
        ids = prompts.tokens.encode_prompt(arrival.prompt)
        assert job.output_tokens == min(arrival.output_tokens_max, output_length(ids, prompts.language, 0))


def run(policy: str, seed: int, tokens_per_s: float, overruns: float, directory: Path = Path()) -> Run:
    load = LoadResult(sent=2, ttft_ms=[10.0 * seed, 20.0 * seed], e2e_ms=[30.0, 40.0])
    return Run(
        policy=policy,
        seed=seed,
        load=load,
        offline_tokens_per_s=tokens_per_s,
        overrun_ratio=overruns,
        directory=directory,
    )


def test_harvest_is_measured_against_the_ceiling_and_late_runs_are_not_valid() -> None:
    figures = mixed.policy_figures([run("ours", 1, 60.0, 0.0), run("ours", 2, 80.0, 0.02)], ceiling=100.0)

    assert (figures["harvest"], figures["valid"], figures["n"]) == (0.7, False, 4)
    assert figures["ttft_ms"]["p50"] == 20.0
    assert mixed.policy_figures([run("ours", 1, 60.0, 0.01)], ceiling=100.0)["valid"]
    assert mixed.policy_figures([run("online-only", 1, 0.0, 0.0)], ceiling=100.0)["harvest"] is None


def test_overruns_are_counted_between_two_readings_of_growing_counters() -> None:
    before = {"iterations": 1000, "pacing_overrun_ratio": 0.5}
    after = {"iterations": 2000, "pacing_overrun_ratio": 0.255}

    assert mixed._overrun_ratio(before, after) == pytest.approx(0.01)
    assert mixed._overrun_ratio(after, after) == 0.0


@pytest.mark.slow
def test_a_simulator_fitted_to_a_run_predicts_another_of_the_same_engine(prompts: Prompts, tmp_path: Path) -> None:
    """Both runs come out of the simulator here, so what remains of error is the fit's."""
    engine = EngineSettings(name="a100", slots=8, tokens_max=4096, kv_tokens=100_000)
    profile, seconds = PROFILES["70b-tp4-a100"], 120.0
    items = [job for _, job in prompts.offline("knee", 200)]
    loads = {seed: prompts.online("constant-2", seed, seconds) for seed in (1, 2)}
    runs = {}
    for seed, load in loads.items():
        scheduler = Scheduler(SchedulerSettings(), [engine])
        recorder = Recorder(RecorderSettings(directory=tmp_path / str(seed) / "decisions"), scheduler)
        driver = SimulatedDriver(
            scheduler=scheduler,
            machines={"a100": machine_of(engine, profile)},
            observer=Recording(recorder, per_token=True),
        )
        driver.begin(iter([*items, *load.jobs]))
        driver.run(seconds)
        recorder.close()
        measured = simulate(Scheduler(SchedulerSettings(), [engine]), engine, profile, load.jobs, items, seconds)
        ttft_ms = [measured.ttft_ms[share] or 0.0 for share in ("p50", "p95")]
        runs[seed] = Run(
            policy="ours",
            seed=seed,
            load=LoadResult(ttft_ms=[ttft_ms[0]] * 94 + [ttft_ms[1]] * 6),
            offline_tokens_per_s=measured.offline_tokens_per_s,
            overrun_ratio=0.0,
            directory=tmp_path / str(seed),
        )
    alone = governed("offline-only", SchedulerSettings(), [engine])
    ceiling = simulate(alone, engine, profile, [], items, seconds).offline_tokens_per_s
    world = World(loads=loads, items=items, ceiling_tokens_per_s=ceiling, seconds=seconds)

    found = prediction(runs[1], runs[2], world)
    assert max(found[name] for name in ("p50", "p95", "harvest")) < 0.1
    fitted = found["fitted"]
    assert (
        abs(fitted["around_the_engine_ms"]) < fitted["overhead_ms"] / 2
    )  # nothing is around it, but for the fit's error


def test_one_seed_is_too_few_to_predict_and_the_report_says_so() -> None:
    world = World(loads={}, items=[], ceiling_tokens_per_s=1.0, seconds=1.0)

    assert predicted([run("ours", 1, 1.0, 0.0)], world)["why_not"] == "it takes `ours` on two seeds"
    late = predicted([run("ours", 1, 1.0, 0.0, Path("/nonexistent"))] * 2, world)
    assert (late["p50"], late["why_not"]) == (None, "run ours, seed 1 left no recording")


def test_options_that_make_no_sense_are_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--policies", "ours,naive"], ["--seconds", "1"], ["--slots", "65"], ["--workloads", "kneel"]):
        with pytest.raises(SystemExit, match="2"):
            mixed.parse(arguments)
        assert "error: " in capsys.readouterr().err
    assert mixed.parse([]).workloads == ["knee", "origin"]
