"""The gauges on a metrics page, and what becomes of pages that are none."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.events import Measured
from sidecar.settings.file import EngineEndpoint
from sidecar.triton import gauges
from sidecar.triton.gauges import EngineScrape, block_fault, measure, parse_gauges

PAGE = """# HELP nv_trt_llm_request_metrics TensorRT-LLM request metrics
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 7
nv_trt_llm_request_metrics{model="other",request_type="active",version="1"} 99
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 2560
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm",version="1"} 2.5e+03
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 32
nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"} 1234
"""
FULL = Measured(
    engine="e0",
    ok=True,
    active_requests=7,
    kv_blocks_max=2560,
    kv_blocks_free=2500,
    tokens_per_block=32,
    iterations=1234,
)
FAILED = Measured(engine="e0", ok=False)


def test_the_gauges_of_this_model_are_read_whatever_the_order_of_the_labels() -> None:
    assert parse_gauges("e0", "tensorrt_llm", PAGE) == FULL


@pytest.mark.parametrize(
    ("set_to", "gauge", "is_fault"),
    [(0, 64, False), (64, 64, False), (32, None, False), (32, 0, False), (32, 64, True), (64, 32, True)],
)
def test_a_block_size_that_the_gauge_contradicts_is_named_with_both_numbers(
    set_to: int, gauge: int | None, is_fault: bool
) -> None:
    fault = block_fault(EngineEndpoint(name="e0", kv_block_tokens=set_to), replace(FULL, tokens_per_block=gauge))
    assert bool(fault) is is_fault
    assert not is_fault or (f"kv_block_tokens is {set_to} in" in fault and f"holds {gauge} tokens" in fault)


def test_a_page_without_gauges_measures_nothing_but_did_answer() -> None:
    assert parse_gauges("e0", "tensorrt_llm", "nv_inference_count 3\n") == Measured(engine="e0", ok=True)


def test_a_block_that_is_larger_than_any_is_unknown() -> None:
    for shown, expected in (("4096", 4096), ("1e6", None)):
        page = PAGE.replace("} 32\n", f"}} {shown}\n")
        assert parse_gauges("e0", "tensorrt_llm", page) == replace(FULL, tokens_per_block=expected)


def test_line_ends_and_time_stamps_do_not_matter() -> None:
    assert parse_gauges("e0", "tensorrt_llm", PAGE.replace("\n", " 1700000000000\r\n")) == FULL


@pytest.mark.parametrize(
    "value", ["1e999", "-1e999", "1.2.3", "-", "", "NaN", "+Inf", "-3", "1e400", "1e16", "0x10", "1_000", "٣", "7 8 9"]
)
def test_a_gauge_without_a_sensible_value_is_unknown_and_its_neighbours_are_not(value: str) -> None:
    page = PAGE.replace("} 2560", f"}} {value}")
    found = parse_gauges("e0", "tensorrt_llm", page)
    assert found == replace(FULL, kv_blocks_max=None)


def test_a_gauge_that_two_lines_tell_differently_is_unknown() -> None:
    twice = PAGE + PAGE.replace("} 7", "} 8")
    assert parse_gauges("e0", "tensorrt_llm", twice).active_requests is None
    assert parse_gauges("e0", "tensorrt_llm", PAGE + PAGE) == FULL


@given(text=st.text(st.sampled_from('nv_trt_llm_request_metrics{}=",\\ \n0123456789.e+-model type'), max_size=400))
def test_any_text_is_a_page(text: str) -> None:
    lines = "".join(f"nv_trt_llm_request_metrics{{{each}}} {each}\n" for each in (text, text[::-1]))
    assert parse_gauges("e0", "tensorrt_llm", lines).ok


def test_a_line_without_an_end_is_read_in_linear_time() -> None:
    long = 'nv_trt_llm_x{model="' * 20_000
    assert parse_gauges("e0", "tensorrt_llm", long + "\n" + PAGE) == FULL


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Engine:
    metrics_url: str | None
    name: str = "e0"
    model: str = "tensorrt_llm"
    kv_block_tokens: int = 0


@dataclass
class Page:
    """A metrics page that a test writes, and what `measure` makes of it."""

    url: str = ""
    handler: Handler | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        assert self.handler is not None
        return await self.handler(request)

    async def measured(self, handler: Handler) -> Measured:
        self.handler = handler
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            return (await measure(http, Engine(self.url))).measured


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    served = Page()
    application = web.Application()
    application.router.add_get("/metrics", served.serve)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    yield served
    await runner.cleanup()


def answering(body: bytes, **more: str) -> Handler:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers=more)

    return answer


async def test_a_page_is_measured(page: Page) -> None:
    assert await page.measured(answering(PAGE.encode())) == FULL


async def test_a_page_that_is_no_text_is_a_failed_scrape(page: Page) -> None:
    assert await page.measured(answering(b"\xff\xfe" + PAGE.encode())) == FAILED


async def test_a_page_in_another_encoding_is_no_page_whatever_it_claims(page: Page) -> None:
    odd = answering(PAGE.encode("utf-16"), **{"Content-Type": "text/plain; charset=nonsense"})
    assert await page.measured(odd) == FAILED


async def test_a_packed_page_is_not_unpacked(page: Page) -> None:
    packed = gzip.compress(b"#" * 50_000_000)
    assert await page.measured(answering(packed, **{"Content-Encoding": "gzip"})) == FAILED


async def test_an_endless_page_is_given_up_at_its_bound(page: Page) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PAGE.encode() * 100)
            sent += len(PAGE) * 100

    assert await page.measured(endless) == FAILED
    assert sent < 4 * gauges.PAGE_BYTES_MAX


async def test_an_error_page_a_closed_port_and_a_senseless_address_are_failed_scrapes(page: Page) -> None:
    async def refused(_: web.Request) -> web.StreamResponse:
        raise web.HTTPForbidden

    assert await page.measured(refused) == FAILED
    async with aiohttp.ClientSession() as http:
        for url in ("http://127.0.0.1:1/metrics", "not an address", "ftp://127.0.0.1/", "http://[::1", ""):
            assert await measure(http, Engine(url)) == EngineScrape(measured=FAILED)
