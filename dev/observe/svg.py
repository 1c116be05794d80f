"""A drawing in SVG: rectangles, lines and text in the colours of a dark board."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # x, y, width, height
BACKGROUND, PANEL, EDGE, TEXT, FAINT, GRID = "#111217", "#181B1F", "#2A2E35", "#D8D9DF", "#8E9099", "#2A2E35"
NAMED = {
    "green": "#56A64B",
    "red": "#E02F44",
    "orange": "#FF9830",
    "blue": "#5794F2",
    "purple": "#B877D9",
    "text": TEXT,
    "transparent": "none",
    "yellow": "#FADE2A",
}
PALETTE = ("#73BF69", "#5794F2", "#FF9830", "#B877D9", "#FADE2A", "#F2495C", "#8AB8FF", "#FFA6B0", "#96D98D", "#CA95E5")
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
CHAR = 0.56  # mean width of a letter, as a share of the size of the font


def colour(name: str) -> str:
    """Return a colour of Grafana's by its name, or as it is."""
    return NAMED.get(name, name)


def width_of(text: str, size: float) -> float:
    """Return about how wide a text is."""
    return len(text) * size * CHAR


def shortened(text: str, width: float, size: float) -> str:
    """Return as much of the text as fits."""
    most = max(1, int(width / (size * CHAR)))
    return text if len(text) <= most else text[: most - 1] + "…"


class Drawing:
    """Grows by one element at a time."""

    def __init__(self, width: float, height: float) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="{FONT}">',
            f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>',
        ]

    def box(self, box: Box, fill: str, *, edge: str = "", radius: float = 0, opacity: float = 1) -> None:
        """Draw a rectangle."""
        x, y, width, height = box
        stroke = f' stroke="{edge}"' if edge else ""
        rounded = f' rx="{radius:g}"' if radius else ""
        seen = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" '
            f'fill="{fill}"{stroke}{rounded}{seen}/>'
        )

    def line(self, points: Sequence[Point], stroke: str, *, width: float = 1.5, dashed: bool = False) -> None:
        """Draw a line through the points."""
        dash = ' stroke-dasharray="7 5"' if dashed else ""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"'
            f' stroke-linejoin="round"{dash}/>'
        )

    def area(self, points: Iterable[Point], fill: str, opacity: float) -> None:
        """Fill what the points enclose."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polygon points="{path}" fill="{fill}" fill-opacity="{opacity:g}"/>')

    def dot(self, at: Point, fill: str, size: float = 3) -> None:
        """Draw a small diamond, as Grafana draws an exemplar."""
        x, y = at
        corners = ((x, y - size), (x + size, y), (x, y + size), (x - size, y))
        self.area(corners, fill, 1)

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = 11,
        fill: str = TEXT,
        anchor: str = "start",
        weight: int = 400,
    ) -> None:
        """Write a text whose base line begins, ends (`end`) or has its middle at a point."""
        x, y = at
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        bold = "" if weight == 400 else f' font-weight="{weight}"'
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}"{where}{bold}>{escape(text)}</text>'
        )

    def document(self) -> str:
        """Return the whole drawing."""
        return "\n".join((*self._parts, "</svg>")) + "\n"
