"""Draws a board of Grafana's JSON with the answers to its queries: the same panels, places, units and colours.

It stands in for Grafana where that cannot be had, and says so on the picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dev.observe import svg
from dev.observe.queries import Answer, Series
from dev.observe.svg import Box, Drawing
from dev.observe.units import ticks, written

CELL_W, CELL_H, GAP, TITLE_H = 60.0, 36.0, 8.0, 30.0
HEAD_H = 64.0
NOTE = "drawn by us from the same JSON, with live data"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPanel:
    """One panel with its answers, and the part of the picture that is its own."""

    drawing: Drawing
    panel: Mapping[str, Any]
    answer: Answer
    box: Box
    begin_s: float
    end_s: float

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What holds for all series of the panel."""
        found: Mapping[str, Any] = self.panel["fieldConfig"]["defaults"]
        return found

    @property
    def unit(self) -> str:
        """The panel's unit."""
        return str(self.defaults["unit"])

    def named(self) -> list[tuple[str, Series]]:
        """Return all series by their legend."""
        legends = [target["legendFormat"] for target in self.panel["targets"]]
        return [
            (each.named(legend) or "value", each)
            for legend, some in zip(legends, self.answer.series, strict=True)
            for each in some
        ]

    def property(self, name: str, key: str) -> Any:
        """Return what the series of this name has of its own; None if nothing."""
        found = None
        for override in self.panel["fieldConfig"]["overrides"]:
            if override["matcher"]["options"] == name:
                found = next((each["value"] for each in override["properties"] if each["id"] == key), found)
        return found

    def colour(self, name: str, number: int) -> str:
        """Return the colour of a series: its own, or the next of the palette."""
        own = self.property(name, "color")
        return str(own["fixedColor"]) if own else svg.PALETTE[number % len(svg.PALETTE)]

    def step_colour(self, value: float) -> str:
        """Return the colour of a value by the panel's thresholds."""
        found = "text"
        for step in self.defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                found = step["color"]
        return svg.colour(found)

    def x(self, at_s: float, box: Box) -> float:
        """Return where a time is."""
        return box[0] + box[2] * (at_s - self.begin_s) / max(self.end_s - self.begin_s, 1e-9)


