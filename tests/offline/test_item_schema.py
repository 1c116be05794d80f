"""kafka/item.schema.json is made from the reader, and reads well."""

from __future__ import annotations

from pathlib import Path

import jsonschema

from sidecar.offline.item_schema import as_file, item_schema

ROOT = Path(__file__).parent.parent.parent


def test_the_checked_in_schema_is_the_generated_one() -> None:
    made = "python -m sidecar.offline.item_schema > kafka/item.schema.json"
    assert (ROOT / "kafka/item.schema.json").read_text() == as_file(item_schema()) + "\n", f"run {made}"
    jsonschema.Draft202012Validator.check_schema(item_schema())
