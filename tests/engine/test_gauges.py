"""The gauges of the engine model, with the names and habits of TensorRT-LLM's backend."""

from __future__ import annotations

from typing import Any, ClassVar

from engine.gauges import COUNTERS, GAUGES, HISTOGRAMS, Export
from tests.engine.builders import call, offline_prompt, run, tiny_engine


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


def test_a_chunk_and_its_blocks_are_in_the_sample_of_their_iteration() -> None:
    engine = tiny_engine(max_num_tokens=16)
    for _ in range(3):
        engine.submit(call(offline_prompt(60)), lambda _: None)
    engine.step()

    def of(family: str) -> dict[str, float]:
        return {key[1]: value for key, value in engine.gauges.values.items() if key[0] == f"nv_trt_llm_{family}"}

    requests, cache = of("request_metrics"), of("kv_cache_block_metrics")
    assert 0 < of("inflight_batcher_metrics")["total_context_tokens"] <= 16
    assert (requests["active"], requests["scheduled"] + requests["waiting"]) == (3, 3)
    assert cache["used"] + cache["free"] == cache["max"]
    assert cache["fraction"] == cache["used"] / cache["max"] > 0


def test_the_clock_of_the_sample_is_in_microseconds() -> None:
    engine = tiny_engine()
    engine.gauges.wall_clock = lambda: 1_700_000_000.5
    run(engine, call(offline_prompt(60), 2))
    assert engine.gauges.values["nv_trt_llm_general_metrics", "timestamp"] == 1_700_000_000_500_000


def test_before_the_first_iteration_there_is_no_sample() -> None:
    engine = tiny_engine()
    assert engine.gauges.values == {}
    Family.seen = {}
    export = Export(Family, {"model": "m", "version": "1"})
    export.update(engine.gauges, 0)
    assert all(values in ([], [0]) for values in Family.seen.values())


def test_overruns_and_iterations_are_totals_however_often_they_are_told() -> None:
    Family.seen = {}
    engine = tiny_engine()
    export = Export(Family, {"model": "m", "version": "1"})
    for overruns in (1, 1, 4):
        run(engine, call(offline_prompt(60), 2))
        export.update(engine.gauges, overruns)
    iterations, overrun = (Family.seen[name, "1", "m"] for name in COUNTERS)
    assert (iterations, overrun) == ([engine.batcher.iterations], [4])


def test_each_length_is_observed_once() -> None:
    Family.seen = {}
    engine = tiny_engine()
    export = Export(Family, {"model": "m", "version": "1"})
    for _ in range(2):
        run(engine, call(offline_prompt(60), 3))
        export.update(engine.gauges, 0)
    assert Family.seen["nv_llm_output_token_len", "1", "m", "total_output_tokens"] == [3, 3]
    assert engine.gauges.lengths == []
