"""One question goes through the sidecar as the model's template writes it, and the answer is printed."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.chat import _asked
from sidecar.core.errors import SettingsError
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.triton.tokenizer import Tokens
from tests.fakes.sidecar import Sidecar
from tests.fakes.triton import FakeTriton
from tests.triton.model_directories import llama_like


def options(sidecar: Sidecar, **more: Any) -> argparse.Namespace:
    given = {"question": "hi", "server": sidecar.address, "offline": False, "system": None, "max_tokens": 9}
    return argparse.Namespace(**(given | more))


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens.load(llama_like(tmp_path))


SETTINGS = ServeSettings(engines=(EngineEndpoint(name="e0", target="127.0.0.1:1"),))


@pytest.mark.parametrize("offline", [False, True])
async def test_the_answer_is_printed_without_its_end(
    offline: bool, sidecar: Sidecar, triton: FakeTriton, tokens: Tokens, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = asyncio.ensure_future(_asked(options(sidecar, system="be brief", offline=offline), SETTINGS, tokens))
    request = await triton.next()
    assert request.input("input_ids") == tokens.chat_ids([("system", "be brief"), ("user", "hi")], 100)
    assert request.input("end_id") == (tokens.end_id,)
    ids = tokens.encode_words("é!")
    request.tokens(ids[0])
    request.tokens(*ids[1:], tokens.further_end_ids[-1], final=True)
    await asked
    assert capsys.readouterr().out == "é!\n"


async def test_what_cannot_be_asked_is_said(sidecar: Sidecar, tokens: Tokens) -> None:
    for more, message in (({"max_tokens": 0}, "--max-tokens must be"), ({"server": "http://x"}, "--server must be")):
        with pytest.raises(SettingsError, match=message):
            await _asked(options(sidecar, **more), replace(SETTINGS), tokens)
