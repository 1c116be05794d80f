"""A simulator that was fitted to one run predicts another of the same engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.bench._mixed_load import Prompts
from dev.bench._mixed_prediction import Run, World, predicted, prediction, simulate
from dev.bench._mixed_worker import governed
from dev.load import LoadResult
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.settings.recorder import RecorderSettings
from sidecar.sim.driver import SimulatedDriver
from sidecar.sim.whatif import machine_of
from sidecar.telemetry.recorder import Recorder
from tests.dev.bench.test_mixed import run
from tests.sim.recorded_minute import Recording

TOKENIZER = Path(__file__).parents[3] / "model_repository" / "tokenizer"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts.load(TOKENIZER)


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
    assert max(found[name] for name in ("p50", "p95", "harvest")) < 0.15  # two runs of two minutes find two prices
    fitted = found["fitted"]
    assert (
        abs(fitted["around_the_engine_ms"]) < fitted["overhead_ms"] / 2
    )  # nothing is around it, but for the fit's error


def test_one_seed_is_too_few_to_predict_and_the_report_says_so() -> None:
    world = World(loads={}, items=[], ceiling_tokens_per_s=1.0, seconds=1.0)

    assert predicted([run("ours", 1, 1.0, 0.0)], world)["why_not"] == "it takes `ours` on two seeds"
    late = predicted([run("ours", 1, 1.0, 0.0, Path("/nonexistent"))] * 2, world)
    assert (late["p50"], late["why_not"]) == (None, "run ours, seed 1 left no recording")