def drawn(board: Mapping[str, Any], answers: Mapping[int, Answer], begin_s: float, end_s: float) -> str:
    """Return the picture of a board between two times."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    width, height = 24 * CELL_W + 2 * GAP, HEAD_H + bottom * CELL_H + GAP
    drawing = Drawing(width, height)
    drawing.text((2 * GAP, 28), board["title"], size=20, weight=600)
    drawing.text((2 * GAP, 48), board["description"], size=12, fill=svg.FAINT)
    times = " – ".join(datetime.fromtimestamp(each, UTC).strftime("%H:%M:%S") for each in (begin_s, end_s))
    drawing.text((width - 2 * GAP, 28), f"{times} UTC", size=12, anchor="end")
    drawing.text((width - 2 * GAP, 48), NOTE, size=12, fill=svg.FAINT, anchor="end")
    for panel in board["panels"]:
        place = panel["gridPos"]
        x, y = GAP + place["x"] * CELL_W, HEAD_H + place["y"] * CELL_H
        if panel["type"] == "row":
            drawing.text((x + GAP, y + CELL_H - 11), panel["title"], size=15, weight=600)
            continue
        box = (x + GAP / 2, y, place["w"] * CELL_W - GAP, place["h"] * CELL_H - GAP)
        drawing.box(box, svg.PANEL, edge=svg.EDGE, radius=4)
        view = DrawnPanel(
            drawing=drawing, panel=panel, answer=answers[panel["id"]], box=box, begin_s=begin_s, end_s=end_s
        )
        if panel["type"] != "stat":
            drawing.text((box[0] + 12, box[1] + 20), panel["title"], size=13, weight=600)
        _KINDS[panel["type"]](view)
    return drawing.document()


def _stat(view: DrawnPanel) -> None:
    x, y, width, height = view.box
    series = view.named()
    value = series[0][1].last if series else math.nan
    series = [] if math.isnan(value) else series
    text = written(value, view.unit, view.defaults.get("decimals"))
    fill = view.step_colour(value) if series else svg.FAINT
    for mapping in view.defaults.get("mappings", ()):
        if mapping["type"] == "value" and (option := mapping["options"].get(f"{value:g}")) is not None:
            text, fill = option["text"], svg.colour(option["color"])
    if view.panel["options"]["textMode"] == "name":
        names = [view.property(name, "displayName") or name for name, _ in series]
        text = ", ".join(dict.fromkeys(names)) or "no data"
    filled = view.panel["options"]["colorMode"] == "background" and bool(series) and fill not in (svg.TEXT, "none")
    if filled:
        view.drawing.box(view.box, fill, radius=4, opacity=0.92)
    ink = "#FFFFFF" if filled else svg.TEXT if series else svg.FAINT
    view.drawing.text((x + 12, y + 22), view.panel["title"], size=13, weight=600, fill=ink)
    size = min(34.0, (width - 24) / max(len(text), 1) / svg.CHAR)
    view.drawing.text((x + width / 2, y + height / 2 + 20), text, size=size, weight=600, fill=ink, anchor="middle")


def _inside(view: DrawnPanel, left: float = 62, bottom: float = 46) -> Box:
    x, y, width, height = view.box
    return x + left, y + TITLE_H + 8, width - left - 16, height - TITLE_H - 8 - bottom


def _time_axis(view: DrawnPanel, box: Box) -> None:
    x, y, width, height = box
    count = max(2, int(width / 110))
    for number in range(count + 1):
        at_s = view.begin_s + (view.end_s - view.begin_s) * number / count
        left = x + width * number / count
        view.drawing.line([(left, y), (left, y + height)], svg.GRID, width=0.6)
        anchor = "end" if number == count else "middle" if number else "start"
        text = datetime.fromtimestamp(at_s, UTC).strftime("%H:%M:%S" if view.end_s - view.begin_s < 1800 else "%H:%M")
        view.drawing.text((left, y + height + 14), text, size=10, fill=svg.FAINT, anchor=anchor)


def _no_data(view: DrawnPanel) -> None:
    x, y, width, height = view.box
    view.drawing.text((x + width / 2, y + height / 2 + 8), "no data", size=14, fill=svg.FAINT, anchor="middle")


def _stacked(
    view: DrawnPanel, series: Sequence[tuple[str, Series]]
) -> Iterator[tuple[str, list[tuple[float, float, float]]]]:
    """Yield each series with its lower and upper bound at each time."""
    stacking = view.defaults["custom"]["stacking"]["mode"] == "normal"
    tops: dict[float, float] = {}
    for name, each in series:
        own = view.property(name, "custom.stacking")
        alone = not stacking or (own is not None and own["mode"] == "none")
        bounds = []
        for at_s, value in each.points:
            if math.isfinite(value):
                low = 0.0 if alone else tops.get(at_s, 0.0)
                bounds.append((at_s, low, low + value))
                if not alone:
                    tops[at_s] = low + value
        yield name, bounds


def _lines(view: DrawnPanel) -> None:
    series = view.named()
    if not series:
        return _no_data(view)
    box = _inside(view)
    x, y, width, height = box
    layers = list(_stacked(view, series))
    most = max((high for _, bounds in layers for _, _, high in bounds), default=1.0)
    marks = ticks(view.defaults.get("max", most * 1.02), view.unit)
    for mark in marks:
        level = y + height * (1 - mark / marks[-1])
        view.drawing.line([(x, level), (x + width, level)], svg.GRID, width=0.8)
        view.drawing.text((x - 8, level + 4), written(mark, view.unit), size=10, fill=svg.FAINT, anchor="end")
    _time_axis(view, box)
    _threshold(view, box, marks[-1])
    custom, legend = view.defaults["custom"], []
    for number, (name, bounds) in enumerate(layers):
        ink, dashed = view.colour(name, number), view.property(name, "custom.lineStyle") is not None
        legend.append((name, ink, dashed))
        for part in _without_gaps(bounds):
            top = [(view.x(at_s, box), y + height * (1 - min(high / marks[-1], 1))) for at_s, _, high in part]
            low = [(view.x(at_s, box), y + height * (1 - min(under / marks[-1], 1))) for at_s, under, _ in part]
            if not dashed:
                view.drawing.area([*top, *reversed(low)], ink, custom["fillOpacity"] / 100)
            if dashed or top == low or any(high > under for _, under, high in part):  # no line for nothing on a stack
                view.drawing.line(top, ink, dashed=dashed)
    for each in view.answer.exemplars:
        if each.value <= marks[-1] and view.begin_s <= each.at_s <= view.end_s:
            view.drawing.dot((view.x(each.at_s, box), y + height * (1 - each.value / marks[-1])), "#9FC5FF")
    _legend(view, legend)
    return None


def _without_gaps(bounds: Sequence[tuple[float, float, float]]) -> list[list[tuple[float, float, float]]]:
    """Return the parts of a series between which it was not there."""
    step_s = min((b[0] - a[0] for a, b in itertools.pairwise(bounds)), default=1.0)
    parts: list[list[tuple[float, float, float]]] = []
    for each in bounds:
        if parts and each[0] - parts[-1][-1][0] < 1.5 * step_s:
            parts[-1].append(each)
        else:
            parts.append([each])
    return parts


def _threshold(view: DrawnPanel, box: Box, most: float) -> None:
    if view.defaults["custom"]["thresholdsStyle"]["mode"] != "line":
        return
    x, y, width, height = box
    for step in view.defaults["thresholds"]["steps"]:
        if step["value"] is not None and step["value"] <= most:
            level = y + height * (1 - step["value"] / most)
            view.drawing.line([(x, level), (x + width, level)], svg.colour(step["color"]), dashed=True)


def _legend(view: DrawnPanel, entries: Sequence[tuple[str, str, bool]]) -> None:
    x, y, width, height = view.box
    left, level = x + 14, y + height - 12
    for number, (name, ink, dashed) in enumerate(entries):
        needed = svg.width_of(name, 11) + 34
        if left + needed > x + width - 40 and number < len(entries):
            view.drawing.text((left, level), f"+ {len(entries) - number} more", size=11, fill=svg.FAINT)
            return
        view.drawing.line([(left, level - 4), (left + 14, level - 4)], ink, width=3, dashed=dashed)
        view.drawing.text((left + 19, level), name, size=11)
        left += needed


def _states(view: DrawnPanel) -> None:
    series = view.named()
    if not series:
        return _no_data(view)
    label_w = min(max(svg.width_of(name, 11) for name, _ in series) + 16, view.box[2] * 0.4)
    box = _inside(view, left=label_w + 12, bottom=28)
    x, y, _, height = box
    _time_axis(view, box)
    row_h = min(height / len(series), 34.0)
    for number, (name, each) in enumerate(series):
        top = y + number * row_h
        text = svg.shortened(name, label_w, 11)
        view.drawing.text((x - 10, top + row_h / 2 + 4), text, size=11, anchor="end")
        for part in _without_gaps([(at_s, 0.0, value) for at_s, value in each.points]):
            begin = view.x(part[0][0], box)
            wide = max(view.x(part[-1][0], box) - begin, 2.0)
            view.drawing.box((begin, top + 3, wide, row_h - 6), svg.PALETTE[number % len(svg.PALETTE)], radius=2)
    return None


def _bars(view: DrawnPanel) -> None:
    series = sorted(view.named(), key=lambda each: -each[1].last)
    if not series:
        return _no_data(view)
    x, y, width, height = view.box
    label_w = min(max(svg.width_of(name, 12) for name, _ in series) + 18, width * 0.4)
    row_h = min((height - TITLE_H - 16) / len(series), 40.0)
    most = max(each.last for _, each in series) or 1.0
    for number, (name, each) in enumerate(series):
        top = y + TITLE_H + 6 + number * row_h
        room = width - label_w - 110
        view.drawing.text((x + label_w, top + row_h / 2 + 4), name, size=12, anchor="end")
        own = view.property(name, "color")
        ink = str(own["fixedColor"]) if own else view.step_colour(each.last)
        view.drawing.box((x + label_w + 10, top + 5, room, row_h - 10), svg.GRID, radius=2, opacity=0.6)
        view.drawing.box((x + label_w + 10, top + 5, room * each.last / most, row_h - 10), ink, radius=2, opacity=0.85)
        view.drawing.text((x + width - 16, top + row_h / 2 + 5), written(each.last, view.unit), size=14, anchor="end")
    return None


def _heat(view: DrawnPanel) -> None:
    bounds = sorted((float(each.labels["le"]), each) for _, each in view.named())
    if not bounds:
        return _no_data(view)
    box = _inside(view, bottom=28)
    x, y, _, height = box
    _time_axis(view, box)
    below: dict[float, float] = {}
    cells = []
    for row, (_, each) in enumerate(bounds):
        for at_s, value in each.points:
            cells.append((row, at_s, max(value - below.get(at_s, 0.0), 0.0)))
            below[at_s] = value
    most = max((count for *_, count in cells), default=0.0) or 1.0
    row_h = height / len(bounds)
    points = bounds[0][1].points
    wide = box[2] / max(len(points), 1)
    for row, at_s, count in cells:
        if count > 0:
            cell = (view.x(at_s, box) - wide / 2, y + height - (row + 1) * row_h, wide, row_h - 1)
            view.drawing.box(cell, svg.NAMED["purple"], opacity=round(0.15 + 0.85 * math.sqrt(count / most), 2))
    for row, (bound, _) in enumerate(bounds):
        if row % 2 == 0:
            text = "more" if math.isinf(bound) else written(bound, view.unit)
            level = y + height - (row + 0.5) * row_h + 4
            view.drawing.text((x - 8, level), text, size=10, fill=svg.FAINT, anchor="end")
    return None


def _table(view: DrawnPanel) -> None:
    organize = view.panel["transformations"][1]["options"]
    columns = list(organize["renameByName"].values())
    keys = [name for name in organize["indexByName"] if name not in organize["renameByName"]]
    rows: dict[tuple[str, ...], dict[str, float]] = {}
    for column, some in zip(columns, view.answer.series, strict=True):
        for each in some:
            rows.setdefault(tuple(each.labels.get(key, "") for key in keys), {})[column] = each.last
    if not rows:
        return _no_data(view)
    x, y, width, height = view.box
    room = (width - 28) / (len(keys) + len(columns))
    top = y + TITLE_H + 16
    for number, name in enumerate((*keys, *columns)):
        right = number >= len(keys)
        at = x + 14 + room * (number + right) - (8 if right else 0)
        view.drawing.text((at, top), name, size=11, fill=svg.FAINT, anchor="end" if right else "start", weight=600)
    for number, (names, values) in enumerate(sorted(rows.items())):
        level = top + 24 * (number + 1)
        if level > y + height - 8:
            break
        view.drawing.line([(x + 12, level - 16), (x + width - 12, level - 16)], svg.GRID, width=0.8)
        for place, text in enumerate(names):
            view.drawing.text((x + 14 + room * place, level), svg.shortened(text, room - 8, 12), size=12)
        for place, column in enumerate(columns, start=len(keys) + 1):
            unit = view.property(column, "unit") or view.unit
            text = written(values[column], unit) if column in values else "–"
            view.drawing.text((x + 6 + room * place, level), text, size=12, anchor="end")
    return None


_KINDS: dict[str, Callable[[DrawnPanel], None]] = {
    "stat": _stat,
    "timeseries": _lines,
    "state-timeline": _states,
    "bargauge": _bars,
    "heatmap": _heat,
    "table": _table,
}
