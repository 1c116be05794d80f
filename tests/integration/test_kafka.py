"""The offline lane and its tools on the real Apache Kafka, before an engine that is only fast."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import string
import struct
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hypothesis  # noqa: F401 - else its plugin imports it after the tests, where ast.parse of CPython 3.11.7 failed
import pytest
import pytest_asyncio
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dev.broker import LocalKafka
from dev.chaos import AUTHORIZED
from dev.chaos_faults import USER
from dev.checker import TopicCount, check, is_finished
from dev.endtxn_proxy import FaultProxy, ProxyFaults
from sidecar.cli.offsets import GroupActiveError, reset, show
from sidecar.core.request import Request
from sidecar.offline.broker_version import metadata_version, warning
from sidecar.offline.kafka_errors import FencedError, LogError
from sidecar.offline.kafka_opening import KafkaOpening, Outgoing
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed
from sidecar.offline.submit import submit
from sidecar.settings.file import TracingSettings
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings
from sidecar.telemetry.tracing import Tracing
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
TIMEOUT_S = 60.0
PARTITIONS = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka() -> AsyncIterator[LocalKafka]:
    """One broker for this module; each test has topics and a group of its own."""
    async with LocalKafka() as cluster:
        yield cluster


async def topics(
    kafka: LocalKafka, directory: Path, name: str, results: Mapping[str, Any] = MappingProxyType({}), **settings: Any
) -> OfflineSettings:
    """Fresh topics, the results topic with the configuration `results`, and settings that name them."""
    names: dict[str, dict[str, Any]] = {f"{name}.requests": {}, f"{name}.results": dict(results)}
    names |= {f"{name}.dlq": {"max.message.bytes": 2_162_688}, f"{name}.progress": {"cleanup.policy": "compact"}}
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": names}))
    await kafka.create_topics(file=file)
    defaults: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "requests_topic": f"{name}.requests",
        "results_topic": f"{name}.results",
        "dead_letter_topic": f"{name}.dlq",
        "group": name,
        "first_start": "earliest",
        "tick_s": 0.05,
        "session_timeout_s": 6.0,
        "heartbeat_s": 0.5,
    }
    return OfflineSettings(**(defaults | settings))


def items(count: int) -> list[bytes]:
    return [
        json.dumps({"id": str(number), "prompt": f"item {number}", "max_tokens": 4}).encode() for number in range(count)
    ]


@asynccontextmanager
async def running(settings: OfflineSettings, tracing: Tracing | None = None) -> AsyncIterator[OfflineLane]:
    lane = OfflineLane(settings, FakeDriver(), WordTokens(), {"tensorrt_llm": 2048}, seed=1, tracing=tracing)
    task = asyncio.create_task(lane.run(), name="lane")
    try:
        yield lane
    finally:
        if not task.done():
            await lane.drain(5.0)
        await task


async def finished(settings: OfflineSettings) -> TopicCount:
    """What the independent checker counts, once every item is below the watermark."""
    servers, names = settings.bootstrap_servers, (settings.requests_topic, settings.results_topic)
    async with asyncio.timeout(TIMEOUT_S):
        while not await asyncio.to_thread(is_finished, servers, settings.group, settings.requests_topic):
            pass
    return await asyncio.to_thread(
        check, servers, settings.group, requests=names[0], results=names[1], dead_letters=settings.dead_letter_topic
    )


async def records(settings: OfflineSettings, topic: str, count: int) -> list[Any]:
    """The first records of a topic, as a reader of results sees them."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    async with consumer, asyncio.timeout(TIMEOUT_S):
        return [await consumer.getone() for _ in range(count)]


