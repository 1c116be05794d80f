"""What `sidecar doctor` says of who can reach the ports, and of what keeps others out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sidecar.core.errors import SettingsError
from sidecar.keys import load_keys
from sidecar.settings.file import ServeSettings, is_loopback
from sidecar.tls import material


async def exposure_findings(settings: ServeSettings) -> AsyncIterator[tuple[str, str]]:
    """Nothing while both ports listen on loopback alone and the settings name neither keys nor certificates."""
    tls, keys = settings.tls, settings.keys
    for name, files in (("listen", tls.listen), ("http", tls.http), ("engines", tls.engines), ("tracing", tls.tracing)):
        try:
            if material(files, f"tls.{name}") is not None:
                yield "ok", f"tls.{name}: the certificates can be used"
        except SettingsError as error:
            yield "FAILED", str(error)
    if keys is not None:
        try:
            yield "ok", f"keys: {keys.file} has {len(load_keys(keys.file))}"
        except SettingsError as error:
            yield "FAILED", "; ".join(str(error).splitlines())
    for name, address, does, asks, encrypts in (
        ("listen", settings.listen, "send requests as any tenant, and load and unload models", keys, tls.listen),
        ("http", settings.http, "read metrics and status", keys is not None and keys.http, tls.http),
    ):
        if is_loopback(address):
            continue
        if not asks:
            yield "warning", f"{name}: whoever can reach {address} may {does}; the setting keys asks for a key"
        elif encrypts is None:
            yield "warning", f"{name}: keys go to {address} in the clear; the setting tls.{name} encrypts"
