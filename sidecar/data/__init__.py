"""What the wheel carries beside code: the status page, a starting set, the topics, and the JSON Schemas of the records.

The repository keeps topics and schemas in `kafka/`, where people look for them. A test holds the copies here equal.
"""

from __future__ import annotations

from importlib import resources


def read(name: str) -> str:
    """Return the text of one file of this directory."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
