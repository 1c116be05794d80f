"""How far a job is, as the progress topic tells it: exact counts whatever fails, and a risk before the miss."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sidecar.core.deadlines import JobVerdict
from sidecar.core.request import Request
from sidecar.core.snapshot import JobSnapshot
from sidecar.offline.job_progress import ItemEnd, JobTally, Outlook, counted, decoded, outlook
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.lane import OfflineLane
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import PROGRESS, FakeCluster, FakeDriver, WordTokens
from tests.offline.test_lane import running, until

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "kafka/progress.schema.json").read_text())
)
NIGHTLY = ("acme", "nightly")
HEADERS = [("x-tenant", b"acme"), ("x-job", b"nightly")]


def job(**fields: Any) -> JobSnapshot:
    defaults: dict[str, Any] = {
        "model": "tensorrt_llm",
        "tenant": "acme",
        "job": "nightly",
        "items": 10,
        "verdict": JobVerdict.ON_TIME,
        "deadline_in_s": 150.0,
        "eta_p50_s": 100.0,
        "eta_p90_s": 120.0,
    }
    return JobSnapshot(**(defaults | fields))


def lane(
    cluster: FakeCluster,
    driver: FakeDriver | None = None,
    jobs: Callable[[], Iterable[JobSnapshot]] = tuple,
    **settings: Any,
) -> OfflineLane:
    defaults: dict[str, Any] = {"tick_s": 0.001, "progress_topic": PROGRESS}
    return OfflineLane(
        OfflineSettings(**(defaults | settings)),
        driver or FakeDriver(),
        WordTokens(),
        {"tensorrt_llm": 1000},
        seed=1,
        make_log=cluster.make_log,
        jobs=lambda tenant, name: [each for each in jobs() if (each.tenant, each.job) == (tenant, name)],
    )


def of_job(count: int, name: bytes = b"nightly", partitions: int = 1) -> FakeCluster:
    cluster = FakeCluster(partitions=partitions)
    for number in range(count):
        value = json.dumps({"id": str(number), "prompt": f"item {number}", "max_tokens": 4}).encode()
        cluster.produce(value, headers=[("x-tenant", b"acme"), ("x-job", name)])
    return cluster


def last(cluster: FakeCluster, number: int = 0) -> dict[str, Any]:
    told = cluster.progress(number)
    if not told:
        return {}
    value: dict[str, Any] = json.loads(told[-1][1])
    SCHEMA.validate(value)
    return value


async def never(_request: Request, _call: TokenCall) -> Generated:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


@pytest.mark.parametrize("faults", [[], ["before"], ["after"], ["taint"], ["after", "before", "taint", "after"]])
async def test_the_counts_are_exact_whatever_becomes_of_a_commit(faults: list[str | None]) -> None:
    cluster = of_job(120)
    cluster.produce(b"not json", headers=HEADERS)
    cluster.faults.extend(faults)
    async with running(lane(cluster, pending_max=20)):
        await until(cluster, cluster.everything_once)
    assert decoded(cluster.progress()) == {NIGHTLY: JobTally(done=120, dead=1)}
    assert (last(cluster)["done"], last(cluster)["dead"], last(cluster)["waiting"]) == (120, 1, 0)


async def test_the_next_owner_goes_on_counting_where_the_last_one_ended() -> None:
    cluster = of_job(30, partitions=3)
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)
    for _ in range(6):
        cluster.produce(b'{"id": "x", "prompt": "one more", "max_tokens": 4}', headers=HEADERS)
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)
    assert sum(last(cluster, number)["done"] for number in range(3)) == 36


async def test_a_risk_is_told_although_nothing_has_ended() -> None:
    cluster = of_job(3)
    verdicts = [JobVerdict.ON_TIME]
    async with running(lane(cluster, FakeDriver(never), lambda: (job(items=3, verdict=verdicts[-1]),))):
        await until(cluster, lambda: len(cluster.logs) == 1 and bool(cluster.committed))
        assert cluster.progress() == []  # on time: nothing has happened that anybody has to know
        verdicts.append(JobVerdict.AT_RISK)
        await until(cluster, lambda: bool(cluster.progress()))
        verdicts.append(JobVerdict.ON_TIME)
        await until(cluster, lambda: len(cluster.progress()) == 2)
    told = [json.loads(value) for _, value in cluster.progress()]
    assert [(each["at_risk"], each["verdict"], each["waiting"]) for each in told] == [
        (True, "at risk", 3),
        (False, "on time", 3),
    ]


async def test_what_is_not_read_yet_counts_where_the_partition_has_one_job() -> None:
    cluster = of_job(40)
    async with running(lane(cluster, FakeDriver(never), lambda: (job(),), pending_max=10)):
        await until(cluster, lambda: bool(cluster.progress()))
    told = last(cluster)
    assert (told["waiting"], told["at_risk"]) == (40, True)  # 10 in 120 s, so 40 in 480 s: too late
    assert (told["eta_p50_s"], told["eta_p90_s"]) == (400.0, 480.0)


async def test_what_is_not_read_yet_is_nobodys_where_jobs_are_mixed() -> None:
    cluster = FakeCluster()
    for number in range(40):
        headers = [("x-tenant", b"acme"), ("x-job", b"nightly" if number % 2 else b"weekly")]
        cluster.produce(b'{"id": "x", "prompt": "a", "max_tokens": 4}', headers=headers)
    risky = (job(verdict=JobVerdict.AT_RISK),)
    async with running(lane(cluster, FakeDriver(never), lambda: risky, pending_max=10)):
        await until(cluster, lambda: bool(cluster.progress()))
    assert (last(cluster)["waiting"], last(cluster)["eta_p90_s"]) == (5, 120.0)


async def test_items_without_a_job_are_not_told() -> None:
    cluster = FakeCluster(items=20)
    async with running(lane(cluster)):
        await until(cluster, cluster.everything_once)
    assert cluster.progress() == []


def test_a_job_on_two_models_ends_with_the_later_one() -> None:
    found = outlook((job(eta_p90_s=20.0), job(model="small", eta_p90_s=90.0), job(job="other")), NIGHTLY, 0)
    assert (found.eta_p90_s, found.verdict) == (90.0, JobVerdict.ON_TIME)


def test_a_job_that_nobody_knows_has_no_outlook() -> None:
    assert outlook((job(job="other"),), NIGHTLY, 5).eta_p50_s is None


def test_a_tombstone_begins_a_job_anew() -> None:
    key, value = b'["acme","nightly",0]', b'{"done": 5, "dead": 1, "at_risk": false}'
    assert decoded([(key, value)]) == {NIGHTLY: JobTally(done=5, dead=1)}
    assert decoded([(key, value), (key, None)]) == {}


FOREIGN: list[tuple[bytes | None, bytes | None]] = [
    (None, b"{}"),
    (b"", None),
    (b"\xff", b"{}"),
    (b"junk", b"junk"),
    (b"[" * 100_000, b"{}"),
    (b'["acme"]', b"{}"),
    (b'["acme", "nightly", 0]', b"\xff"),
    (b'["acme", "nightly", 0]', b"[]"),
    (b'["acme", "nightly", 0]', b'{"done": "3", "dead": 0, "at_risk": false}'),
    (b'["acme", "nightly", 0]', b'{"done": 3, "dead": -1, "at_risk": false}'),
    (b'["acme", "nightly", 0]', b'{"done": 3}'),
    (b'[1, "nightly", 0]', b'{"done": 3, "dead": 0, "at_risk": false}'),
]


def test_what_others_wrote_on_the_progress_topic_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    ours = (b'["acme","nightly",0]', b'{"done": 3, "dead": 1, "at_risk": false, "more": null}')
    assert decoded([*FOREIGN, ours, *FOREIGN]) == {NIGHTLY: JobTally(done=3, dead=1)}
    assert "24 records that are no job's counts" in caplog.text


async def test_a_foreign_record_on_the_progress_topic_stops_no_partition() -> None:
    cluster = of_job(3)
    for key, value in FOREIGN:
        cluster.written.append((0, Outgoing(topic=PROGRESS, key=key, value=value, headers=())))
    told = len(FOREIGN)
    async with running(lane(cluster)):
        await until(
            cluster, lambda: len(cluster.progress()) > told and json.loads(cluster.progress()[-1][1])["done"] == 3
        )


def test_what_a_commit_tells_is_counted_from_what_ended_and_from_nothing_else() -> None:
    class Counting(dict[tuple[str, str], JobTally]):
        def __iter__(self) -> Iterator[tuple[str, str]]:
            raise AssertionError("a topic may hold the counts of a million jobs")

        def items(self) -> Any:
            return iter(self)

        def keys(self) -> Any:
            return iter(self)

    record = of_job(1).records[0][0]
    tallies = Counting({NIGHTLY: JobTally(done=5), ("acme", "other"): JobTally(dead=1)})
    assert counted(tallies, [ItemEnd(record, True), ItemEnd(record, False)], {}) == {NIGHTLY: JobTally(done=6, dead=1)}
    assert counted(tallies, [], {("acme", "other"): Outlook(at_risk=True)}) == {
        ("acme", "other"): JobTally(dead=1, at_risk=True)
    }
    assert counted(tallies, [], {("acme", "other"): Outlook()}) == {}
