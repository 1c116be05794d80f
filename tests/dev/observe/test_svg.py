"""Drawings are SVG that a parser takes, whatever series are called."""

from __future__ import annotations

from xml.etree import ElementTree

from dev.observe.svg import Drawing, colour, shortened


def test_a_drawing_is_well_formed_whatever_is_written_on_it() -> None:
    drawing = Drawing(100, 50)
    drawing.text((1, 1), '<b>&"tenant"')
    drawing.box((0, 0, -1, 2), "#fff", edge="#000", radius=2, opacity=0.5)
    drawing.line([(0, 0), (1, 1)], "#fff", dashed=True)
    drawing.dot((5, 5), "#fff")
    tree = ElementTree.fromstring(drawing.document())
    assert [each.text for each in tree if each.tag.endswith("text")] == ['<b>&"tenant"']


def test_a_text_that_does_not_fit_is_cut() -> None:
    assert shortened("a long name of a tenant", 60, 11) == "a long n…"
    assert shortened("short", 60, 11) == "short"


def test_colours_have_names_or_are_as_they_are() -> None:
    assert colour("red") == "#E02F44"
    assert colour("#123456") == "#123456"
