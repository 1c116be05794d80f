"""The built-in status page: one document, no external asset, read-only; it asks for `/status.json` once a second."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from sidecar.telemetry.status_text import status_text


def _document() -> str:
    """One document: a proxy that serves it under another path, or a browser that is offline a moment later, needs no
    second file."""
    files = resources.files("sidecar.data")
    parts = {
        f"@{name}@": files.joinpath(f"page.{end}").read_text() for name, end in (("STYLE", "css"), ("SCRIPT", "js"))
    }
    return re.sub("@STYLE@|@SCRIPT@", lambda mark: parts[mark[0]], files.joinpath("page.html").read_text())


DOCUMENT = _document()


def page(document: Mapping[str, Any]) -> str:
    """The page for a browser; one without scripts sees the state as text and asks again every five seconds."""
    state = document.get("verdict", {}).get("text", document["state"])
    shown = {"@STATE@": html.escape(str(state)), "@TEXT@": html.escape(status_text(document))}
    return re.sub("@STATE@|@TEXT@", lambda mark: shown[mark[0]], DOCUMENT)  # in one go: a name may hold a mark


def _source(tag: str) -> str:
    """The Content-Security-Policy source that allows the page's own inline `tag`, and nothing else."""
    match = re.search(f"<{tag}>(.*?)</{tag}>", DOCUMENT, flags=re.S)
    content = match[1] if match else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_source('script')}; style-src {_source('style')}; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
