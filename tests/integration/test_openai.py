"""The unmodified `openai` package against the sidecar, before the chat model in the real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam

from dev.broker import free_ports
from dev.server import SidecarProcess, serving
from dev.triton import TritonSettings, running
from tests.integration.conftest import sidecar_settings, status_when

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
ANSWER = "The capital of France is Paris."
MODEL = "tensorrt_llm"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[SidecarProcess, openai.AsyncOpenAI]]:
    """A sidecar before the chat model, and a client that knows only its address."""
    directory, [port] = Path(tmp_path_factory.mktemp("openai")), free_ports(1)
    async with running(directory, TritonSettings(model="smollm2", slots=4)) as triton:
        settings = sidecar_settings(triton, openai={"listen": f"127.0.0.1:{port}"})
        settings["engines"][0]["slots"] = 4
        async with serving(directory, settings) as sidecar:
            async with openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
            ) as client:
                yield sidecar, client
            await sidecar.drain()


Served = tuple[SidecarProcess, openai.AsyncOpenAI]


@pytest.mark.parametrize("tier", ["default", "flex"])
async def test_a_chat_is_answered_in_either_lane(served: Served, tier: str) -> None:
    _, client = served
    found = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=20,
        temperature=0,
        service_tier=tier,  # type: ignore[call-overload]
    )
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (ANSWER, "stop")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.service_tier == tier


async def test_a_stream_gives_the_same_text_piece_by_piece_and_its_usage(served: Served) -> None:
    _, client = served
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [each async for each in stream]
    pieces = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(pieces) == ANSWER
    assert len([each for each in pieces if each]) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


async def test_a_stop_text_never_shows_in_a_stream(served: Served) -> None:
    _, client = served
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=20, temperature=0, stream=True, stop=[" is Par"]
    )
    text = "".join([each.choices[0].delta.content or "" async for each in stream if each.choices])
    assert text == "The capital of France"


async def test_a_plain_completion_goes_on_with_its_prompt(served: Served) -> None:
    _, client = served
    found = await client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=3, temperature=0)
    assert "Paris" in found.choices[0].text


async def test_what_is_not_served_is_refused_by_name(served: Served) -> None:
    _, client = served
    with pytest.raises(openai.BadRequestError, match="n must be 1") as refused:
        await client.chat.completions.create(model=MODEL, messages=QUESTION, n=2)
    assert refused.value.param == "n"
    with pytest.raises(openai.NotFoundError, match="no engine for model 'gpt-9'"):
        await client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.NotFoundError, match="is not served"):
        await client.embeddings.create(model=MODEL, input="text")


async def test_the_models_are_those_that_a_request_may_name(served: Served) -> None:
    _, client = served
    assert [each.id async for each in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL


async def test_a_program_that_goes_away_gives_its_slot_back(served: Served) -> None:
    sidecar, client = served
    stream = await client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=500, stream=True, stop=None
    )
    await anext(aiter(stream))
    await stream.close()
    status = await status_when(sidecar, lambda each: each["in_flight"] == 0)
    assert status["in_flight"] == 0
    answers = [client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=20) for _ in range(8)]
    assert len(await asyncio.gather(*answers)) == 8
