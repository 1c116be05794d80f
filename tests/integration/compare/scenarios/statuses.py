"""Streams with the metadata `triton_grpc_error: true`: the first error ends them with its status."""

from __future__ import annotations

from tests.integration.compare.allowed import REFUSED_EARLIER
from tests.integration.compare.messages import BEFORE, ENGINE, ids, ids_inputs, infer, query, tensor, text
from tests.integration.compare.scenario import Await, Close, Difference, Open, Scenario, Send, Step, Subject

REAL = (("triton_grpc_error", "true"),)
MISSING = infer(ENGINE, *ids_inputs()[:1], id="bad")


def strict(
    name: str, *bodies: bytes, value: str = "true", risky: bool = True, differs: tuple[Difference, ...] = ()
) -> Scenario:
    """These requests on such a stream."""
    steps: tuple[Step, ...] = (
        Open(metadata=(("triton_grpc_error", value),)),
        *(Send(body=body) for body in bodies),
        Close(),
    )
    return Scenario(name=name, steps=steps, risky=risky, differs=differs, clients=("python", "go"))


STATUSES = Subject(
    title="Real statuses (metadata triton_grpc_error)",
    scenarios=(
        strict("a good request of the engine model", ids(id="a"), risky=False),
        strict("a good request of a model that is not scheduled", query(id="a"), risky=False),
        strict("an unknown model", infer("no-such", *ids_inputs(), id="a")),
        strict("an unknown version of the engine model", ids(id="a", version="9")),
        strict("an unknown input of the engine model", ids(id="a", more=[tensor("temprature", "FP32", [0.5])])),
        strict("an unknown input of the text model", text(id="a", more=[tensor("temprature", "FP32", [0.5])])),
        strict(
            "an unknown input of a model that is not scheduled", infer(BEFORE, tensor("Q", "BYTES", [b"x"]), id="a")
        ),
        strict(
            "a wrong datatype", infer(ENGINE, *ids_inputs()[:2], tensor("request_output_len", "FP32", [6.0]), id="a")
        ),
        strict(
            "refused by the engine",
            ids(id="a", more=[tensor("beam_width", "INT32", [2])]),
            differs=(REFUSED_EARLIER,),
        ),
        strict(
            "refused by the engine, by text",
            text(id="a", more=[tensor("beam_width", "INT32", [2])]),
            differs=(REFUSED_EARLIER,),
        ),
        strict(
            "refused by the engine alone",
            ids(id="a", more=[tensor("return_log_probs", "BOOL", [True])]),
            risky=True,
        ),
        strict(
            "a value that the engine alone refuses",
            ids(id="a", more=[tensor("runtime_top_k", "INT32", [-1])]),
        ),
        strict("refused by a model that is not scheduled", query(b"\xff", id="a")),
        strict("max_tokens 0", text(tokens=0, id="a"), differs=(REFUSED_EARLIER,)),
        strict("an empty text", text("", id="a"), differs=(REFUSED_EARLIER,)),
        strict("the value false", infer("no-such", *ids_inputs(), id="a"), value="false"),
        strict("the value True, with a capital", infer("no-such", *ids_inputs(), id="a"), value="True"),
        Scenario(
            name="a good request, then one with an error",
            steps=(
                Open(metadata=REAL),
                Send(body=ids(id="a", tokens=4)),
                Await(responses=4),
                Send(body=MISSING),
                Close(),
            ),
            clients=("python", "go"),
            risky=True,
        ),
        Scenario(
            name="a good one of each kind, then an error of a model that is not scheduled",
            steps=(
                Open(metadata=REAL),
                Send(body=ids(id="a", tokens=4)),
                Send(body=query(id="b")),
                Await(responses=5),
                Send(body=query(b"\xff", id="c")),
                Close(),
            ),
            risky=True,
        ),
    ),
)
