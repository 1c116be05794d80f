"""Price against harvest: every policy over its own knob, as points, as a table and as an SVG.

A policy at one setting is one point, and says little: with another setting it may be better or worse than anything. So
each is swept over the knob that its operator would turn, and the points of all lie in one plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from sidecar.core.errors import SettingsError
from sidecar.sim.tables import Table

CAPS = (1, 2, 4, 8, 16, 32, 48)
LATE_MS = (150, 200, 300, 500, 1000, 2000)
# What moves `ours` along the front: the stated price.
KNOB, VALUES = "itl_added", (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
COLOURS = ("#0b6e99", "#c4451c", "#4c7a2b", "#8a4fa0", "#a07c12", "#555555", "#1f9e89", "#d1477f")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 440, 60, 50, 30, 170


def swept(knob: str = "") -> list[str]:
    """Return the names of the policies of a frontier. `knob` is KEY=VALUE,VALUE,… of ours; "" = its own."""
    key, _, text = knob.partition("=")
    if knob and not (key and text):
        raise SettingsError(f"--knob must be KEY=VALUE,VALUE,…, not {knob!r}")
    key, values = (key, text.split(",")) if knob else (KNOB, [f"{value:g}" for value in VALUES])
    return [
        "bound",
        *(f"ours@{key}={value}" for value in values),
        *(f"static-cap-{cap}" for cap in CAPS),
        *(f"aimd-ttft-{late_ms}" for late_ms in LATE_MS),
        "aimd-published",
    ]


def points(workload: str, rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a point for each policy that harvests. `dominated_by` names one with less price and more harvest."""
    found = [_point(workload, name, row) for name, row in rows.items() if row["harvest"] is not None]
    for each in found:
        others = (other for other in found if other["policy"] not in (each["policy"], "bound"))
        better = (other for other in others if _dominates(other, each))
        best = max(better, key=lambda other: float(other["harvest"]), default=None)
        each["dominated_by"] = None if best is None else f"{best['policy']} {best['knob']}".strip()
    return sorted(found, key=lambda each: (each["policy"], each["price_ms"]["mean"]))


def _dominates(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["price_ms"]["mean"] < other["price_ms"]["mean"] and one["harvest"] > other["harvest"])


def _point(workload: str, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    policy, _, knob = name.partition("@")
    if not knob and name.rpartition("-")[2].isdigit():
        policy, _, knob = name.rpartition("-")
    return {
        "workload": workload,
        "policy": policy,
        "knob": knob,
        "price_ms": {key: row["price_ms"][key] for key in ("mean", "paired_p95", "paired_p99")},
        "e2e_ratio": row["e2e_ratio"],
        "ttft_ratio": {p: row["ttft_ratio"][p]["mean"] for p in ("p50", "p95", "p99")},
        "itl_ratio": row["itl_ratio"],
        "harvest": row["harvest"],
    }


def points_table(workload: str, found: Iterable[Mapping[str, Any]]) -> Table:
    """Return the points of one workload as a table."""
    titles = ("knob", "+mean ms", "e2e ×", "+p95", "+p99", "ttft × p50/p95/p99", "harvest", "less price, more harvest")
    shown = Table(title=f"{workload}: price and harvest", columns=("policy", *titles))
    for each in found:
        if each["workload"] == workload:
            price, ttft = each["price_ms"], each["ttft_ratio"]
            shown.add_row(
                each["policy"],
                each["knob"],
                f"{price['mean']:+.1f}",
                f"{each['e2e_ratio']['mean']:.3f}",
                f"{price['paired_p95']:+.0f}",
                f"{price['paired_p99']:+.0f}",
                "/".join(f"{ttft[p]:.3f}" for p in ("p50", "p95", "p99")),
                f"{each['harvest']:.1%}",
                each["dominated_by"] or "",
            )
    return shown


def plotted(found: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG, a plane for each workload: mean price to the right, harvest upwards, a line for each policy."""
    workloads = list(dict.fromkeys(each["workload"] for each in found))
    planes = [
        _plane([each for each in found if each["workload"] == name], name, at) for at, name in enumerate(workloads)
    ]
    size = f'width="{WIDTH}" height="{HEIGHT * len(planes)}" viewBox="0 0 {WIDTH} {HEIGHT * len(planes)}"'
    style = 'font-family="sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *planes, "</svg>", ""])


def _plane(found: Sequence[Mapping[str, Any]], title: str, number: int) -> str:
    """One workload's points, in the `number`th place from the top."""
    most_ms = max([1.0, *(each["price_ms"]["mean"] for each in found)]) * 1.05
    most = max([0.01, *(each["harvest"] for each in found)]) * 1.05
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(each: Mapping[str, Any]) -> tuple[float, float]:
        share = max(0.0, each["price_ms"]["mean"]) / most_ms
        return LEFT + wide * share, TOP + high * (1 - each["harvest"] / most)

    lines = [f'<g transform="translate(0 {number * HEIGHT})">', _text(LEFT, 18, title, 'font-weight="bold"')]
    lines.append(f'<path d="M{LEFT} {TOP}V{TOP + high}H{LEFT + wide}" fill="none" stroke="black"/>')
    for part in range(5):
        x, y = LEFT + wide * part / 4, TOP + high * (1 - part / 4)
        lines.append(_text(x, TOP + high + 18, f"{most_ms * part / 4:.0f}", 'text-anchor="middle"'))
        lines.append(_text(LEFT - 8, y + 4, f"{100 * most * part / 4:.0f} %", 'text-anchor="end"'))
    lines.append(_text(LEFT + wide / 2, HEIGHT - 10, "ms added to a request, mean", 'text-anchor="middle"'))
    for at, policy in enumerate(dict.fromkeys(each["policy"] for each in found)):
        colour, own = COLOURS[at % len(COLOURS)], [each for each in found if each["policy"] == policy]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, own))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        for each in own:
            x, y = place(each)
            label = f"{policy} {each['knob']}: +{each['price_ms']['mean']:.1f} ms, {each['harvest']:.1%}"
            title_of = f"<title>{escape(label)}</title>"
            lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{title_of}</circle>')
        lines.append(_text(WIDTH - RIGHT + 12, TOP + 16 + 18 * at, policy, f'fill="{colour}"'))
    return "\n".join([*lines, "</g>"])


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
