"""The path over tensorrt_llm.LLM, over a stand-in of the library that misbehaves as upstream does."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from engine import llmapi
from engine.calls import EngineCall, Figures, OutputPart
from engine.gauges import GAUGES
from engine.llmapi import LlmApiEngine, cut, gauges_of
from engine.sampling import EngineSampling
from sidecar.inflight.batch import End
from sidecar.inflight.blocks import Retention, RetentionRange
from tests.engine.test_serving import committed
from tests.fakes import trtllm

ROOT = Path(__file__).parents[2]
CALL = EngineCall(input_ids=(5, 6, 7), output_tokens_max=9, end_id=2, streaming=True)
ACTIVE = ("nv_trt_llm_request_metrics", "active")
STATS: dict[str, Any] = {
    "iter": 7, "numActiveRequests": 5, "maxNumActiveRequests": 64,
    "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 25, "freeNumBlocks": 75, "tokensPerBlock": 32},
    "inflightBatchingStats": {"numScheduledRequests": 3, "numContextRequests": 1, "numCtxTokens": 40},
}  # fmt: skip


@dataclass
class Loaded:
    """An engine that has loaded the stand-in, and what it delivers."""

    engine: LlmApiEngine
    llm: trtllm.LLM
    parts: Queue[OutputPart] = field(default_factory=Queue)

    def run(self, call: EngineCall) -> tuple[trtllm.FakeOutput, Any]:
        """Submit the call; return what feeds it, and what stops it."""
        stop = self.engine.submit(call, self.parts.put)
        return self.llm.calls.get(timeout=10), stop

    def part(self) -> OutputPart:
        return self.parts.get(timeout=10)

    def settle(self) -> None:
        """Wait until the engine's loop has done what it was asked for until now."""
        for _ in range(3):  # a callback may ask for another
            done: Queue[None] = Queue()
            self.engine._loop.call_soon_threadsafe(done.put, None)
            done.get(timeout=10)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loaded]:
    trtllm.install(monkeypatch, "1.2.1")
    engine = LlmApiEngine(committed(engine="llmapi", gpt_model_path="/models/llama"))
    engine.start()
    yield Loaded(engine, trtllm.LLM.made[-1])
    engine.close()


def test_without_the_library_the_model_says_what_is_missing() -> None:
    engine = LlmApiEngine(committed(engine="llmapi", gpt_model_path="/models/llama"))
    with pytest.raises(ValueError, match="'engine' is llmapi, but the server has no package tensorrt_llm"):
        engine.start()
    engine.close()


def test_the_process_is_prepared_before_the_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    parameters = committed(engine="llmapi", gpt_model_path="/models/llama", gpu_device_ids="2,3")
    engine = LlmApiEngine(parameters)
    with pytest.raises(ValueError, match="has no package tensorrt_llm"):  # the import failed, so it came after
        engine.start()
    engine.close()
    assert "OMPI_COMM_WORLD_SIZE" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_accumulating_ids_become_parts_and_the_last_one_is_final(loaded: Loaded) -> None:
    output, _ = loaded.run(CALL)
    assert output.given["ids"] == [5, 6, 7]
    output.give(11)
    assert loaded.part() == OutputPart(ids=(11,), generated_tokens=1)
    output.give(12, 13, finish="length")  # several in a step
    assert loaded.part() == OutputPart(ids=(12, 13), end=End.LENGTH, final=True, generated_tokens=3)


def test_several_sequences_end_one_by_one_and_the_call_with_the_last(loaded: Loaded) -> None:
    output, _ = loaded.run(replace(CALL, sequences=2, streaming=False, sampling=EngineSampling(top_k=40)))
    output.give(11, index=1, finish="stop")
    assert loaded.part() == OutputPart(ids=(11,), sequence=1, end=End.END_ID, generated_tokens=1)
    output.give(12, 13, index=0, finish="length")
    assert loaded.part() == OutputPart(ids=(12, 13), end=End.LENGTH, final=True, generated_tokens=2)


def test_a_call_that_has_ended_is_never_aborted(loaded: Loaded) -> None:
    output, stop = loaded.run(CALL)
    output.give(11, finish="length")
    assert loaded.part().final
    stop()  # a stop that comes late
    loaded.settle()
    assert (output.aborts, output.late_aborts) == (0, 0)


def test_a_stop_aborts_what_runs(loaded: Loaded) -> None:
    output, stop = loaded.run(CALL)
    output.give(11)
    loaded.part()
    stop()
    assert loaded.part() == OutputPart(ids=(), end=End.STOPPED, final=True, generated_tokens=1)
    assert (output.aborts, output.late_aborts) == (1, 0)


def test_a_stop_word_of_several_tokens_ends_the_call_here_and_in_the_library(loaded: Loaded) -> None:
    output, _ = loaded.run(replace(CALL, stop_words=((8, 9),)))
    output.give(8, 9, 10)
    assert loaded.part() == OutputPart(ids=(8, 9), end=End.STOP_WORD, final=True, generated_tokens=2)
    loaded.settle()
    assert (output.aborts, output.late_aborts) == (1, 0)


def test_a_call_without_sampling_is_greedy(loaded: Loaded) -> None:
    output, _ = loaded.run(CALL)
    assert output.params.greedy
    output.give(finish="length")


