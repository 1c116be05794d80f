"""The simulated engine: iteration boundaries, stops, losses, and jumps that equal single steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from numpy.random import default_rng

from sidecar.core.request import Lane
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.measured import MeasuredProfile
from sidecar.inflight.profile import Profile
from sidecar.sim.machine import CallEnded, FirstToken, Machine, Prices, SimulatedDispatch
from sidecar.sim.traits import EngineTraits

# 10 ms per iteration, nothing for rows, 1 ms per prompt token: round numbers to reckon with.
PROFILE = Profile(name="round", overhead_ms=10.0, decode_row_ms=0.0, prefill_token_ms=1.0)


def machine(slots: int = 4, stop_s: float = 0.015, cancel_s: float = 0.015) -> Machine:
    settings = BatcherSettings(max_batch_size=slots, max_num_tokens=512, max_seq_len=4096)
    return Machine(settings, PROFILE, Prices(stop_s=stop_s, cancel_s=cancel_s))


def call(
    request_id: str, output: int, *, prompt: int = 10, lane: Lane = Lane.OFFLINE, slots: int = 1
) -> SimulatedDispatch:
    return SimulatedDispatch(
        request_id=request_id,
        lane=lane,
        context_tokens=prompt,
        output_tokens=output,
        output_tokens_max=output,
        slots=slots,
    )


def history(engine: Machine, until_s: float = 10.0) -> list[tuple[float, FirstToken | CallEnded]]:
    """Everything that happens up to then, with its time in milliseconds."""
    seen = []
    while (now_s := engine.next_s()) <= until_s:
        seen += [(round(now_s * 1000, 6), each) for each in engine.advance(now_s)]
    return seen


def test_a_call_to_an_engine_at_rest_starts_at_once() -> None:
    engine = machine()
    engine.submit(call("a", 3), 1.0)
    assert history(engine) == [(1020.0, FirstToken("a")), (1040.0, CallEnded("a", 3, 0, False))]
    assert engine.next_s() == float("inf")


def test_a_call_that_comes_during_an_iteration_waits_for_its_end() -> None:
    engine = machine()
    engine.submit(call("a", 100), 0.0)
    history(engine, 0.5)
    engine.submit(call("b", 1), 0.5011)
    assert (530.0, FirstToken("b")) in history(engine, 0.6)  # the boundary at 510 ms, then 10 + 10 ms


def test_a_call_that_answers_an_end_misses_the_iteration_that_has_begun() -> None:
    engine = machine()
    engine.submit(call("a", 2), 0.0)
    engine.submit(call("b", 100), 0.0)
    assert engine.advance(0.03) == [FirstToken("a"), FirstToken("b")]
    assert engine.advance(engine.next_s()) == [CallEnded("a", 2, 0, False)]  # at 40 ms
    engine.submit(call("c", 1), 0.04)
    assert (70.0, FirstToken("c")) in history(engine, 0.1)  # joins at 50, not at 40


def test_an_offline_prompt_that_costs_nothing_is_told_as_reused_so_that_nobody_takes_the_cache_for_broken() -> None:
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=4096)
    engine = Machine(settings, PROFILE, Prices(offline_prefill=False))
    engine.submit(call("a", 2, prompt=100), 0.0)
    engine.submit(call("b", 2, prompt=100, lane=Lane.ONLINE), 0.0)
    assert {each.request_id: each.reused_tokens for _, each in history(engine) if isinstance(each, CallEnded)} == {
        "a": 100,
        "b": 0,
    }


def test_a_stop_is_seen_after_its_call_and_obeyed_at_the_next_boundary() -> None:
    engine = machine(stop_s=0.015)
    engine.submit(call("a", 100), 0.0)
    engine.advance(0.02)
    engine.stop("a", 0.021)
    assert history(engine) == [(40.0, CallEnded("a", 3, 0, True))]
    assert engine.occupied == 0


def test_a_stop_for_what_has_just_ended_changes_nothing() -> None:
    engine = machine()
    engine.submit(call("a", 2), 0.0)
    assert engine.advance(0.04) == [FirstToken("a"), CallEnded("a", 2, 0, False)]
    engine.stop("a", 0.04)  # answers the first token, before the end is told
    assert history(engine) == []
    assert engine.occupied == 0


@pytest.mark.parametrize(("resume_tokens", "anew"), [(1, 0), (7, 6)])
def test_what_was_stopped_resumes_from_the_cache_but_for_what_a_resume_costs(resume_tokens: int, anew: int) -> None:
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=4096)
    engine = Machine(settings, PROFILE, Prices(stop_s=0.015, resume_tokens=resume_tokens))
    engine.submit(call("a", 100, prompt=50), 0.0)
    engine.advance(0.06)
    engine.stop("a", 0.06)
    [(_, ended)] = history(engine)
    assert isinstance(ended, CallEnded)
    engine.submit(call("a", 10, prompt=50 + ended.output_tokens), 1.0)
    resumed = history(engine)[-1][1]
    assert isinstance(resumed, CallEnded)
    sent = 50 + ended.output_tokens
    assert resumed.reused_tokens == sent - resume_tokens  # the last token's keys were never computed
    assert engine.usage.prefilled_again_tokens == anew
    engine.submit(call("a", 10, prompt=sent + 10), 2.0)  # what the resume computed is in the cache, too
    again = history(engine)[-1][1]
    assert isinstance(again, CallEnded)
    assert again.reused_tokens == sent + 10 - resume_tokens


def test_an_abandoned_call_holds_its_slot_until_the_engine_notices_and_says_nothing() -> None:
    engine = machine(stop_s=0.0, cancel_s=0.015)
    engine.submit(call("a", 100), 0.0)
    engine.advance(0.02)
    engine.abandon("a", 0.021)
    assert engine.occupied == 1
    assert history(engine) == []
    assert engine.occupied == 0


def test_a_dropped_call_frees_its_slot_and_its_tokens_are_wasted() -> None:
    engine = machine()
    engine.submit(call("a", 100), 0.0)
    engine.advance(0.02)
    engine.drop("a", 0.0455)
    assert (engine.occupied, engine.usage.discarded_tokens) == (0, 3)  # at 20, 30 and 40 ms
    assert history(engine) == []


def test_a_wide_call_ends_with_its_last_row() -> None:
    engine = machine(slots=2)
    engine.submit(call("a", 2, slots=2), 0.0)
    assert engine.occupied == 2
    assert [each for _, each in history(engine)] == [FirstToken("a"), CallEnded("a", 2, 0, False)]


def test_a_dead_engine_forgets_everything_and_names_who_still_waited() -> None:
    engine = machine()
    engine.submit(call("a", 100), 0.0)
    assert engine.kill() == ["a"]
    assert (engine.up, engine.occupied, engine.next_s()) == (False, 0, float("inf"))


@pytest.mark.parametrize("every_s", [0.001, 0.0137, 0.25])
def test_looking_often_changes_nothing(every_s: float) -> None:
    def lived(look_s: float) -> list[tuple[float, FirstToken | CallEnded]]:
        engine, seen = machine(), []
        engine.submit(call("a", 40), 0.0)
        engine.submit(call("b", 75, prompt=700), 0.0)
        for number in range(int(2 / look_s)):
            seen += history(engine, number * look_s)
            for request_id in engine.running_ids():
                engine.output_tokens(request_id, number * look_s)
        return seen + history(engine)

    assert lived(every_s) == lived(2.0)


def test_tokens_are_counted_in_the_middle_of_a_jump() -> None:
    engine = machine()
    engine.submit(call("a", 100), 0.0)
    engine.advance(0.02)
    assert [engine.output_tokens("a", at_ms / 1000) for at_ms in (20, 29, 30, 55)] == [1, 1, 2, 4]


def test_a_call_that_only_fills_the_cache_gives_no_token() -> None:
    engine = machine()
    engine.submit(replace(call("a", 1, prompt=64), fills_cache=True), 0.0)
    assert [each for _, each in history(engine)] == [CallEnded("a", 0, 0, False)]
    engine.submit(call("a", 1, prompt=100), 1.0)
    finished = history(engine)[-1][1]
    assert isinstance(finished, CallEnded)
    assert finished.reused_tokens == 64


def test_a_row_that_reads_more_context_takes_longer_iterations() -> None:
    times = MeasuredProfile(
        name="read", source="a test", gpu="none", points=((1, 10.0), (2048, 10.0)), context_token_ms=0.01
    )
    ended = {}
    for prompt in (100, 400):
        settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=4096)
        engine = Machine(settings, times, Prices())
        engine.submit(call("a", 201, prompt=prompt), 0.0)
        ended[prompt] = history(engine)[-1][0]
    # 200 iterations after that of the prompt; the first reads the prompt and one token, each further one a token more.
    assert ended[100] == pytest.approx(201 * 10 + 0.01 * (200 * 101 + 199 * 200 / 2), abs=0.01)
    assert ended[400] - ended[100] == pytest.approx(200 * 300 * 0.01, abs=0.01)


def test_a_stop_that_is_looked_for_now_and_then_waits_for_the_next_look() -> None:
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=4096)
    engine = Machine(settings, PROFILE, Prices(), EngineTraits(stop_poll_s=0.1))
    engine.submit(call("a", 100), 0.0)
    engine.advance(0.02)
    engine.stop("a", 0.021)
    assert history(engine) == [(100.0, CallEnded("a", 9, 0, True))]


def test_an_unsteady_engine_takes_the_times_of_the_profile_on_average_and_stalls_now_and_then() -> None:
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=16_384)
    ends = {}
    for traits in (EngineTraits(jitter=0.2), EngineTraits(stall_share=0.01, stall_s=1.0)):
        engine = Machine(settings, PROFILE, Prices(), traits, default_rng(1))
        engine.submit(call("a", 10_000), 0.0)
        ends[traits] = history(engine, 1000.0)[-1][0] / 1000
    assert list(ends.values()) == pytest.approx([100, 100 + 100], rel=0.15)
    assert ends[EngineTraits(jitter=0.2)] == pytest.approx(100, rel=0.01)
