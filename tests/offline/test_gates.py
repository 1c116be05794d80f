"""The gates before the scheduler."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.offline.gates import ModelGates


async def test_a_gate_that_nobody_has_turned_is_open() -> None:
    async with asyncio.timeout(1):
        await ModelGates().wait("m")


async def test_a_shut_gate_holds_the_items_of_its_model_alone_until_it_opens() -> None:
    gates = ModelGates()
    gates.turn("m", may_take_more=False)
    waiting = asyncio.ensure_future(gates.wait("m"))
    async with asyncio.timeout(1):
        await gates.wait("other")
    assert not waiting.done()
    gates.turn("m", may_take_more=True)
    async with asyncio.timeout(1):
        await waiting


@pytest.mark.parametrize("may_take_more", [True, False])
async def test_a_gate_may_be_turned_the_same_way_twice(may_take_more: bool) -> None:
    gates = ModelGates()
    gates.turn("m", may_take_more)
    gates.turn("m", may_take_more)
    waiting = asyncio.ensure_future(gates.wait("m"))
    await asyncio.sleep(0)
    assert waiting.done() is may_take_more
    waiting.cancel()
