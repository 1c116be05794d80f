"""The CPU engine: in-flight batching changes nothing in what a sequence says, and each option does what it says."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from engine.calls import OutputPart, UnsupportedError
from engine.lengths import output_length
from engine.numpy_engine import NumpyEngine
from engine.sampling import EngineSampling
from sidecar.inflight.batch import CapacityPolicy, End
from sidecar.inflight.profile import Profile
from tests.engine.builders import LANGUAGE, call, ids_of, offline_prompt, run, tiny_engine, tokens, words_of

PROMPTS = ["<|offline|>Describe the river", "Why is the lake cold?", "Explain the quiet engine, please.", "Who?"]
LONG = offline_prompt(60)


def ignore(_: OutputPart) -> None:
    """What a caller hears who does not listen."""


def said(text: str, output: int = 40, **more: Any) -> tuple[int, ...]:
    """What a fresh engine answers when nobody else is there."""
    return tokens(run(tiny_engine(), call(text, output, **more))[0])


def test_a_stream_has_one_token_per_piece_and_its_last_piece_says_why() -> None:
    (parts,) = run(tiny_engine(), call(LONG, 12))
    assert [len(part.ids) for part in parts] == [1] * 12
    assert [(part.end, part.final) for part in parts] == [(None, False)] * 11 + [(End.LENGTH, True)]


def test_an_answer_in_one_piece_is_the_stream_joined() -> None:
    (parts,) = run(tiny_engine(), call(LONG, 12, streaming=False))
    assert [part.ids for part in parts] == [said(LONG, 12)]


def test_neighbours_change_nothing() -> None:
    together = run(tiny_engine(max_batch_size=3), *(call(text, 40) for text in PROMPTS))
    assert [tokens(parts) for parts in together] == [said(text) for text in PROMPTS]


@pytest.mark.parametrize(
    "settings", [{"max_num_tokens": 8, "max_batch_size": 1}, {"chunked_context": False}, {"kv_cache_reuse": False}]
)
def test_how_the_prompt_is_computed_changes_nothing(settings: dict[str, Any]) -> None:
    text = "Explain the quiet engine and the cold lake beside the old house of the famous baker, please."
    assert tokens(run(tiny_engine(**settings), call(text, 20))[0]) == said(text, 20)


def test_a_pause_changes_nothing() -> None:
    engine = tiny_engine(policy=CapacityPolicy.MAX_UTILIZATION, kv_tokens_max=96)
    texts = [f"{LONG} {name}" for name in ("one", "two", "three")]
    parts = run(engine, *(call(text, 50) for text in texts))
    assert engine.batcher.pauses > 0
    assert [tokens(each) for each in parts] == [said(text, 50) for text in texts]


def test_the_marker_and_unreadable_ids_are_never_said() -> None:
    ids = said(LONG, 200)
    assert set(ids) <= set(LANGUAGE.readable)
    assert not {LANGUAGE.end_id, LANGUAGE.end_of_prompt_id, LANGUAGE.offline_id} & set(LANGUAGE.readable)


def test_the_end_id_comes_at_the_drawn_length_and_only_if_asked_for() -> None:
    text = PROMPTS[1]
    length = output_length(ids_of(text), LANGUAGE, 0)
    (parts,) = run(tiny_engine(), call(text, 200, end_id=LANGUAGE.end_id))
    assert (len(parts), len(tokens(parts)), parts[-1].end) == (length, length - 1, End.END_ID)
    assert (parts[-1].ids, parts[-1].generated_tokens) == ((), length - 1)  # as upstream: it is no part of the answer
    assert LANGUAGE.end_id not in said(text, length + 5)


def test_min_tokens_puts_the_end_off() -> None:
    text = PROMPTS[1]
    least = output_length(ids_of(text), LANGUAGE, 0) + 7
    ids = said(text, 200, end_id=LANGUAGE.end_id, sampling=EngineSampling(min_tokens=least))
    assert len(ids) == least


def test_a_resumed_call_goes_on_token_for_token_and_recomputes_at_most_a_block() -> None:
    engine = tiny_engine()
    whole = said(LONG, 500, end_id=LANGUAGE.end_id)
    prompt, ends = ids_of(LONG), list[OutputPart]()
    joined: tuple[int, ...] = ()
    while not ends or ends[-1].end is End.LENGTH:
        (parts,) = run(engine, replace(call(LONG, 16, end_id=LANGUAGE.end_id), input_ids=prompt + joined))
        joined += tokens(parts)
        ends.append(parts[-1])
    assert joined == whole
    size = engine.settings.batcher.tokens_per_block
    for place, part in enumerate(ends[1:], 1):
        held = -(-(len(prompt) + 16 * place) // size)
        assert part.figures is not None
        assert part.figures.reused_blocks >= held - 1
        assert part.figures.new_blocks + part.figures.reused_blocks == held


def test_a_stop_word_ends_the_answer_also_when_an_earlier_slice_began_it() -> None:
    free = said(LONG, 30)
    word = free[9:12]
    (parts,) = run(tiny_engine(), call(LONG, 30, stop_words=(word,)))
    assert (tokens(parts), parts[-1].end) == (free[:12], End.STOP_WORD)
    rest = replace(call(LONG, 9, stop_words=(word,)), input_ids=ids_of(LONG) + free[:11])
    (parts,) = run(tiny_engine(), rest)
    assert (tokens(parts), parts[-1].end) == (free[11:12], End.STOP_WORD)


def test_a_bad_word_is_never_said() -> None:
    free = said(LONG, 30)
    assert free[4] not in said(LONG, 30, bad_words=((free[4],),))
    pair = free[4:6]
    without = said(LONG, 30, bad_words=(pair,))
    assert pair not in list(pairwise(without))


def test_embedding_bias_moves_the_choice_and_must_fit_the_vocabulary() -> None:
    (wanted,) = words_of(" river")
    bias = np.zeros(LANGUAGE.vocab_size)
    bias[wanted] = 1e4
    assert set(said(LONG, 5, embedding_bias=tuple(bias))) == {wanted}
    with pytest.raises(ValueError, match="'embedding_bias' holds 2 values"):
        tiny_engine().submit(call(LONG, embedding_bias=(0.0, 1.0)), ignore)


def test_sampling_follows_its_seed() -> None:
    warm = [said(LONG, 30, sampling=EngineSampling(temperature=1.0, top_k=50, seed=seed)) for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]


def test_a_repetition_penalty_widens_the_choice() -> None:
    assert len(set(said(LONG, 120, sampling=EngineSampling(repetition_penalty=1.8)))) > len(set(said(LONG, 120)))


def test_several_sequences_differ_and_the_call_ends_with_the_last() -> None:
    (parts,) = run(tiny_engine(), call(LONG, 8, sequences=3, sampling=EngineSampling(top_k=50)))
    by_sequence = {n: tokens([part for part in parts if part.sequence == n]) for n in range(3)}
    assert len(set(by_sequence.values())) == 3
    assert [part.final for part in parts] == [False] * 23 + [True]
    with pytest.raises(UnsupportedError, match="'num_return_sequences' > 1 needs sampling"):
        tiny_engine().submit(call(LONG, sequences=2), ignore)
    with pytest.raises(UnsupportedError, match="'num_return_sequences' is 5, but the batch holds 4"):
        tiny_engine().submit(call(LONG, sequences=5, sampling=EngineSampling(top_k=50)), ignore)


def test_a_salt_is_refused_where_all_calls_share_their_blocks() -> None:
    with pytest.raises(UnsupportedError, match="parameter 'cache_salt'"):
        tiny_engine().submit(call(LONG, cache_salt="team-a"), ignore)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'input_ids' holds 99999, outside of 0\.\.\d+"):
        tiny_engine().submit(replace(call(LONG), input_ids=(1, 99999)), ignore)


def test_a_stopped_stream_ends_with_a_final_piece_and_no_token() -> None:
    engine = tiny_engine()
    heard: list[OutputPart] = []
    stop = engine.submit(call(LONG, 100), heard.append)
    for _ in range(5):
        engine.step()
    stop()
    assert engine.step()
    assert (heard[-1].ids, heard[-1].end, heard[-1].final) == ((), End.STOPPED, True)
    assert not engine.step()


def test_a_stopped_answer_in_one_piece_brings_what_there_is() -> None:
    engine = tiny_engine()
    heard: list[OutputPart] = []
    stop = engine.submit(call(LONG, 100, streaming=False), heard.append)
    for _ in range(5):
        engine.step()
    stop()
    engine.step()
    assert [(part.ids, part.end) for part in heard] == [(said(LONG, 5), End.STOPPED)]


def test_two_thousand_stopped_calls_leave_nothing_behind() -> None:
    engine = tiny_engine()
    finals = 0

    def heard(part: OutputPart) -> None:
        nonlocal finals
        finals += part.final

    for number in range(500):
        stops = [engine.submit(call(PROMPTS[place], 100), heard) for place in range(4)]
        for _ in range(number % 3):
            engine.step()
        for stop in stops:
            stop()
        engine.step()
    assert finals == 2_000
    assert (engine.batcher.rows, engine._sequences) == ({}, {})
    assert engine.batcher.pool.free == engine.batcher.pool.blocks_max


class Clock:
    """Time that passes when slept, and `work_s` whenever it is looked at."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.work_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.work_s
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def paced(work_s: float) -> tuple[NumpyEngine, float]:
    """A tiny engine after ten decode iterations at 10 ms, and how long one took on average."""
    clock = Clock()
    profile = Profile(name="even", overhead_ms=10.0, decode_row_ms=0.0, prefill_token_ms=0.0)
    engine = NumpyEngine(replace(tiny_engine().settings, profile=profile), clock=clock, sleep=clock.sleep)
    engine.submit(call(LONG, 100), ignore)
    engine.step()
    begin_s, clock.work_s = clock.now_s, work_s
    for _ in range(10):
        engine.step()
    return engine, (clock.now_s - begin_s) / 10


