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
from sidecar.keys import hash_of
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.settings.keys import KeysSettings
from sidecar.settings.tls import TlsSettings
from sidecar.triton.tokenizer import Tokens
from tests.fakes.certificates import Authority
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeTriton
from tests.triton.model_directories import llama_like


def options(sidecar: Sidecar, **more: Any) -> argparse.Namespace:
    given: dict[str, Any] = {"question": "hi", "server": sidecar.address, "offline": False, "system": None}
    given |= {"max_tokens": 9, "key_file": None, "ca_file": None}
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


async def test_a_key_and_an_authority_are_used_where_they_are_given(
    triton: FakeTriton, tokens: Tokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path / "ca")
    (tmp_path / "key").write_text("sk-mine\n")
    (tmp_path / "keys.yaml").write_text(f"- {{key: '{hash_of('sk-mine')}', tenant: t}}\n")
    async with running_sidecar(
        {"e0": triton},
        keys=KeysSettings(file=tmp_path / "keys.yaml"),
        tls=TlsSettings(listen=authority.serving(authority.issue("sidecar"))),
        credentials=authority.trusted(),
    ) as sidecar:
        given = options(sidecar, key_file=tmp_path / "key", ca_file=authority.certificate)
        asked = asyncio.ensure_future(_asked(given, SETTINGS, tokens))
        (await triton.next()).tokens(*tokens.encode_words("yes"), tokens.further_end_ids[-1], final=True)
        await asked
    assert capsys.readouterr().out == "yes\n"
