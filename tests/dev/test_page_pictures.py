"""The pictures of the page: small, and there for each name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from dev.page_pictures import PICTURES, small
from dev.page_scenes import RECORDED

DOCS = Path(__file__).parents[2] / "docs"


def test_a_picture_of_few_colours_keeps_each_of_them() -> None:
    colours = [(250, 250, 250, 255), (20, 120, 80, 255), (190, 50, 40, 255)]
    rgba = np.array([colours[(at % 97 == 5 and 1) or (at % 89 == 7 and 2) or 0] for at in range(40 * 30)], np.uint8)
    png = small(40, 30, rgba.tobytes())
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + length]
        at += 12 + length
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (40, 30)
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(30, 41)[:, 1:]
    assert (palette[rows.reshape(-1)] == rgba[:, :3]).all()


def test_each_picture_has_its_scene_stands_in_the_docs_and_is_small() -> None:
    text = (DOCS / "page.md").read_text()
    for name, (scene, _, _) in PICTURES.items():
        assert (RECORDED / f"{scene}.json").exists()
        assert f"pictures/{name}.png" in text
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size <= 150_000
