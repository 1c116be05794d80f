"""The browser that tests and pictures of the page are made with."""

from __future__ import annotations

import pytest

from dev.browser import BrowserError, binary, browser

CHROMIUM = binary()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
async def test_a_tab_says_what_an_expression_is_worth_and_what_it_throws() -> None:
    assert CHROMIUM is not None
    async with browser(CHROMIUM) as tab:
        assert await tab.value("6 * 7") == 42
        with pytest.raises(BrowserError, match="nowhere"):
            await tab.value("nowhere.to.be.found")
        with pytest.raises(BrowserError, match=r"No\.such"):
            await tab.ask("No.such")
