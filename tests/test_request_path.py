"""How many files a reader must follow to see an online request from the caller's bytes to the write to Triton."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import pytest

import sidecar
from sidecar.triton import wire
from tests.fakes.sidecar import Sidecar, running_sidecar
from tests.fakes.triton import FakeRequest, FakeTriton
from tests.frontend.test_service import ids_request

SIDECAR = Path(sidecar.__file__).parent
FILES_MAX = 16
# The scheduler is asked once, and decides by what it reads itself; listeners only hear of a request.
ASIDE = {"core", "telemetry"}


class Passed:
    """Within it, the files of the package whose functions are called are noted."""

    def __init__(self) -> None:
        self.files: set[Path] = set()

    def __enter__(self) -> set[Path]:
        sys.setprofile(self._called)
        return self.files

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(SIDECAR):
            self.files.add(path.relative_to(SIDECAR))


async def send(sidecar: Sidecar, triton: FakeTriton, method: str) -> tuple[Any, FakeRequest]:
    """A call with one request that has reached Triton, and that request."""
    if method == "ModelInfer":
        call = sidecar.unary(method, ids_request("u"), wire.InferResponse)
    else:
        call = sidecar.stream()
        await call.write(ids_request("u"))
    return call, await triton.next()


async def finish(sidecar: Sidecar, call: Any, request: FakeRequest) -> None:
    """The request is over, and nothing of it goes on."""
    request.tokens(3, final=True)
    async with asyncio.timeout(5):
        if hasattr(call, "done_writing"):
            await call.done_writing()
            assert len([each async for each in call]) == 1
        assert await call.code() is grpc.StatusCode.OK
    await sidecar.until(lambda: sidecar.driver._ticks._timer is None)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_an_online_request_passes_few_files_on_its_way_to_triton(triton: FakeTriton, method: str) -> None:
    async with running_sidecar({"e0": triton}) as running:
        await finish(running, *await send(running, triton, method))  # what the first one alone looks up is known now
        with Passed() as files:
            call, request = await send(running, triton, method)
        await finish(running, call, request)
    on_the_way = sorted(str(each) for each in files if each.parts[0] not in ASIDE)
    assert {"frontend/service.py", "driver/driver.py", "driver/streams.py", "triton/client.py"} <= set(on_the_way)
    assert len(on_the_way) <= FILES_MAX, "\n".join(on_the_way)
