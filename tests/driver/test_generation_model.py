"""Whatever becomes of its dispatches, an item's answer is what one undisturbed run would have given, cut at its stops.

The engine of these tests is greedy: after the same ids it always goes on with the same ones. So a model of one line
says what the answer is, and any state that outlives its dispatch shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.request import EndReason, Lane, Request
from sidecar.core.settings import SchedulerSettings
from sidecar.token_call import Generated, TokenCall
from sidecar.triton import wire
from tests.fakes.engine import FakeEngine, FakeStream, running_driver

PROMPT = (50, 51, 52)
END = 2
BYTES = {3: b"a", 4: b"b", 5: b"ab", 6: b"bca", 7: b"\xc3", 8: b"\xa9", 9: b"", 10: b" a", 11: "ßa".encode(), END: b""}
How = Literal["final", "fails", "breaks", "malformed", "empty", "hangs up"]


def decode(ids: Sequence[int]) -> str:
    return b"".join(BYTES[each] for each in ids).decode(errors="replace")


@dataclass
class Greedy:
    """An engine that gives `output`, from wherever a request goes on; the first dispatches end as `fates` says."""

    output: tuple[int, ...]
    gives_end_id: bool
    fates: list[tuple[How, int]]
    width: int  # ids per response
    asked: list[tuple[int, ...]] = field(default_factory=list)

    async def answer(self, stream: FakeStream) -> None:
        ids = stream.input("input_ids")
        assert ids[: len(PROMPT)] == PROMPT
        before = len(ids) - len(PROMPT)
        assert ids[len(PROMPT) :] == self.output[:before]  # a resume goes on from valid ids
        self.asked.append(ids)
        (wanted,) = stream.input("request_output_len")
        rest = self.output[before : before + wanted]
        whole = rest if self.gives_end_id or not rest or rest[-1] != END else rest[:-1]
        how, count = self.fates.pop(0) if self.fates else ("final", 0)
        if how == "empty" and before:
            how = "fails"  # an engine that ends a resume without a token says that nothing is left
        given = whole if how == "final" else () if how == "empty" else whole[:count]
        for begin in range(0, len(given), self.width):
            stream.tokens(*given[begin : begin + self.width])
        match how:
            case "final" | "empty":
                stream.end()
            case "fails":
                stream.error("Stub process 'x' is not healthy.")
            case "malformed":
                answer = wire.StreamResponse()
                answer.infer_response.outputs.add(name="output_ids", datatype="INT32", shape=(1, 1, -1))
                answer.infer_response.raw_output_contents.append(b"\1\0\0\0")
                stream.answers.put_nowait(answer)
            case "breaks":
                stream.close()
            case "hangs up":
                stream.cancel()


def expected(output: Sequence[int], stops: Sequence[str], tokens_max: int) -> tuple[str, EndReason]:
    """The answer of one undisturbed run."""
    kept = output[:tokens_max]
    text = decode(kept)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], EndReason.STOP_WORD
    return text, EndReason.END_ID if END in kept else EndReason.LENGTH


async def run(engine: Greedy, call: TokenCall, slice_tokens: int) -> Generated:
    fake = FakeEngine()
    scheduler = SchedulerSettings(
        window_ms=0,
        retry_backoff_s=0.0,
        attempts_max=1000,
        losses_max=1000,
        slice_tokens=slice_tokens,
        slice_tokens_busy=slice_tokens,
    )
    async with running_driver(fake, scheduler=scheduler) as driver:
        request = Request(
            id="k",
            lane=Lane.OFFLINE,
            model="tensorrt_llm",
            arrived_s=0,
            prompt_tokens=len(PROMPT),
            output_tokens_max=call.output_tokens_max,
        )
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:  # an engine that finds a fault ends the test
            serving = tasks.create_task(fake.serve(engine.answer))
            done = await driver.generate(request, call)
            serving.cancel()
    return done


FATES = st.tuples(st.sampled_from(["final", "fails", "breaks", "malformed", "empty", "hangs up"]), st.integers(0, 6))
TEXTS = st.text("ab cé", min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    output=st.lists(st.sampled_from([each for each in BYTES if each != END]), min_size=1, max_size=20),
    ends=st.booleans(),
    gives_end_id=st.booleans(),
    fates=st.lists(FATES, max_size=6),
    width=st.integers(1, 5),
    stops=st.lists(TEXTS, max_size=3),
    tokens_max=st.integers(1, 24),
    slice_tokens=st.integers(1, 8),
    resumable=st.booleans(),
)
def test_the_answer_is_that_of_one_undisturbed_run_cut_at_its_stops(
    output: list[int],
    ends: bool,
    gives_end_id: bool,
    fates: list[tuple[How, int]],
    width: int,
    stops: list[str],
    tokens_max: int,
    slice_tokens: int,
    resumable: bool,
) -> None:
    ids = (*output, END) if ends else (*output, *output * 24)
    engine = Greedy(ids, gives_end_id, list(fates), width)
    call = TokenCall(
        prompt_ids=PROMPT,
        output_tokens_max=tokens_max,
        stop_texts=tuple(stops),
        decode=decode,
        end_id=END,
        resumable=resumable,
    )
    done = asyncio.run(run(engine, call, slice_tokens))
    text, reason = expected(ids, stops, tokens_max)
    assert done.output_ids == ids[: len(done.output_ids)]
    assert (done.text, done.reason) == (text, reason)
