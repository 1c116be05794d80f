"""The JSON Schema of an item, made from the classes that read it. `python -m sidecar.offline.item_schema` prints it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from sidecar.offline.item_format import ItemParameters, Line

LINE_CHARS = 120
DESCRIPTION = " ".join(
    """
    One line of the OpenAI Batch input format, or the short form. Made from sidecar/offline/item_format.py, which is
    also the reader. What a schema cannot say and the reader refuses: a name twice in one object, half of a
    surrogate pair, max_tokens and max_completion_tokens that differ, min_tokens above max_tokens; and what depends
    on the engines: an unknown model, a prompt that is too long, token ids outside the vocabulary. Headers (text):
    x-tenant, x-job, x-deadline (RFC 3339), x-model, traceparent; unknown ones are kept on the result.
    """.split()
)


def item_schema() -> dict[str, Any]:
    """kafka/item.schema.json as it has to be."""
    made = _plain(TypeAdapter(Line).json_schema())
    definitions = made["$defs"]
    shared = _plain(ItemParameters.model_json_schema())
    del shared["additionalProperties"]  # whoever refers to it has names of its own
    prompts = {"CompletionBody": ("prompt",), "ShortItem": ("prompt", "messages"), "ChatBody": ("messages",)}
    for name, prompt in prompts.items():
        form = definitions[name]
        form["properties"] = {key: each for key, each in form["properties"].items() if key not in shared["properties"]}
        del form["additionalProperties"]
        form |= {"$ref": "#/$defs/Parameters", "unevaluatedProperties": False, **_exactly_one(*prompt, "input_ids")}
    definitions["Parameters"] = shared
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "item.schema.json",
        "title": "An offline item: the value of a record of inference.requests",
        "description": DESCRIPTION,
        "anyOf": made["anyOf"],
        "$defs": dict(sorted(definitions.items())),
    }


def as_file(schema: Any, indent: str = "") -> str:
    """The schema as JSON, with as much on a line as fits."""
    line = json.dumps(schema, ensure_ascii=False)
    if len(indent) + len(line) <= LINE_CHARS or not isinstance(schema, dict):
        return line
    inner = f"{indent}  "
    rules = (f"{inner}{json.dumps(name, ensure_ascii=False)}: {as_file(each, inner)}" for name, each in schema.items())
    return "{\n" + ",\n".join(rules) + f"\n{indent}}}"


def _exactly_one(*names: str) -> dict[str, Any]:
    """One of these fields is stated; null states nothing."""
    return {"oneOf": [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]}


def _plain(schema: Any) -> Any:
    """Without titles, which repeat the names, and without defaults, which are null throughout."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    titled = isinstance(schema.get("title"), str)
    return {
        name: _plain(each)
        for name, each in schema.items()
        if not (name == "title" and titled) and not (name == "default" and each is None)
    }


if __name__ == "__main__":
    print(as_file(item_schema()))
