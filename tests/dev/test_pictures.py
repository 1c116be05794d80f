"""The picture of the README is a run: no slot is had twice, and both lanes are in it."""

from __future__ import annotations

from itertools import groupby, pairwise
from xml.etree import ElementTree

from dev import pictures
from sidecar.core.request import Lane


def test_a_slot_is_had_by_one_request_at_a_time_and_both_lanes_are_shown() -> None:
    spans = sorted(pictures.run(), key=lambda span: (span[0], span[2]))
    for slot, had in groupby(spans, key=lambda span: span[0]):
        assert 0 <= slot < pictures.SLOTS
        for one, other in pairwise(had):
            assert one[3] <= other[2]
    assert {lane for _, lane, _, _ in spans} == set(Lane)
    assert all(0 <= begun_s < ended_s <= pictures.SHOWN_S for _, _, begun_s, ended_s in spans if begun_s != ended_s)


def test_the_drawing_is_an_image_that_a_reader_of_xml_takes() -> None:
    root = ElementTree.fromstring(pictures.drawing())
    assert root.tag.endswith("svg")
    assert pictures.PICTURE.exists()
