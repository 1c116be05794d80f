"""Single calls: infer, async_infer, the asyncio client, timeouts, compression, headers, shared memory."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.grpc import aio
from tritonclient.utils import InferenceServerException, shared_memory

from tests.integration.compare.programs.seen import (
    RELEASE,
    either,
    fault,
    ids_inputs,
    plain,
    query_inputs,
    tensor,
    text_inputs,
)


def infer(target: str, word: str) -> Any:
    """A call of a model that is not scheduled, in several ways."""
    del word
    outputs = [grpc.InferRequestedOutput("INPUT_ID")]
    with grpc.InferenceServerClient(target) as client:
        return [
            plain(client.infer("preprocessing", query_inputs())),
            plain(client.infer("preprocessing", query_inputs(), request_id="q7", model_version="1")),
            plain(client.infer("preprocessing", query_inputs(), outputs=outputs, headers={"x-own": "1"})),
            plain(client.infer("preprocessing", query_inputs(), priority=2, timeout=9_000_000)),
            plain(client.infer("preprocessing", query_inputs(), parameters={"n": 1, "t": "x", "b": True})),
            plain(client.infer("preprocessing", query_inputs(), client_timeout=9.0)),
            plain(client.infer("preprocessing", query_inputs("word " * 300), compression_algorithm="gzip")),
            plain(client.infer("preprocessing", query_inputs("word " * 300), compression_algorithm="deflate")),
        ]


def wrong(target: str, word: str) -> Any:
    """What the client raises for wrong requests."""
    del word
    cases: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("no-such", query_inputs(), {}),
        ("preprocessing", query_inputs(), {"model_version": "9"}),
        ("preprocessing", query_inputs()[:1], {}),
        ("preprocessing", [*query_inputs(), tensor("NO_SUCH", "INT32", [1])], {}),
        ("preprocessing", query_inputs(), {"outputs": [grpc.InferRequestedOutput("NO_SUCH")]}),
        ("preprocessing", query_inputs(), {"outputs": [grpc.InferRequestedOutput("INPUT_ID", class_count=2)]}),
        ("preprocessing", query_inputs(), {"sequence_id": 7, "sequence_start": True}),
    ]
    seen = []
    with grpc.InferenceServerClient(target) as client:
        for model, inputs, options in cases:
            try:
                seen.append(plain(client.infer(model, inputs, **options)))
            except InferenceServerException as failure:
                seen.append(fault(failure))
    return seen


def scheduled(target: str, word: str) -> Any:
    """Plain calls of the scheduled models, which Triton refuses because they are decoupled."""
    del word
    seen = []
    with grpc.InferenceServerClient(target) as client:
        for model, inputs in (("ensemble", text_inputs(stream=False)), ("tensorrt_llm", ids_inputs(streaming=False))):
            try:
                seen.append(plain(client.infer(model, inputs, request_id="u")))
            except InferenceServerException as failure:
                seen.append(fault(failure))
    return seen


def callbacks(target: str, word: str) -> Any:
    """Several calls at once, each with a callback."""
    del word
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        for number in range(6):
            model = "preprocessing" if number % 3 else "no-such"
            client.async_infer(
                model,
                query_inputs(f"hello {number}"),
                callback=lambda result, error, n=number: answers.put((n, either(result, error))),
                request_id=str(number),
            )
        return sorted((answers.get(timeout=10) for _ in range(6)), key=lambda pair: int(pair[0]))


def asyncio_calls(target: str, word: str) -> Any:
    """The same with the asyncio client, several at once."""
    del word

    async def one(client: Any, number: int) -> Any:
        try:
            model = "preprocessing" if number % 3 else "no-such"
            return plain(await client.infer(model, query_inputs(f"hello {number}"), request_id=str(number)))
        except InferenceServerException as failure:
            return fault(failure)

    async def run() -> Any:
        async with aio.InferenceServerClient(target) as client:
            return await asyncio.gather(*(one(client, number) for number in range(6)))

    return asyncio.run(run())


def in_shared_memory(target: str, word: str) -> Any:
    """Input and output in regions that the package's own helper makes."""
    ids = np.array([[[75, 72, 79]]], dtype=np.int32)
    before, after = f"{word}-{RELEASE}-before", f"{word}-{RELEASE}-after"
    given = shared_memory.create_shared_memory_region(before, f"/{before}", ids.nbytes)
    taken = shared_memory.create_shared_memory_region(after, f"/{after}", 64)
    try:
        shared_memory.set_shared_memory_region(given, [ids])
        with grpc.InferenceServerClient(target) as client:
            client.register_system_shared_memory(before, f"/{before}", ids.nbytes)
            client.register_system_shared_memory(after, f"/{after}", 64)
            tokens = grpc.InferInput("TOKENS_BATCH", [1, 1, 3], "INT32")
            tokens.set_shared_memory(before, ids.nbytes)
            output = grpc.InferRequestedOutput("OUTPUT")
            output.set_shared_memory(after, 64)
            found = client.infer("postprocessing", [tokens, tensor("SEQUENCE_LENGTH", "INT32", [3])], outputs=[output])
            placed = found.get_output("OUTPUT")
            prompt = grpc.InferInput("input_ids", [1, 3], "INT32")
            prompt.set_shared_memory(before, ids.nbytes)
            status = client.get_system_shared_memory_status(as_json=True)
            regions = sorted(key for key in status.get("regions", {}) if key.startswith(f"{word}-{RELEASE}"))
            client.unregister_system_shared_memory(before)
            client.unregister_system_shared_memory(after)
            text = shared_memory.get_contents_as_numpy(taken, np.object_, [1])
            return {"shape": list(placed.shape), "text": text.ravel()[0].decode(), "regions": regions}
    finally:
        shared_memory.destroy_shared_memory_region(given)
        shared_memory.destroy_shared_memory_region(taken)


PROGRAMS = {
    "infer": infer,
    "wrong calls": wrong,
    "calls of scheduled models": scheduled,
    "callbacks": callbacks,
    "asyncio calls": asyncio_calls,
    "shared memory": in_shared_memory,
}
