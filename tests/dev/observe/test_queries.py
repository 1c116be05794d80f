"""Queries are filled in as Grafana would, and answers are read as Prometheus gives them."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from dev.observe.queries import PrometheusClient, QueryError, Series, filled


def test_variables_are_filled_in_both_spellings() -> None:
    text = filled('x{job=~"$job"}[$__rate_interval] + y[${__range}]', rate_interval="15s", range_="60s")
    assert text == 'x{job=~".*"}[15s] + y[60s]'


def test_a_variable_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(QueryError, match=r"\$nobody is not known"):
        filled("$nobody", rate_interval="1s", range_="1s")


def test_a_series_is_named_by_its_labels() -> None:
    series = Series(labels={"tenant": "a", "lane": "online"}, points=((1.0, 2.0), (2.0, 3.0)))
    assert series.named("{{tenant}} {{ lane }} {{gone}}") == "a online "
    assert series.last == 3.0


async def test_answers_and_refusals_are_read() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.endswith("exemplars"):
            one = {"labels": {"trace_id": "abc"}, "value": "0.5", "timestamp": 7.5}
            return web.json_response({"status": "success", "data": [{"seriesLabels": {}, "exemplars": [one]}]})
        if request.query["query"] == "bad":
            return web.json_response({"status": "error", "error": "parse error"})
        if request.path.endswith("range"):
            data: dict[str, Any] = {
                "resultType": "matrix",
                "result": [{"metric": {"a": "b"}, "values": [[1, "2"], [2, "NaN"]]}],
            }
        elif request.query["query"] == "1":
            data = {"resultType": "scalar", "result": [5, "1"]}
        else:
            data = {"resultType": "vector", "result": [{"metric": {}, "value": [5, "7"]}]}
        return web.json_response({"status": "success", "data": data})

    application = web.Application()
    application.router.add_get("/api/v1/{path}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with PrometheusClient(f"http://{host}:{port}") as client:
            assert [each.last for each in await client.instant("x", 5.0)] == [7.0]
            assert [each.last for each in await client.instant("1")] == [1.0]
            [series] = await client.over("x", 1, 2, 1)
            assert (series.labels, series.points[0]) == ({"a": "b"}, (1.0, 2.0))
            [exemplar] = await client.exemplars("x_bucket", 1, 9)
            assert (exemplar.at_s, exemplar.value, exemplar.trace_id) == (7.5, 0.5, "abc")
            with pytest.raises(QueryError, match="parse error: bad"):
                await client.instant("bad")
    finally:
        await runner.cleanup()
