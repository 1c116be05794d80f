"""The engine of the chaos harness answers with the prompt, and fails or gives nothing while it is told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.chaos_worker import ATTEMPTS, EMPTY, FAILS, GIVES_NOTHING, FastEngine, LetterTokens
from sidecar.core.request import EndReason, Lane, Request
from sidecar.token_call import RequestDeadError, TokenCall

REQUEST = Request(id="a", lane=Lane.OFFLINE, model="fast", arrived_s=0.0, prompt_tokens=5, output_tokens_max=8)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the harness leaves its wishes as files in the working directory
    monkeypatch.setattr("dev.chaos_worker.SLOW_SHARE", 0.0)


def call(text: str, tokens: int = 4) -> TokenCall:
    return TokenCall(prompt_ids=LetterTokens().encode_prompt(text), output_tokens_max=tokens)


async def test_a_prompt_comes_back_as_long_as_it_may() -> None:
    found = await FastEngine(1).generate(REQUEST, call("item 7"))
    assert LetterTokens().decode(found.output_ids) == "item"
    assert (found.reason, found.attempts) == (EndReason.LENGTH, 1)


async def test_every_third_call_fails_while_it_is_told_to_and_the_item_is_tried_again() -> None:
    FAILS.touch()
    engine = FastEngine(1)
    assert [(await engine.generate(REQUEST, call("item"))).attempts for _ in range(4)] == [1, 1, 2, 1]
    FAILS.unlink()
    assert [(await engine.generate(REQUEST, call("item"))).attempts for _ in range(4)] == [1] * 4


async def test_an_output_that_is_empty_each_time_makes_a_dead_item() -> None:
    with pytest.raises(RequestDeadError, match="empty_output") as dead:
        await FastEngine(1).generate(REQUEST, call("".join(map(chr, EMPTY))))
    assert dead.value.attempts == ATTEMPTS


async def test_outputs_are_empty_now_and_then_while_it_is_told_to() -> None:
    GIVES_NOTHING.touch()
    engine = FastEngine(1)
    assert [(await engine.generate(REQUEST, call("item"))).attempts for _ in range(3)] == [1, 1, 2]


def test_letters_are_their_own_tokens() -> None:
    tokens = LetterTokens()
    assert tokens.decode(tokens.encode_words("aé😀")) == "aé😀"
