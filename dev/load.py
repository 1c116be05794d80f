"""An open-loop online load through unmodified tritonclient: seeded Poisson arrivals, streamed answers, true latencies.

Latency is counted from the moment a request was due, not from when the client got round to sending it, so that a
client that falls behind cannot hide a slow server (coordinated omission).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient.grpc import aio as triton

PROMPT_WORDS = (
    "the train to the coast leaves early so we pack bread tea and one good book before the rain comes over "
    "the hill and every lamp in the old town begins to shine while someone asks how far it is to the sea"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One online request: when it is due after the start of its phase, and what it asks."""

    due_s: float
    prompt: str
    output_tokens_max: int
    question: str = ""  # what of the prompt a reader is shown


@dataclass(slots=True)
class LoadResult:
    """What the callers saw. Latencies in ms, one entry per request that succeeded."""

    sent: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)  # how long after it was due each request was sent
    answers: dict[str, str] = field(default_factory=dict)  # by question, the newest of each


def toy_prompt(draw: random.Random) -> tuple[str, str]:
    """No question, and a prompt of the toy's words."""
    return "", " ".join(draw.choices(PROMPT_WORDS, k=draw.randint(6, 24)))


def arrivals(
    *,
    rate_per_s: float,
    seconds: float,
    seed: int,
    output_tokens_max: int = 64,
    prompt_of: Callable[[random.Random], tuple[str, str]] = toy_prompt,
) -> tuple[Arrival, ...]:
    """Poisson arrivals of `rate_per_s` over `seconds`; the same seed gives the same requests at the same times."""
    draw = random.Random(seed)
    due_s, found = draw.expovariate(rate_per_s), []
    while due_s < seconds:
        question, prompt = prompt_of(draw)
        found.append(Arrival(due_s=due_s, prompt=prompt, output_tokens_max=output_tokens_max, question=question))
        due_s += draw.expovariate(rate_per_s)
    return tuple(found)


async def run_load(
    address: str,
    requests: Sequence[Arrival],
    result: LoadResult,
    *,
    timeout_s: float = 60.0,
    headers: dict[str, str] | None = None,
) -> None:
    """Send each request when it is due, whatever became of those before it; `result` is filled as answers come.

    `headers` are metadata of each call.
    """
    async with triton.InferenceServerClient(address) as client, asyncio.TaskGroup() as tasks:
        start_s = asyncio.get_running_loop().time()
        for number, request in enumerate(requests):
            await asyncio.sleep(start_s + request.due_s - asyncio.get_running_loop().time())
            result.sent += 1
            result.late_ms.append(1e3 * (asyncio.get_running_loop().time() - start_s - request.due_s))
            tasks.create_task(
                _one(client, request, start_s + request.due_s, result, timeout_s, headers), name=f"online-{number}"
            )


async def _one(
    client: Any,
    request: Arrival,
    due_s: float,
    result: LoadResult,
    timeout_s: float,
    headers: dict[str, str] | None,
) -> None:
    clock = asyncio.get_running_loop().time
    first_s: float | None = None
    said = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for response, error in client.stream_infer(_requests([request]), headers=headers):
                if error is not None:
                    raise error
                text = response.as_numpy("text_output")
                if first_s is None and text is not None:
                    first_s = clock()
                if request.question and text is not None:
                    said += text.item()
    except Exception as error:  # whatever it is, it is one failed request to this caller, and it is shown
        result.errors.append(f"{type(error).__name__}: {error}")
        return
    if request.question:
        result.answers[request.question] = said.decode(errors="replace")
    result.ttft_ms.append(1e3 * ((first_s or clock()) - due_s))
    result.e2e_ms.append(1e3 * (clock() - due_s))


async def _requests(requests: Iterable[Arrival]) -> AsyncIterator[dict[str, Any]]:
    for request in requests:
        yield {"model_name": "ensemble", "inputs": text_inputs(request.prompt, request.output_tokens_max)}


def text_inputs(prompt: str, output_tokens_max: int) -> list[Any]:
    """The inputs of the `ensemble` model for one streamed prompt."""
    tensors = {
        "text_input": ("BYTES", np.array([[prompt.encode()]], dtype=np.object_)),
        "max_tokens": ("INT32", np.array([[output_tokens_max]], dtype=np.int32)),
        "stream": ("BOOL", np.array([[True]])),
    }
    inputs = []
    for name, (datatype, value) in tensors.items():
        tensor = triton.InferInput(name, list(value.shape), datatype)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    return inputs


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 of `values` (the nearest rank), or None for each where there are none."""
    ranked = sorted(values)
    return {
        f"p{share}": round(ranked[min(len(ranked) - 1, len(ranked) * share // 100)], 2) if ranked else None
        for share in (50, 95, 99)
    }