def test_no_field_of_a_call_is_ignored_without_a_word(loaded: Loaded) -> None:
    output, _ = loaded.run(replace(CALL, sampling=EngineSampling(top_p=0.9, seed=3, frequency_penalty=0.5)))
    assert loaded.llm.given["sampler_type"] == "TRTLLMSampler"
    assert loaded.llm.ignored == []
    output.give(finish="length")


def test_figures_come_with_the_last_part_if_they_were_asked_for(loaded: Loaded) -> None:
    output, _ = loaded.run(replace(CALL, returns=frozenset({"return_perf_metrics"})))
    output.give(11)
    assert loaded.part().figures is None
    output.give(12, finish="length")
    assert loaded.part().figures == Figures(
        new_blocks=3, reused_blocks=7, total_blocks=4,
        arrival_ns=5000, first_scheduled_ns=6000, first_token_ns=7000, last_token_ns=8000,
    )  # fmt: skip
    output, _ = loaded.run(CALL)
    output.give(12, finish="length")
    assert loaded.part().figures is None


def test_retention_and_salt_are_passed_on(loaded: Loaded) -> None:
    span = RetentionRange(token_start=0, token_end=64, priority=90, duration_s=2.0)
    retention = Retention(ranges=(span,), decode_priority=10)
    output, _ = loaded.run(replace(CALL, retention=retention, cache_salt="team-a"))
    assert output.given["salt"] == "team-a"
    kept = trtllm.KvCacheRetentionConfig.TokenRangeRetentionConfig(0, 64, 90, timedelta(seconds=2))
    assert output.given["retention"].given == ([kept], 10, None)
    output.give(finish="length")


def test_statistics_are_read_once_there_are_some_and_never_in_a_busy_loop(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llmapi, "STATS_PERIOD_S", 0.02)
    loaded.settle()
    assert loaded.llm.looks.empty()  # before the first call there are none
    output, _ = loaded.run(CALL)
    looks = [loaded.llm.looks.get(timeout=10) for _ in range(4)]  # each stream of them ends at once
    assert all(exist for _, exist in looks)
    assert all(later[0] - earlier[0] >= 0.019 for earlier, later in pairwise(looks))
    output.give(finish="length")


def test_statistics_that_fail_are_told_and_read_again(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(llmapi, "STATS_PERIOD_S", 0.01)
    caplog.set_level("WARNING")  # a command that ran in this process before has silenced the libraries
    loaded.llm.statistics += [RuntimeError("queue closed"), STATS]
    output, _ = loaded.run(CALL)
    for _ in range(3):
        loaded.llm.looks.get(timeout=10)
    assert caplog.text.count("the engine's statistics cannot be read, and are tried again") == 1
    output.give(finish="length")


def test_an_engine_without_a_call_shows_nobody_active(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmapi, "STATS_PERIOD_S", 0.01)
    loaded.llm.statistics.append(STATS)
    output, _ = loaded.run(CALL)
    loaded.llm.looks.get(timeout=10)
    loaded.llm.looks.get(timeout=10)
    assert (loaded.engine.gauges.values[ACTIVE], loaded.engine.gauges.iterations) == (5, 7)
    samples = loaded.engine.gauges.samples
    output.give(finish="length")
    loaded.part()
    loaded.settle()
    assert (loaded.engine.gauges.values[ACTIVE], loaded.engine.gauges.iterations) == (0, 7)
    assert loaded.engine.gauges.samples > samples  # so that it is exported


def test_an_error_of_the_library_concerns_its_call_alone(loaded: Loaded) -> None:
    output, _ = loaded.run(CALL)
    other, _ = loaded.run(CALL)
    output.give(error=RuntimeError("lost"))
    assert loaded.part() == OutputPart(ids=(), final=True, error="the engine failed: lost")
    other.give(11, finish="length")
    assert loaded.part().end is End.LENGTH


@pytest.mark.parametrize(
    ("ids", "finish", "told"),
    [
        ((11, 12), None, ((11, 12), None)),
        ((11, 12), "length", ((11, 12), End.LENGTH)),
        ((11, 2), "stop", ((11,), End.END_ID)),
        ((11,), "stop", ((11,), End.END_ID)),
        ((11, 8, 9, 12), None, ((11, 8, 9), End.STOP_WORD)),
        ((9, 12), "length", ((9,), End.STOP_WORD)),
        ((11,), "cancelled", ((11,), End.STOPPED)),
    ],
)
def test_an_answer_is_cut_where_the_contract_ends_it(
    ids: tuple[int, ...], finish: str | None, told: tuple[tuple[int, ...], End | None]
) -> None:
    asked = replace(CALL, input_ids=(5, 8), stop_words=((8, 9),))
    assert cut(asked, ids, finish, 0) == told


def test_statistics_fill_every_gauge() -> None:
    values = gauges_of(STATS)
    assert set(values) == {(family, name) for family, (_, names) in GAUGES.items() for name in names}
    assert values["nv_trt_llm_request_metrics", "waiting"] == 2
    assert values["nv_trt_llm_kv_cache_block_metrics", "fraction"] == 0.25


def test_the_stand_in_has_the_signatures_that_mypy_checks_the_calls_against() -> None:
    found = 0
    for file in sorted((ROOT / "stubs/tensorrt_llm").rglob("*.pyi")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef) or not hasattr(trtllm, node.name):
                continue
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    ours = inspect.signature(getattr(getattr(trtllm, node.name), each.name)).parameters
                    assert list(ours) == [one.arg for one in (*each.args.args, *each.args.kwonlyargs)], each.name
                    found += 1
    assert found >= 6
