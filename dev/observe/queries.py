"""Asks Prometheus what the panels of a board ask, with the board's variables filled in as Grafana would."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from sidecar.core.errors import SidecarError

VARIABLES = {"job": ".*", "instance": ".*", "model": ".*", "lane": ".*", "tenant": ".*", "objective": "ttft"}


class QueryError(SidecarError):
    """Prometheus did not take a query; the message is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One series: its labels, and its values by time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """Its newest value."""
        return self.points[-1][1]

    def named(self, legend: str) -> str:
        """Return its name as a panel's legend says it."""
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: self.labels.get(found[1], ""), legend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One observation of a histogram, with the trace of its request."""

    at_s: float
    value: float
    trace_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one panel's queries brought: of each of them, the series; and the exemplars of all."""

    series: list[list[Series]]
    exemplars: list[Exemplar]


def filled(expression: str, *, rate_interval: str, range_: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """Return the query with its variables replaced. Raises QueryError if one is not known."""
    known = {**variables, "__rate_interval": rate_interval, "__range": range_}

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise QueryError(f"${found[1]} is not known in {expression}")
        return known[found[1]]

    return re.sub(r"\$\{?(\w+)\}?", value, expression)


class PrometheusClient:
    """One Prometheus. Use it in `async with`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))

    async def __aenter__(self) -> PrometheusClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def instant(self, query: str, at_s: float | None = None) -> list[Series]:
        """Return the value of each series at one moment; without `at_s`, now."""
        found = await self.get("query", query=query, **({} if at_s is None else {"time": f"{at_s:.3f}"}))
        if found["resultType"] == "scalar":
            found = {"result": [{"metric": {}, "value": found["result"]}]}
        return [_series(each["metric"], [each["value"]]) for each in found["result"]]

    async def over(self, query: str, begin_s: float, end_s: float, step_s: float) -> list[Series]:
        """Return each series over a time."""
        times = {"start": f"{begin_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        found = await self.get("query_range", query=query, **times)
        return [_series(each["metric"], each["values"]) for each in found["result"]]

    async def exemplars(self, query: str, begin_s: float, end_s: float) -> list[Exemplar]:
        """Return the exemplars of the histograms in a query."""
        found = await self.get("query_exemplars", query=query, start=f"{begin_s:.3f}", end=f"{end_s:.3f}")
        return [
            Exemplar(at_s=float(each["timestamp"]), value=float(each["value"]), trace_id=each["labels"]["trace_id"])
            for series in found
            for each in series["exemplars"]
        ]

    async def get(self, path: str, **parameters: str) -> Any:
        """Return the data of one answer of the API. Raises QueryError."""
        async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as answer:
            document = await answer.json()
        if document["status"] != "success":
            raise QueryError(f"{document['error']}: {parameters.get('query', path)}")
        return document["data"]


def _series(labels: Mapping[str, str], values: list[tuple[float, str]]) -> Series:
    return Series(labels=labels, points=tuple((float(at_s), float(value)) for at_s, value in values))
