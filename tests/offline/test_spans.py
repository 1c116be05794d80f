"""The spans of the offline lane, as trees: kind, parent, links, attributes, and what the written records carry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from sidecar.offline.item import Headers
from sidecar.offline.lane import OfflineLane
from sidecar.settings.offline import OfflineSettings
from tests.fakes.log import FakeCluster, WordTokens
from tests.fakes.triton import FakeTriton
from tests.offline.test_lane import running, until
from tests.telemetry.test_tracing import PARENT, Traced, traced

UNSAMPLED = PARENT[:-2] + "00"
ITEM = b'{"id": "1", "prompt": "one two", "max_tokens": 4}'
MESSAGING: dict[str, Any] = {
    "messaging.system.name": "kafka",
    "messaging.client.id": "sidecar",
    "kafka.cluster.id": "fake",
}
CONSUMING = MESSAGING | {
    "messaging.destination.name": "inference.requests",
    "messaging.consumer.group.name": "sidecar",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A lane between a fake log and a fake Triton, and what its tracing sent."""

    cluster: FakeCluster
    triton: FakeTriton
    traced: Traced

    async def run(self, value: bytes, headers: Headers = ()) -> Headers:
        """The headers of what was written for one item."""
        self.cluster.produce(value, headers=headers)
        settings = OfflineSettings(tick_s=0.001, pending_max=50)
        parts = (self.traced.sidecar.driver, WordTokens(), {"tensorrt_llm": 64})
        lane = OfflineLane(settings, *parts, make_log=self.cluster.make_log, tracing=self.traced.tracing)
        async with running(lane):
            if value == ITEM:
                async with asyncio.timeout(5):
                    (await self.triton.next()).tokens(7, 2, final=True)
            await until(self.cluster, self.cluster.everything_once)
        [(_, outgoing)] = self.cluster.written
        return outgoing.headers

    def span(self, name: str) -> ReadableSpan:
        """The one of this name, or one of the polls and commits."""
        return self.traced.spans()[name]

    def names(self) -> set[str]:
        """Of all spans that were sent."""
        return set(self.traced.spans())


async def lane_of(triton: FakeTriton, ratio: float) -> AsyncIterator[Lane]:
    async for each in traced(triton, ratio):
        yield Lane(cluster=FakeCluster(), triton=triton, traced=each)


@pytest.fixture
async def always(triton: FakeTriton) -> AsyncIterator[Lane]:
    async for each in lane_of(triton, 1.0):
        yield each


@pytest.fixture
async def never(triton: FakeTriton) -> AsyncIterator[Lane]:
    async for each in lane_of(triton, 0.0):
        yield each


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def context(span: ReadableSpan) -> bytes:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01".encode()


async def test_an_item_is_a_process_span_linked_to_its_producer_over_wait_completion_and_send(always: Lane) -> None:
    await always.run(ITEM, headers=(("traceparent", UNSAMPLED.encode()),))
    process, send = always.span("process inference.requests"), always.span("send inference.results")
    wait, completion = always.span("wait_for_slot"), always.span("text_completion tensorrt_llm")
    kinds = [each.kind.name for each in (process, wait, completion, send)]
    assert kinds == ["CONSUMER", "INTERNAL", "CLIENT", "PRODUCER"]
    assert parent_of(process) is None
    assert {parent_of(each) for each in (wait, completion, send)} == {process.context.span_id}
    assert {each.context.trace_id for each in (wait, completion, send)} == {process.context.trace_id}
    assert [f"{link.context.trace_id:032x}" for link in process.links] == ["0af7651916cd43dd8448eb211c80319c"]
    assert [list(each.links) for each in (wait, completion, send)] == [[], [], []]
    assert dict(process.attributes or {}) == CONSUMING | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.partition.id": "0",
        "kafka.offset": 0,
        "kafka.message.key": "key",
        "sidecar.lane": "offline",
    }
    assert dict(send.attributes or {}) == MESSAGING | {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "inference.results",
        "messaging.destination.partition.id": "0",
    }


