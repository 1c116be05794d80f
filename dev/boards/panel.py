"""Panels of a Grafana board as dictionaries. Each says what it shows and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Panel = dict[str, Any]
Steps = Sequence[tuple[float | None, str]]  # from which value on which colour; the first from None
NEUTRAL: Steps = ((None, "text"),)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLOURS = {
    "online": "#5794F2",
    "offline": "#B877D9",
    "idle": "#8E8E8E",
    "reserved": "#FADE2A",
    "foreign": "#FF9830",
    "p50": "#73BF69",
    "p95": "#FF9830",
    "p99": "#F2495C",
    "objective": "#E02F44",
    "capacity": "#C4C4C4",
    "missed": "#F2495C",
    "met": "#73BF69",
    "failed": "#F2495C",
    "done": "#73BF69",
}


def low_is_bad(red: float, orange: float) -> Steps:
    """Return steps for a figure that should be high: red below the first, orange below the second."""
    return ((None, "red"), (red, "orange"), (orange, "green"))


def high_is_bad(orange: float, red: float) -> Steps:
    """Return steps for a figure that should be low."""
    return ((None, "green"), (orange, "orange"), (red, "red"))


def _panel(kind: str, title: str, shows: str, do: str, size: tuple[int, int], unit: str) -> Panel:
    width, height = size
    return {
        "type": kind,
        "title": title,
        "description": f"{shows}\n\n**What to do:** {do}",
        "datasource": SOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "noValue": "no data"}, "overrides": []},
        "options": {},
        "targets": [],
    }


def _targets(panel: Panel, queries: Mapping[str, str], *, instant: bool = False, exemplars: bool = False) -> None:
    for number, (legend, expression) in enumerate(queries.items()):
        target: dict[str, Any] = {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": expression,
            "legendFormat": legend,
        }
        target |= {"instant": True, "range": False} if instant else {"instant": False, "range": True}
        if exemplars and "_bucket" in expression:
            target["exemplar"] = True
        panel["targets"].append(target)


def _steps(panel: Panel, steps: Steps) -> None:
    panel["fieldConfig"]["defaults"]["thresholds"] = {
        "mode": "absolute",
        "steps": [{"value": value, "color": colour} for value, colour in steps],
    }


def override(panel: Panel, name: str, **properties: Any) -> None:
    """Give the series of this legend properties of its own."""
    found = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    panel["fieldConfig"]["overrides"].append({"matcher": {"id": "byName", "options": name}, "properties": found})


def _coloured(panel: Panel, names: Sequence[str]) -> None:
    for name in names:
        if name in COLOURS:
            override(panel, name, color={"mode": "fixed", "fixedColor": COLOURS[name]})


def stat(
    title: str,
    query: str,
    unit: str = "short",
    *,
    shows: str,
    do: str,
    steps: Steps = NEUTRAL,
    legend: str = "",
    names: Mapping[str, str] | None = None,
    words: Mapping[str, tuple[str, str]] | None = None,
    board: str = "",
    size: tuple[int, int] = (4, 4),
    decimals: int | None = None,
) -> Panel:
    """Return one big figure. `legend` shows names instead of values, and `names` says each in words; `words` has text
    and colour of single values; `board` is opened by a click."""
    panel = _panel("stat", title, shows, do, size, unit)
    _targets(panel, {legend: query}, instant=True)
    _steps(panel, steps)
    defaults = panel["fieldConfig"]["defaults"]
    if decimals is not None:
        defaults["decimals"] = decimals
    defaults["mappings"] = [{"type": "special", "options": {"match": "nan", "result": {"text": "no traffic"}}}]
    if words:
        options = {
            value: {"text": text, "color": colour, "index": n}
            for n, (value, (text, colour)) in enumerate(words.items())
        }
        defaults["mappings"].append({"type": "value", "options": options})
    if board:
        defaults["links"] = [{"title": "Why", "url": f"/d/sidecar-{board}?${{__url_time_range}}&${{__all_variables}}"}]
    for name, said in (names or {}).items():
        override(panel, name, displayName=said)
    panel["options"] = {
        "colorMode": "background" if steps != NEUTRAL or words else "value",
        "graphMode": "none",
        "textMode": "name" if legend else "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel


def lines(
    title: str,
    queries: Mapping[str, str],
    unit: str = "short",
    *,
    shows: str,
    do: str,
    stacked: bool = False,
    dashed: Sequence[str] = (),
    exemplars: bool = False,
    steps: Steps = NEUTRAL,
    most: float | None = None,
    size: tuple[int, int] = (12, 8),
) -> Panel:
    """Return a figure over time; `dashed` legends are limits rather than measurements, and never stacked."""
    panel = _panel("timeseries", title, shows, do, size, unit)
    _targets(panel, queries, exemplars=exemplars)
    _steps(panel, steps)
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 70 if stacked else 8, "showPoints": "never"}
    custom["stacking"] = {"mode": "normal" if stacked else "none"}
    custom["thresholdsStyle"] = {"mode": "off" if steps == NEUTRAL else "line"}
    defaults = panel["fieldConfig"]["defaults"]
    defaults |= {"custom": custom, "min": 0, **({} if most is None else {"max": most})}
    _coloured(panel, [*queries, *COLOURS] if any("{{" in each for each in queries) else list(queries))
    for name in dashed:
        line = {"custom__lineStyle": {"fill": "dash", "dash": [8, 6]}, "custom__fillOpacity": 0}
        override(panel, name, custom__stacking={"mode": "none"}, **line)
    panel["options"] = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel


def states(title: str, query: str, legend: str, *, shows: str, do: str, size: tuple[int, int] = (12, 8)) -> Panel:
    """Return a bar over time for each series, as long as the series is there."""
    panel = _panel("state-timeline", title, shows, do, size, "none")
    _targets(panel, {legend: query})
    _steps(panel, ((None, "purple"),))
    panel["fieldConfig"]["defaults"] |= {"custom": {"fillOpacity": 80, "lineWidth": 0}, "color": {"mode": "thresholds"}}
    panel["options"] = {"showValue": "never", "rowHeight": 0.7, "legend": {"showLegend": False}}
    return panel


def bars(
    title: str,
    query: str,
    legend: str,
    unit: str = "short",
    *,
    shows: str,
    do: str,
    steps: Steps = ((None, "blue"),),
    size: tuple[int, int] = (8, 8),
) -> Panel:
    """Return a bar for each series, now."""
    panel = _panel("bargauge", title, shows, do, size, unit)
    _targets(panel, {legend: query}, instant=True)
    _steps(panel, steps)
    panel["fieldConfig"]["defaults"]["min"] = 0
    _coloured(panel, list(COLOURS))
    panel["options"] = {
        "orientation": "horizontal",
        "displayMode": "gradient",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return panel


def heat(title: str, query: str, unit: str = "s", *, shows: str, do: str, size: tuple[int, int] = (12, 8)) -> Panel:
    """Return how many observations fell into each bucket of a histogram, over time."""
    panel = _panel("heatmap", title, shows, do, size, unit)
    _targets(panel, {"{{le}}": query}, exemplars=True)
    panel["targets"][0]["format"] = "heatmap"
    panel["options"] = {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Purples", "steps": 64},
        "yAxis": {"unit": unit},
        "cellGap": 1,
    }
    return panel


def table(
    title: str,
    columns: Mapping[str, tuple[str, str]],
    *,
    keys: Sequence[str],
    shows: str,
    do: str,
    size: tuple[int, int] = (24, 8),
) -> Panel:
    """Return one row for each combination of the labels `keys`; a column has a query and a unit."""
    panel = _panel("table", title, shows, do, size, "short")
    _targets(panel, {name: query for name, (query, _) in columns.items()}, instant=True)
    renamed = {}
    for target, (name, (_, unit)) in zip(panel["targets"], columns.items(), strict=True):
        target["format"] = "table"
        renamed[f"Value #{target['refId']}"] = name
        override(panel, name, unit=unit)
    order = {name: number for number, name in enumerate((*keys, *renamed))}
    organize = {"excludeByName": {"Time": True}, "renameByName": renamed, "indexByName": order}
    panel["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    return panel
