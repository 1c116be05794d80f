"""Offline generations by token ids: slices, resumes, stop words across seams. Only Triton is not real."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.driver.generation import add_word_list, ends_with, seed_of
from sidecar.token_call import Generated, RequestDeadError, RequestRejectedError, Sampling, TokenCall
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton

END = 2


def offline(request_id: str = "k1", *, prompt: int = 3, output: int = 8, resumable: bool = True) -> Request:
    return Request(
        id=request_id,
        lane=Lane.OFFLINE,
        model="tensorrt_llm",
        arrived_s=0,
        prompt_tokens=prompt,
        output_tokens_max=output,
        resumable=resumable,
    )


def begin(sidecar: Sidecar, call: TokenCall, request: Request | None = None) -> asyncio.Task[Generated]:
    request = request or offline(prompt=len(call.prompt_ids), output=call.output_tokens_max)
    return asyncio.ensure_future(sidecar.driver.generate(request, call))


def call(**more: Any) -> TokenCall:
    return TokenCall(**{"prompt_ids": (11, 12, 13), "output_tokens_max": 8, "end_id": END, **more})


async def test_the_end_id_is_the_last_of_the_output(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call())
    request = await triton.next()
    assert request.input("input_ids") == (11, 12, 13)
    assert request.input("request_output_len") == (8,)
    assert request.input("end_id") == (END,)
    request.tokens(4)
    request.tokens(5, END, final=True)
    done = await task
    assert (done.output_ids, done.reason, done.engine) == ((4, 5, END), EndReason.END_ID, "e0")
    assert (done.dispatches, done.resumed, done.attempts) == (1, 0, 1)


async def test_as_many_tokens_as_asked_for_are_an_end_by_length(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call(output_tokens_max=2))
    (await triton.next()).tokens(4, 5, final=True)
    assert (await task).reason is EndReason.LENGTH


async def test_fewer_tokens_without_our_stop_mean_that_the_engine_kept_its_end_id(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call())
    (await triton.next()).tokens(4, 5, final=True)
    done = await task
    assert (done.output_ids, done.reason) == ((4, 5), EndReason.END_ID)


async def test_a_further_end_id_is_sent_as_a_stop_word_and_ends_the_output_as_the_end_id_does(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call(stop_words=((5, 6),), further_end_ids=(9, 10)))
    request = await triton.next()
    assert request.input("end_id") == (END,)
    assert request.input("stop_words_list") == (5, 6, 9, 10, 2, 3, 4, -1)
    request.tokens(4, 10, 77, final=True)
    done = await task
    assert (done.output_ids, done.reason) == ((4, 10), EndReason.END_ID)


async def test_a_further_end_id_alone_is_an_answer_and_no_fault_of_the_engine(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call(further_end_ids=(9, 10)))
    (await triton.next()).tokens(10, final=True)
    done = await task
    assert (done.output_ids, done.reason, done.attempts) == ((10,), EndReason.END_ID, 1)


async def test_an_output_that_ends_in_a_stop_word_ended_by_it(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call(stop_words=((5, 6), (9,))))
    request = await triton.next()
    assert request.input("stop_words_list") == (5, 6, 9, 2, 3, -1)
    request.tokens(4, 5, 6, final=True)
    assert (await task).reason is EndReason.STOP_WORD


async def test_a_broken_stream_is_resumed_from_the_exact_ids_with_the_rest_of_the_budget(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call(sampling=Sampling(min_tokens=5, seed=7)))
    first = await triton.next()
    first.tokens(4)
    first.tokens(5)
    first.break_stream()
    second = await triton.next()
    assert second.id != first.id
    assert second.input("input_ids") == (11, 12, 13, 4, 5)
    assert second.input("input_lengths") == (5,)
    assert second.input("request_output_len") == (6,)
    assert (first.input("min_tokens"), second.input("min_tokens")) == ((5,), (3,))
    assert first.input("seed") == (7,) != second.input("seed")
    second.tokens(6, END, final=True)
    done = await task
    assert (done.output_ids, done.dispatches, done.resumed, done.attempts) == ((4, 5, 6, END), 2, 1, 1)


async def test_a_stop_word_across_the_seam_of_two_dispatches_ends_the_request(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call(stop_words=((5, 6),)))
    first = await triton.next()
    first.tokens(4, 5)
    first.break_stream()
    second = await triton.next()
    second.tokens(6)  # the engine saw 5 as part of the prompt, so it goes on
    second.tokens(7)
    await sidecar.until(lambda: triton.stopped == [second.id])
    done = await task
    assert (done.output_ids, done.reason) == ((4, 5, 6), EndReason.STOP_WORD)


async def test_the_tokens_of_a_failed_dispatch_are_void(triton: FakeTriton) -> None:
    settings = SchedulerSettings(retry_backoff_s=0.001, window_ms=0)
    async with running_sidecar({"e0": triton}, scheduler=settings) as sidecar:
        task = begin(sidecar, call())
        first = await triton.next()
        first.tokens(4)
        first.error("Stub process 'x' is not healthy.")
        second = await triton.next()
        assert second.input("input_ids") == (11, 12, 13)
        assert second.input("request_output_len") == (8,)
        second.tokens(END, final=True)
        done = await task
        assert (done.output_ids, done.attempts, done.resumed) == ((END,), 2, 0)


async def test_an_error_that_no_retry_heals_is_a_dead_letter_with_its_reason(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call())
    (await triton.next()).error("input 'temperature' must be positive", grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(RequestDeadError, match="must be positive") as raised:
        await task
    assert raised.value.attempts == 1


async def test_a_request_that_must_not_be_resumed_begins_anew(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call(), offline(resumable=False))
    first = await triton.next()
    first.tokens(4)
    first.break_stream()
    second = await triton.next()
    assert second.input("input_ids") == (11, 12, 13)
    second.tokens(5, END, final=True)
    assert (await task).output_ids == (5, END)


async def test_a_call_that_a_resume_would_change_begins_anew(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call(resumable=False))
    first = await triton.next()
    first.tokens(4)
    first.break_stream()
    second = await triton.next()
    assert second.input("input_ids") == (11, 12, 13)
    second.tokens(5, END, final=True)
    assert (await task).output_ids == (5, END)


async def test_the_pieces_of_a_prompt_do_not_change_the_seed_of_its_output(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, prefill_slice_tokens=2) as sidecar:
        task = begin(sidecar, call(prompt_ids=(11, 12, 13, 14, 15), sampling=Sampling(seed=7), resumable=False))
        piece = await triton.next()
        assert piece.input("input_ids") == (11, 12)
        piece.tokens(4, final=True)
        second = await triton.next()
        assert second.input("input_ids") == (11, 12, 13, 14)
        second.tokens(4, final=True)
        whole = await triton.next()
        assert (whole.input("input_ids"), whole.input("seed")) == ((11, 12, 13, 14, 15), (7,))
        whole.tokens(6, END, final=True)
        assert (await task).output_ids == (6, END)


async def test_the_text_of_an_answer_is_cut_before_the_first_stop_text(sidecar: Sidecar, triton: FakeTriton) -> None:
    words = {4: "the ", 5: "tea", 6: "cher"}
    task = begin(sidecar, call(decode=lambda ids: "".join(words[each] for each in ids), stop_texts=("zz", "each")))
    (await triton.next()).tokens(4, 5, 6, final=True)
    done = await task
    assert (done.text, done.output_ids, done.reason) == ("the t", (4, 5, 6), EndReason.STOP_WORD)


async def test_work_for_a_model_that_nobody_serves_is_rejected(sidecar: Sidecar) -> None:
    request = Request(id="k", lane=Lane.OFFLINE, model="other", arrived_s=0, prompt_tokens=1, output_tokens_max=1)
    with pytest.raises(RequestRejectedError, match="other") as raised:
        await sidecar.driver.generate(request, call())
    assert raised.value.reason == "unknown_model"


async def test_cancelling_whoever_waits_stops_the_engine_and_forgets_the_request(
    sidecar: Sidecar, triton: FakeTriton
) -> None:
    task = begin(sidecar, call())
    request = await triton.next()
    task.cancel()
    await sidecar.until(lambda: triton.stopped == [request.id])
    await sidecar.until(lambda: sidecar.driver.in_flight == 0)
    assert task.cancelled()


async def test_cancelling_a_request_that_waits_takes_it_out_of_the_queue(triton: FakeTriton) -> None:
    async with running_sidecar({"e0": triton}, slots=1) as sidecar:
        runs, waits = begin(sidecar, call()), begin(sidecar, call(), offline("k2"))
        request = await triton.next()
        waits.cancel()
        await sidecar.until(lambda: sidecar.driver.scheduler.snapshot().waiting(Lane.OFFLINE) == 0)
        request.tokens(END, final=True)
        await runs
        assert triton.idle


async def test_the_trace_parent_of_an_item_goes_with_its_stream(sidecar: Sidecar, triton: FakeTriton) -> None:
    task = begin(sidecar, call(traceparent="00-1-2-01"))
    request = await triton.next()
    assert request.metadata["traceparent"] == "00-1-2-01"
    request.tokens(END, final=True)
    await task


def test_a_word_matches_only_at_the_end() -> None:
    assert ends_with([1, 2, 3], [(2, 3)])
    assert not ends_with([2, 3, 1], [(2, 3)])
    assert not ends_with([3], [(2, 3)])


def test_word_lists_are_flat_ids_over_their_end_offsets() -> None:
    request = wire.InferRequest()
    add_word_list(request, "stop_words_list", [(1, 2, 3), (4,)])
    assert list(request.inputs[0].shape) == [1, 2, 4]
    assert wire.input_values(request, "stop_words_list") == (1, 2, 3, 4, 3, 4, -1, -1)


def test_each_further_dispatch_draws_with_another_seed_that_follows_from_where_it_begins() -> None:
    assert seed_of(7, 0) == 7
    assert len({seed_of(7, tokens) for tokens in range(100)}) == 100
    assert seed_of(7, 3) == seed_of(7, 3) < 2**64
