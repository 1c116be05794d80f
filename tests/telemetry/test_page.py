"""The status page: one document that loads nothing, runs its own script alone, and shows names as text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from sidecar.telemetry import page as module
from sidecar.telemetry.page import DOCUMENT, HEADERS, page


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the status in words says; a test sets it."""
    said = ["nothing"]
    monkeypatch.setattr(module, "status_text", lambda _document: said[0])
    return said


def directive(name: str) -> str:
    found = re.search(rf"{name} ([^;]*)", HEADERS["Content-Security-Policy"])
    return found[1] if found else ""


def shown(document: dict[str, Any]) -> str:
    """The text of the page outside of script and style, as a browser without scripts has it."""
    parts: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            parts.append(data)

    Reader(convert_charrefs=True).feed(page(document))
    return "".join(parts)


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_allows_the_pages_own_inline_parts_by_their_hash_and_nothing_else(tag: str) -> None:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", DOCUMENT, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert directive(f"{tag}-src") == f"'sha256-{digest}'"
    assert directive("default-src") == "'none'"
    assert directive("connect-src") == "'self'"
    assert directive("frame-ancestors") == "'none'"


def test_the_policy_holds_for_the_page_as_it_is_sent(text: list[str]) -> None:
    text[0] = "<script>alert(1)</script> @STATE@"
    sent = page({"state": "</script><script>alert(2)</script>"})
    assert re.findall("<script>(.*?)</script>", sent, flags=re.S) == re.findall(
        "<script>(.*?)</script>", DOCUMENT, flags=re.S
    )


def test_the_document_loads_nothing_from_elsewhere() -> None:
    assert re.findall(r"(?:src|href|action)\s*=", DOCUMENT) == []
    assert "http://" not in DOCUMENT.replace("http://www.w3.org/", "")
    assert "https://" not in DOCUMENT
    assert " on" + "click" not in DOCUMENT  # the policy would refuse it


@pytest.mark.parametrize("name", ["<b>", "a & b", '"quoted"', "'", "@TEXT@", "@STATE@", "\\1", "é😀"])
def test_a_name_is_shown_as_it_is_written(text: list[str], name: str) -> None:
    text[0] = f"tenant {name} waits"
    assert f"tenant {name} waits" in shown({"state": "serving"})
    assert name in shown({"state": name})


def test_a_name_that_holds_a_mark_is_not_replaced_again(text: list[str]) -> None:
    text[0] = "the text"
    assert page({"state": "@TEXT@"}).count("the text") == page({"state": "serving"}).count("the text")


def test_what_is_shown_is_never_kept_nor_taken_for_something_else() -> None:
    assert HEADERS["Cache-Control"] == "no-store"
    assert HEADERS["X-Content-Type-Options"] == "nosniff"
