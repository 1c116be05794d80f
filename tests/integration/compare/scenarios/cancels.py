"""Callers who go away, and deadlines: what they see, and what the next request sees."""

from __future__ import annotations

from tests.integration.compare.messages import ids, long_ids, long_text, query, text
from tests.integration.compare.scenario import Ask, Await, Begin, Cancel, Close, Open, Part, Scenario, Send, Subject

CANCELS = Subject(
    title="Cancels and deadlines",
    scenarios=(
        Scenario(
            name="cancelled mid-stream; the next request",
            steps=(
                Open(),
                Send(body=long_ids("a")),
                Await(responses=2),
                Cancel(),
                Open(call="next"),
                Send(body=ids(id="b"), call="next"),
                Close(call="next"),
            ),
            clients=("python", "go"),
        ),
        Scenario(
            name="text, cancelled mid-stream; the next request",
            steps=(
                Open(),
                Send(body=long_text("a")),
                Await(responses=2),
                Cancel(),
                Open(call="next"),
                Send(body=text(id="b"), call="next"),
                Close(call="next"),
            ),
        ),
        Scenario(
            name="eight cancelled at once; the next request",
            steps=(
                Open(),
                *(Send(body=long_ids(f"a{each}")) for each in range(8)),
                Await(responses=8),
                Cancel(),
                Open(call="next"),
                Send(body=ids(id="b"), call="next"),
                Close(call="next"),
            ),
            ignored=(Part.RESPONSES,),  # whose token is among the first eight
        ),
        Scenario(
            name="cancelled before the first token; the same id again",
            steps=(
                Open(),
                Send(body=long_ids("a")),
                Cancel(),
                Open(call="next"),
                Send(body=ids(id="a"), call="next"),
                Close(call="next"),
            ),
        ),
        Scenario(
            name="a stream cancelled without a request",
            steps=(Open(), Cancel()),
        ),
        Scenario(
            name="a stream's deadline passes",
            steps=(Open(timeout_s=0.4), Send(body=long_ids("a")), Await(responses=2), Close()),
            clients=("python", "go"),
        ),
        Scenario(
            name="a stream's deadline passes without a request, and it is not closed",
            steps=(Open(timeout_s=0.2), Await(responses=1)),
        ),
        Scenario(
            name="a unary call of a model that is not scheduled, cancelled",
            steps=(Begin(method="ModelInfer", body=query(), call="begun"), Cancel(call="begun")),
        ),
        Scenario(
            name="a deadline that is over when the call is made",
            steps=(Ask(method="ModelInfer", body=query(), timeout_s=-1.0), Ask(method="ModelInfer", body=query())),
            clients=("python",),
        ),
        Scenario(
            name="half-closed at once: all answers still come",
            steps=(Open(), Send(body=ids(id="a", tokens=20)), Send(body=text(id="b", tokens=20)), Close()),
        ),
        Scenario(
            name="one stream is cancelled, its neighbour on the connection goes on",
            steps=(
                Open(channel="one"),
                Open(call="neighbour", channel="one"),
                Send(body=long_ids("a")),
                Send(body=ids(id="b", tokens=30), call="neighbour"),
                Await(responses=2),
                Await(responses=2, call="neighbour"),
                Cancel(),
                Close(call="neighbour"),
            ),
        ),
    ),
)
