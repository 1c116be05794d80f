"""grpc.aio's server, except that no caller can end it.

grpc.aio 1.85 decodes the path of a call in the loop that takes all calls. A path that is not UTF-8, which one frame of
HTTP/2 can carry, raises there, and the whole server shuts down with every call that it has. So our methods are
registered, which leaves the comparison of paths to gRPC's core, and every other call is refused here without a look at
its path. The classes below are grpc.aio's own and not public: pyproject.toml allows no later grpcio, and a test sends
such a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

from sidecar.telemetry.faults import no_bad_encoding

logging.getLogger("grpc._cython.cygrpc").addFilter(no_bad_encoding)


class MethodServer(_server.Server):
    """A server for registered methods alone."""

    def __init__(self, options: Sequence[tuple[str, int]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Calls(self._loop, None, (), None, tuple(options), None)

    def serve(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The methods of `service` are served by these RpcMethodHandlers. Only before the start."""
        self.add_registered_method_handlers(service, dict(handlers))


class _Calls(cygrpc.AioServer):  # type: ignore[misc]
    """Takes the calls. Those of methods that nobody registered never get to grpc.aio's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *arguments: Any) -> None:
        super().__init__(loop, *arguments)
        self._own_loop = loop
        self._refusals: set[asyncio.Task[None]] = set()

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """Return what grpc.aio's loop waits for: the next call of `method`, or of an unknown one."""
        if method is None:
            return self._own_loop.create_task(self._refuse_unknown_methods())
        taken: asyncio.Future[Any] = super()._make_request_call_future(method)
        return taken

    async def _refuse_unknown_methods(self) -> None:
        """Runs until the server stops; what `_request_call` then raises is grpc.aio's to handle."""
        while True:
            call = await self._request_call()
            refusal = self._own_loop.create_task(self._refuse(call), name="refuse an unknown method")
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)

    async def _refuse(self, call: Any) -> None:
        context = cygrpc._ServicerContext(call, None, None, self._own_loop)
        with contextlib.suppress(grpc.aio.BaseError):  # abort raises, and so does a caller who has gone
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
