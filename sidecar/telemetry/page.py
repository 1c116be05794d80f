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

DOCUMENT = resources.files("sidecar.data").joinpath("page.html").read_text()


def page(document: Mapping[str, Any]) -> str:
    """The page for a browser; one without scripts sees the state as text and asks again every five seconds."""
    shown = {"@STATE@": html.escape(str(document["state"])), "@TEXT@": html.escape(status_text(document))}
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