async def test_every_item_has_one_result_and_every_bad_one_a_dead_letter(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "main", instance_id="one")
    assert await submit(settings, items(400), {"x-job": "nightly", "color": "red"}) == 400
    bad = [b"not json", b"\xff\xfe", b"\x00\x00\x00\x00\x07{}", b'"' + b"x" * (1 << 20) + b'"', b'{"id": "1"}', None]
    bad += [b'{"id": "1", "prompt": "a", "seed": -1}', b'{"id": "1", "prompt": "a", "tools": [{}]}']
    bad += [rb'{"custom_id": "x\ud83d", "url": "/v1/completions", "body": {"prompt": "a"}}']
    header = ("h", b"\x01")
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, max_request_size=2 << 20) as producer:
        for value in bad:
            await producer.send_and_wait(settings.requests_topic, value, key=b"k", partition=0, headers=[header])
    async with running(settings) as lane:
        verdict = await finished(settings)
    assert (verdict.source_offsets, verdict.results, verdict.dead) == (409, 400, 9)
    assert verdict.clean
    assert verdict.dead_reasons == {
        "not_json": 1,
        "not_utf8": 1,
        "schema_registry_framed": 1,
        "too_large": 1,
        "missing_prompt": 2,
        "invalid": 3,
    }
    assert (lane.stats.reopens, lane.stats.executions) == (0, 400)
    dead = await records(settings, settings.dead_letter_topic, 9)
    assert [(each.key, each.value, each.headers[0]) for each in dead] == [(b"k", value, header) for value in bad]
    assert [json.loads(dict(each.headers)["dlq.error.openai"])["param"] for each in dead[6:]] == [
        *("seed", "tools", "custom_id")
    ]
    [result, *_] = await records(settings, settings.results_topic, 1)
    headers = dict(result.headers)
    assert (headers["x-job"], headers["color"]) == (b"nightly", b"red")
    assert headers["x-source-partition"] == str(result.partition).encode()


async def test_a_header_whose_name_is_not_utf8_stops_no_partition(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "names")
    good = items(60)
    await submit(settings, good[:30], {})
    for partition in range(PARTITIONS):
        await produce_unnamed(settings, partition)
    await submit(settings, good[30:], {})
    async with running(settings):
        verdict = await finished(settings)
    assert (verdict.source_offsets, verdict.results, verdict.dead) == (63, 63, 0)
    assert verdict.clean
    names = [name for each in await records(settings, settings.results_topic, 63) for name, _ in each.headers]
    assert names.count("x-job") == 0
    assert names.count("x-j?b") == PARTITIONS


