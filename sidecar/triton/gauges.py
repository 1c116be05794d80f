"""An engine's gauges, read off Triton's metrics page. A page that cannot be read is a scrape that failed, no more.

Families and labels: TensorRT-LLM's `custom_metrics_reporter.cc`. One line reads

    nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 2560
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import aiohttp

from sidecar.core.events import Measured

logger = logging.getLogger(__name__)
PAGE_BYTES_MAX = 4 << 20  # a page of a hundred models is a tenth of it; an endless one ends here
VALUE_MAX = 2**53  # beyond it a float is no exact count
REQUESTS = "nv_trt_llm_request_metrics"
BLOCK_TOKENS_MAX = 4096  # TensorRT-LLM has up to 1,024; with one of a million nothing would fit, and all be refused

_LINE = re.compile(r"^(nv_trt_llm_\w{1,80})\{([^{}\n]{1,1000})\} +(\S{1,40})(?: +-?\d{1,20})?\r?$", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"(?:,|$)')
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class EngineAddress(Protocol):
    """What has to be known of an engine to probe and measure it."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def metrics_url(self) -> str | None: ...
    @property
    def kv_block_tokens(self) -> int: ...


class PageError(Exception):
    """The metrics page cannot be read; the message says why, without its contents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineScrape:
    """What one look at the page gave: what the scheduler counts with, and what it does not."""

    measured: Measured
    sequences_max: int | None = None  # that the engine runs at a time


async def measure(http: aiohttp.ClientSession, engine: EngineAddress) -> EngineScrape:
    """The engine's gauges; `measured.ok` is False if they cannot be had, whatever the reason."""
    try:
        page = await _page(http, str(engine.metrics_url))
        found = _gauges(engine.model, page)
        return EngineScrape(measured=_measured(engine.name, found), sequences_max=found.get((REQUESTS, "max")))
    except (aiohttp.ClientError, TimeoutError, OSError, PageError) as error:
        logger.debug("engine %s: no gauges from %s: %r", engine.name, engine.metrics_url, error)
    except Exception as error:  # a fault of one scrape stays with it: aiohttp raises more than it documents
        logger.warning("engine %s: no gauges from %s: %s", engine.name, engine.metrics_url, type(error).__name__)
    return EngineScrape(measured=Measured(engine=engine.name, ok=False))


async def _page(http: aiohttp.ClientSession, url: str) -> str:
    """The page's text. Raises PageError if it is too long, packed, or no UTF-8."""
    # Not compressed: the bound is on what is read, and a few packed bytes can unpack to gigabytes.
    async with http.get(url, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PageError("it is compressed, although it was asked not to be")
        page = bytearray()
        async for chunk in response.content.iter_any():
            page += chunk
            if len(page) > PAGE_BYTES_MAX:
                raise PageError(f"it has more than {PAGE_BYTES_MAX} bytes")
    try:
        return page.decode()
    except UnicodeDecodeError:
        raise PageError("it is not UTF-8") from None


def block_fault(engine: EngineAddress, measured: Measured) -> str:
    """How the setting of tokens per KV block differs from the engine's gauge; "" if it does not, or one is unknown."""
    set_to, gauge = engine.kv_block_tokens, measured.tokens_per_block
    if not set_to or not gauge or set_to == gauge:
        return ""
    return (
        f"kv_block_tokens is {set_to} in the settings, but a block of this engine's KV cache holds {gauge} tokens,"
        " which is what counts; leave the setting out"
    )


def parse_gauges(engine: str, model: str, text: str) -> Measured:
    """The `nv_trt_llm_*` gauges of this model on a Prometheus page. One without a sensible value is None."""
    return _measured(engine, _gauges(model, text))


def _gauges(model: str, text: str) -> dict[tuple[str, str], int | None]:
    """By family and type."""
    found: dict[tuple[str, str], int | None] = {}
    for family, labels, value in _LINE.findall(text):
        named = dict(_LABEL.findall(labels))
        if named.get("model") != model:
            continue
        for label, kind in named.items():
            if label.endswith("_type"):
                key, count = (family, kind), _count(value)
                # Two lines that differ (two versions of the model, say) leave the gauge unknown.
                found[key] = count if found.get(key, count) == count else None
    return found


def _measured(engine: str, found: Mapping[tuple[str, str], int | None]) -> Measured:
    blocks = "nv_trt_llm_kv_cache_block_metrics"
    tokens_per_block = found.get((blocks, "tokens_per"))
    if tokens_per_block is not None and tokens_per_block > BLOCK_TOKENS_MAX:
        tokens_per_block = None
    return Measured(
        engine=engine,
        ok=True,
        active_requests=found.get((REQUESTS, "active")),
        kv_blocks_max=found.get((blocks, "max")),
        kv_blocks_free=found.get((blocks, "free")),
        tokens_per_block=tokens_per_block,
        iterations=found.get(("nv_trt_llm_general_metrics", "iteration_counter")),
    )


def _count(text: str) -> int | None:
    """The count that `text` writes; None if it writes none: no number, negative, not finite, too large to be exact."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return int(value) if isfinite(value) and 0 <= value <= VALUE_MAX else None
