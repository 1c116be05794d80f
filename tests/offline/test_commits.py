"""One transaction per tick: what its topic refuses becomes a dead letter, and its neighbours are committed."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.deadlines import JobVerdict
from sidecar.core.request import Request
from sidecar.core.snapshot import JobSnapshot
from sidecar.offline import commits
from sidecar.offline.commits import Commits
from sidecar.offline.job_progress import JobKey, JobTally, Outlook
from sidecar.offline.kafka_errors import LogError, RecordRefusedError
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed
from sidecar.offline.owned_partition import FinishedItem, LaneStats, OwnedPartition
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeCluster, FakeDriver, generated
from tests.offline.builders import NOTHING_DONE, SETTINGS, delivered, finished, of_job, owned, record, runs
from tests.offline.test_lane import lane, running, until

RESULTS, DEAD_LETTERS = "inference.results", "inference.requests.dlq"


def long_for(*offsets: int) -> FakeDriver:
    """Items at these offsets have results of some 9,000 bytes."""

    async def answer(request: Request, _call: TokenCall) -> Generated:
        long = any(f"/{offset}#" in request.id for offset in offsets)
        return generated(*(random.Random(1).choices(range(1000, 9999), k=1800) if long else (7, 8)))

    return FakeDriver(answer)


def dead(cluster: FakeCluster) -> list[Outgoing]:
    return [outgoing for _, outgoing in cluster.written if outgoing.topic == DEAD_LETTERS]


async def test_a_result_beyond_a_known_limit_is_a_dead_letter_without_a_failed_transaction() -> None:
    cluster = FakeCluster(items=30)
    cluster.limits, cluster.known_limits = {RESULTS: 4_000}, True
    offline = lane(cluster, long_for(7, 21))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("done", ""): 28, ("dlq", "result_too_large"): 2}
    assert (cluster.refusals, offline.stats.reopens, offline.stats.executions) == (0, 0, 30)
    [first, _] = [dict(each.headers) for each in dead(cluster)]
    assert b"topic inference.results takes at most 4000 bytes in a batch; the result has " in first["dlq.error.message"]


@pytest.mark.parametrize("bad", [(0,), (29,), (7, 21), (3, 4, 5), tuple(range(30))])
async def test_a_result_beyond_an_unknown_limit_is_found_and_its_neighbours_are_committed(bad: tuple[int, ...]) -> None:
    cluster = FakeCluster(items=30)
    cluster.limits = {RESULTS: 4_000}
    offline = lane(cluster, long_for(*bad))
    async with running(offline):
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")
    assert offline.stats.items["dlq", "result_too_large"] == len(bad)
    assert offline.stats.items["done", ""] == 30 - len(bad)
    assert offline.stats.executions == 30
    assert {dict(each.headers)["dlq.original.offset"] for each in dead(cluster)} == {str(at).encode() for at in bad}


async def test_a_result_that_breaks_another_rule_of_its_topic_is_a_dead_letter_that_says_so() -> None:
    cluster = FakeCluster(items=9)
    cluster.refuses = lambda outgoing: b'"custom_id":"4"' in (outgoing.value or b"") and outgoing.topic == RESULTS
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.items == {("done", ""): 8, ("dlq", "result_refused"): 1}


@pytest.mark.parametrize("known", [True, False])
async def test_a_dead_letter_that_its_topic_does_not_take_is_cut(known: bool) -> None:
    cluster = FakeCluster(items=3)
    noise = random.Random(1).randbytes(30_000)
    cluster.produce(b"\xff" + noise, headers=[("x-job", b"j")])
    cluster.limits, cluster.known_limits = {DEAD_LETTERS: 20_000 if known else 100_000}, known
    if not known:
        cluster.limits = {DEAD_LETTERS: 70_000}
        cluster.produce(b"\xff" + noise * 3)
    offline = lane(cluster)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    cut = dead(cluster)[-1]
    assert (b"\xff" + noise * 3).startswith(cut.value or b"-")
    assert 15_000 < len(cut.value or b"") < cluster.limits[DEAD_LETTERS]
    assert dict(cut.headers)["dlq.truncated"] == (b"30001" if known else b"90001")
    assert offline.stats.items["dlq", "not_utf8"] == (1 if known else 2)


async def test_a_dead_letter_with_huge_headers_keeps_its_reason_and_its_place() -> None:
    cluster = FakeCluster(items=3)
    noise = random.Random(1).randbytes(30_000)
    cluster.produce(b"\xff", headers=[("h", noise), ("dlq.original.offset", b"77")])
    cluster.limits, cluster.known_limits = {DEAD_LETTERS: 20_000}, True
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)
    [bare] = dead(cluster)
    assert (bare.key, bare.value) == (b"", b"")
    assert dict(bare.headers)["dlq.original.offset"] == b"3"
    assert dict(bare.headers)["dlq.error.class"] == b"not_utf8"
    assert all(name.startswith("dlq.") for name, _ in bare.headers)


async def test_an_item_that_no_topic_takes_in_any_shape_waits_alone_and_is_tried_now_and_then() -> None:
    cluster = FakeCluster(items=3)
    cluster.produce(b"\xff")
    for number in range(3, 9):
        cluster.produce(b'{"id": "%d", "prompt": "p"}' % number)
    cluster.limits = {DEAD_LETTERS: 10}
    offline = lane(cluster, look_again_s=0.02)
    async with running(offline):
        await until(cluster, lambda: len(cluster.written) == 9 and bool(offline.state_now.detail))
        assert (offline.state_now.phase, offline.state_now.cause) == (Phase.DEGRADED, Cause.RECORD_REFUSED)
        assert "topic inference.requests.dlq refused it" in offline.state
        assert "not even the shortest dead letter of offset 3" in offline.state
        assert cluster.state().gaps == (3,)
        refusals = cluster.refusals
        await until(cluster, lambda: cluster.refusals > refusals + 2)  # it is tried again
        cluster.limits.clear()
        await until(cluster, cluster.everything_once)
        await until(cluster, lambda: offline.state == "running")


async def test_what_is_told_of_jobs_holds_up_its_partition_if_its_topic_refuses_it_and_says_so() -> None:
    cluster = FakeCluster()
    cluster.produce(b'{"id": "1", "prompt": "p"}', headers=[("x-job", b"j")])
    cluster.limits = {"inference.progress": 10}
    offline = lane(cluster, progress_topic="inference.progress", look_again_s=0.01)
    async with running(offline):
        await until(cluster, lambda: offline.state_now.cause is Cause.RECORD_REFUSED)
        assert "topic inference.progress takes no such record" in offline.state
        cluster.limits.clear()
        await until(cluster, cluster.everything_once)


async def test_a_job_with_a_name_beyond_all_measure_is_not_told_and_stops_nothing() -> None:
    cluster = FakeCluster()
    cluster.produce(b'{"id": "1", "prompt": "p"}', headers=[("x-job", b"j" * 300_000)])
    cluster.produce(b'{"id": "2", "prompt": "p"}', headers=[("x-job", b"short"), ("x-tenant", b"t" * 300_000)])
    cluster.limits = {"inference.progress": 100_000}
    offline = lane(cluster, progress_topic="inference.progress", look_again_s=0.01)
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert (cluster.refusals, cluster.progress()) == (0, [])


@pytest.mark.parametrize("seed", range(6))
async def test_refused_records_and_faults_at_any_commit_lose_nothing_and_write_nothing_twice(seed: int) -> None:
    draw = random.Random(seed)
    cluster = FakeCluster(items=120, partitions=2)
    cluster.limits = {RESULTS: 4_000}
    cluster.known_limits = draw.random() < 0.3
    cluster.faults.extend(draw.choices([None, "before", "after", "taint"], weights=[5, 1, 1, 1], k=40))
    bad = draw.sample(range(60), k=8)
    offline = lane(cluster, long_for(*bad), pending_max=draw.choice([7, 40]))
    async with running(offline):
        await until(cluster, cluster.everything_once)
    assert offline.stats.executions == 120
    assert len(dead(cluster)) == 16  # of each partition


class FakeOpened:
    """One opening of a partition that notes its transactions, or fails them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.tainted = False
        self.state: Committed | None = NOTHING_DONE
        self.tallies: dict[JobKey, JobTally] = {}
        self.bytes_max: Mapping[str, int] = {}
        self.error = error
        self.transactions: list[tuple[list[Outgoing], Committed]] = []

    async def commit(self, records: Sequence[Outgoing], state: Committed) -> None:
        self.transactions.append(([*records], state))
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Nothing to close."""


class Ticks:
    """Commits of one partition, and what they counted."""

    def __init__(self, partition: OwnedPartition, settings: OfflineSettings = SETTINGS) -> None:
        self.partition, self.settings = partition, settings
        self.stats = LaneStats()
        self.committed: list[FinishedItem] = []
        self.now_s = 0.0
        self.jobs: list[JobSnapshot] = []
        spans = KafkaSpans(settings, None, lambda: self.now_s)
        self._commits = Commits(
            settings,
            runs(settings=settings),
            spans,
            self.stats,
            owned_partitions={partition.number: partition},
            jobs=lambda _tenant, _job: self.jobs,
            on_committed=self.committed.append,
            clock=lambda: self.now_s,
        )

    async def commit(self, opening: FakeOpened) -> None:
        await self._commits.commit(self.partition, opening)


def with_results(count: int, value: bytes = b"result", settings: OfflineSettings = SETTINGS) -> OwnedPartition:
    """A partition with so many finished items."""
    partition = owned(settings=settings)
    delivered(partition, *(record(offset) for offset in range(count)))
    for offset in range(count):
        partition.finish(offset, finished(partition.taken[offset], value))
    return partition


async def test_one_transaction_holds_what_is_finished_and_lets_it_go() -> None:
    partition = owned()
    delivered(partition, record(0), record(1), record(2))
    partition.finish(0, finished(record(0), output_tokens=5))
    partition.finish(2, finished(record(2), outcome="dlq", reason="failed", retries=4, output_tokens=0))
    ticks, opening = Ticks(partition), FakeOpened()
    await ticks.commit(opening)
    [(records, state)] = opening.transactions
    assert [dict(each.headers)["x-source-offset"] for each in records] == [b"0", b"2"]
    assert state == Committed(watermark=1, high=3, gaps=(1,))
    assert ([*partition.taken], partition.finished) == ([1], {})
    assert ticks.stats.items == {("done", ""): 1, ("dlq", "failed"): 1}
    assert (ticks.stats.commits, ticks.stats.retried, ticks.stats.output_tokens) == (1, 4, 5)
    assert [done.record.offset for done in ticks.committed] == [0, 2]


async def test_a_tick_in_which_nothing_ended_makes_no_transaction() -> None:
    ticks, opening = Ticks(owned()), FakeOpened()
    await ticks.commit(opening)
    assert (opening.transactions, ticks.stats.commits) == ([], 0)
    assert not ticks.partition.wake.is_set()


async def test_the_first_commit_of_an_assignment_counts_it_although_nothing_ended() -> None:
    ticks, opening = Ticks(owned()), FakeOpened()
    ticks.partition.counted = False
    await ticks.commit(opening)
    await ticks.commit(opening)
    assert opening.transactions == [([], Committed(watermark=0, high=0, restarts=1))]
    assert ticks.partition.counted


async def test_what_the_broker_passed_over_is_committed_without_a_record() -> None:
    ticks, opening = Ticks(owned()), FakeOpened()
    assert ticks.partition.progress is not None
    ticks.partition.progress.skip_to(7)
    await ticks.commit(opening)
    assert opening.transactions == [([], Committed(watermark=7, high=7))]


async def test_a_commit_whose_outcome_is_unknown_counts_nothing_and_keeps_everything() -> None:
    ticks, opening = Ticks(with_results(3)), FakeOpened(LogError("the answer is lost"))
    with pytest.raises(LogError, match="the answer is lost"):
        await ticks.commit(opening)
    assert ([*ticks.partition.taken], [*ticks.partition.finished]) == ([0, 1, 2], [0, 1, 2])
    assert (ticks.stats.commits, ticks.stats.items, ticks.committed) == (0, {}, [])
    assert ticks.partition.committed == NOTHING_DONE


async def test_a_partition_that_is_not_open_is_never_committed() -> None:
    ticks = Ticks(owned(None))
    with pytest.raises(AssertionError, match="without an opening"):
        await ticks.commit(FakeOpened())


async def test_more_than_one_transaction_holds_follows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "COMMIT_BYTES", 1000)
    ticks, opening = Ticks(with_results(5, b"x" * 200)), FakeOpened()
    wakes = []
    while ticks.partition.taken:
        ticks.partition.wake.clear()
        await ticks.commit(opening)
        wakes.append(ticks.partition.wake.is_set())
    assert [len(records) for records, _ in opening.transactions] == [3, 2]
    assert all(sum(each.size for each in records) <= 1000 for records, _ in opening.transactions)
    assert wakes == [True, False]


async def test_a_result_that_its_topic_cannot_take_is_written_as_a_dead_letter_in_the_same_transaction() -> None:
    ticks, opening = Ticks(with_results(2)), FakeOpened()
    long = random.Random(1).randbytes(9_000)
    ticks.partition.finish(1, finished(record(1), long, retries=2))
    ticks.partition.bytes_max = {RESULTS: 5_000}
    await ticks.commit(opening)
    [([result, letter], state)] = opening.transactions
    assert (result.topic, letter.topic, state.watermark) == (RESULTS, DEAD_LETTERS, 2)
    assert dict(letter.headers)["dlq.error.class"] == b"result_too_large"
    assert dict(letter.headers)["dlq.attempts"] == b"3"
    assert long not in (letter.value or b"")
    assert ticks.stats.items == {("done", ""): 1, ("dlq", "result_too_large"): 1}


async def test_a_refusal_of_what_is_told_of_jobs_blames_no_item() -> None:
    ticks = Ticks(with_results(2))
    refused = RecordRefusedError("topic p takes no such record", "p", [2], too_large=False)
    with pytest.raises(RecordRefusedError):
        await ticks.commit(FakeOpened(refused))
    assert [*ticks.partition.finished] == [0, 1]
    now = ticks.partition.stated.now
    assert (now.phase, now.cause, now.detail) == (Phase.WAITING, Cause.RECORD_REFUSED, "topic p takes no such record")


async def test_each_job_of_a_partition_is_told_with_what_ends_in_the_same_transaction() -> None:
    settings = OfflineSettings(progress_topic="inference.progress")
    partition = owned(settings=settings)
    delivered(partition, of_job(0, "nightly"), of_job(1, "nightly"), record(2))
    partition.finish(0, finished(partition.taken[0]))
    partition.finish(2, finished(partition.taken[2]))
    ticks, opening = Ticks(partition, settings), FakeOpened()
    await ticks.commit(opening)
    [([*results, told], _)] = opening.transactions
    assert [each.topic for each in results] == [RESULTS, RESULTS]
    value = json.loads(told.value or b"")
    assert (told.topic, value["tenant"], value["job"]) == ("inference.progress", "lab", "nightly")
    assert (value["done"], value["waiting"]) == (1, 1)
    assert partition.tallies["lab", "nightly"] == JobTally(done=1)
    await ticks.commit(opening)
    assert len(opening.transactions) == 1  # nothing has changed


async def test_a_job_that_comes_to_be_at_risk_is_told_although_nothing_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "outlook", lambda *_: Outlook(verdict=JobVerdict.AT_RISK, at_risk=True))
    settings = OfflineSettings(progress_topic="inference.progress")
    partition = owned(settings=settings)
    delivered(partition, of_job(0, "nightly"))
    ticks, opening = Ticks(partition, settings), FakeOpened()
    await ticks.commit(opening)
    [([told], state)] = opening.transactions
    assert (json.loads(told.value or b"")["verdict"], state) == ("at risk", NOTHING_DONE)


@settings(max_examples=30)
@given(
    st.integers(0, 400),
    st.lists(st.tuples(st.text(st.characters(codec="ascii"), max_size=9), st.binary(max_size=300))),
    st.integers(0, 3000),
)
def test_a_dead_letter_that_is_cut_fits_if_its_headers_do(size: int, own: list[tuple[str, bytes]], limit: int) -> None:
    source = record(3, b"v" * size)
    done = finished(source, outgoing=Outgoing(topic=DEAD_LETTERS, key=b"key", value=source.value, headers=tuple(own)))
    cut = commits._cut(done, limit)
    assert cut.size <= max(limit, replace(cut, value=b"").size)
    assert (source.value or b"").startswith(cut.value or b"")
    assert cut.headers == (*own, ("dlq.truncated", str(size).encode()))


def test_the_shortest_dead_letter_says_whose_it_is_and_why_and_each_header_is_bounded() -> None:
    producers = (("x-job", b"j"), ("dlq.error.class", b"a lie"), ("x-tenant", b"t" * 5000), ("color", b"red"))
    ours = (("dlq.error.class", b"failed"), ("dlq.error.message", b"m" * 5000), ("traceparent", b"00"))
    source = record(3, headers=producers)
    outgoing = Outgoing(topic=DEAD_LETTERS, key=b"key", value=b"v", headers=(*producers, *ours))
    bare = commits._bare(finished(source, outgoing=outgoing))
    assert (bare.key, bare.value) == (b"", b"")
    message = b"m" * commits.OWN_HEADER_BYTES
    assert bare.headers == (("x-job", b"j"), ("dlq.error.class", b"failed"), ("dlq.error.message", message))
