"""What the doctor says of an engine's size."""

from __future__ import annotations

from sidecar.cli.operate import size_findings
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.engine_size import EngineSize

GAUGE = EngineSize(source='its gauge request_type="max"', sequences_max=64, kv_tokens=499_277)


def verdicts(engine: EngineEndpoint, *sizes: EngineSize) -> list[str]:
    return [verdict for verdict, _ in size_findings(engine, sizes)]


def test_settings_within_what_the_engine_has_are_ok() -> None:
    engine = EngineEndpoint(name="e0", slots=60, tokens_max=4096)
    assert list(size_findings(engine, [GAUGE])) == [("ok", "60 slots of 4096 tokens are within what it has")]
    assert list(size_findings(engine, [EngineSize(source="its gauge")])) == []  # nobody says anything


def test_more_than_the_engine_has_fails() -> None:
    assert verdicts(EngineEndpoint(name="e0", slots=65, tokens_max=4096), GAUGE) == ["FAILED"]


def test_far_less_is_a_warning() -> None:
    assert verdicts(EngineEndpoint(name="e0", slots=8, tokens_max=4096), GAUGE) == ["warning", "ok"]


def test_a_cache_that_binds_before_the_slots_is_said_with_the_sequences_that_fit() -> None:
    _, (verdict, told) = size_findings(EngineEndpoint(name="e0", slots=60, tokens_max=16_384), [GAUGE])
    assert verdict == "ok"
    assert told.startswith("its KV cache of 499,277 tokens holds 30 sequences of 16384 tokens: with long ones it binds")
