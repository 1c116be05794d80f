"""As much of kustomize as deploy/k8s uses: resources of resources, a namespace, and JSON patches.

Where kubectl is installed, `tests/test_k8s.py` holds this equal to what `kubectl kustomize` makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN = {"apiVersion", "kind", "resources", "namespace", "patches"}


def built(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send of this folder."""
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert document.keys() <= KNOWN, f"{folder}: this test does not know {document.keys() - KNOWN}"
    found: list[Manifest] = []
    for name in document["resources"]:
        path = folder / name
        found += built(path) if path.is_dir() else [each for each in yaml.safe_load_all(path.read_text()) if each]
    for each in document.get("patches", ()):
        target = each["target"]
        hit = [one for one in found if (one["kind"], one["metadata"]["name"]) == (target["kind"], target["name"])]
        assert len(hit) == 1, f"{folder}: {target} names {len(hit)} resources"
        for step in yaml.safe_load(each["patch"]):
            replace(hit[0], step)
    if namespace := document.get("namespace"):
        for one in found:
            one["metadata"]["namespace"] = namespace
    return found


def replace(document: Any, step: dict[str, Any]) -> None:
    """Carry out one `replace` of RFC 6902. Raises KeyError or IndexError where nothing is to be replaced."""
    assert step["op"] == "replace"
    *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:])
    for part in parents:
        document = document[int(part) if isinstance(document, list) else part]
    key = int(last) if isinstance(document, list) else last
    assert document[key] is not None
    document[key] = step["value"]
