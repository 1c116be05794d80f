"""The port between the offline lane and the driver: what a call may ask, and by which names."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest

from engine.contract import INPUTS
from sidecar.token_call import RequestDeadError, RequestRejectedError, Sampling, TokenCall

CALL = TokenCall(prompt_ids=(1, 2), output_tokens_max=5)


def test_stop_texts_need_a_way_to_read_the_output() -> None:
    with pytest.raises(ValueError, match="a call with stop_texts needs decode"):
        replace(CALL, stop_texts=("STOP",))
    assert replace(CALL, stop_texts=("STOP",), decode=str).stop_texts == ("STOP",)
    assert replace(CALL, stop_words=((7,),)).decode is None  # ids need none


def test_each_parameter_of_the_sampling_is_a_tensor_of_the_engine_under_its_name() -> None:
    tensors = {tensor.name: tensor for tensor in INPUTS}
    for field in fields(Sampling):
        name = field.name if field.name in tensors else f"runtime_{field.name}"
        assert tensors[name].optional, name
        assert tensors[name].supported, name


def test_what_is_not_stated_is_left_to_the_engine() -> None:
    assert {field.name: getattr(Sampling(), field.name) for field in fields(Sampling)} == dict.fromkeys(
        field.name for field in fields(Sampling)
    )
    assert (CALL.resumable, CALL.metadata, CALL.end_id) == (True, None, None)


def test_a_call_does_not_change_between_its_slices() -> None:
    with pytest.raises(FrozenInstanceError):
        CALL.output_tokens_max = 9  # type: ignore[misc]


def test_a_refusal_says_whether_to_try_again_and_a_death_how_often_it_was_tried() -> None:
    refused = RequestRejectedError("queue_full", "10 requests wait", retry_after_s=2.0)
    assert (str(refused), refused.reason, refused.retry_after_s) == ("10 requests wait", "queue_full", 2.0)
    assert RequestRejectedError("unknown_model", "no such model").retry_after_s is None
    dead = RequestDeadError("given up after 5 attempts: INTERNAL", 5)
    assert (str(dead), dead.attempts) == ("given up after 5 attempts: INTERNAL", 5)
