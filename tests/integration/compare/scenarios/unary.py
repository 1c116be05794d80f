"""ModelInfer."""

from __future__ import annotations

from typing import Any

from tests.integration.compare.allowed import SERVED
from tests.integration.compare.messages import BEFORE, ids, ids_inputs, infer, query, tensor, text, tokens
from tests.integration.compare.scenario import Ask, Close, Open, Scenario, Send, Subject


def asked(name: str, body: bytes, **options: Any) -> Scenario:
    """One call."""
    return Scenario(name=name, steps=(Ask(method="ModelInfer", body=body, call="call"),), **options)


def joined(name: str, body: bytes, whole: bytes) -> Scenario:
    """A call that Triton refuses because the model is decoupled; it answers `whole` on a stream instead."""
    directly = (Open(call="call"), Send(body=whole, call="call"), Close(call="call"))
    return asked(name, body, directly=directly)


TWO = infer(
    BEFORE,
    tensor("QUERY", "BYTES", [b"hello", b"there"], (2, 1)),
    tensor("REQUEST_OUTPUT_LEN", "INT32", [5, 6], (2, 1)),
    id="q2",
)
UNARY = Subject(
    title="One request, one answer (ModelInfer)",
    scenarios=(
        asked("preprocessing", query(id="q1"), clients=("python", "go")),
        asked("postprocessing", tokens(id="p1")),
        asked("requested outputs", query(id="q1", outputs=("REQUEST_INPUT_LEN", "INPUT_ID"))),
        asked("a requested output that does not exist", query(id="q1", outputs=("NO_SUCH",))),
        asked("a batch of two", TWO),
        asked("an unknown model", infer("no-such-model", *ids_inputs(), id="u1"), clients=("python", "go")),
        asked("an unknown version of a model that is not scheduled", query(version="7")),
        asked("an unknown version of the engine model", ids(version="7")),
        asked("an unknown version of the text model", text(version="7")),
        asked("version 1 of a model that is not scheduled", query(version="1")),
        asked("a model without a name", infer("", *ids_inputs(), id="n")),
        asked("a missing input", infer(BEFORE, tensor("QUERY", "BYTES", [b"x"]), id="a")),
        asked("an unknown input", infer(BEFORE, tensor("Q", "BYTES", [b"x"]), id="a")),
        asked("a wrong datatype", infer(BEFORE, tensor("QUERY", "INT32", [1]), id="a")),
        asked("refused by the model", query(b"\xff", id="a")),
        asked("the engine model", ids(id="e1", streaming=False), differs=(SERVED,)),
        asked("the text model", text(id="t1", stream=False), differs=(SERVED,)),
        joined("the engine model, as its stream answers", ids(id="a", streaming=False), ids(id="a", streaming=False)),
        joined("the engine model streamed, as one piece", ids(id="a"), ids(id="a", streaming=False)),
        joined("the text model, as its stream answers", text(id="a", stream=False), text(id="a", stream=False)),
        joined("the text model streamed, as one piece", text(id="a"), text(id="a", stream=False)),
        asked("bytes that are no message", b"\xff\xff\xff", clients=("python", "go")),
        asked("an empty message", b""),
    ),
)
