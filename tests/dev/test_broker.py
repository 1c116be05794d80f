"""The local broker: what it says when it cannot run, and that a node can be killed and come back."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dev.broker import BrokerError, LocalKafka, free_ports, kafka_version


def test_ports_are_free_and_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_no_outgoing_connection_is_ever_given_one_of_these_ports() -> None:
    assert max(free_ports(20)) < 32768  # where Linux starts to give ports to connections, unless somebody set it lower


def test_missing_jars_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"no Apache Kafka in .*: run scripts/setup"):
        kafka_version(tmp_path)


def test_the_version_is_read_off_the_jars(tmp_path: Path) -> None:
    (tmp_path / "kafka_2.13-4.2.1.jar").touch()
    assert kafka_version(tmp_path) == "4.2.1"


@pytest.mark.integration
async def test_storage_that_cannot_be_formatted_is_said_and_nothing_is_left() -> None:
    kafka = LocalKafka(properties={"process.roles": "nobody"})
    with pytest.raises(BrokerError, match="formatting the broker's storage failed: "):
        async with kafka:
            pass
    assert not kafka.directory.exists()


@pytest.mark.integration
async def test_a_killed_broker_comes_back_and_nothing_is_left_at_the_end() -> None:
    async with LocalKafka() as kafka:
        await kafka.create_topics(2)
        await kafka.stop(how=signal.SIGKILL)
        await kafka.start()
        await kafka.wait_ready()
        await kafka.create_topics(2)  # those that exist are left as they are
        directory = kafka.directory
    assert not directory.exists()
