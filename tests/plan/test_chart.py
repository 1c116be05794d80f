"""A curve becomes a file that any browser shows."""

from __future__ import annotations

from xml.etree import ElementTree

from sidecar.plan.chart import EDGE, HEIGHT, WIDTH, chart

SVG = "{http://www.w3.org/2000/svg}"


def test_every_point_lies_inside_and_the_lower_value_lower() -> None:
    root = ElementTree.fromstring(chart("cost < all", "batch", "USD", [(1, 5.15), (8, 0.95), (512, 0.05)]))
    points = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in root.iter(f"{SVG}circle")]
    assert len(points) == 3
    assert points == sorted(points)
    assert all(EDGE < x < WIDTH - EDGE and EDGE < y < HEIGHT - EDGE for x, y in points)
    texts = {each.text for each in root.iter(f"{SVG}text")}
    assert {"cost < all", "batch", "USD", "512", "5.15", "0.05"} <= texts


def test_one_point_is_a_chart_too() -> None:
    assert "<circle" in chart("cost", "batch", "USD", [(8, 0.95)])
