"""What an in-flight batch is made of: shapes that cannot be are refused with their values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.inflight.batch import BatchedSequence, BatcherSettings, Chunk, Iteration, RequestError, Row


def row(id_: str = "a", prompt: int = 8) -> Row:
    request = BatchedSequence(id=id_, prompt_ids=tuple(range(prompt)), output_tokens_max=4)
    return Row(request=request, order=0, arrived_s=0.0, prompt_ids=request.prompt_ids)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"max_batch_size": 0}, r"max_batch_size must be in 1\.\.max_num_tokens \(8192\)"),
        ({"max_batch_size": 8193}, r"max_batch_size must be in 1\.\.max_num_tokens \(8192\)"),
        ({"max_num_tokens": 63}, r"max_batch_size must be in 1\.\.max_num_tokens \(63\)"),
        ({"tokens_per_block": 0}, "tokens_per_block >= 1, kv_tokens_max >= one block and max_seq_len >= 2 needed"),
        ({"kv_tokens_max": 31}, "kv_tokens_max >= one block"),
        ({"max_seq_len": 1}, "max_seq_len >= 2"),
        ({"cancellation_check_period_s": -0.1}, "cancellation_check_period_s must be >= 0"),
    ],
)
def test_an_engine_that_nobody_can_build_is_refused_with_its_values(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BatcherSettings(**wrong)


@given(
    seq_len=st.integers(2, 1 << 20),
    input_len=st.none() | st.integers(1, 1 << 20),
    block=st.integers(1, 128),
    blocks=st.integers(1, 10_000),
    rest=st.integers(0, 127),
)
def test_a_prompt_leaves_room_for_one_token_and_a_cache_holds_whole_blocks(
    seq_len: int, input_len: int | None, block: int, blocks: int, rest: int
) -> None:
    settings = BatcherSettings(
        max_seq_len=seq_len,
        max_input_len=input_len,
        tokens_per_block=block,
        kv_tokens_max=block * blocks + rest % block,
    )
    assert settings.prompt_tokens_max < seq_len
    assert settings.prompt_tokens_max == min(seq_len - 1, input_len or seq_len)
    assert settings.blocks_max == blocks


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_ids": ()}, {"output_tokens_max": 0}, {"output_tokens_max": -1}, {"ends_after": 0}],
)
def test_a_sequence_that_can_never_run_is_refused_by_its_id(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"id": "r7", "prompt_ids": (1,), "output_tokens_max": 1}
    assert BatchedSequence(**good).id == "r7"
    with pytest.raises(RequestError, match="request r7: needs a prompt, output_tokens_max >= 1 and ends_after >= 1"):
        BatchedSequence(**(good | wrong))


def test_a_chunk_is_the_last_if_it_ends_with_the_prompt() -> None:
    of = row(prompt=8)
    assert [Chunk(of, begin, tokens).last for begin, tokens in ((0, 8), (0, 7), (7, 1), (4, 4), (4, 3))] == [
        *(True, False, True, True, False)
    ]


def test_rows_that_give_a_token_are_those_that_decode_and_then_those_whose_prompt_is_done() -> None:
    a, b, c, d = map(row, "abcd")
    step = Iteration(decoding=(a, b), chunks=(Chunk(c, 0, 4), Chunk(d, 4, 4)), prefill_tokens=8)
    assert step.sampling == (a, b, d)
    assert not step.empty


def test_an_iteration_that_only_reports_stopped_rows_takes_no_time() -> None:
    assert Iteration(decoding=(), stopped=(row(),)).empty
    assert not Iteration(decoding=(row(),)).empty
    assert not Iteration(decoding=(), chunks=(Chunk(row(), 0, 1),)).empty


def test_two_rows_of_equal_requests_are_two_rows() -> None:
    assert row() != row()
    assert repr(row()) == "<row a queued 0/8>"
