"""From the parameters of config.pbtxt to an engine, and the metrics it exports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.gauges import COUNTERS, GAUGES, HISTOGRAMS, Export, Gauges
from engine.numpy_engine import NumpyEngine
from engine.parameters import EngineParameters
from engine.serving import build_engine, numpy_settings
from tests.engine.builders import FOLDER, call, offline_prompt, run, tiny_engine

MODEL = FOLDER.parent / "engine_python/tensorrt_llm"


def committed(**changed: str) -> EngineParameters:
    """The parameters of the committed config, some of them changed as a launcher would."""
    pairs = re.findall(r'key: "(\w+)" value: \{ string_value: "([^"]*)"', (MODEL / "config.pbtxt").read_text())
    return EngineParameters({**dict(pairs), "max_batch_size": "8", **changed})


def test_the_committed_config_builds_the_cpu_engine_from_a_clone() -> None:
    engine = build_engine(committed(preset="tiny"), MODEL)
    assert isinstance(engine, NumpyEngine)
    assert engine.settings.tokenizer_dir == FOLDER
    assert engine.settings.batcher.max_batch_size == 8
    assert engine.settings.profile is None


def test_a_launcher_can_set_pace_place_and_policy() -> None:
    parameters = committed(profile="8b-a100", tokenizer_dir="/elsewhere", batch_scheduler_policy="max_utilization")
    settings = numpy_settings(parameters, MODEL)
    assert settings.profile is not None
    assert (settings.profile.name, settings.tokenizer_dir) == ("8b-a100", Path("/elsewhere"))
    assert settings.batcher.policy == "max_utilization"


def test_an_unfilled_placeholder_counts_as_unset() -> None:
    assert numpy_settings(committed(max_num_tokens="${max_num_tokens}"), MODEL).batcher.max_num_tokens == 512


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"engine": "cpp"}, "'engine' must be numpy, torch or llmapi, not 'cpp'"),
        ({"max_num_tokens": "many"}, "'max_num_tokens' must be a whole number, not 'many'"),
        ({"enable_chunked_context": "yes"}, "'enable_chunked_context' must be true or false"),
        ({"batch_scheduler_policy": "greedy"}, "'batch_scheduler_policy' must be one of"),
        ({"profile": "h100"}, "unknown profile 'h100'"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_a_wrong_parameter_is_named(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_engine(committed(**wrong), MODEL)


class Family:
    """Triton's MetricFamily, as far as the export uses it; `seen` is what a scrape would show."""

    GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
    seen: ClassVar[dict[tuple[str, ...], list[float]]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self._name, self.kind = name, kind

    def Metric(self, labels: dict[str, str], buckets: Any = None) -> Family.One:  # noqa: N802 (Triton's name)
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        return Family.One((self._name, *sorted(labels.values())))

    class One:
        def __init__(self, key: tuple[str, ...]) -> None:
            self._values = Family.seen.setdefault(key, [])

        def set(self, value: float) -> None:
            self._values[:] = [value]

        def observe(self, value: float) -> None:
            self._values.append(value)

        def increment(self, value: float) -> None:
            assert value >= 0
            self._values[:] = [self.value() + value]

        def value(self) -> float:
            return sum(self._values)


def test_all_families_of_upstream_are_exported_and_move_only_with_iterations() -> None:
    Family.seen = {}
    engine = tiny_engine()
    export = Export(Family, {"model": "m", "version": "1"})
    families = {key[0] for key in Family.seen}
    assert families == {*GAUGES, *HISTOGRAMS, *COUNTERS}
    run(engine, *(call(offline_prompt(60), 6) for _ in range(6)))
    export.update(engine.gauges, engine.overruns)
    assert Family.seen["nv_trt_llm_request_metrics", "1", "m", "max"] == [4]
    assert Family.seen["nv_trt_llm_general_metrics", "1", "iteration_counter", "m"] == [engine.batcher.iterations]
    assert Family.seen["nv_llm_output_token_len", "1", "m", "total_output_tokens"] == [6] * 6
    used = ("nv_trt_llm_kv_cache_block_metrics", "1", "m", "used")
    Family.seen[used][:] = [-1]
    export.update(engine.gauges, engine.overruns)
    assert Family.seen[used] == [-1]


def test_that_an_engine_went_idle_is_exported_although_no_iteration_ran() -> None:
    Family.seen = {}
    gauges, export = Gauges(), Export(Family, {"model": "m", "version": "1"})
    active = ("nv_trt_llm_request_metrics", "active")
    gauges.take({active: 3.0}, 7)
    export.update(gauges, 0)
    gauges.rest()
    export.update(gauges, 0)
    assert Family.seen["nv_trt_llm_request_metrics", "1", "active", "m"] == [0]


def test_the_executors_queue_is_in_no_gauge() -> None:
    engine = tiny_engine()
    for _ in range(9):
        engine.submit(call(offline_prompt(60)), lambda _: None)
    engine.step()
    values = {key[1]: value for key, value in engine.gauges.values.items() if key[0] == "nv_trt_llm_request_metrics"}
    assert values == {"active": 4, "max": 4, "scheduled": 4, "context": 4, "waiting": 0}
    assert engine.batcher.queued == 5


def test_an_engine_that_goes_idle_says_so_with_one_last_sample() -> None:
    engine = tiny_engine()
    run(engine, call(offline_prompt(60), 6))
    values = {key[1]: value for key, value in engine.gauges.values.items() if key[0] == "nv_trt_llm_request_metrics"}
    assert values == {"active": 0, "max": 4, "scheduled": 0, "context": 0, "waiting": 0}