def test_an_iteration_lasts_as_long_as_the_profile_says() -> None:
    engine, iteration_s = paced(work_s=0.001)
    assert iteration_s == pytest.approx(0.010, rel=0.11)
    assert engine.overruns == 0


def test_an_iteration_that_takes_longer_is_an_overrun_and_counted() -> None:
    engine, iteration_s = paced(work_s=0.02)
    assert iteration_s > 0.02
    assert engine.overruns == 10


def test_a_bug_in_the_arithmetic_answers_everybody_and_refuses_what_comes_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine()
    heard: list[OutputPart] = []

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(engine, "_compute", broken)
    monkeypatch.setattr("traceback.print_exc", lambda: None)
    engine.submit(call(LONG), heard.append)
    engine.start()
    engine._thread.join(10)
    assert engine.broken
    assert [part.error for part in heard] == ["the engine ended by ZeroDivisionError('planted')"]
    with pytest.raises(RuntimeError, match="planted"):
        engine.submit(call(LONG), heard.append)


def test_the_thread_runs_what_is_submitted_and_ends_when_closed() -> None:
    engine, heard = tiny_engine(), SimpleQueue[OutputPart]()
    engine.start()
    engine.submit(call(LONG, 3), heard.put)
    assert tokens([heard.get(timeout=10) for _ in range(3)]) == said(LONG, 3)
    engine.close()
    assert not engine._thread.is_alive()
