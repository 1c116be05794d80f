"""What stops the lane on the real Apache Kafka is named, waited for and mended; and where it begins again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions, RecordsToDelete
from confluent_kafka.admin import AdminClient

from dev.broker import LocalKafka
from sidecar.cli.offsets import GroupActiveError, reset, show
from sidecar.offline.broker_version import metadata_version, warning
from sidecar.offline.kafka_errors import LogError
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause, Phase
from sidecar.offline.offsets import Committed
from sidecar.offline.submit import submit
from sidecar.settings.offline import OfflineSettings
from tests.fakes.log import FakeDriver, WordTokens
from tests.integration.lane_on_kafka import (
    PARTITIONS,
    TIMEOUT_S,
    admin_of,
    finished,
    items,
    opened,
    running,
    topics,
    until_state,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


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
        await until_state(lane, lambda lane: "topic late.more.results does not exist" in lane.state)
        file = tmp_path / "more.yaml"
        file.write_text(yaml.safe_dump({"partitions": PARTITIONS, "topics": {"late.more.results": {}}}))
        await kafka.create_topics(file=file)
        assert (await finished(settings)).clean


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


async def test_the_release_is_read_off_the_broker_and_the_pinned_one_is_safe(kafka: LocalKafka) -> None:
    version = await metadata_version(OfflineSettings(bootstrap_servers=f"127.0.0.1:1,{kafka.bootstrap_servers}"))
    assert version == 29
    assert warning(version, abort_fence=False) is None
    assert "KAFKA-20734" in str(warning(30, abort_fence=False))
    assert warning(30, abort_fence=True) is None


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
