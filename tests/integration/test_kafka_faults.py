"""The real Apache Kafka goes away, asks for keys, takes rights, delivers late: no result is lost or written twice."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from dev.broker import LocalKafka
from dev.chaos import AUTHORIZED
from dev.chaos_faults import USER
from dev.endtxn_proxy import FaultProxy, ProxyFaults
from sidecar.offline.broker_version import metadata_version
from sidecar.offline.kafka_errors import FencedError
from sidecar.offline.kafka_opening import KafkaOpening
from sidecar.offline.lane import OfflineLane
from sidecar.offline.lane_state import Cause
from sidecar.offline.offsets import Committed
from sidecar.offline.submit import submit
from sidecar.settings.offline import KafkaSecuritySettings
from tests.fakes.log import FakeDriver, WordTokens
from tests.integration.lane_on_kafka import (
    PARTITIONS,
    TIMEOUT_S,
    finished,
    items,
    lane_runs,
    opened,
    records,
    result,
    running,
    topics,
    until_state,
)

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


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
