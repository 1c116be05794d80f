"""A Triton with restricted protocols and explicit model control, and one that is gone."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from tests.integration.compare.allowed import ANSWERS_FOR_ITSELF, KEYLESS, KEYLESS_BY_ONE, OUTLIVED, OUTLIVED_BY_ONE
from tests.integration.compare.deployment import ADMIN, INFERENCE, header
from tests.integration.compare.messages import ids, long_ids, query, stop, text
from tests.integration.compare.scenario import (
    Ask,
    Await,
    Close,
    Metadata,
    Open,
    Part,
    Scenario,
    Send,
    Step,
    Subject,
    Where,
)

RIGHT: Metadata = (header(ADMIN),)
WRONG: Metadata = (header((ADMIN[0], "guess")),)
MAY_INFER: Metadata = (header(INFERENCE),)
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ModelConfig", {"name": "ensemble"}),
    ("ModelStatistics", {"name": "ensemble"}),
    ("RepositoryIndex", {}),
    ("SystemSharedMemoryStatus", {}),
    ("TraceSetting", {}),
    ("LogSettings", {}),
)


def ask(method: str, *, metadata: Metadata = RIGHT, until_status: str = "", **fields: Any) -> Ask:
    body = getattr(service_pb2, f"{method}Request")(**fields).SerializeToString()
    return Ask(method=method, body=body, metadata=metadata, until_status=until_status)


def load(model: str) -> Ask:
    return ask("RepositoryModelLoad", model_name=model)


def unload(model: str) -> Ask:
    return ask("RepositoryModelUnload", model_name=model)


def guarded(name: str, *steps: Step, **options: Any) -> Scenario:
    return Scenario(name=name, steps=steps, where=Where.GUARDED, **options)


def streamed(*bodies: bytes, metadata: Metadata = MAY_INFER, call: str = "stream") -> tuple[Step, ...]:
    """These requests on one stream."""
    return (Open(metadata=metadata, call=call), *(Send(body=body, call=call) for body in bodies), Close(call=call))


def gone(model: str) -> Ask:
    """The model has been unloaded: that ends after the call that asked for it."""
    return ask("ModelMetadata", metadata=(), name=model, until_status="ERROR")


def called(body: bytes, metadata: Metadata = MAY_INFER) -> Ask:
    """One unary request."""
    return Ask(method="ModelInfer", body=body, metadata=metadata)


GUARDED = Subject(
    title="Restricted protocols",
    scenarios=(
        *(
            guarded(f"{method} {word}", ask(method, metadata=metadata, **fields))
            for method, fields in METHODS
            for word, metadata in (("without the key", ()), ("with the key", RIGHT))
        ),
        guarded("ModelConfig with a wrong key", ask("ModelConfig", metadata=WRONG, name="ensemble")),
        guarded("load without the key", ask("RepositoryModelLoad", metadata=(), model_name="preprocessing")),
        guarded(
            "what is not restricted",
            ask("ModelMetadata", metadata=(), name="ensemble"),
            ask("ServerReady", metadata=()),
        ),
        *(
            guarded(
                f"{name} {word}",
                *streamed(body, metadata=metadata),
                differs=() if name == "not scheduled" or metadata == MAY_INFER else (KEYLESS,),
            )
            for name, body in (
                ("the engine model", ids(id="a")),
                ("the text model", text(id="a")),
                ("not scheduled", query(id="a")),
            )
            for word, metadata in (
                ("without the key", ()),
                ("with a wrong key", (header((INFERENCE[0], "x")),)),
                ("with the key", MAY_INFER),
            )
        ),
        guarded(
            "both kinds on one stream without the key",
            *streamed(ids(id="a"), query(id="b"), metadata=()),
            differs=(KEYLESS_BY_ONE,),
            ignored=(Part.TEXT,),  # of a write to a stream that Triton has ended already, gRPC keeps no status
        ),
        guarded("a unary call without the key", called(query(id="a"), ())),
        guarded("a unary call with the key", called(query(id="a"))),
        guarded(
            "a stop without the key of what another caller runs",
            Open(metadata=MAY_INFER),
            Send(body=long_ids("a")),
            Await(responses=2),
            Open(call="other", channel="other"),
            Send(body=stop("a"), call="other"),
            Close(call="other"),
            Send(body=stop("a")),
            Close(),
            shortened=("a",),
            differs=(KEYLESS,),
        ),
    ),
)
CONTROL = Subject(
    title="Model control",
    scenarios=(
        guarded("an unknown model is loaded", load("no-such")),
        guarded("an unknown model is unloaded", unload("no-such")),
        guarded("a loaded model is loaded again", load("preprocessing"), *streamed(query(id="a"))),
        guarded(
            "a model that is not scheduled: unloaded, asked, loaded, asked",
            unload("preprocessing"),
            gone("preprocessing"),
            called(query(id="a")),
            *streamed(query(id="b")),
            load("preprocessing"),
            called(query(id="c")),
        ),
        guarded(
            "postprocessing unloaded: what a text request sees, and ids",
            unload("postprocessing"),
            gone("postprocessing"),
            *streamed(text(id="a")),
            *streamed(ids(id="b"), call="ids"),
            load("postprocessing"),
            *streamed(text(id="c"), call="again"),
        ),
        guarded(
            "the text model unloaded, asked, loaded, asked",
            unload("ensemble"),
            gone("ensemble"),
            *streamed(text(id="a")),
            load("ensemble"),
            *streamed(text(id="b"), call="again"),
        ),
        guarded(
            "the index while a model is unloaded",
            unload("postprocessing"),
            gone("postprocessing"),
            ask("RepositoryIndex"),
            ask("RepositoryIndex", ready=True),
            load("postprocessing"),
            ask("RepositoryIndex"),
        ),
    ),
)
GONE = Subject(
    title="Triton is gone",
    scenarios=tuple(
        Scenario(name=name, steps=steps, where=Where.GONE, differs=differs)
        for name, steps, differs in (
            ("a stream to the engine model", streamed(ids(id="a")), (OUTLIVED,)),
            ("a stream to the text model", streamed(text(id="a")), (OUTLIVED,)),
            ("a stream to a model that is not scheduled", streamed(query(id="a")), ()),
            ("a stream of both kinds", streamed(ids(id="a"), query(id="b")), (OUTLIVED_BY_ONE,)),
            ("a unary call", (called(query(id="a")),), ()),
            ("ServerReady", (ask("ServerReady"),), (ANSWERS_FOR_ITSELF,)),
            ("ServerMetadata", (ask("ServerMetadata"),), ()),
        )
    ),
)
