"""System shared memory, for inputs and outputs, registered through the same address."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from tritonclient.grpc import service_pb2

from sidecar.triton.wire import pack
from tests.integration.compare.messages import (
    AFTER,
    BEFORE,
    ENGINE,
    PROMPT,
    TEXT,
    Tensor,
    ids_inputs,
    infer,
    tensor,
    text_inputs,
)
from tests.integration.compare.scenario import RUN, Ask, Close, Look, Open, Region, Scenario, Send, Step, Subject

IDS = pack("INT32", PROMPT)
QUERY = pack("BYTES", [b"hello there"])
PROSE = pack("BYTES", [b"the train to the coast"])
SIX = struct.pack("<i", 6)


def register(name: str, key: str, size: int, offset: int = 0) -> Ask:
    """The region `key` is known to the server as `name`."""
    body = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=size)
    return Ask(method="SystemSharedMemoryRegister", body=body.SerializeToString())


def unregister(name: str) -> Ask:
    """The server has forgotten the region: it refuses while a request that has been answered still holds it."""
    body = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
    return Ask(method="SystemSharedMemoryUnregister", body=body.SerializeToString(), until_status="OK")


def status(name: str) -> Ask:
    """What the server says of the region."""
    body = service_pb2.SystemSharedMemoryStatusRequest(name=name)
    return Ask(method="SystemSharedMemoryStatus", body=body.SerializeToString())


def with_region(name: str, content: bytes, steps: Callable[[str], Sequence[Step]], **options: Any) -> Scenario:
    """A region that is registered before the steps, which get its name, and unregistered after them."""
    region = f"{RUN}-{name.replace(' ', '-')}"
    begun = (Region(name=f"/{region}", content=content), register(region, f"/{region}", len(content)))
    return Scenario(name=name, steps=(*begun, *steps(region), unregister(region)), **options)


def streamed(model: str, inputs: Sequence[Tensor], **options: Any) -> tuple[Step, ...]:
    """One request on a stream of its own."""
    return (Open(), Send(body=infer(model, *inputs, id="a", **options)), Close())


def without(inputs: Sequence[Tensor], name: str) -> list[Tensor]:
    """All of them but one."""
    return [each for each in inputs if each.name != name]


def ids_in(region: str, size: int = len(IDS), offset: int = 0) -> Tensor:
    """The prompt lies in a region."""
    return Tensor(name="input_ids", datatype="INT32", shape=(1, len(PROMPT)), region=(region, offset, size))


def scalar_in(region: str, name: str) -> Tensor:
    """A number lies in a region."""
    return Tensor(name=name, datatype="INT32", shape=(1, 1), region=(region, 0, 4))


def text_in(region: str, name: str, size: int) -> Tensor:
    """A text lies in a region."""
    return Tensor(name=name, datatype="BYTES", shape=(1, 1), region=(region, 0, size))


def typed_scalars() -> list[Tensor]:
    """The other inputs of the engine model with typed contents."""
    numbers = (("input_lengths", len(PROMPT)), ("request_output_len", 6))
    return [Tensor(name=name, datatype="INT32", shape=(1, 1), typed=(value,)) for name, value in numbers]


def unary_with_output(region: str) -> tuple[Step, ...]:
    """A model that is not scheduled writes its first output into the region."""
    inputs = (tensor("QUERY", "BYTES", [b"hello there"]), tensor("REQUEST_OUTPUT_LEN", "INT32", [5]))
    body = infer(BEFORE, *inputs, id="a", output_region=("INPUT_ID", region, 64))
    return (Ask(method="ModelInfer", body=body), Look(name=f"/{region}", size=64))


def decoded_into(region: str) -> tuple[Step, ...]:
    """Input and output of one call in one region."""
    ids = Tensor(name="TOKENS_BATCH", datatype="INT32", shape=(1, 1, 3), region=(region, 0, 12))
    inputs = (ids, tensor("SEQUENCE_LENGTH", "INT32", [3]))
    body = infer(AFTER, *inputs, id="a", output_region=("OUTPUT", region, 64))
    return (Ask(method="ModelInfer", body=body), Look(name=f"/{region}", size=64))


SHARED_MEMORY = Subject(
    title="Shared memory",
    scenarios=(
        with_region("registered, shown, unregistered, gone", IDS, lambda r: (status(r), unregister(r), status(r))),
        with_region("registered twice under one name", IDS, lambda r: (register(r, f"/{r}", len(IDS)),)),
        Scenario(name="a key that does not exist", steps=(register("none", "/no-such-region", 16),)),
        with_region("prompt ids", IDS, lambda r: streamed(ENGINE, [ids_in(r), *ids_inputs()[1:]])),
        with_region(
            "prompt ids at an offset",
            bytes(8) + IDS,
            lambda r: streamed(ENGINE, [ids_in(r, offset=8), *ids_inputs()[1:]]),
        ),
        with_region(
            "request_output_len",
            SIX,
            lambda r: streamed(
                ENGINE, [*without(ids_inputs(), "request_output_len"), scalar_in(r, "request_output_len")]
            ),
        ),
        with_region(
            "text", PROSE, lambda r: streamed(TEXT, [text_in(r, "text_input", len(PROSE)), *text_inputs()[1:]])
        ),
        with_region(
            "max_tokens",
            SIX,
            lambda r: streamed(TEXT, [*without(text_inputs(), "max_tokens"), scalar_in(r, "max_tokens")]),
        ),
        with_region(
            "prompt ids, typed contents beside them", IDS, lambda r: streamed(ENGINE, [ids_in(r), *typed_scalars()])
        ),
        with_region(
            "more than the region has", IDS, lambda r: streamed(ENGINE, [ids_in(r, size=64), *ids_inputs()[1:]])
        ),
        with_region(
            "fewer bytes than the shape needs", IDS, lambda r: streamed(ENGINE, [ids_in(r, size=8), *ids_inputs()[1:]])
        ),
        Scenario(name="an unknown region", steps=streamed(ENGINE, [ids_in("no-such"), *ids_inputs()[1:]])),
        with_region(
            "input of a model that is not scheduled",
            QUERY,
            lambda r: streamed(BEFORE, [text_in(r, "QUERY", len(QUERY)), tensor("REQUEST_OUTPUT_LEN", "INT32", [5])]),
        ),
        with_region("output of a model that is not scheduled", bytes(64), unary_with_output),
        with_region("input and output of one call", pack("INT32", (75, 72, 79)) + bytes(52), decoded_into),
        with_region(
            "output of the engine model",
            bytes(64),
            lambda r: (
                *streamed(ENGINE, ids_inputs(tokens=1), output_region=("output_ids", r, 64)),
                Look(name=f"/{r}", size=64),
            ),
        ),
        with_region(
            "output of the text model, too small a region",
            bytes(4),
            lambda r: streamed(TEXT, text_inputs(tokens=1), output_region=("text_output", r, 4)),
        ),
    ),
)
