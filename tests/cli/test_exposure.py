"""What `doctor` says of who can reach the ports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.cli.exposure import exposure_findings
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.settings.keys import KeysSettings
from sidecar.settings.tls import TlsSettings
from tests.fakes.certificates import Authority

OPEN = {"listen": "0.0.0.0:1", "http": "[::]:2"}


async def found(**settings: Any) -> list[tuple[str, str]]:
    made = ServeSettings(engines=(EngineEndpoint(name="e0", target="127.0.0.1:1"),), **settings)
    return [each async for each in exposure_findings(made)]


async def test_nothing_is_said_of_ports_that_nobody_else_reaches() -> None:
    assert await found() == []
    assert await found(listen="localhost:1", http="[::1]:2") == []


async def test_an_open_port_is_named_with_what_it_lets_others_do() -> None:
    assert await found(**OPEN) == [
        (
            "warning",
            "listen: whoever can reach 0.0.0.0:1 may send requests as any tenant, and load and unload models; the"
            " setting keys asks for a key",
        ),
        ("warning", "http: whoever can reach [::]:2 may read metrics and status; the setting keys asks for a key"),
    ]


@pytest.mark.parametrize("http", [False, True])
async def test_keys_without_tls_are_named_and_keys_that_http_does_not_ask_for(tmp_path: Path, http: bool) -> None:
    (tmp_path / "keys.yaml").write_text("- {tenant: t, certificate: a}\n")
    said = [text for _, text in await found(**OPEN, keys=KeysSettings(file=tmp_path / "keys.yaml", http=http))]
    assert said[0] == f"keys: {tmp_path / 'keys.yaml'} has 1"
    assert said[1].startswith("listen: keys go to 0.0.0.0:1 in the clear")
    assert said[2].startswith("http: keys go to" if http else "http: whoever can reach")


async def test_files_that_cannot_be_used_are_failures(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("sidecar")
    (tmp_path / "keys.yaml").write_text("- {tenant: t}\n- 7\n")
    keys = KeysSettings(file=tmp_path / "keys.yaml")
    good = await found(listen="0.0.0.0:1", tls=TlsSettings(listen=authority.serving(pair)))
    assert good[0] == ("ok", "tls.listen: the certificates can be used")
    pair.key.unlink()
    bad = await found(keys=keys, tls=TlsSettings(http=authority.serving(pair)))
    assert [verdict for verdict, _ in bad] == ["FAILED", "FAILED"]
    assert [text.startswith(start) for (_, text), start in zip(bad, ("tls.http: ", str(keys.file)), strict=True)]
