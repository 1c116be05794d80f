"""The parameters of config.pbtxt: what is unset has its default, what is wrong is named by its key."""

from __future__ import annotations

import pytest

from engine.parameters import EngineParameters
from engine.serving import build_engine, numpy_settings
from tests.engine.test_serving import MODEL, committed


def test_an_unfilled_placeholder_counts_as_unset() -> None:
    assert numpy_settings(committed(max_num_tokens="${max_num_tokens}"), MODEL).batcher.max_num_tokens == 512


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"engine": "cpp"}, "'engine' must be numpy, torch or llmapi, not 'cpp'"),
        ({"max_num_tokens": "many"}, "'max_num_tokens' must be a whole number, not 'many'"),
        ({"enable_chunked_context": "yes"}, "'enable_chunked_context' must be true or false"),
        ({"batch_scheduler_policy": "greedy"}, "'batch_scheduler_policy' must be one of"),
        ({"profile": "h100"}, "unknown profile 'h100'"),
        ({"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_a_wrong_parameter_is_named(wrong: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_engine(committed(**wrong), MODEL)


def test_what_is_empty_or_was_not_filled_in_has_its_default() -> None:
    for value in ("", "${max_num_tokens}", "${"):
        parameters = EngineParameters({"a": value})
        assert (parameters.text("a", "d"), parameters.number("a", 7), parameters.flag("a", True)) == ("d", 7, True)
    assert EngineParameters({}).text("a", "d") == "d"


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("-3", -3), (" 12 ", 12), ("1_000", 1000)])
def test_a_whole_number_is_read(value: str, number: int) -> None:
    assert EngineParameters({"a": value}).number("a", 7) == number


@pytest.mark.parametrize("value", ["1.5", "many", "0x10", "1e3", "true"])
def test_what_is_no_whole_number_is_named_with_its_key(value: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'a' must be a whole number, not '{value}'"):
        EngineParameters({"a": value}).number("a", 7)


@pytest.mark.parametrize(("value", "flag"), [("true", True), ("True", True), ("FALSE", False), ("false", False)])
def test_a_flag_is_true_or_false_in_any_case(value: str, flag: bool) -> None:
    assert EngineParameters({"a": value}).flag("a", not flag) is flag


@pytest.mark.parametrize("value", ["yes", "1", "on", "t"])
def test_what_is_no_flag_is_named_with_its_key(value: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'a' must be true or false, not '{value}'"):
        EngineParameters({"a": value}).flag("a", False)
