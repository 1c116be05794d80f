"""Items on the real Apache Kafka: each has one end, whatever a producer can write."""

from __future__ import annotations

import asyncio
import json
import random
import string
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from confluent_kafka import Producer
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dev.broker import LocalKafka
from sidecar.cli.offsets import reset
from sidecar.core.request import Request
from sidecar.offline.lane import OfflineLane
from sidecar.offline.submit import submit
from sidecar.settings.file import TracingSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import Tracing
from sidecar.token_call import Generated, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated
from tests.integration.lane_on_kafka import (
    PARTITIONS,
    TIMEOUT_S,
    admin_of,
    finished,
    items,
    lane_runs,
    records,
    running,
    topics,
    until_state,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


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
