"""One curve as an SVG file, so that nobody needs a library to see it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10

WIDTH, HEIGHT, EDGE = 640, 400, 60


def chart(title: str, x_name: str, y_name: str, points: Sequence[tuple[float, float]]) -> str:
    """The SVG of a curve on logarithmic axes, each point with its two values. All values are above 0."""
    xs = _spread([x for x, _ in points], WIDTH)
    ys = [HEIGHT - y for y in _spread([y for _, y in points], HEIGHT)]
    marks = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/><text x="{x + 5:.1f}" y="{y - 6:.1f}">{value:.4g}</text>'
        f'<text x="{x:.1f}" y="{HEIGHT - EDGE + 18}" text-anchor="middle">{at:g}</text>'
        for x, y, (at, value) in zip(xs, ys, points, strict=True)
    )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/><text x="{EDGE}" y="24">{escape(title)}</text>'
        f'<path d="M{EDGE},{EDGE} V{HEIGHT - EDGE} H{WIDTH - EDGE}" fill="none" stroke="black"/>'
        f'<polyline points="{line}" fill="none" stroke="steelblue" stroke-width="2"/>{marks}'
        f'<text x="{WIDTH // 2}" y="{HEIGHT - 16}">{escape(x_name)}</text>'
        f'<text x="{EDGE}" y="{EDGE - 12}">{escape(y_name)}</text></svg>\n'
    )


def _spread(values: Sequence[float], length: int) -> list[float]:
    """The values' places between the two edges of an axis."""
    low, high = log10(min(values)), log10(max(values))
    span = (length - 2 * EDGE - 20) / ((high - low) or 1)
    return [EDGE + 10 + (log10(each) - low) * span for each in values]
