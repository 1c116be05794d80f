"""One run on a card: what of it needs no card."""

from __future__ import annotations

from pathlib import Path

import yaml

from dev.gpu.runs import online_figures, paired, settings
from dev.triton import Triton, TritonSettings
from sidecar.settings.file import load_settings


def latencies(number: int, ttft_ms: float, e2e_ms: float, error: str = "") -> dict[str, object]:
    return {"number": number, "error": error, "ttft_ms": ttft_ms, "e2e_ms": e2e_ms, "gaps_ms": [5.0, 7.0]}


def test_each_request_is_compared_with_itself_and_those_that_failed_with_nothing() -> None:
    alone = online_figures([latencies(0, 10, 100), latencies(1, 20, 300), latencies(2, 30, 50, "EngineError: no")])
    ours = online_figures([latencies(1, 22, 330), latencies(2, 31, 52), latencies(0, 14, 110)])
    found = paired(ours, alone)
    assert found["pairs"] == 2
    assert (found["ttft_ms"]["added"]["mean"], found["ttft_ms"]["ratio"]) == (3, 1.2)
    assert (found["e2e_ms"]["added"]["mean"], found["e2e_ms"]["ratio"]) == (20, 1.1)
    assert (alone["due"], alone["errors"], alone["gap_ms"]["mean"]) == (3, ["EngineError: no"], 6)


def test_without_a_pair_nothing_is_compared() -> None:
    assert paired(online_figures([]), online_figures([latencies(0, 1, 2)])) == {"pairs": 0}


def test_a_setting_of_a_run_is_one_of_the_sidecar(tmp_path: Path) -> None:
    triton = Triton(tmp_path, TritonSettings(slots=64, parameters={"max_seq_len": "8192"}))
    found = settings(triton, ["scheduler.slice_tokens=64", "scheduler.window_ms=2.5"])
    (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(found))
    read = load_settings(tmp_path / "sidecar.yaml", {})
    assert (read.scheduler.slice_tokens, read.scheduler.window_ms) == (64, 2.5)
    assert (read.engines[0].slots, read.engines[0].tokens_max, read.engines[0].kv_block_tokens) == (64, 8192, 64)
