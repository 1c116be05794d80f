"""`sidecar chat`: one question through a running sidecar, its answer as it comes."""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from sidecar.core.errors import SettingsError
from sidecar.driver.generation import add_word_list
from sidecar.driver.text_pieces import INCOMPLETE
from sidecar.errors import StreamBrokenError
from sidecar.settings.file import ServeSettings, is_address, load_settings, port_of
from sidecar.settings.tls import ClientTlsSettings
from sidecar.tls import Material
from sidecar.triton import wire
from sidecar.triton.chat_template import ChatTemplateError
from sidecar.triton.client import EngineClient, send, token_request
from sidecar.triton.errors import raise_if_error, translated_errors
from sidecar.triton.tokenizer import TextTooLongError, Tokens


def register_chat(subparsers: Any) -> None:
    """Add `chat`."""
    parser = subparsers.add_parser(
        "chat",
        help="ask one question through a running sidecar",
        description="Ask the first engine's model one question by a running sidecar's gRPC port, and print the answer"
        " as it comes. The chat is written by the model's template here, from the files beside the tokenizer that the"
        " settings name, and goes as token ids. A special token in the question is text.",
    )
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, as YAML")
    parser.add_argument("--server", metavar="HOST:PORT", help="the sidecar; as the setting listen says")
    parser.add_argument(
        "--offline", action="store_true", help="ask in the offline lane: the answer comes when it is whole"
    )
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="the key to send, where the sidecar asks for one")
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="the authorities to believe, over TLS")
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of the answer, at most (%(default)s)")
    parser.set_defaults(run=_chat)


def _chat(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = load_settings(options.config, environment)
    if settings.tokenizer is None:
        raise SettingsError("chat: the settings name no tokenizer")
    tokens = Tokens.load(settings.tokenizer, settings.end_ids)
    try:
        asyncio.run(_asked(options, settings, tokens))
    finally:
        tokens.close()
    return 0


async def _asked(options: argparse.Namespace, settings: ServeSettings, tokens: Tokens) -> None:
    """The answer is printed. Raises SettingsError for what cannot be asked, EngineError or StreamBrokenError."""
    request = _request(options, settings, tokens)
    said = [("x-lane", "offline")] if options.offline else []
    if options.key_file is not None:
        said.append(("authorization", f"Bearer {options.key_file.read_text().strip()}"))
    tls = None if options.ca_file is None else Material(ClientTlsSettings(ca_file=options.ca_file), "--ca-file")
    ids: list[int] = []
    shown = ""
    async with EngineClient(_server(options, settings), tls=tls) as client:
        call: Any = client.open(said)
        final = False
        with translated_errors(call):
            await send(call, request)
            while (response := await call.read()) is not grpc.aio.EOF:
                raise_if_error(response)
                ids += wire.output_ids(response.infer_response)
                final = wire.is_final(response.infer_response)
                text = tokens.decode(ids)
                if text.startswith(shown) and (
                    final or not text.endswith(INCOMPLETE)
                ):  # else a letter is not whole yet
                    print(text[len(shown) :], end="", flush=True)
                    shown = text
        if not final:
            raise StreamBrokenError("the stream ended without a final response")
    print()


def _request(options: argparse.Namespace, settings: ServeSettings, tokens: Tokens) -> Any:
    engine = settings.engines[0]
    room = engine.tokens_max - options.max_tokens
    if options.max_tokens < 1 or room < 1:
        raise SettingsError(f"--max-tokens must be in 1..{engine.tokens_max - 1}, not {options.max_tokens}")
    system = [("system", options.system)] if options.system else []
    try:
        prompt = tokens.chat_ids([*system, ("user", options.question)], room)
    except (ChatTemplateError, TextTooLongError) as error:
        raise SettingsError(f"chat: {error}") from None
    request = token_request(engine.model, prompt, options.max_tokens, uuid.uuid4().hex)
    wire.add_tensor(request, "streaming", "BOOL", (True,), (1, 1))
    wire.add_tensor(request, "exclude_input_in_output", "BOOL", (True,), (1, 1))
    wire.add_tensor(request, "end_id", "INT32", (tokens.end_id,), (1, 1))
    if tokens.further_end_ids:
        add_word_list(request, "stop_words_list", [(each,) for each in tokens.further_end_ids])
    return request


def _server(options: argparse.Namespace, settings: ServeSettings) -> str:
    """Where the sidecar is: of one that listens everywhere, on this host."""
    address: str = options.server or settings.listen
    if not is_address(address):
        raise SettingsError(f"--server must be host:port, without http://, not {address!r}")
    return f"127.0.0.1:{port_of(address)}" if address.rpartition(":")[0] in ("0.0.0.0", "[::]") else address
