"""The connections of the HTTP server: so many, each for one request, and none that holds on without sending or reading.

aiohttp itself closes a connection that sends no whole request in time. It does not bound their number, nor the time
that an answer may wait for its reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sidecar.core.errors import SettingsError
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry.faults import FaultLog
from sidecar.tls import Material

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)
BACKLOG = 32  # asyncio takes so many at once; some three times as many are open before the first is closed again
SHUTDOWN_S = 1.0  # for answers that are being written when the sidecar ends


class Connection(web.RequestHandler):
    """One connection for one request, closed when its reader stands still."""

    __slots__ = ("_owner", "_patience", "busy")

    def __init__(self, owner: HttpServer, manager: web.Server, limits: LimitSettings) -> None:
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.http_idle_s,  # for the request to come, and to end
            lingering_time=0.0,  # no request has a body that would be read
            access_log=None,  # type: ignore[arg-type]
        )
        self.busy = False  # its request is being answered
        self._owner = owner
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is one of those that may be open, or another one had to go."""
        super().connection_made(transport)
        self._owner.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        self._wait_no_longer()
        self._owner.closed(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader does not keep up; it has a while to go on."""
        super().pause_writing()
        self._patience = asyncio.get_running_loop().call_later(self._owner.limits.http_idle_s, self.abort)

    def resume_writing(self) -> None:
        """The reader has kept up."""
        self._wait_no_longer()
        super().resume_writing()

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def abort(self) -> None:
        """It is over, and what was to be written is dropped."""
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    def log_exception(self, *_: Any, **details: Any) -> None:
        """Log a fault of ours; a request that is no HTTP is its sender's, who has been told."""
        error = details.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, HttpProcessingError):
            self._owner.faults.log("an HTTP request", error)


class HttpServer:
    """A running server for `app`."""

    def __init__(self, app: web.Application, limits: LimitSettings) -> None:
        app.middlewares.append(_once)
        self.limits = limits
        self.faults = FaultLog(logger)
        self.open: dict[Connection, None] = {}  # the oldest first
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        self._listening: asyncio.Server | None = None

    async def start(self, address: str, tls: Material | None = None) -> None:
        """It listens on `address` (host:port). Raises SettingsError if the port is taken."""
        await self._runner.setup()
        manager, (host, _, port) = self._runner.server, address.rpartition(":")
        assert manager is not None, "setup makes it"
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                lambda: Connection(self, manager, self.limits),
                host,
                int(port),
                backlog=BACKLOG,
                ssl=None if tls is None else tls.server_context(),
                ssl_handshake_timeout=None if tls is None else self.limits.http_idle_s,
            )
        except OSError as error:
            await self.cleanup()
            raise SettingsError(f"http: cannot bind {address}: {error.strerror}") from None

    async def cleanup(self) -> None:
        """Nothing listens any more, and no connection is left."""
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()

    def opened(self, connection: Connection) -> None:
        """There is one more; if that is one too many, the oldest goes that is not being answered, or the new one."""
        self.open[connection] = None
        if len(self.open) > self.limits.http_connections_max:
            next((each for each in self.open if not each.busy), connection).abort()

    def closed(self, connection: Connection) -> None:
        """There is one less."""
        self.open.pop(connection, None)


@web.middleware
async def _once(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A connection ends with its answer; until that is made it is not closed for another one."""
    connection = request.protocol
    if isinstance(connection, Connection):
        connection.busy = True
    try:
        response = await handler(request)
    except web.HTTPException as refusal:
        refusal.force_close()
        raise
    finally:
        if isinstance(connection, Connection):
            connection.busy = False
    response.force_close()
    return response
