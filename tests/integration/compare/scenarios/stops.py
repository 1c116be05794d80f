"""Stop requests: the tensor `stop`, and the id of what is to be stopped.

They are played one by one: Triton stops every request of that id, whoever sent it.
"""

from __future__ import annotations

from typing import Any

from tests.integration.compare.allowed import REFUSED_EARLIER, STOP_SERVED
from tests.integration.compare.messages import (
    EMPTY_FINAL,
    ENGINE,
    ids,
    infer,
    long_ids,
    long_text,
    stop,
    tensor,
    text_inputs,
)
from tests.integration.compare.scenario import Ask, Await, Close, Open, Scenario, Send, Step, Subject

FINALS = {EMPTY_FINAL: True}
STOPPED = ("a",)


def stopping(name: str, *steps: Step, **options: Any) -> Scenario:
    """A long request that runs, then these steps."""
    begun = (Open(), Send(body=long_ids("a")), Await(responses=2))
    return Scenario(name=name, steps=(*begun, *steps, Close()), shortened=STOPPED, alone=True, **options)


def alone(name: str, body: bytes, **options: Any) -> Scenario:
    return Scenario(name=name, steps=(Open(), Send(body=body), Close()), alone=True, **options)


UINT32_STOP = infer(
    ENGINE,
    tensor("input_ids", "INT32", [0]),
    tensor("input_lengths", "INT32", [0]),
    tensor("request_output_len", "UINT32", [0]),
    tensor("stop", "BOOL", [True]),
    id="a",
    parameters={"Streaming": True},
)
ZERO_STOP = infer(
    ENGINE,
    tensor("input_ids", "INT32", [0]),
    tensor("input_lengths", "INT32", [0]),
    tensor("request_output_len", "INT32", [0]),
    tensor("stop", "BOOL", [True]),
    id="a",
    parameters={"Streaming": True},
)
STOPS = Subject(
    title="Stops",
    scenarios=(
        stopping("a known id", Send(body=stop("a")), clients=("python", "go")),
        stopping("a known id, empty final asked for", Send(body=stop("a", parameters=FINALS))),
        stopping("as NVIDIA's client sends it: lengths of 0", Send(body=ZERO_STOP)),
        stopping("as an older client of NVIDIA sends it: UINT32", Send(body=UINT32_STOP), Send(body=stop("a"))),
        stopping("twice", Send(body=stop("a")), Send(body=stop("a", parameters=FINALS))),
        stopping("another id, then the right one", Send(body=stop("z", parameters=FINALS)), Send(body=stop("a"))),
        stopping(
            "without an id, then the right one", Send(body=stop("")), Send(body=stop("a")), differs=(REFUSED_EARLIER,)
        ),
        stopping("a neighbour of another id goes on", Send(body=ids(id="b")), Send(body=stop("a"))),
        Scenario(
            name="two requests of one id",
            steps=(
                Open(),
                Send(body=long_ids("a")),
                Send(body=long_ids("a")),
                Await(responses=6),
                Send(body=stop("a")),
                Close(),
            ),
            shortened=STOPPED,
            alone=True,
        ),
        Scenario(
            name="a request that asked for no streaming",
            steps=(Open(), Send(body=long_ids("a", streaming=False)), Send(body=stop("a")), Close()),
            shortened=STOPPED,
            alone=True,
        ),
        Scenario(
            name="from another stream of the same connection",
            steps=(
                Open(),
                Send(body=long_ids("a")),
                Await(responses=2),
                Open(call="other"),
                Send(body=stop("a", parameters=FINALS), call="other"),
                Close(call="other"),
                Close(),
            ),
            shortened=STOPPED,
            alone=True,
        ),
        Scenario(
            name="from another connection",
            steps=(
                Open(),
                Send(body=long_ids("{runner}")),
                Await(responses=2),
                Open(call="other", channel="other"),
                Send(body=stop("{runner}", parameters=FINALS), call="other"),
                Close(call="other"),
                Close(),
            ),
            shortened=("{runner}",),
            alone=True,
        ),
        Scenario(
            name="by ModelInfer from another connection",
            steps=(
                Open(),
                Send(body=long_ids("{runner}")),
                Await(responses=2),
                Ask(method="ModelInfer", body=stop("{runner}")),
                Send(body=stop("{runner}")),
                Close(),
            ),
            shortened=("{runner}",),
            alone=True,
            differs=(STOP_SERVED,),
        ),
        Scenario(
            name="the id of a request to the text model",
            steps=(Open(), Send(body=long_text("a")), Await(responses=2), Send(body=stop("a")), Close()),
            shortened=STOPPED,
            alone=True,
        ),
        alone("an unknown id", stop("z")),
        alone("an unknown id, empty final asked for", stop("z", parameters=FINALS)),
        alone("no id", stop(""), differs=(REFUSED_EARLIER,)),
        alone(
            "an unknown input beside it",
            infer(ENGINE, tensor("stop", "BOOL", [True]), tensor("x", "BOOL", [True]), id="a"),
        ),
        alone("without the other inputs", infer(ENGINE, tensor("stop", "BOOL", [True]), id="a")),
        alone("of the wrong datatype", ids(id="a", more=[tensor("stop", "INT32", [1])])),
        alone("two values", ids(id="a", more=[tensor("stop", "BOOL", [True, True])])),
        alone("false", ids(id="a", more=[tensor("stop", "BOOL", [False])])),
        alone(
            "for the text model, which has no such input",
            infer("ensemble", *text_inputs(), tensor("stop", "BOOL", [True]), id="a"),
        ),
        alone("for an unknown version", stop("a", version="9")),
    ),
)
