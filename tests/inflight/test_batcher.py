"""The batcher: who is in the next iteration, and what the jumps of a simulator must not change."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from sidecar.inflight.batch import BatchedSequence, BatcherSettings, CapacityPolicy, End, Iteration, RequestError, Row
from sidecar.inflight.batcher import Batcher

SETTINGS = BatcherSettings(max_batch_size=2, max_num_tokens=64, max_seq_len=256, kv_tokens_max=1024, tokens_per_block=8)


def request(
    id_: str, prompt: int = 8, output: int = 4, ends_after: int | None = None, key: int | None = None
) -> BatchedSequence:
    ids = (ord(id_[0]) if key is None else key,) * prompt
    return BatchedSequence(id=id_, prompt_ids=ids, output_tokens_max=output, ends_after=ends_after, output_key=ids[0])


def planned(batcher: Batcher, now_s: float = 0.0) -> Iteration:
    step = batcher.plan(now_s)
    assert step is not None
    return step


def ids(rows: tuple[Row, ...] | list[Row]) -> list[str]:
    return [row.id for row in rows]


def test_idle_engine_plans_nothing() -> None:
    assert Batcher(SETTINGS).plan(0.0) is None


def test_first_come_first_served_up_to_the_batch_size() -> None:
    batcher = Batcher(SETTINGS)
    for name in "abc":
        batcher.add(request(name), 0.0)
    step = planned(batcher)
    assert [chunk.row.id for chunk in step.chunks] == ["a", "b"]
    assert (batcher.active, batcher.queued) == (2, 1)


def test_prefill_gives_the_first_token_and_the_budget_ends_the_row() -> None:
    batcher = Batcher(SETTINGS)
    row = batcher.add(request("a", output=2), 0.0)
    assert batcher.finish(planned(batcher), 0.1) == []
    assert (batcher.generated_tokens(row), row.first_token_s) == (1, 0.1)
    assert batcher.finish(planned(batcher), 0.2) == [row]
    assert (row.end, row.generated_tokens, row.last_token_s) == (End.LENGTH, 2, 0.2)
    assert batcher.plan(0.2) is None


def test_end_id_of_a_simulation_comes_where_it_said() -> None:
    batcher = Batcher(SETTINGS)
    row = batcher.add(request("a", output=50, ends_after=7), 0.0)
    batcher.finish(planned(batcher), 0.1)
    step = planned(batcher)
    assert batcher.steps_alike(step) == 6
    assert batcher.finish(step, 0.7, count=6) == [row]
    assert (row.end, row.generated_tokens) == (End.END_ID, 7)


def test_an_end_that_the_engine_reports_frees_the_place_for_the_next() -> None:
    batcher = Batcher(SETTINGS)
    rows = {name: batcher.add(request(name, output=9), 0.0) for name in "abc"}
    step = planned(batcher)
    assert batcher.finish(step, 0.1, tokens=(5, 6), ended={rows["a"]: End.END_ID}) == [rows["a"]]
    assert rows["a"].output_ids == [5]
    step = planned(batcher, 0.1)
    assert (ids(step.decoding), [chunk.row.id for chunk in step.chunks]) == (["b"], ["c"])


def test_stop_waits_for_the_check_and_then_for_the_iteration_boundary() -> None:
    batcher = Batcher(replace(SETTINGS, cancellation_check_period_s=0.1))
    row = batcher.add(request("a", output=99), 0.0)
    batcher.finish(planned(batcher), 0.01)
    batcher.stop("a", seen_s=batcher.next_check_s(0.02))
    assert batcher.next_stop_s() == pytest.approx(0.1)
    assert ids(planned(batcher, 0.05).decoding) == ["a"]
    step = planned(batcher, 0.11)
    assert (ids(step.stopped), step.empty, row.end) == (["a"], True, End.STOPPED)
    assert batcher.finish(step, 0.11) == []
    assert (batcher.plan(0.11), batcher.next_stop_s()) == (None, None)


def test_a_stop_of_a_queued_request_acts_when_it_becomes_active_and_an_unknown_one_never() -> None:
    batcher = Batcher(SETTINGS)
    for name in "abcd":
        batcher.add(request(name), 0.0)
    batcher.finish(planned(batcher), 0.01)
    batcher.stop("c", seen_s=0.01)
    batcher.stop("nobody", seen_s=0.01)
    step = planned(batcher, 0.01)
    assert (ids(step.stopped), ids(step.decoding), batcher.queued) == ([], ["a", "b"], 2)
    assert batcher.next_stop_s() is None
    batcher.finish(step, 0.02, ended={batcher.rows["a"]: End.END_ID})
    step = planned(batcher, 0.02)
    assert (ids(step.stopped), [chunk.row.id for chunk in step.chunks], batcher.queued) == (["c"], ["d"], 0)


def test_an_output_that_the_model_has_no_room_for_is_lowered_without_a_word() -> None:
    batcher = Batcher(SETTINGS)
    row = batcher.add(request("a", prompt=250, output=10), 0.0)
    assert row.request.output_tokens_max == 6


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (request("a", prompt=256, output=1), r"prompt length \(256\) exceeds the model's maximum input length \(255\)"),
        (request("b"), "in flight already"),
    ],
)
def test_what_can_never_run_is_refused_with_its_numbers(wrong: BatchedSequence, says: str) -> None:
    batcher = Batcher(SETTINGS)
    batcher.add(request("b"), 0.0)
    with pytest.raises(RequestError, match=says):
        batcher.add(wrong, 0.0)


def test_more_tokens_than_the_cache_holds_are_refused() -> None:
    batcher = Batcher(replace(SETTINGS, kv_tokens_max=64))
    with pytest.raises(RequestError, match="KV cache \\(64 tokens\\)"):
        batcher.add(request("a", prompt=60, output=10), 0.0)


def simulate(settings: BatcherSettings, seed: int, jump: bool) -> list[tuple[str, str | None, int, int]]:
    """A random load, one time unit per iteration, run step by step or in jumps: what became of each request."""
    random = Random(seed)
    arrivals = sorted(random.randrange(300) for _ in range(40))
    stops = {random.randrange(40): random.randrange(400) for _ in range(8)}
    loads = [(random.randrange(1, 60), random.randrange(1, 60), random.randrange(1, 60)) for _ in arrivals]
    events = sorted([(at, 0, n) for n, at in enumerate(arrivals)] + [(at, 1, n) for n, at in stops.items()])
    batcher, now, rows = Batcher(settings), 0, []
    while True:
        while events and events[0][0] <= now:
            _, kind, number = events.pop(0)
            if kind == 0:
                prompt, output, ends = loads[number]
                rows.append(batcher.add(request(f"r{number}", prompt, output, ends, key=number % 5), now))
            else:
                batcher.stop(f"r{number}", seen_s=now)
        step = batcher.plan(now)
        if step is None or step.empty:
            if step is None and not events:
                break
            now = max(now, events[0][0]) if step is None else now
            continue
        count = batcher.steps_alike(step) if jump else 1
        if events:
            count = max(1, min(count, events[0][0] - now))
        now += count
        batcher.finish(step, now, count=count)
        check(batcher)
    assert batcher.pool.free == batcher.pool.blocks_max
    return [(row.id, row.end, row.generated_tokens, row.reused_blocks) for row in rows]


def check(batcher: Batcher) -> None:
    held = {block.index for row in batcher.rows.values() for block in row.blocks}
    assert batcher.pool.free == batcher.pool.blocks_max - len(held)
    assert batcher.active <= batcher.settings.max_batch_size
    assert batcher._reserved >= 0 or batcher.settings.policy is CapacityPolicy.MAX_UTILIZATION


@pytest.mark.parametrize("policy", CapacityPolicy)
@pytest.mark.parametrize("kv_tokens_max", [128, 256, 1024])
def test_jumps_change_nothing(policy: CapacityPolicy, kv_tokens_max: int) -> None:
    settings = replace(SETTINGS, max_batch_size=6, policy=policy, kv_tokens_max=kv_tokens_max)
    for seed in range(20):
        assert simulate(settings, seed, jump=True) == simulate(settings, seed, jump=False)
