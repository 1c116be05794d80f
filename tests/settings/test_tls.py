"""The settings of TLS, as a file states them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.core.errors import SettingsError
from sidecar.settings.file import load_settings
from sidecar.settings.tls import ClientTlsSettings, ServerTlsSettings, TlsSettings

ENGINES = "engines: [{name: e0}]\n"


def test_each_connection_has_files_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text(
        f"{ENGINES}tls:\n  listen: {{certificate_file: a.crt, key_file: a.key, client_ca_file: callers.pem}}\n"
        "  engines: {ca_file: engines.pem, server_name: triton}\n"
    )
    assert load_settings(path, {}).tls == TlsSettings(
        listen=ServerTlsSettings(
            certificate_file=Path("a.crt"), key_file=Path("a.key"), client_ca_file=Path("callers.pem")
        ),
        engines=ClientTlsSettings(ca_file=Path("engines.pem"), server_name="triton"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen: {certificate_file: a.crt}", "tls.listen.key_file: missing"),
        ("engines: {ca_file: a.pem, key_file: a.key}", "certificate_file and key_file go together"),
        ("listens: {}", "tls.listens: unknown setting"),
    ],
)
def test_what_is_missing_or_unknown_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "sidecar.yaml"
    path.write_text(f"{ENGINES}tls: {{{text}}}\n")
    with pytest.raises(SettingsError, match=said):
        load_settings(path, {})