async def test_a_result_carries_the_context_of_its_send_span_and_every_other_header(always: Lane) -> None:
    own = (("x-job", b"j"), ("traceparent", PARENT.encode()), ("tracestate", b"theirs=1"))
    written = await always.run(ITEM, headers=own)
    assert [value for name, value in written if name == "traceparent"] == [
        context(always.span("send inference.results"))
    ]
    assert ("x-job", b"j") in written
    assert "tracestate" not in dict(written)  # it belongs to the trace of the item's producer


async def test_the_result_of_an_item_that_is_not_sampled_keeps_what_the_item_carried(never: Lane) -> None:
    own = (("traceparent", UNSAMPLED.encode()), ("tracestate", b"theirs=1"))
    assert (await never.run(ITEM, headers=own))[:2] == own
    assert never.names() == set()


async def test_an_item_of_a_sampled_producer_is_kept_but_no_poll_and_no_commit(never: Lane) -> None:
    await never.run(ITEM, headers=(("traceparent", PARENT.encode()),))
    assert never.names() == {
        "process inference.requests",
        "wait_for_slot",
        "text_completion tensorrt_llm",
        "send inference.results",
    }


async def test_polls_and_commits_are_traces_of_their_own(always: Lane) -> None:
    await always.run(ITEM)
    poll, commit = always.span("poll inference.requests"), always.span("commit inference.requests")
    for span in (poll, commit):
        assert (span.kind.name, span.parent, list(span.links)) == ("CLIENT", None, [])
    assert len({each.context.trace_id for each in (poll, commit, always.span("process inference.requests"))}) == 3
    assert dict(commit.attributes or {}) == CONSUMING | {
        "messaging.operation.name": "commit",
        "messaging.operation.type": "settle",
        "messaging.destination.partition.id": "0",
    }
    polls = [each for each in always.traced.exporter.get_finished_spans() if each.name == poll.name]
    counts = [(each.attributes or {})["messaging.batch.message_count"] for each in polls]
    assert sum(int(str(count)) for count in counts) == 1
    operation = {"messaging.operation.name": "poll", "messaging.operation.type": "receive"}
    expected = CONSUMING | operation | {"messaging.batch.message_count": counts[-1]}
    assert dict(polls[-1].attributes or {}) == expected


async def test_a_dead_letter_is_kept_with_its_error_and_carries_its_send_span_if_it_had_no_context(
    always: Lane,
) -> None:
    written = await always.run(b"no json")
    process, send = always.span("process inference.requests"), always.span("send inference.requests.dlq")
    assert (send.kind.name, parent_of(send)) == ("PRODUCER", process.context.span_id)
    assert dict(written)["traceparent"] == context(send)
    assert (process.status.status_code.name, (process.attributes or {})["error.type"]) == ("ERROR", "not_json")
    assert (send.attributes or {})["messaging.destination.name"] == "inference.requests.dlq"


async def test_a_dead_letter_keeps_the_context_in_which_the_item_was_made(always: Lane) -> None:
    written = await always.run(b"no json", headers=(("traceparent", PARENT.encode()),))
    assert [value for name, value in written if name == "traceparent"] == [PARENT.encode()]
    assert always.span("send inference.requests.dlq").kind.name == "CLIENT"


async def test_a_dead_letter_that_was_not_sampled_is_kept_late(never: Lane) -> None:
    written = await never.run(b"no json")
    assert "traceparent" not in dict(written)
    assert never.names() == {"process inference.requests", "send inference.requests.dlq"}
    for name in never.names():
        assert (never.span(name).attributes or {})["sidecar.sampled_late"] is True


async def test_a_commit_that_fails_is_a_span_with_its_error(always: Lane) -> None:
    always.cluster.faults.extend(["before"])
    await always.run(ITEM)
    commits = [each for each in always.traced.exporter.get_finished_spans() if each.name.startswith("commit")]
    errors = [(each.attributes or {}).get("error.type") for each in commits]
    assert errors.count("LogError") == 1
    assert len([each for each in always.traced.exporter.get_finished_spans() if each.name.startswith("process")]) == 1
