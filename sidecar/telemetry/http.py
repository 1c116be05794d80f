"""The small HTTP server for operators: metrics, health, status. Read-only; never prompts, keys or outputs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from aiohttp import web

from sidecar.core.request import Lane
from sidecar.core.snapshot import Snapshot
from sidecar.settings.limits import LimitSettings
from sidecar.telemetry.banners import verdict, why_held
from sidecar.telemetry.connections import HttpServer
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.page import HEADERS, page
from sidecar.telemetry.recent import Recent
from sidecar.tls import Material

STATUS_SCHEMA = 2
LAG_PERIOD_S = 0.1
HEALTH_PATHS = ("/healthz", "/readyz")  # probes have no key
NOT_WHOLE = ("stopped", "waiting", "degraded")  # states of the offline lane in which items do not get on as they should


class EngineHealth(Protocol):
    """How an engine is: why it is down ("" if it is up), and since when, in seconds of the loop's clock."""

    @property
    def reason(self) -> str: ...
    @property
    def since_s(self) -> float: ...


class Engines(Protocol):
    """Who watches the engines."""

    def health(self, name: str) -> EngineHealth | None:
        """Return how this engine is, or None if nobody knows yet."""

    def faults(self, name: str) -> list[str]:
        """Return what is wrong with this engine, in words."""


def no_counts(_tenant: str, _job: str) -> dict[str, Any]:
    """Nothing is known of what has ended of a job."""
    return {}


class Status:
    """Makes the status document."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        metrics: Metrics,
        version: str,
        *,
        engines: Engines | None = None,
        parts: Mapping[str, Callable[[], Any]] | None = None,
        job_counts: Callable[[str, str], dict[str, Any]] = no_counts,
        looks: Sequence[Callable[[], None]] = (),
        recent: Recent | None = None,
    ) -> None:
        """`parts` are further sections of the document. `job_counts` says what of a job has ended.

        `looks` read what a scrape, which runs in a thread, shows besides the snapshot. `recent` adds the history.
        """
        self._snapshot = snapshot
        self._metrics = metrics
        self._version = version
        self._engines = engines
        self._parts = parts or {}
        self._job_counts = job_counts
        self._looks = looks
        self._recent = recent

    def snapshot(self) -> Snapshot:
        """The scheduler's state now; the next rendering of the metrics shows the same."""
        for look in self._looks:
            look()
        self._metrics.snapshot = self._snapshot()
        return self._metrics.snapshot

    def document(self) -> dict[str, Any]:
        """Everything the status page and the demo show. Counters grow from the start of the process."""
        snapshot = self.snapshot()
        parts = {name: part() for name, part in self._parts.items()}
        state, offline = state_of(snapshot), str(parts.get("offline", {}).get("state", ""))
        if state == "serving" and offline.startswith(NOT_WHOLE):
            state = f"degraded: the offline lane is {offline}"
        rows = {} if self._recent is None else self._recent.rows()
        engines = {name: self._engine(name, each, snapshot.now_s) for name, each in snapshot.engines.items()}
        document = {
            "schema": STATUS_SCHEMA,
            "version": self._version,
            "now_s": snapshot.now_s,
            "state": state,
            "in_flight": snapshot.in_flight,
            "tasks": len(asyncio.all_tasks()),  # of this process; an idle one goes back to the same number
            "dead_letters": snapshot.dead_letters,
            "retries": snapshot.retries,
            "rejects": dict(snapshot.rejects),
            "engines": {name: each | {"rows": rows.get(name, [])} for name, each in engines.items()},
            "lanes": [dataclasses.asdict(each) for each in snapshot.lanes],
            "jobs": [{**dataclasses.asdict(each), **self._job_counts(each.tenant, each.job)} for each in snapshot.jobs],
            **parts,
            **({} if self._recent is None else self._recent.parts(snapshot)),
        }
        return document | {"verdict": verdict(document)}

    def health(self) -> tuple[bool, str]:
        """Whether callers are served, and one line for all, for each engine, and for the offline lane and each of its
        partitions: what it does, why, and since when."""
        snapshot = self.snapshot()
        state = state_of(snapshot)
        lines = [state]
        for name, engine in snapshot.engines.items():
            since_s, reason = self._engine_state(name)
            up = "up" if engine.up else "down"
            lines.append(f"engine {name} ({engine.model}): {up}{_since(since_s)}{f': {reason}' if reason else ''}")
        if (lane := self._parts["offline"]() if "offline" in self._parts else None) is not None:
            lines.append(_line("offline lane", lane))
            lines += [_line(f"partition {each['partition']}", each) for each in lane.get("partitions", ())]
        return not state.startswith(("draining", "engine down")), "\n".join(lines) + "\n"

    def _engine_state(self, name: str) -> tuple[float | None, str]:
        """For how many seconds the engine has been up or down, if that is known, and why it is down."""
        health = None if self._engines is None else self._engines.health(name)
        if health is None:
            return None, ""
        return time.monotonic() - health.since_s, health.reason

    def _engine(self, name: str, engine: Any, now_s: float) -> dict[str, Any]:
        since_s, reason = self._engine_state(name)
        usage = {lane: self._metrics.usage[name, lane] for lane in Lane}
        return {
            **dataclasses.asdict(engine),
            "reason": reason,
            "since_s": None if since_s is None else round(since_s, 3),
            "faults": [] if self._engines is None else self._engines.faults(name),
            "held": why_held(engine.limit_binding),
            "slots_busy": engine.slots_busy,
            "slot_seconds": {lane: round(each.at(now_s), 3) for lane, each in usage.items()},
            "output_tokens": {lane: each.output_tokens for lane, each in usage.items()},
        }


