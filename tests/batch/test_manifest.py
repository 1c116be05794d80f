"""The manifest of a job, as its record holds it."""

from __future__ import annotations

import pytest

from sidecar.batch.manifest import Manifest, decoded_manifest

TOLD = Manifest(
    tenant="lab",
    job="nightly",
    items=3,
    digest="d",
    created="2026-11-26T20:00:00+00:00",
    sent=True,
    source="in.jsonl",
    starts={"inference.requests": {0: 17, 11: 0}},
)


def test_it_is_read_as_it_was_written() -> None:
    assert decoded_manifest(TOLD.encoded()) == TOLD


def test_what_a_newer_version_adds_is_left_out() -> None:
    assert decoded_manifest(TOLD.encoded().replace(b'{"schema":1', b'{"schema":2,"color":"red"')) == TOLD


@pytest.mark.parametrize(
    "value", [None, b"", b"x", b"[]", b"7", b"{}", b'{"starts": {"a": {"b": "c"}}}', b'{"starts": 7}']
)
def test_what_is_none_is_none(value: bytes | None) -> None:
    assert decoded_manifest(value) is None
