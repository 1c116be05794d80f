"""The proxy's view of Metadata: one topic without leaders, everything else byte for byte."""

from __future__ import annotations

from aiokafka.protocol.metadata import MetadataResponse_v5

from dev.endtxn_proxy import _without_leaders

BROKERS = [(1, "127.0.0.1", 9092, None), (2, "127.0.0.1", 9093, "rack")]


def topic(name: str, *partitions: tuple[int, int, int]) -> tuple[object, ...]:
    return (0, name, False, [(error, number, leader, [1, 2], [1, 2], []) for error, number, leader in partitions])


def test_one_topic_has_no_leaders_and_nothing_else_changes() -> None:
    head = b"\x00\x00\x00\x07"  # correlation id
    whole = [topic("requests", (0, 0, 1), (0, 1, 2)), topic("results", (0, 0, 1), (0, 1, 2)), topic("dlq", (0, 0, 2))]
    without = [whole[0], topic("results", (5, 0, -1), (5, 1, -1)), whole[2]]
    before, after = (
        head
        + MetadataResponse_v5(
            throttle_time_ms=0, brokers=BROKERS, cluster_id="c", controller_id=1, topics=each
        ).encode()
        for each in (whole, without)
    )
    assert _without_leaders(before, "results") == after
    assert _without_leaders(before, "no such topic") == before
