"""The figures of a check as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

HEAD = (
    "preset | run | TTFT p50 / p95 ms | e2e p50 / p95 ms | e2e × mean (paired) | added mean ms | gap p50 ms | "
    "offline tokens/s | harvest | GPU % | W"
)


def table(steps: Sequence[dict[str, Any]]) -> str:
    """Return the runs as a Markdown table, and a line for each other step."""
    ceilings = {each["preset"]: each["offline_tokens_per_s"] for each in steps if each.get("policy") == "ceiling"}
    rows, lines = [f"| {HEAD} |", "|---" * len(HEAD.split(" | ")) + "|"], []
    for step in steps:
        name = f"{step['preset']} {step['step']}"
        if told := step.get("failed") or step.get("skipped"):
            lines.append(f"{name}: {told}")
        elif "policy" in step:
            rows.append(f"| {' | '.join(cells(step, ceilings.get(step['preset'])))} |")
        elif step["step"] == "curve":
            shown = ", ".join(f"{tokens}: {ms:.1f}" for tokens, ms in step["points"] if tokens in (1, 32, 64, 256, 512))
            lines.append(f"{name}, tokens: ms: {shown}; on top: {step['attention']}")
        elif step["step"] == "resume":
            sliced, again, items = step["items_identical"], step["again_identical"], step["items"]
            lines.append(f"{name}: of {items} answers {sliced} are the same in slices, {again} whole in another order")
    return "\n".join([*rows, "", *lines]) + "\n"


def cells(step: dict[str, Any], ceiling: float | None) -> list[str]:
    """Return one run's row."""
    online, gpu, tokens = step["online"], step["gpu"] or {}, step.get("offline_tokens_per_s")
    pair = step.get("paired", {}).get("e2e_ms", {"ratio": None, "added": {"mean": None}})
    two = (f"{_text(online[name]['p50'])} / {_text(online[name]['p95'])}" for name in ("ttft_ms", "e2e_ms"))
    figures = (pair["ratio"], pair["added"]["mean"], online["gap_ms"]["p50"], tokens)
    harvest = f"{tokens / ceiling:.1%}" if tokens is not None and ceiling else "–"
    card = (gpu.get("utilization.gpu"), gpu.get("power.draw"))
    return [step["preset"], step["step"], *two, *map(_text, figures), harvest, *map(_text, card)]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
