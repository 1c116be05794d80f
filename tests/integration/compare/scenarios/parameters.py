"""Request parameters: those with a meaning for Triton, and a caller's own."""

from __future__ import annotations

from typing import Any

from tests.integration.compare.allowed import PRIORITY
from tests.integration.compare.messages import ids, query, text
from tests.integration.compare.scenario import Difference, Scenario, Subject
from tests.integration.compare.scenarios.streams import streamed


def given(name: str, parameters: dict[str, Any], *differs: Difference) -> tuple[Scenario, ...]:
    """The parameters on a request of the engine model, and on one that is not scheduled."""
    return (
        streamed(f"{name}, engine model", ids(id="a", parameters=parameters), differs=differs),
        streamed(f"{name}, not scheduled", query(id="a", parameters=parameters)),
    )


PARAMETERS = Subject(
    title="Request parameters",
    scenarios=(
        *given("priority 1", {"priority": 1}, PRIORITY),
        *given("priority as uint64", {"priority": ("uint64_param", 2)}, PRIORITY),
        *given("priority negative", {"priority": -1}),
        *given("priority as text", {"priority": "1"}),
        *given("timeout of ten seconds", {"timeout": 10_000_000}),
        *given("timeout as text", {"timeout": "soon"}),
        *given("an integer, a text, a bool and a double of the caller", {"n": 7, "t": "x", "b": True, "d": 0.5}),
        *given("an own uint64", {"n": ("uint64_param", 7)}),
        *given("a sequence: id, start, end", {"sequence_id": 5, "sequence_start": True, "sequence_end": True}),
        *given("a sequence id as text", {"sequence_id": "five"}),
        *given("sequence_start as a number", {"sequence_start": 1}),
        *given("an unknown triton_ parameter", {"triton_no_such": True}),
        streamed("binary_data_output", ids(id="a", parameters={"binary_data_output": True})),
        streamed("Streaming, as NVIDIA's client sends it", ids(id="a", parameters={"Streaming": True})),
        streamed("request_type of a disaggregated engine", ids(id="a", parameters={"request_type": "context_only"})),
        streamed(
            "priority, timeout and own ones by text",
            text(id="a", parameters={"priority": 1, "timeout": 9_000_000, "x": 1}),
            differs=(PRIORITY,),
        ),
        streamed("a parameter without a value", ids(id="a", parameters={"x": ("string_param", "")})),
    ),
)