async def produce_unnamed(settings: OfflineSettings, partition: int) -> None:
    """A record on this partition whose header has a name that no aiokafka producer would send."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    headers = [("x-job", b"nightly")]
    builder.append(0, timestamp=1_000, key=None, value=b'{"id": "u", "prompt": "a"}', headers=headers)
    batch = bytearray(builder.build().replace(b"x-job", b"x-j\xf6b"))
    struct.pack_into(">I", batch, 17, calc_crc32c(bytes(batch[21:])))
    topics = [(settings.requests_topic, [(partition, bytes(batch))])]
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        await producer.partitions_for(settings.requests_topic)
        node = producer.client.cluster.leader_for_partition(TopicPartition(settings.requests_topic, partition))
        answer = await producer.client.send(node, ProduceRequest(None, -1, 5_000, topics))
    assert answer.topics[0][1][0][1] == 0


async def test_each_result_carries_its_send_span_and_a_commit_names_the_cluster(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    exporter = InMemorySpanExporter()
    everything = TracingSettings(endpoint="http://unused", offline_ratio=1.0, broker_ratio=1.0)
    tracing = Tracing(everything, address="127.0.0.1:1", version="test", processor=SimpleSpanProcessor(exporter))
    settings = await topics(kafka, tmp_path, "traced", instance_id="one")
    await submit(settings, items(20), {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
    async with running(settings, tracing):
        assert (await finished(settings)).clean
    carried = [
        dict(each.headers)["traceparent"].decode() for each in await records(settings, settings.results_topic, 20)
    ]
    spans = exporter.get_finished_spans()
    sent = [each.context for each in spans if each.name == "send traced.results"]
    assert sorted(carried) == sorted(f"00-{each.trace_id:032x}-{each.span_id:016x}-01" for each in sent)
    assert len({each.trace_id for each in sent}) == 20
    commits = [dict(each.attributes or {}) for each in spans if each.name == "commit traced.requests"]
    assert {each["kafka.cluster.id"] for each in commits} == {kafka.cluster_id}
    assert {each["messaging.client.id"] for each in commits} == {"sidecar.one"}


async def test_a_second_start_does_nothing_again_and_a_reset_replays(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "replay")
    await submit(settings, items(30), {})
    async with running(settings):
        await finished(settings)
        with pytest.raises(GroupActiveError, match="1 members"):
            await reset(settings, "earliest")
    async with running(settings) as again:
        assert (await finished(settings)).results == 30
        assert again.stats.executions == 0
    before = await show(settings)
    assert sum(each.end for each in before) == 30
    assert all(each.committed == Committed(watermark=each.end, high=each.end) for each in before)
    await reset(settings, "earliest")
    begun = Committed(watermark=0, high=0, by_hand=True)
    assert [each.committed for each in await show(settings)] == [begun] * PARTITIONS
    async with running(settings) as replay:
        verdict = await finished(settings)
        assert (verdict.results, len(verdict.duplicated)) == (60, 30)  # as asked
        assert replay.stats.executions == 30


async def test_a_topic_that_is_missing_is_waited_for_and_named(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "late", results_topic="late.more.results")
    await submit(settings, items(5), {})
    async with running(settings) as lane:
        async with asyncio.timeout(TIMEOUT_S):
            while "topic late.more.results does not exist" not in lane.state:  # noqa: ASYNC110 - a state, not an event
                await asyncio.sleep(0)
        file = tmp_path / "more.yaml"
        file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": {"late.more.results": {}}}))
        await kafka.create_topics(file=file)
        assert (await finished(settings)).clean


async def until_state(lane: OfflineLane, holds: Callable[[OfflineLane], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds(lane):  # noqa: ASYNC110 - a state, not an event
            await asyncio.sleep(0)


@asynccontextmanager
async def admin_of(kafka: LocalKafka) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def test_submit_and_offsets_name_a_topic_that_does_not_exist_and_make_none(kafka: LocalKafka) -> None:
    settings = OfflineSettings(bootstrap_servers=kafka.bootstrap_servers, requests_topic="nowhere.requests")
    with pytest.raises(LogError, match=r"^topic nowhere\.requests does not exist$"):
        await submit(settings, [b'{"id": "1", "prompt": "p"}'], {})
    with pytest.raises(LogError, match=r"^topic nowhere\.requests does not exist$"):
        await show(settings)
    made = await asyncio.to_thread(
        AdminClient({"bootstrap.servers": kafka.bootstrap_servers}).list_topics, timeout=TIMEOUT_S
    )
    assert "nowhere.requests" not in made.topics


async def test_partitions_without_a_place_for_results_wait_until_they_have_one(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = await topics(kafka, tmp_path, "narrow", look_again_s=0.2)
    await kafka.create_topics(1)
    settings = replace(settings, results_topic="inference.results")
    await submit(settings, items(30), {})
    async with running(settings) as lane:
        await until_state(lane, lambda lane: lane.state_now.cause is Cause.PARTITION_MISSING and lane.stats.commits > 1)
        await until_state(lane, lambda lane: lane.owned_partitions()[0].lag == 0)
        assert lane.state_now.phase is Phase.DEGRADED
        assert "topic inference.results has 1 partitions, narrow.requests has 3" in lane.state
        async with admin_of(kafka) as admin:
            await admin.create_partitions({"inference.results": NewPartitions(PARTITIONS)})
        assert (await finished(settings)).clean
        await until_state(lane, lambda lane: lane.state == "running")


async def test_a_partition_that_is_added_is_noticed_and_served(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "added", look_again_s=0.2, metadata_max_age_s=0.5)
    await submit(settings, items(30), {})
    async with running(settings) as lane:
        assert (await finished(settings)).clean
        async with admin_of(kafka) as admin:
            await admin.create_partitions({settings.requests_topic: NewPartitions(PARTITIONS + 1)})
            await until_state(lane, lambda lane: lane.state_now.cause is Cause.PARTITION_MISSING)
            more = [settings.results_topic, settings.dead_letter_topic]
            await admin.create_partitions({name: NewPartitions(PARTITIONS + 1) for name in more})
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
            await producer.send_and_wait(settings.requests_topic, items(1)[0], partition=PARTITIONS)
        assert (await finished(settings)).results == 31
        await until_state(lane, lambda lane: lane.state == "running")


async def test_a_position_that_the_log_lost_waits_for_a_reset_which_heals_the_running_lane(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = await topics(kafka, tmp_path, "expired", look_again_s=0.2)
    await submit(settings, items(30), {})
    await reset(settings, "0")
    async with admin_of(kafka) as admin:
        gone = {TopicPartition(settings.requests_topic, each): RecordsToDelete(2) for each in range(PARTITIONS)}
        await admin.delete_records(gone)
    async with running(settings) as lane:
        await until_state(lane, lambda lane: lane.state_now.cause is Cause.POSITION_LOST)
        assert "decide with `sidecar offsets reset`" in lane.state
        assert lane.stats.executions == 0
        places = await show(settings)
        assert all("the log holds 2 to" in each.problem for each in places)
        await reset(settings, "earliest")
        await until_state(
            lane, lambda lane: lane.state == "running" and all(s.lag == 0 for s in lane.owned_partitions())
        )
        assert lane.stats.executions == 30 - 2 * PARTITIONS
        with pytest.raises(GroupActiveError):
            await reset(settings, "earliest")


async def test_a_group_without_offsets_waits_until_it_is_told_where_to_begin(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "first", look_again_s=0.2, first_start="refuse")
    await submit(settings, items(9), {})
    async with running(settings) as lane:
        await until_state(lane, lambda lane: lane.state_now.cause is Cause.NO_OFFSET)
        await reset(settings, "earliest")
        assert (await finished(settings)).results == 9
        await until_state(lane, lambda lane: lane.state == "running")


LONG = "".join(random.Random(1).choices(string.printable, k=40_000))


class LongTokens(WordTokens):
    """The output of one item is long, whatever its ids are; nothing compresses it."""

    def decode(self, ids: Sequence[int]) -> str:
        return LONG if ids[0] == 77 else super().decode(ids)


async def long_at_seven(request: Request, _call: TokenCall) -> Generated:
    return generated(77 if f"/{7}#" in request.id else 78, 2)


@pytest.mark.parametrize("told", ["at the start", "while it runs"])
async def test_a_result_that_its_topic_will_not_take_is_a_dead_letter_and_its_neighbours_are_committed(
    kafka: LocalKafka, tmp_path: Path, told: str
) -> None:
    limit = {"max.message.bytes": "20000"}  # set with the topic: a change reaches the broker some time after its answer
    settings = await topics(kafka, tmp_path, f"large{told[0]}", limit if told == "at the start" else {})
    resource = ConfigResource(ConfigResourceType.TOPIC, settings.results_topic, limit)
    async with admin_of(kafka) as admin:
        lane = OfflineLane(settings, FakeDriver(long_at_seven), LongTokens(), {"tensorrt_llm": 2048}, seed=1)
        async with lane_runs(lane):
            await until_state(
                lane, lambda lane: len(lane.owned_partitions()) == 3 and all(s.ready for s in lane.owned_partitions())
            )
            if told == "while it runs":
                await admin.alter_configs([resource])
            await submit(settings, items(60), {})
            verdict = await finished(settings)
            await until_state(lane, lambda lane: lane.state == "running")
    assert verdict.clean
    assert verdict.dead_reasons == {"result_too_large": PARTITIONS}
    assert (verdict.results, lane.stats.executions) == (60 - PARTITIONS, 60)
    if told == "at the start":
        assert lane.stats.reopens == 0


async def test_a_compacted_results_topic_takes_no_result_without_a_key_and_says_so(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = await topics(kafka, tmp_path, "keyless", {"cleanup.policy": "compact"})
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for key, item in zip((b"a", None, b"", b"b"), items(4), strict=True):
            await producer.send_and_wait(settings.requests_topic, item, key=key, partition=0)
    async with running(settings):
        verdict = await finished(settings)
    assert (verdict.clean, verdict.results, verdict.dead_reasons) == (True, 3, {"result_refused": 1})


async def test_whatever_a_producer_can_write_ends_once_and_leaves_no_lag(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "odd", stuck_after_s=2.0)
    item, topic = items(1)[0], settings.requests_topic
    servers = kafka.bootstrap_servers
    async with running(settings) as lane:
        for codec in ("gzip", "snappy", "lz4", "zstd"):
            async with AIOKafkaProducer(bootstrap_servers=servers, compression_type=codec) as producer:
                await producer.send_and_wait(topic, item, partition=0)
        async with AIOKafkaProducer(bootstrap_servers=servers, transactional_id="odd") as producer:
            for abort in (False, True, False):  # markers are at the log's end
                await producer.begin_transaction()
                await producer.send_and_wait(topic, item, partition=0)
                await (producer.abort_transaction() if abort else producer.commit_transaction())
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            await producer.send_and_wait(topic, None, key=b"gone", partition=0)
            await producer.send_and_wait(topic, item, key=b"", partition=0)
            await producer.send_and_wait(topic, item, timestamp_ms=0, partition=0)
            headers = [("twice", b"1"), ("twice", b"2"), ("none", None), ("x-job", b""), ("huge", b"h" * 500_000)]
            await producer.send_and_wait(topic, item, headers=headers, partition=0)
        await asyncio.to_thread(produce_null, servers, topic)
        verdict = await finished(settings)
        async with AIOKafkaProducer(bootstrap_servers=servers, transactional_id="odd") as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, item, partition=1)
            await producer.abort_transaction()
        begun_s = lane.now_s
        await until_state(lane, lambda lane: lane.now_s - begun_s > 5.0)  # longer than the watchdog's patience
        await until_state(lane, lambda lane: all(share.lag == 0 for share in lane.owned_partitions()))
        assert lane.state == "running"
    assert verdict.clean
    assert (verdict.results, verdict.dead) == (9, 2)


def produce_null(servers: str, topic: str) -> None:
    """A record with neither key nor value, which aiokafka will not write."""
    producer = Producer({"bootstrap.servers": servers})
    producer.produce(topic, None, None, partition=0)
    producer.flush(10)


@asynccontextmanager
async def lane_runs(lane: OfflineLane) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(lane.run(), name="lane")
    try:
        yield task
    finally:
        await lane.drain(5.0)
        await task


async def test_a_broker_that_goes_away_and_comes_back_costs_no_item(tmp_path: Path) -> None:
    async with LocalKafka() as kafka:
        settings = await topics(kafka, tmp_path, "away", request_timeout_s=2.0)
        await submit(settings, items(50), {})
        async with running(settings) as lane:
            await finished(settings)
            await kafka.stop()
            await kafka.start()
            await kafka.wait_ready()
            await submit(settings, items(50), {})
            verdict = await finished(settings)
    assert (verdict.results, verdict.clean) == (100, True)
    assert lane.stats.executions == 100


async def test_the_release_is_read_off_the_broker_and_the_pinned_one_is_safe(kafka: LocalKafka) -> None:
    version = await metadata_version(OfflineSettings(bootstrap_servers=f"127.0.0.1:1,{kafka.bootstrap_servers}"))
    assert version == 29
    assert warning(version, abort_fence=False) is None
    assert "KAFKA-20734" in str(warning(30, abort_fence=False))
    assert warning(30, abort_fence=True) is None


async def test_the_checker_sees_a_planted_duplicate_and_a_planted_loss(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "planted")
    await submit(settings, items(20), {})
    async with running(settings):
        assert (await finished(settings)).clean
    [copied, *_] = await records(settings, settings.results_topic, 1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(settings.results_topic, copied.value, headers=list(copied.headers), partition=0)
        await submit(settings, items(3), {})
    await reset(settings, "latest")  # three items are skipped: that is a loss, whoever asked for it
    verdict = await finished(settings)
    assert verdict.duplicated == [(copied.partition, int(dict(copied.headers)["x-source-offset"]))]
    assert len(verdict.lost) == 3
    assert not verdict.clean


def certificate(directory: Path, run: Callable[[list[str]], Any]) -> tuple[Path, Path]:
    """(the broker's key store, the certificate that a client has to trust), by the keytool that comes with Java."""
    store, trusted = directory / "broker.p12", directory / "ca.pem"
    common = ["keytool", "-keystore", str(store), "-storetype", "PKCS12", "-storepass", "changeit", "-alias", "broker"]
    run([*common, "-genkeypair", "-keyalg", "RSA", "-dname", "CN=localhost", "-ext", "san=ip:127.0.0.1"])
    run([*common, "-exportcert", "-rfc", "-file", str(trusted)])
    return store, trusted


async def test_tls_with_scram_works_and_a_wrong_password_is_not_let_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(command: list[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0

    commands: list[list[str]] = []
    store, trusted = certificate(tmp_path, commands.append)
    for command in commands:
        await run(command)
    secret = tmp_path / "password"
    secret.write_text("let-me-in\n")
    secured = LocalKafka(
        listeners={"SECURE": "SASL_SSL"},
        properties={
            "ssl.keystore.location": str(store),
            "ssl.keystore.password": "changeit",
            "ssl.keystore.type": "PKCS12",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.secure.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        },
        format_arguments=["--add-scram", "SCRAM-SHA-512=[name=sidecar,password=let-me-in]"],
    )
    async with secured as kafka:
        security = KafkaSecuritySettings(protocol="SASL_SSL", username="sidecar", password_file=secret, ca_file=trusted)
        settings = await topics(kafka, tmp_path, "secure")
        secure = replace(settings, bootstrap_servers=f"127.0.0.1:{kafka.port(0, 'SECURE')}", security=security)
        await submit(secure, items(20), {})
        async with running(secure) as lane:
            assert (await finished(settings)).clean
            assert lane.stats.items == {("done", ""): 20}
        assert await metadata_version(secure) == 29
        secret.write_text("guessed\n")
        lane = OfflineLane(replace(secure, look_again_s=0.2), FakeDriver(), WordTokens(), {"tensorrt_llm": 2048})
        async with lane_runs(lane):
            await until_state(lane, lambda lane: lane.state_now.cause is Cause.AUTHENTICATION)
            assert "the broker does not let us in: SaslAuthenticationFailed" in lane.state
            secret.unlink()
            await until_state(lane, lambda lane: lane.state_now.cause is Cause.SECRET)
            secret.write_text("let-me-in\n")
            await until_state(lane, lambda lane: lane.state == "running")
        untrusting = replace(secure, security=replace(security, ca_file=None))
        lane = OfflineLane(untrusting, FakeDriver(), WordTokens(), {"tensorrt_llm": 2048})
        async with lane_runs(lane):
            await until_state(lane, lambda lane: lane.state_now.cause is Cause.TLS)
    assert "guessed" not in caplog.text
    assert "let-me-in" not in caplog.text


async def test_rights_that_are_taken_away_are_named_and_missed_until_they_are_back(tmp_path: Path) -> None:
    secured = LocalKafka(listeners={"PROXIED": "SASL_PLAINTEXT"}, properties=AUTHORIZED)
    async with secured as kafka:
        settings = await topics(kafka, tmp_path, "rights", look_again_s=0.2)
        security = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", mechanism="PLAIN", username=USER, password=USER)
        limited = replace(settings, bootstrap_servers=f"127.0.0.1:{kafka.port(0, 'PROXIED')}", security=security)
        cases = [
            (ResourceType.TOPIC, settings.results_topic, AclOperation.WRITE),
            (ResourceType.TOPIC, settings.requests_topic, AclOperation.READ),
            (ResourceType.GROUP, settings.group, AclOperation.READ),
            (ResourceType.TRANSACTIONAL_ID, "sidecar.rights.rights.requests.1", AclOperation.WRITE),
        ]
        async with running(limited) as lane:
            for number, (kind, name, operation) in enumerate(cases, start=1):
                async with right_denied(kafka, kind, name, operation):
                    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
                        for partition in range(PARTITIONS):
                            await producer.send_and_wait(settings.requests_topic, items(1)[0], partition=partition)
                    await until_state(lane, lambda lane: lane.state_now.cause is Cause.RIGHTS)
                    assert name in lane.state, lane.state
                verdict = await finished(settings)
                await until_state(lane, lambda lane: lane.state == "running")
                assert (verdict.clean, verdict.results) == (True, number * PARTITIONS)


@asynccontextmanager
async def right_denied(
    kafka: LocalKafka, kind: ResourceType, name: str, operation: AclOperation
) -> AsyncIterator[None]:
    place = (kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, AclPermissionType.DENY)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
    for each in admin.create_acls([AclBinding(*place)], request_timeout=15).values():
        await asyncio.to_thread(each.result)
    yield
    for each in admin.delete_acls([AclBindingFilter(*place)], request_timeout=15).values():
        await asyncio.to_thread(each.result)


async def test_an_end_that_arrives_late_taints_its_opening_and_cannot_touch_the_next(tmp_path: Path) -> None:
    async with proxied() as (kafka, late, servers):
        settings = await topics(kafka, tmp_path, "tainted", bootstrap_servers=servers)
        first = await opened(settings)
        late.armed = True  # the EndTxn of this transaction is held, its connection cut; the client's retry succeeds
        await first.commit([result(settings, "a"), result(settings, "b")], Committed(watermark=2, high=2))
        assert first.tainted
        await first.close()
        second = await opened(settings)
        assert second.state == Committed(watermark=2, high=2)
        await second.commit(
            [result(settings, "c")], Committed(watermark=3, high=3)
        )  # the late frame goes before its end
        assert (late.released, second.tainted) == (1, False)
        await second.close()
        assert [each.value for each in await records(settings, settings.results_topic, 3)] == [b"a", b"b", b"c"]


async def test_an_owner_that_was_replaced_is_fenced_and_leaves_nothing(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "fenced")
    stale, owner = await opened(settings), await opened(settings)
    with pytest.raises(FencedError):
        await stale.commit([result(settings, "stale")], Committed(watermark=1, high=1))
    await owner.commit([result(settings, "owner")], Committed(watermark=1, high=1))
    for each in (stale, owner):
        await each.close()
    assert [each.value for each in await records(settings, settings.results_topic, 1)] == [b"owner"]


async def test_the_abort_fence_leaves_no_record_that_a_reader_sees(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = replace(await topics(kafka, tmp_path, "abort"), abort_fence=True)
    before = await opened(settings)
    await before.commit([result(settings, "a")], Committed(watermark=4, high=6, gaps=(4,)))
    fencing = await opened(settings)
    await fencing.commit([result(settings, "b")], Committed(watermark=6, high=6))
    for each in (before, fencing):
        await each.close()
    assert fencing.state == Committed(watermark=4, high=6, gaps=(4,))
    assert [each.value for each in await records(settings, settings.results_topic, 2)] == [b"a", b"b"]


async def test_an_opening_that_is_cancelled_anywhere_closes_what_it_opened(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "cancelled", progress_topic="cancelled.progress")
    await (await opened(settings)).close()
    steps = left = 0
    async with asyncio.timeout(TIMEOUT_S):
        cancelled = True
        while cancelled:
            opening = KafkaOpening(settings, 0)
            task = asyncio.create_task(opening.start(), name="opening")
            for _ in range(steps):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await opening.close()
            del opening, task
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                gc.collect()
            left += sum(issubclass(each.category, ResourceWarning) for each in caught)
            steps += 80
    assert left == 0


async def test_of_two_processes_with_one_instance_id_the_newcomer_waits_and_the_holder_does_not_notice(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = await topics(kafka, tmp_path, "twins", instance_id="twin", look_again_s=0.2)
    holder, newcomer = (OfflineLane(settings, FakeDriver(), WordTokens(), {"tensorrt_llm": 2048}) for _ in range(2))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(holder.run(), name="holder")
        await until_state(holder, lambda lane: lane.state == "running" and len(lane.owned_partitions()) == PARTITIONS)
        rebalances = holder.stats.rebalances
        second = tasks.create_task(newcomer.run(), name="newcomer")
        await until_state(newcomer, lambda lane: lane.state.endswith("each process needs its own"))
        assert newcomer.state_now.cause is Cause.INSTANCE_IN_USE
        assert "instance_id 'twin' is in use by host /127.0.0.1" in newcomer.state
        await submit(settings, items(30), {})
        assert (await finished(settings)).results == 30
        assert (holder.stats.rebalances, holder.stats.reopens, newcomer.stats.executions) == (rebalances, 0, 0)
        await holder.drain(1.0)
        await first
        await submit(settings, items(30), {})
        assert (await finished(settings)).results == 60
        await newcomer.drain(1.0)
        await second
    assert newcomer.stats.executions == 30


async def test_a_process_that_was_killed_is_back_before_its_session_is_over(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "again", instance_id="again", session_timeout_s=25.0)
    killed = OfflineLane(settings, FakeDriver(), WordTokens(), {"tensorrt_llm": 2048})
    task = asyncio.create_task(killed.run(), name="killed")
    await until_state(killed, lambda lane: lane.state == "running" and len(lane.owned_partitions()) == PARTITIONS)
    task.cancel()
    await asyncio.wait([task])
    begun_s = killed.now_s
    async with running(settings) as lane:
        await until_state(lane, lambda lane: len(lane.owned_partitions()) == PARTITIONS)
        assert lane.now_s - begun_s < 15.0


async def test_items_with_visible_results_do_not_run_again_where_the_broker_forgot_their_offsets(
    kafka: LocalKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = await topics(kafka, tmp_path, "forgot", instance_id="one")
    await submit(settings, items(60), {})
    async with running(settings) as lane:
        assert (await finished(settings)).clean
    assert lane.stats.executions == 60
    opening = await opened(settings)
    await opening.commit((), Committed(watermark=0, high=0))  # what it says when it forgot all that the lane committed
    await opening.close()
    await submit(settings, items(10), {})
    async with running(settings) as lane:
        verdict = await finished(settings)
    assert (verdict.clean, verdict.results) == (True, 70)
    assert lane.stats.executions == 10
    assert [line for line in caplog.messages if "forgot what was committed above 0" in line] != []


async def test_a_group_that_lost_its_offsets_and_has_results_waits_for_a_reset(
    kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = await topics(
        kafka, tmp_path, "lost", look_again_s=0.2
    )  # without an instance_id: its member leaves the group at once
    await submit(settings, items(60), {})
    async with running(settings):
        assert (await finished(settings)).clean
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    for deleted in admin.delete_consumer_groups([settings.group], request_timeout=15).values():
        deleted.result(20)
    async with running(settings) as lane:
        await until_state(lane, lambda lane: lane.state_now.cause is Cause.NO_OFFSET)
        assert "decide with `sidecar offsets reset`" in lane.state
        await reset(settings, "latest")
        await until_state(lane, lambda lane: lane.state == "running")
    assert lane.stats.executions == 0


async def test_items_run_again_from_where_a_person_has_set_the_offset(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "replayed", instance_id="one")
    await submit(settings, items(60), {})
    async with running(settings):
        assert (await finished(settings)).clean
    opening = await opened(settings)
    await opening.commit((), Committed(watermark=0, high=0, by_hand=True))
    await opening.close()
    async with running(settings) as lane:
        await until_state(lane, lambda lane: lane.stats.commits > 0)
        verdict = await finished(settings)
    assert len(verdict.duplicated) == lane.stats.executions > 0


def result(settings: OfflineSettings, text: str) -> Outgoing:
    return Outgoing(topic=settings.results_topic, key=None, value=text.encode(), headers=())


async def opened(settings: OfflineSettings) -> KafkaOpening:
    """An opening of partition 0, as soon as the group's coordinator is there."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            opening = KafkaOpening(settings, 0)
            try:
                await opening.start()
                return opening
            except LogError:
                await opening.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[LocalKafka, ProxyFaults, str]]:
    """A broker behind the proxy that can deliver an EndTxn late, and the address of the proxy."""
    kafka, late = LocalKafka(listeners={"PROXIED": "PLAINTEXT"}), ProxyFaults()
    proxy = FaultProxy(kafka.port(0, "PROXIED"), late)
    await proxy.start()
    kafka.advertise(0, "PROXIED", proxy.port)
    try:
        async with kafka:
            yield kafka, late, f"127.0.0.1:{proxy.port}"
    finally:
        proxy.close()


async def test_what_is_told_of_a_job_goes_on_with_the_next_owner(kafka: LocalKafka, tmp_path: Path) -> None:
    settings = await topics(kafka, tmp_path, "told", instance_id="one", progress_topic="told.progress")
    for _ in range(2):
        await submit(settings, items(60), {"x-tenant": "acme", "x-job": "nightly"})
        async with running(settings):
            assert (await finished(settings)).clean
    told: dict[bytes, int] = {}
    async with asyncio.timeout(TIMEOUT_S):
        consumer = AIOKafkaConsumer(
            settings.progress_topic,
            bootstrap_servers=settings.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        async with consumer:
            while sum(told.values()) < 120:
                record = await consumer.getone()
                told[record.key] = json.loads(record.value)["done"]
    assert sum(told.values()) == 120
