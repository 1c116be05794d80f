"""Items through the real Kafka, the sidecar and the real Triton: drawn, stopped and refused as the docs say."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from openai.types import Completion
from openai.types.chat import ChatCompletion

from dev.broker import LocalKafka
from dev.server import serving
from dev.triton import Triton
from sidecar.offline.submit import submit
from sidecar.settings.offline import OfflineSettings
from tests.integration.conftest import sidecar_settings

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]
CHAT = "/v1/chat/completions"
PROMPT = "<|offline|>how far is the sea"  # the CPU engine draws a long output for it


def line(custom_id: str, *, chat: bool = False, **body: Any) -> bytes:
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    url = CHAT if chat else "/v1/completions"
    return json.dumps({"custom_id": custom_id, "url": url, "body": {**asked, "max_tokens": 24, **body}}).encode()


BAD = [
    line("bad-seed", seed=-1),
    line("bad-float", temperature=1e300),
    line("bad-int", top_k=1 << 31),
    line("bad-tools", tools=[{"type": "function"}]),
    rb'{"custom_id":"x\ud83d","url":"/v1/completions","body":{"prompt":"a","max_tokens":4}}',
    b'{"custom_id":"bad","url":"/v1/completions","body":null}',
]


async def records(servers: str, topic: str, count: int) -> list[Any]:
    options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    async with AIOKafkaConsumer(topic, bootstrap_servers=servers, **options) as consumer, asyncio.timeout(60):
        return [await consumer.getone() for _ in range(count)]


async def test_items_are_drawn_stopped_and_refused_as_they_state(triton: Triton, tmp_path: Path) -> None:
    async with LocalKafka() as kafka:
        await kafka.create_topics(1)
        fields = {"bootstrap_servers": kafka.bootstrap_servers, "first_start": "earliest", "tick_s": 0.05}
        offline = OfflineSettings(**fields)  # type: ignore[arg-type]
        bodies: dict[str, bytes] = {}

        async def results(*lines: bytes) -> dict[str, Any]:
            await submit(offline, lines, {})
            bodies.update((json.loads(each)["custom_id"], each) for each in lines)
            found = [json.loads(each.value) for each in await records(servers, offline.results_topic, len(bodies))]
            return {each["custom_id"]: each["response"]["body"] for each in found}

        servers = kafka.bootstrap_servers
        async with serving(tmp_path, sidecar_settings(triton, offline=fields)) as sidecar:
            await submit(offline, BAD, {})
            dead = await records(servers, offline.dead_letter_topic, len(BAD))
            assert [dict(each.headers)["dlq.error.class"] for each in dead] == [b"invalid"] * len(BAD)
            assert [each.value for each in dead] == BAD
            found = await results(
                *(line(f"default-{number}") for number in range(3)),
                *(line(f"greedy-{number}", temperature=0) for number in range(2)),
                *(line(f"seeded-{number}", seed=7) for number in range(2)),
                line("chat", chat=True),
            )
            texts = {
                name: Completion.model_validate(each).choices[0].text for name, each in found.items() if name != "chat"
            }
            assert len({texts[f"default-{number}"] for number in range(3)}) == 3
            assert texts["greedy-0"] == texts["greedy-1"]
            assert texts["seeded-0"] == texts["seeded-1"] != texts["greedy-0"]
            assert ChatCompletion.model_validate(found["chat"]).choices[0].message.content
            whole = texts["greedy-0"]
            stop = whole[
                len(whole) // 3 : len(whole) // 3 + 9
            ]  # it begins and ends wherever that is, over several tokens
            found = await results(line("stopped", temperature=0, stop=["never there", stop]))
            choice = Completion.model_validate(found["stopped"]).choices[0]
            assert (choice.text, choice.finish_reason) == (whole[: whole.index(stop)], "stop")
            await sidecar.drain()
