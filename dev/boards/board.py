"""A whole board: panels in rows, the variables that choose what they show, and the links to the other boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dev.boards.panel import SOURCE, Panel

WIDTH = 24
Rows = Mapping[str, Sequence[Panel]]
_LABELS = {  # of each variable: its name on the board, and the query for its values
    "job": ("Job", "label_values(sidecar_build_info, job)"),
    "instance": ("Instance", 'label_values(sidecar_build_info{job=~"$job"}, instance)'),
    "model": ("Model", 'label_values(sidecar_slots{job=~"$job", instance=~"$instance"}, model)'),
    "tenant": ("Tenant", 'label_values(sidecar_tenant_tokens_total{job=~"$job", instance=~"$instance"}, tenant)'),
}
_CHOICES = {"lane": ("Lane", ("online", "offline")), "objective": ("Objective", ("ttft", "e2e", "availability"))}
COMMON = ("job", "instance")


def board(name: str, title: str, description: str, rows: Rows, *, variables: Sequence[str] = ()) -> dict[str, Any]:
    """Return the board `sidecar-NAME`. `variables` are chosen beside data source, job and instance."""
    return {
        "uid": f"sidecar-{name}",
        "title": f"Sidecar / {title}",
        "description": description,
        "tags": ["sidecar"],
        "schemaVersion": 41,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source(), *(_variable(each) for each in (*COMMON, *variables))]},
        "links": _links(),
        "annotations": {"list": [_alerts()]},
        "panels": placed(rows),
    }


def placed(rows: Rows) -> list[Panel]:
    """Return all panels with their ids and places: each row under its title, filled from the left."""
    panels: list[Panel] = []
    top = 0
    for title, contents in rows.items():
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []})
        top, left, height = top + 1, 0, 0
        for panel in contents:
            if left + panel["gridPos"]["w"] > WIDTH:
                top, left, height = top + height, 0, 0
            panels.append(panel | {"gridPos": {"x": left, "y": top, **panel["gridPos"]}})
            left, height = left + panel["gridPos"]["w"], max(height, panel["gridPos"]["h"])
        top += height
    return [panel | {"id": number} for number, panel in enumerate(panels, start=1)]


def _source() -> dict[str, Any]:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "current": {}}


def _variable(name: str) -> dict[str, Any]:
    if name in _CHOICES:
        label, choices = _CHOICES[name]
        every = name == "lane"  # an objective is one of three; of lanes both may be shown
        options = [{"text": each, "value": each, "selected": not every and each == choices[0]} for each in choices]
        first = {"text": "All", "value": "$__all"} if every else {"text": choices[0], "value": choices[0]}
        kind: dict[str, Any] = {"type": "custom", "query": ",".join(choices), "options": options, "current": first}
        return kind | {"name": name, "label": label, "includeAll": every, "multi": every}
    label, query = _LABELS[name]
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,  # when the time range changes
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _links() -> list[dict[str, Any]]:
    others = {"type": "dashboards", "tags": ["sidecar"], "title": "Sidecar", "asDropdown": False}
    return [others | {"includeVars": True, "keepTime": True, "targetBlank": False}]


def _alerts() -> dict[str, Any]:
    """Mark on every panel when an alert began to fire."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{severity}}: docs/runbooks/{{alertname}}.md",
    }
