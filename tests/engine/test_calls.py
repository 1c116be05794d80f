"""A call and its answer, whichever engine is behind: every field is a tensor of the contract."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine.calls import EngineCall, Figures, OutputPart, UnsupportedError
from engine.contract import OUTPUTS, outputs_of, read_call
from sidecar.inflight.batch import End
from tests.engine.test_contract import required


def test_a_call_that_states_nothing_else_has_the_defaults_of_an_absent_tensor() -> None:
    assert read_call(required()) == EngineCall(input_ids=(5, 6, 7), output_tokens_max=9)


def test_each_option_of_a_call_can_be_asked_for_by_a_tensor() -> None:
    plain = read_call(required())
    asked: dict[str, Any] = {
        "streaming": {"streaming": [[True]]},
        "exclude_input": {"exclude_input_in_output": [[True]]},
        "sequences": {"num_return_sequences": [[2]]},
        "sampling": {"temperature": [[0.5]]},
        "end_id": {"end_id": [[2]]},
        "stop_words": {"stop_words_list": [[[8], [1]]]},
        "bad_words": {"bad_words_list": [[[4], [1]]]},
        "embedding_bias": {"embedding_bias": [[0.5, 0.25]]},
        "retention": {"retention_decode_priority": [[5]]},
        "returns": {"return_perf_metrics": [[True]]},
    }
    for field in fields(EngineCall):
        if field.name in ("input_ids", "output_tokens_max", "cache_salt"):  # the salt is a parameter
            continue
        changed = read_call(required(**asked[field.name]))
        differing = [
            each.name for each in fields(EngineCall) if getattr(changed, each.name) != getattr(plain, each.name)
        ]
        assert differing == [field.name]


def test_each_figure_reaches_the_caller_who_asked_for_figures() -> None:
    call = read_call(required(return_perf_metrics=[[True]]))
    plain = outputs_of(call, OutputPart(ids=(4,), end=End.LENGTH, final=True, figures=Figures()))
    for number, field in enumerate(fields(Figures), 1):
        figures = Figures(**{field.name: number})
        told = outputs_of(call, OutputPart(ids=(4,), end=End.LENGTH, final=True, figures=figures))
        if field.name == "computed_tokens":
            continue  # for the engine's own tests: the contract has the blocks
        assert {name for name in told if (told[name] != plain[name]).any()}, field.name
        assert set(told) <= {tensor.name for tensor in OUTPUTS}


def test_what_an_engine_does_not_do_is_the_callers_to_change() -> None:
    assert issubclass(UnsupportedError, ValueError)  # serving answers both as INVALID_ARGUMENT
