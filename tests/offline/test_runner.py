"""One item from its record to its result or its dead letter: what goes wrong stays with it, and says no text."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from dataclasses import replace
from typing import Any

import pytest

from sidecar.core.request import Request
from sidecar.offline.gates import ModelGates
from sidecar.offline.item import ItemRules, Record
from sidecar.offline.owned_partition import FinishedItem, LaneStats
from sidecar.offline.runner import LARGE_ITEM_BYTES, ItemRuns
from sidecar.offline.spans import KafkaSpans
from sidecar.settings.offline import OfflineSettings
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, TokenCall
from tests.fakes.log import FakeDriver, WordTokens, generated
from tests.offline.test_item import batch, record

SECRET = "the patient is called Erika"
SETTINGS = OfflineSettings()
RULES = ItemRules(
    tokens_max={"tensorrt_llm": 2048},
    model_default="tensorrt_llm",
    item_bytes_max=1 << 20,
    max_tokens_default=256,
)


def runs(driver: FakeDriver, tokens: WordTokens | None = None) -> ItemRuns:
    spans = KafkaSpans(SETTINGS, None, lambda: 0.0)
    return ItemRuns(SETTINGS, RULES, driver, tokens or WordTokens(), spans, LaneStats(), lambda: 0.0, ModelGates())


def answering(answer: Generated | Exception) -> FakeDriver:
    async def give(_: Request, __: TokenCall) -> Generated:
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return FakeDriver(give)


def header(finished: FinishedItem, name: str) -> str:
    return dict(finished.outgoing.headers)[name].decode()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (replace(generated(), text=f"{SECRET} \ud83d"), "UnicodeEncodeError"),  # its repr holds the whole result
        (RuntimeError(SECRET), "RuntimeError"),
        (KeyError(SECRET), "KeyError"),
    ],
)
async def test_no_output_stands_in_the_log_or_in_a_header(
    answer: Generated | Exception, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    finished = await runs(answering(answer)).run(record(batch({"prompt": SECRET})))
    assert (finished.reason, header(finished, "dlq.error.message")) == ("failed", kind)
    assert kind in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in str([(name, value.decode()) for name, value in finished.outgoing.headers])
    assert finished.outgoing.value == json.dumps(batch({"prompt": SECRET})).encode()


@pytest.mark.parametrize("field", ["prompt", "stop", "seed", "model", "user_prompt", "max_tokens"])
async def test_no_prompt_stands_in_the_log_or_in_a_header(field: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"prompt": f"{SECRET} \ud83d", "seed": SECRET, field: [SECRET] if field == "prompt" else {SECRET: SECRET}}
    finished = await runs(FakeDriver()).run(record(batch(body)))
    assert finished.reason == "invalid"
    assert SECRET not in caplog.text
    assert SECRET not in str([(name, value.decode()) for name, value in finished.outgoing.headers])


async def test_half_of_a_surrogate_pair_is_refused_before_anything_runs() -> None:
    driver = FakeDriver()
    finished = await runs(driver).run(record(rb'{"custom_id":"x\ud83d","url":"/v1/completions","body":{"prompt":"a"}}'))
    assert (finished.reason, header(finished, "dlq.error.stage"), driver.requests) == ("invalid", "read", [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestDeadError("INTERNAL: empty_output: the engine ended 5 times without a token", 5), "empty_output"),
        (RequestDeadError("INTERNAL: out of memory", 5), "failed"),
        (RequestRejectedError("expired", "its deadline has passed"), "expired"),
        (RequestRejectedError("too_large", "it never fits"), "too_long"),
    ],
)
async def test_what_the_driver_gives_up_has_its_reason(error: Exception, reason: str) -> None:
    finished = await runs(answering(error)).run(record(batch({"prompt": "a"})))
    assert finished.reason == reason
    assert finished.outcome == ("expired" if reason == "expired" else "dlq")


@pytest.mark.parametrize(
    ("body", "resumable"), [({"seed": 5}, False), ({}, True), ({"seed": 5, "temperature": 0}, True)]
)
async def test_the_scheduler_knows_what_must_not_be_resumed(body: dict[str, Any], resumable: bool) -> None:
    driver = FakeDriver()
    await runs(driver).run(record(batch({"prompt": "a"} | body)))
    assert [request.resumable for request in driver.requests] == [resumable]


async def test_large_items_are_read_one_at_a_time_and_small_ones_pass_them() -> None:
    class Slow(WordTokens):
        """Stays at each large text until the test lets it go."""

        reading = 0
        most = 0
        go = threading.Event()

        def encode_prompt(self, text: str) -> tuple[int, ...]:
            if len(text) > LARGE_ITEM_BYTES:
                self.reading += 1
                self.most = max(self.most, self.reading)
                self.go.wait()
                self.reading -= 1
            return super().encode_prompt(text)

    tokens = Slow()
    lane = runs(FakeDriver(), tokens)

    def item(number: int, size: int) -> Record:
        return replace(record({"id": str(number), "prompt": "a" * size}), offset=number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(lane.run(item(number, LARGE_ITEM_BYTES + 1)), name=f"large {number}")
        assert (await lane.run(item(20, 5))).reason == ""
        tokens.go.set()
    assert tokens.most == 1
