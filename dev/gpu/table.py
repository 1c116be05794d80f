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
    ceilings = {step["preset"]: step.get("offline_tokens_per_s") for step in steps if step["step"].endswith(" ceiling")}
    rows = [f"| {HEAD} |", "|---" * len(HEAD.split(" | ")) + "|"]
    lines = []
    for step in steps:
        if "failed" in step or "skipped" in step:
            lines.append(f"{step['preset']} {step['step']}: {step.get('failed') or step.get('skipped')}")
        elif "policy" in step:
            rows.append("| " + " | ".join(cells(step, ceilings.get(step["preset"]))) + " |")
        elif step["step"] == "curve":
            shown = ", ".join(f"{tokens}: {ms:.1f}" for tokens, ms in step["points"] if tokens in (1, 32, 64, 256, 512))
            lines.append(f"{step['preset']} linear layers, tokens: ms: {shown}; on top: {step['attention']}")
        elif step["step"] == "resume":
            whole, sliced = step["whole_in_another_order"], step["sliced_and_resumed"]
            lines.append(
                f"{step['preset']} resume: {sliced['same']:.1%} of {step['items']} answers in slices equal the whole; "
                f"of whole ones in another order {whole['same']:.1%}"
            )
    return "\n".join([*rows, "", *lines]) + "\n"


def cells(step: dict[str, Any], ceiling: float | None) -> list[str]:
    """Return one run's row."""
    online, pair, gpu = step.get("online", {}), step.get("paired") or {}, step.get("gpu") or {}
    tokens = step.get("offline_tokens_per_s")
    harvest = f"{tokens / ceiling:.1%}" if tokens is not None and ceiling else "–"
    return [
        step["preset"],
        step["step"],
        *(_two(online.get(name, {}), "p50", "p95") for name in ("ttft_ms", "e2e_ms")),
        _text(pair.get("e2e_ratio", {}).get("mean")),
        _text(pair.get("e2e_added_ms", {}).get("mean")),
        _text(online.get("gap_ms", {}).get("p50")),
        _text(tokens),
        harvest,
        _text(gpu.get("utilisation_percent")),
        _text(gpu.get("watts")),
    ]


def _text(value: Any) -> str:
    return "–" if value is None else f"{value:g}"


def _two(values: dict[str, Any], one: str, other: str) -> str:
    return f"{_text(values.get(one))} / {_text(values.get(other))}"