def state_of(snapshot: Snapshot) -> str:
    """The state in a word or two."""
    if snapshot.closing:
        return "draining"
    down = [name for name, engine in snapshot.engines.items() if not engine.up]
    if len(down) == len(snapshot.engines):
        return "engine down"
    return f"degraded: {', '.join(down)} down" if down else "serving"


def _line(name: str, part: Mapping[str, Any]) -> str:
    """`offline lane: waiting, rights, since 12 s: a right is missing …`"""
    state, _, detail = str(part["state"]).partition(": ")
    reason = part.get("reason", "none")
    told = f", {reason}" if reason != "none" else ""
    return f"{name}: {state}{told}{_since(part.get('since_s'))}{f': {detail}' if detail else ''}"


def _since(seconds: float | None) -> str:
    return "" if seconds is None else f", since {seconds:.0f} s"


async def serve_http(
    address: str,
    status: Status,
    metrics: Metrics,
    limits: LimitSettings | None = None,
    *,
    tls: Material | None = None,
    seen_by: Callable[[str], bool] | None = None,
) -> HttpServer:
    """A running server. Raises SettingsError if the port is taken. Clean it up with `cleanup()`.

    `seen_by` judges the header Authorization of whoever asks for more than health; None = everybody may.
    """
    app = web.Application()
    app.add_routes(
        (
            web.get("/", _page_handler(status)),
            web.get("/metrics", _metrics_handler(status, metrics)),
            web.get("/healthz", _healthz),
            web.get("/readyz", _readyz_handler(status)),
            web.get("/status.json", _status_handler(status)),
        )
    )
    if seen_by is not None:
        app.middlewares.append(_asks_for_a_key(seen_by))
    server = HttpServer(app, limits or LimitSettings())
    await server.start(address, tls)
    return server


def _asks_for_a_key(seen_by: Callable[[str], bool]) -> Any:
    """Refuses whoever may not see more than whether this process lives and serves."""

    @web.middleware
    async def check(request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if request.path not in HEALTH_PATHS and not seen_by(request.headers.get("Authorization", "")):
            asks = {"WWW-Authenticate": 'Basic realm="sidecar: the key of an operator as password"'}
            raise web.HTTPUnauthorized(text="the key of an operator is needed\n", headers=asks)
        answer: web.StreamResponse = await handler(request)
        return answer

    return check


def _metrics_handler(status: Status, metrics: Metrics) -> Callable[[web.Request], Any]:
    async def handler(request: web.Request) -> web.Response:
        status.snapshot()
        page, content_type = await asyncio.to_thread(metrics.render, request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})

    return handler


async def _healthz(_request: web.Request) -> web.Response:
    """Alive: the loop turns."""
    return web.Response(text="ok\n")


def _readyz_handler(status: Status) -> Callable[[web.Request], Any]:
    """Ready: an engine is up and arrivals are taken. What the offline lane waits for is told, and changes nothing."""

    async def handler(_request: web.Request) -> web.Response:
        ready, text = status.health()
        return web.Response(text=text, status=200 if ready else 503)

    return handler


def _page_handler(status: Status) -> Callable[[web.Request], Any]:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(text=page(status.document()), content_type="text/html", headers=HEADERS)

    return handler


def _status_handler(status: Status) -> Callable[[web.Request], Any]:
    cached: Mapping[str, Any] = {}

    async def handler(_request: web.Request) -> web.Response:
        nonlocal cached
        now_s = asyncio.get_running_loop().time()
        if not cached or now_s - cached["at_s"] > 0.2:  # a hundred viewers cost five renderings a second
            cached = {"at_s": now_s, "text": json.dumps(status.document())}
        return web.Response(text=cached["text"], content_type="application/json")

    return handler


async def watch_loop_lag(metrics: Metrics) -> None:
    """Keep the longest delay of a timer since the last scrape. Runs until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        metrics.loop_lag_max_s = max(metrics.loop_lag_max_s, loop.time() - due_s)
