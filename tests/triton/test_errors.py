"""Whose fault an error is: its status says so, its words never do."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from sidecar.errors import EngineError
from sidecar.triton.client import EngineClient, responses, token_request
from sidecar.triton.errors import code_of
from tests.fakes.triton import FakeTriton


@pytest.mark.parametrize(
    "text",
    [
        "unexpected CUDA error 700",
        "Invalid device pointer",
        "tensor 'seed' must be >= 0",
        "Request for unknown model: 'x' is not found",
        "Exceeds maximum queue size",
        "[INVALID_ARGUMENT] at the beginning",
        "in the [INVALID_ARGUMENT] middle",
        "of no status [SEGFAULT]",
        "of none either []",
        "an error that is none [OK]",
        "",
    ],
)
def test_a_text_that_says_no_status_is_internal_and_may_be_tried_again(text: str) -> None:
    assert code_of(text) is grpc.StatusCode.INTERNAL
    assert EngineError(text, code_of(text)).retryable


@pytest.mark.parametrize(
    ("name", "retryable"), [("INVALID_ARGUMENT", False), ("UNAVAILABLE", True), ("INTERNAL", True)]
)
def test_our_models_say_their_status_at_the_end_of_the_text(name: str, retryable: bool) -> None:
    for text in (f"it must be >= 1 [{name}]", f"in ensemble 'x', it [really] must [{name}]"):
        assert code_of(text) is grpc.StatusCode[name]
        assert EngineError(text, code_of(text)).retryable is retryable


@pytest.mark.parametrize("error_status", [False, True])
async def test_triton_is_asked_for_the_status_only_where_it_survives_that(
    triton: FakeTriton, error_status: bool
) -> None:
    given = (("triton_grpc_error", "true"), ("x-a", "b"))  # a caller's wish for its own stream
    async with EngineClient(triton.target) as client:
        client.version = (2, 68) if error_status else (2, 51)
        call = client.open(given)
        await call.write(token_request("tensorrt_llm", (1,), 1, "a"))
        request = await triton.next()
        assert (request.metadata.get("triton_grpc_error"), request.metadata["x-a"]) == (
            "true" if error_status else None,
            "b",
        )
        request.end()
        call.cancel()


@pytest.mark.parametrize("error_status", [False, True])
async def test_either_way_an_error_has_its_status(triton: FakeTriton, error_status: bool) -> None:
    async with EngineClient(triton.target) as client:
        client.version = (2, 68) if error_status else (2, 51)
        asking = asyncio.create_task(responses(client.open(), token_request("tensorrt_llm", (1,), 1, "a")))
        (await triton.next()).error("no such adapter", grpc.StatusCode.NOT_FOUND)
        with pytest.raises(EngineError, match="no such adapter") as raised:
            await asking
        assert raised.value.code is grpc.StatusCode.NOT_FOUND
