"""One item of the offline lane, from its record to its result or its dead letter.

What time may heal (a full queue, an engine that is down) is waited for; all else ends in a dead letter with its reason.
Partitions, commits and who owns what are `offline.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Protocol

from sidecar.core.request import Lane, Request
from sidecar.offline.dead_letters import DeadItemError, DeadLetterLog, DeadReason
from sidecar.offline.gates import ModelGates
from sidecar.offline.item import (
    Item,
    ItemRules,
    Record,
    dead_headers,
    read_item,
    result_headers,
    result_value,
)
from sidecar.offline.job_orders import JobOrders, JobPausedError
from sidecar.offline.job_progress import job_of
from sidecar.offline.kafka_opening import Outgoing
from sidecar.offline.owned_partition import FinishedItem, LaneStats
from sidecar.offline.receipts import value_hash
from sidecar.offline.spans import KafkaSpans, dead_context, result_context
from sidecar.settings.offline import OfflineSettings
from sidecar.telemetry.tracing import ItemTrace
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, TokenCall
from sidecar.triton.tokenizer import Tokens

log = logging.getLogger(__name__)

HEADERS_BYTES = 64 << 10  # that a dead letter may be longer than its item; the producer and the topic allow for them
KEY_BYTES = 1024  # of the key of a dead letter that had to be cut
LARGE_ITEM_BYTES = 32 << 10  # from here on items are read one at a time: 15 to 70 ms of one core each, and more
RETRY_REJECTED_S = 0.5
FRAMES_SHOWN = 4  # of an unexpected exception
EMPTY_OUTPUT = "empty_output"  # how the driver's reason names a good end without a token
BEHIND_MS = 1e12  # of waiting: longer than anything waits
WALL_STEP_S = 0.5  # a larger change of the wall clock is no error of measurement


class GenerationDriver(Protocol):
    """The driver, as the lane sees it. Cancelling the awaiting task cancels the request."""

    async def generate(self, request: Request, call: TokenCall) -> Generated: ...


class ItemRuns:
    """Runs items, any number at once; `stats` counts the calls of the engine."""

    def __init__(
        self,
        settings: OfflineSettings,
        rules: ItemRules,
        driver: GenerationDriver,
        tokens: Tokens,
        spans: KafkaSpans,
        stats: LaneStats,
        clock: Callable[[], float],
        gates: ModelGates,
        orders: JobOrders | None = None,
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._tokens = tokens
        self._rules = rules
        self._spans = spans
        self._stats = stats
        self._clock = clock
        self._dead_letters = DeadLetterLog(clock)
        self._large_item = asyncio.Lock()  # each keeps a thread busy; what callers send needs threads, too
        self._minted = 0
        self._ahead_s = -inf
        self._gates = gates
        self._orders = orders or JobOrders()

    def look(self) -> None:
        """Dead letters that were only counted are told when it is time. To be called now and then."""
        self._dead_letters.look()

    def close(self) -> None:
        """Dead letters that were only counted are told."""
        self._dead_letters.close()

    async def run(self, record: Record) -> FinishedItem:
        """Its result or its dead letter; nothing is left of it when cancelled."""
        taken_s, stage, trace = self._clock(), "read", self._spans.item(record)
        try:
            await self._orders.turn(job_of(record))
            async with self._turn(record):
                item = await asyncio.to_thread(read_item, record, self._rules, self._tokens)
            stage = "run"
            generated = await self._generated(record, item, taken_s, trace)
            stage = "write"
            return await self._result(record, item, generated, taken_s, trace)
        except DeadItemError as error:
            return self.dead(record, error, stage, taken_s, trace)
        except Exception as error:  # ours: an item must not stop a partition for ever, nor vanish
            # By its type and place only: the text of an exception may hold the prompt or the output.
            kind = type(error).__name__
            log.error("item %s: %s at %s", record.source, kind, _place(error))
            return self.dead(record, DeadItemError(DeadReason.FAILED, kind), stage, taken_s, trace)

    @contextlib.asynccontextmanager
    async def _turn(self, record: Record) -> AsyncIterator[None]:
        """Within it the item may be read: large ones one at a time."""
        if len(record.value or b"") <= LARGE_ITEM_BYTES:
            yield
            return
        async with self._large_item:
            yield

    async def _generated(self, record: Record, item: Item, taken_s: float, trace: ItemTrace | None) -> Generated:
        while True:
            await self._orders.turn(job_of(record))
            try:
                async with self._orders.hold(job_of(record)):
                    await self._gates.wait(item.model)
                    self._stats.executions += 1
                    request = self._request(record, item, taken_s)
                    self._spans.adopt(request.id, trace)
                    return await self._driver.generate(request, item.call)
            except JobPausedError:
                continue  # what it had computed is computed again: its slot and its place in the queue are free
            except RequestDeadError as error:
                reason = DeadReason.EMPTY_OUTPUT if EMPTY_OUTPUT in error.reason else DeadReason.FAILED
                raise DeadItemError(reason, error.reason, error.attempts) from None
            except RequestRejectedError as error:
                self._stats.executions -= 1
                if error.reason == "expired" and self._may_wait(record, request):
                    continue
                _raise_if_final(error)
                await asyncio.sleep(error.retry_after_s or RETRY_REJECTED_S)

    def _request(self, record: Record, item: Item, taken_s: float) -> Request:
        self._minted += 1
        deadline_s, deadline = inf, self._orders.deadline(job_of(record)) or item.deadline
        if deadline is not None:
            deadline_s = deadline.timestamp() - self._wall_ahead_s()
        return Request(
            id=f"{record.source}#{self._minted}",
            lane=Lane.OFFLINE,
            model=item.model,
            arrived_s=taken_s,
            prompt_tokens=len(item.call.prompt_ids),
            output_tokens_max=item.call.output_tokens_max,
            tenant=item.tenant,
            deadline_s=deadline_s,
            resumable=item.call.resumable,
            job=item.job or "",
            prefix_key=item.prefix_key,
            # The queue's order within a tenant and a deadline: later than any item of a job that goes first.
            ttft_objective_ms=self._orders.behind(job_of(record)) * BEHIND_MS,
        )

    def _may_wait(self, record: Record, request: Request) -> bool:
        """Return True if somebody has given the job a later deadline since the request was made."""
        deadline = self._orders.deadline(job_of(record))
        return deadline is not None and deadline.timestamp() - self._wall_ahead_s() > request.deadline_s

    def _wall_ahead_s(self) -> float:
        """Return by how much the wall clock is ahead of the driver's: one number until somebody sets the wall clock.

        The items of a job name one deadline. Measured anew for each it would differ by microseconds, and their order
        would be drawn by lot instead of being that of their offsets.
        """
        ahead_s = datetime.now(UTC).timestamp() - self._clock()
        if abs(ahead_s - self._ahead_s) > WALL_STEP_S:
            self._ahead_s = ahead_s
        return self._ahead_s

    async def _result(
        self, record: Record, item: Item, generated: Generated, taken_s: float, trace: ItemTrace | None
    ) -> FinishedItem:
        value = await asyncio.to_thread(result_value, record, item, generated, self._tokens)
        own = (*result_headers(record, self._settings.group), ("x-result-hash", value_hash(value)))
        headers = result_context(own, trace)
        outgoing = Outgoing(topic=self._settings.results_topic, key=record.key, value=value, headers=headers)
        if outgoing.size > self._settings.message_bytes_max:
            message = (
                f"the result of {outgoing.size} bytes exceeds message_bytes_max {self._settings.message_bytes_max}"
            )
            raise DeadItemError(DeadReason.RESULT_TOO_LARGE, message, generated.attempts)
        return FinishedItem(
            record=record,
            outgoing=outgoing,
            outcome="done",
            reason="",
            retries=generated.attempts - 1,
            output_tokens=len(generated.output_ids),
            taken_s=taken_s,
            trace=trace,
            prompt_tokens=len(item.call.prompt_ids),
        )

    def dead(
        self,
        record: Record,
        error: DeadItemError,
        stage: str,
        taken_s: float | None = None,
        trace: ItemTrace | None = None,
    ) -> FinishedItem:
        """The item as a dead letter, byte for byte where Kafka takes it; `stage` is where it failed."""
        trace = trace or self._spans.item(record)
        headers = dead_headers(record, self._settings.group, error, stage, int(datetime.now(UTC).timestamp() * 1000))
        headers = dead_context(headers, trace)
        topic, limit = self._settings.dead_letter_topic, self._settings.message_bytes_max
        outgoing = Outgoing(topic=topic, key=record.key, value=record.value, headers=headers)
        if outgoing.size > limit + HEADERS_BYTES:
            # Longer than Kafka would take from us: kept as far as it goes, or its partition would stand still for ever.
            own = headers[len(record.headers) :]
            cut = ("dlq.truncated", str(len(record.value or b"")).encode())
            value = (record.value or b"")[: limit // 2]
            outgoing = Outgoing(topic=topic, key=(record.key or b"")[:KEY_BYTES], value=value, headers=(*own, cut))
        self._dead_letters.tell(record.source, error)
        return FinishedItem(
            record=record,
            outgoing=outgoing,
            outcome=error.reason.value if error.reason in (DeadReason.EXPIRED, DeadReason.CANCELLED) else "dlq",
            reason=error.reason.value,
            retries=max(0, error.attempts - 1),
            output_tokens=0,
            taken_s=self._clock() if taken_s is None else taken_s,
            trace=trace,
        )


def _raise_if_final(error: RequestRejectedError) -> None:
    """Reject reasons that time will not heal end the item; a full queue or an engine that is down does not."""
    match error.reason:
        case "unknown_model":
            raise DeadItemError(DeadReason.UNKNOWN_MODEL, str(error)) from error
        case "too_large":
            raise DeadItemError(DeadReason.TOO_LONG, str(error)) from error
        case "expired":
            raise DeadItemError(DeadReason.EXPIRED, str(error)) from error
        case "closing":
            raise asyncio.CancelledError(str(error))  # whoever owns the partition next runs it


def _place(error: Exception) -> str:
    """Return where an exception comes from, innermost first, without any text of it."""
    frames = [*traceback.walk_tb(error.__traceback__)][-FRAMES_SHOWN:]
    return " < ".join(f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in reversed(frames))
