"""The chat model that setup writes, in the real Triton: it answers, and its answer ends, in either lane."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from tokenizers import Tokenizer

from dev.deployment import DeploymentShape, Kafka, broker, settings
from dev.server import serving
from dev.triton import ENGINE_MODEL, TritonSettings, running
from sidecar.triton.client import EngineClient

pytestmark = pytest.mark.integration
QUESTION = "What is the capital of France?"
SYSTEM = "You are a helpful assistant."
ANSWER = "The capital of France is Paris."
SLICE_TOKENS = 8
STORY: dict[str, Any] = {"id": "story", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 30}
THREE_ENDS = [2, 0, 1]  # <|im_start|> besides the model's own two


async def test_the_capital_of_france_is_paris(tmp_path: Path) -> None:
    triton_settings = TritonSettings(model="smollm2", slots=2)
    tokenizer = Tokenizer.from_file(str(triton_settings.tokenizer_dir / "tokenizer.json"))
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    prompt = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    async with running(tmp_path, triton_settings) as triton, EngineClient(triton.target, triton.keys) as client:
        ids = await client.generate(ENGINE_MODEL, prompt, 8, 30.0)
    answer = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert answer.strip().startswith("The capital of France is Paris.")


async def test_chats_come_back_from_kafka_and_from_the_command_line(tmp_path: Path) -> None:
    shape = DeploymentShape(model="smollm2", slots=2)
    tokenizer = Tokenizer.from_file(str(TritonSettings(model=shape.model).tokenizer_dir / "tokenizer.json"))
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    ask = {"messages": messages, "max_tokens": 20}
    # Its template writes a system message of its own, beside which the first token is nearly a tie of two languages.
    bare = {"id": "bare", "messages": messages[1:], "max_tokens": 20}
    items = [{"id": "q", **ask}, bare, STORY, {"id": "stopped", "stop": [" is Par"], **ask}]
    async with (
        broker(None, tmp_path) as kafka,
        running(tmp_path, TritonSettings(model=shape.model, slots=shape.slots)) as triton,
    ):
        slices = {"slice_tokens": SLICE_TOKENS, "slice_tokens_busy": SLICE_TOKENS}
        document = {**settings(shape, triton, kafka, tmp_path), "scheduler": slices, "end_ids": THREE_ENDS}
        async with serving(tmp_path, document) as sidecar:
            found = await results_of(kafka, items)
            said = [await chat(tmp_path, *lane) for lane in ((), ("--offline",))]
            await sidecar.drain()
    assert said == [ANSWER, ANSWER]
    assert [text_of(found[name]) for name in ("q", "bare")] == [(ANSWER, "stop")] * 2
    assert text_of(found["stopped"]) == ("The capital of France", "stop")
    assert found["q"]["sidecar"]["ended_by"] == "end_id"
    usage = found["q"]["response"]["body"]["usage"]
    assert usage["completion_tokens"] == len(tokenizer.encode(ANSWER, add_special_tokens=False).ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    text, finish = text_of(found["story"])
    again = tokenizer.encode(text, add_special_tokens=False).ids
    assert (finish, len(again)) == ("length", STORY["max_tokens"])  # at no seam an id is lost, or there twice
    assert found["story"]["response"]["body"]["usage"]["completion_tokens"] == STORY["max_tokens"]
    assert found["story"]["sidecar"]["resumed"] == (STORY["max_tokens"] - 1) // SLICE_TOKENS


async def results_of(kafka: Kafka, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The results of these items, by their ids."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for item in items:
            await producer.send_and_wait(kafka.topics["requests"], json.dumps(item).encode())
    options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
    topics = (kafka.topics["results"], kafka.topics["dlq"])
    async with AIOKafkaConsumer(*topics, bootstrap_servers=kafka.bootstrap_servers, **options) as consumer:
        async with asyncio.timeout(120):
            records = [await consumer.getone() for _ in items]
    assert [each.headers for each in records if each.topic == kafka.topics["dlq"]] == []
    return {found["custom_id"]: found for found in (json.loads(each.value) for each in records)}


def text_of(result: dict[str, Any]) -> tuple[str, str]:
    [choice] = result["response"]["body"]["choices"]
    return choice["message"]["content"], choice["finish_reason"]


async def chat(directory: Path, *options: str) -> str:
    """What `sidecar chat` prints."""
    command = (sys.executable, "-m", "sidecar", "chat", QUESTION, "--system", SYSTEM)
    config = ("--config", str(directory / "sidecar.yaml"))
    process = await asyncio.create_subprocess_exec(*command, *config, *options, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().strip()
