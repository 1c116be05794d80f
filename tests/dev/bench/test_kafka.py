"""What the bench hands over for an item is what the lane does: the item back, and where it came from."""

from __future__ import annotations

from dev.bench.kafka import finished
from sidecar.settings.offline import OfflineSettings
from tests.offline.builders import record


def test_an_item_comes_back_whole_under_the_name_of_its_place() -> None:
    settings = OfflineSettings(bootstrap_servers="127.0.0.1:1", group="bench")
    item = record(7, b"the item", key=b"k", headers=(("color", b"red"),))
    found = finished(settings, item)
    assert (found.record, found.outcome) == (item, "done")
    assert (found.outgoing.topic, found.outgoing.key, found.outgoing.value) == (
        settings.results_topic,
        b"k",
        b"the item",
    )
    headers = dict(found.outgoing.headers)
    assert headers["color"] == b"red"
    assert (headers["x-source-offset"], headers["x-source-group"]) == (b"7", b"bench")
