"""Real tokenizers in the real Triton: the chat model's, and three families over the toy engine.

What comes back through text models, items and slices is the same text, ends by any end id, and holds no marker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from openai.types import Completion
from openai.types.chat import ChatCompletion
from tokenizers import Tokenizer
from tritonclient.grpc import aio as grpc

from dev.broker import LocalKafka
from dev.load import text_inputs
from dev.server import serving
from dev.triton import ENGINE_MODEL, Triton, TritonSettings, running
from sidecar.core.iteration_model import ERROR_MAX
from sidecar.offline.submit import submit
from sidecar.settings.offline import OfflineSettings
from sidecar.triton.tokenizer import Tokens
from tests.integration.conftest import sidecar_settings
from tests.integration.families import CHAT, FAMILIES, PROMPTS, TOY, repository
from tests.integration.test_operate import run

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
QUESTION = "What is the capital of France?"
OUTPUT_TOKENS = 48
SLOTS = 4
SLICES = {"slice_tokens": 4, "slice_tokens_busy": 4}
SPACES = {"llama": "", "qwen": "", "mistral": " ", CHAT: ""}  # before the first word, where text models answer
ENDS = {"llama": "end ids 2, 4, 17", "qwen": "end id 2", "mistral": "end id 2", CHAT: "end ids 2, 0"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Triton]:
    """The chat model under the usual names, and the toy engine under three families' text models."""
    models = repository(tmp_path_factory.mktemp("repository") / "models")
    async with running(
        tmp_path_factory.mktemp("triton"), TritonSettings(model=CHAT, slots=SLOTS, repository=models)
    ) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kafka() -> AsyncIterator[LocalKafka]:
    """One broker for all families: a sidecar after another works on it."""
    async with LocalKafka() as broker:
        await broker.create_topics(1)
        yield broker


def settings_of(family: str, triton: Triton, kafka: LocalKafka) -> dict[str, Any]:
    """The settings of a sidecar for one family. Slices are short, so that answers are resumed."""
    model = ENGINE_MODEL if family == CHAT else TOY
    offline = {"bootstrap_servers": kafka.bootstrap_servers, "first_start": "earliest", "tick_s": 0.05}
    settings = sidecar_settings(triton, offline={**offline, "model_default": model}, scheduler=SLICES)
    settings["tokenizer"] = str(triton.tokenizer.parent if family == CHAT else triton.settings.repository / family)
    text_model = "ensemble" if family == CHAT else f"ensemble_{family}"
    settings["engines"][0] |= {"model": model, "text_model": text_model, "slots": SLOTS}
    return settings


async def text_of(address: str, model: str, prompt: str) -> str:
    """What the text model streams at `address`."""
    pieces: list[bytes] = []

    async def asked() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": text_inputs(prompt, OUTPUT_TOKENS), "enable_empty_final_response": True}

    async with grpc.InferenceServerClient(address) as client, asyncio.timeout(60):
        async for response, error in client.stream_infer(asked()):
            assert error is None, error
            if (text := response.as_numpy("text_output")) is not None:
                pieces += text.ravel().tolist()
            if response.get_response().parameters["triton_final_response"].bool_param:
                break
    return b"".join(pieces).decode()


@pytest.mark.parametrize("family", [*FAMILIES, CHAT])
async def test_a_family_answers_alike_through_text_models_items_and_slices(
    family: str, triton: Triton, kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = settings_of(family, triton, kafka)
    tokens = Tokens.load(Path(settings["tokenizer"]))
    text_model = settings["engines"][0]["text_model"]
    offline = OfflineSettings(**settings["offline"])
    markers = [each.content for each in Tokenizer.from_file(f"{settings['tokenizer']}/tokenizer.json")
               .get_added_tokens_decoder().values()]  # fmt: skip
    content = QUESTION if family == CHAT else QUESTION + "".join(markers)

    async def result(item: dict[str, Any]) -> Any:
        name = f"{family}-{item['id']}"
        await submit(offline, [json.dumps({**item, "id": name}).encode()], {})
        options = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"}
        servers, topic = kafka.bootstrap_servers, offline.results_topic
        async with AIOKafkaConsumer(topic, bootstrap_servers=servers, **options) as consumer, asyncio.timeout(60):
            while True:
                found = json.loads((await consumer.getone()).value)
                if found["custom_id"] == name:
                    return found

    async with serving(tmp_path, settings) as sidecar:
        whole = await text_of(triton.target, text_model, PROMPTS[family])
        assert await text_of(sidecar.listen, text_model, PROMPTS[family]) == whole

        sliced = await result({"id": "text", "prompt": PROMPTS[family], "max_tokens": OUTPUT_TOKENS})
        completion = Completion.model_validate(sliced["response"]["body"])
        assert completion.choices[0].text == whole.removeprefix(SPACES[family])
        assert sliced["sidecar"]["resumed"] > 0

        middle = len(whole) // 2
        stop = whole[middle : middle + 4]
        stopped = await result({"id": "stop", "prompt": PROMPTS[family], "max_tokens": OUTPUT_TOKENS, "stop": [stop]})
        choice = Completion.model_validate(stopped["response"]["body"]).choices[0]
        assert (choice.text, choice.finish_reason) == (completion.choices[0].text.partition(stop)[0], "stop")

        tokens_max = 20 if family == CHAT else 400  # the toy says much
        asked = {"id": "chat", "messages": [{"role": "user", "content": content}], "max_tokens": tokens_max}
        chat = await result(asked)
        answer = ChatCompletion.model_validate(chat["response"]["body"])
        assert (answer.choices[0].finish_reason, chat["sidecar"]["ended_by"]) == ("stop", "end_id")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len(tokens.chat_ids([("user", content)], 1000))
        for text in (whole, said := answer.choices[0].message.content or ""):
            assert text.strip()
            assert [each for each in markers if each in text] == []
        assert family != CHAT or "Paris" in said

        code, output = await run("doctor", "--config", str(tmp_path / "sidecar.yaml"))
        assert (code, output.count("FAILED")) == (0, 0), output
        assert f"tokenizer: {settings['tokenizer']}, {ENDS[family]}\nok      chat template: it takes" in output
        await sidecar.drain()


async def test_the_iteration_times_of_the_real_model_are_learnt_and_charged_or_it_is_said_why_not(
    triton: Triton, kafka: LocalKafka, tmp_path: Path
) -> None:
    settings = settings_of(CHAT, triton, kafka)
    del settings["scheduler"]
    offline = OfflineSettings(**settings["offline"])
    stories = ({"id": f"story-{at}", "prompt": f"Once upon a time, {at} ships", "max_tokens": 120} for at in range(16))
    async with serving(tmp_path, settings) as sidecar, asyncio.timeout(120):
        await submit(offline, [json.dumps(each).encode() for each in stories], {})
        while not judged(status := await sidecar.status()):  # asked too often, it would disturb what it measures
            await text_of(sidecar.listen, "ensemble", PROMPTS[CHAT])
    figures = status["engines"]["e0"]["attribution"]
    model = figures["iteration"]
    assert not model["trusted"] or model["error"] < ERROR_MAX
    assert model["iteration_ms"] > 0
    assert model["points"]
    if model["trusted"]:
        assert (figures["attributed"], figures["alone_ms"]) > (0, 0.0)


def judged(status: dict[str, Any]) -> bool:
    """True once the model's predictions have a verdict, and a request has its account if they are good."""
    figures = status["engines"]["e0"]["attribution"]
    model = figures["iteration"]
    return model["error"] is not None and (not model["trusted"] or figures["attributed"] > 0)
