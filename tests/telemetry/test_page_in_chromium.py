"""The status page in a real browser: what it shows, what it asks for, what keys and small screens do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from copy import deepcopy
from typing import Any

import pytest
import pytest_asyncio

from dev.broker import free_ports
from dev.browser import Tab, binary, browser
from dev.page_pictures import DRAWN, serving
from dev.page_scenes import RECORDED, scene
from sidecar.telemetry.http import serve_http
from sidecar.triton import wire
from tests.fakes.sidecar import running_sidecar
from tests.fakes.triton import FakeTriton
from tests.frontend.test_service import ids_request

CHROMIUM = binary()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.asyncio(loop_scope="module"),
]
NASTY = "</script><img src=x onerror=\"document.body.id='broken'\"><b>&amp;`*\u202e"


class Page:
    """A tab over a status document that a test may change."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.document: dict[str, Any] = {}
        self.url = ""

    async def show(self, document: dict[str, Any], **options: Any) -> None:
        self.document = document
        self.tab.requests.clear()
        self.tab.complaints.clear()
        await self.tab.shown(self.url, until=DRAWN, **options)

    async def text(self, selector: str) -> str:
        return str(await self.tab.value(f"document.querySelector({selector!r}).innerText"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page() -> AsyncIterator[Page]:
    async with AsyncExitStack() as stack:
        assert CHROMIUM is not None
        found = Page(await stack.enter_async_context(browser(CHROMIUM)))
        found.url = await stack.enter_async_context(serving(lambda: found.document))
        yield found


@pytest.mark.parametrize("name", sorted(each.stem for each in RECORDED.glob("*.json")))
async def test_each_scene_is_shown_without_a_complaint_and_asks_for_nothing_but_itself(page: Page, name: str) -> None:
    await page.show(scene(name))
    assert page.tab.complaints == []
    asked = {each for each in page.tab.requests if not each.startswith("about:")}
    assert asked <= {page.url, f"{page.url}status.json"}
    assert (await page.text("#headline")).replace("\xa0", " ") == scene(name)["verdict"]["text"]


async def test_a_sidecar_that_has_just_begun_shows_who_has_its_slot(page: Page) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    async with FakeTriton() as triton, running_sidecar({"e0": triton}) as sidecar:
        server = await serve_http(address, sidecar.status, sidecar.metrics)
        metadata = (("x-tenant", "somebody"),)
        call = sidecar.unary("ModelInfer", ids_request("u"), wire.InferResponse, metadata=metadata)
        request = await triton.next()
        page.tab.complaints.clear()
        await page.tab.shown(f"http://{address}/", until=DRAWN)
        assert "somebody" in await page.text(".slots")
        assert page.tab.complaints == []
        request.tokens(3, final=True)
        await call
        await page.tab.until("!document.querySelector('.slots').innerText.includes('somebody')")
        await page.tab.ask("Page.navigate", url="about:blank")
        await server.cleanup()


async def test_names_are_text_whoever_chose_them(page: Page) -> None:
    document = deepcopy(scene("busy"))
    [engine] = document["engines"].values()
    for each in (*engine["rows"], *document["tenants"], *document["jobs"]):
        each |= {"tenant": NASTY, "job": NASTY}
    document["decisions"][-1]["text"] = f"stopped 1 row of `{NASTY}`: an online request arrived"
    document["engines"] = {NASTY: engine | {"name": NASTY, "model": NASTY}}
    document["last_dead_letters"][0] |= {"job": NASTY, "source": NASTY, "reason": NASTY}
    document["verdict"]["banners"] = [{"level": "warn", "title": NASTY, "text": NASTY, "callers": NASTY, "act": NASTY}]
    await page.show(document)
    assert await page.tab.value("document.querySelectorAll('main img, header img, main b b, script').length") == 1
    assert await page.tab.value("document.body.id") == ""
    assert NASTY in await page.tab.value("document.querySelector('#tenants').textContent")
    assert NASTY.partition("`")[0] in await page.tab.value("document.querySelector('#decisions').textContent")
    assert page.tab.complaints == []


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["busy", "engine_down"])
async def test_nothing_is_wider_than_the_screen(page: Page, name: str, width: int) -> None:
    await page.show(scene(name), width=width)
    assert await page.tab.value("document.documentElement.scrollWidth") <= width


async def test_history_is_there_at_once_with_axes_and_a_legend(page: Page) -> None:
    await page.show(scene("busy"))
    assert await page.tab.value("document.querySelectorAll('#charts figure').length") == 4
    ticks = await page.tab.value("[...document.querySelectorAll('#charts svg text')].map(each => each.textContent)")
    assert {"08:20", "08:25", "08:30"} <= set(ticks)
    assert "objective" in await page.text("#charts figcaption")
    points = await page.tab.value("document.querySelector('#charts path').getAttribute('d').split('L').length")
    assert points > 100


async def test_the_keyboard_goes_through_time_and_slots(page: Page) -> None:
    await page.show(scene("busy"))
    await page.tab.value("document.querySelector('#charts svg').focus()")
    for _ in range(3):
        await page.tab.press("ArrowLeft")
    assert await page.text("#charts strong span") == "08:30:52"
    await page.tab.press("Escape")
    assert await page.text("#charts strong span") == ""
    await page.tab.value("document.querySelector('.slots').focus()")
    await page.tab.press("ArrowRight")
    assert (await page.text(".under")).startswith("Slot 1: ")
    await page.tab.press("Escape")
    assert "online" in await page.text(".under")


async def test_every_control_can_be_reached_by_tab_and_every_figure_has_words(page: Page) -> None:
    await page.show(scene("busy"))
    reached = []
    for _ in range(7):
        await page.tab.press("Tab")
        reached.append(await page.tab.value("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["OL", "svg", "svg", "svg", "svg", "decisions", "SUMMARY"]
    labels = await page.tab.value("[...document.querySelectorAll('svg')].map(each => each.getAttribute('aria-label'))")
    assert all("at most" in each for each in labels)
    slots = await page.tab.value(
        "[...document.querySelectorAll('.slots li')].map(each => each.getAttribute('aria-label'))"
    )
    assert len(slots) == 32
    assert all(each.startswith("Slot ") for each in slots)


LIGHTNESS = """(() => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = colour => {
    paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map(each => each / 255)
      .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = getComputedStyle(document.documentElement), value = name => light(style.getPropertyValue(name).trim());
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const grounds = ["--paper", "--card", "--online-tint", "--offline-tint", "--warn-tint", "--bad-tint"];
  return ["--ink", "--soft"].flatMap(text => grounds.map(under => [text, under, ratio(value(text), value(under))]));
})()"""


@pytest.mark.parametrize("dark", [False, True])
async def test_text_can_be_read_on_every_ground_it_stands_on(page: Page, dark: bool) -> None:
    await page.show(scene("busy"), dark=dark)
    ratios = await page.tab.value(LIGHTNESS)
    assert [each for each in ratios if each[2] < 4.5] == []  # WCAG 2.2, 1.4.3


async def test_a_row_keeps_its_place_while_others_come_and_go(page: Page) -> None:
    document = deepcopy(scene("busy"))
    await page.show(document)
    places = "[...document.querySelectorAll('.slots li')].map(each => each.className)"
    before = await page.tab.value(places)
    [engine] = document["engines"].values()
    gone = engine["rows"].pop(0)
    kind = gone["lane"]
    engine[f"slots_{kind}"] -= gone["slots"]
    await page.tab.until(f"document.querySelectorAll('.slots .free').length > {before.count('free')}")
    after = await page.tab.value(places)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


async def test_a_sidecar_that_does_not_answer_is_said_and_comes_back(page: Page) -> None:
    document = scene("busy")
    await page.show(document)
    page.document = {}
    await page.tab.until("document.body.className === 'stale'")
    assert "does not answer; what is below is from 08:31:07" in await page.text("#headline")
    page.document = document
    await page.tab.until("document.body.className === ''")
    assert "All is well" in await page.text("#headline")


async def test_without_a_price_there_are_no_dollars(page: Page) -> None:
    document = deepcopy(scene("busy"))
    del document["usd_per_hour"]
    await page.show(document)
    shown = await page.text("main")
    assert "$" not in shown
    assert "Dollars" not in shown
