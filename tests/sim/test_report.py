"""The figures of a comparison: the bound, the ceilings, and what they are measured against."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.sim import policies, report, workloads
from sidecar.sim.figures import MeasurementError, ReservationRecord, Served
from sidecar.sim.simulation_run import Result, run
from tests.sim.test_simulation_run import PLAN


def test_the_bound_is_the_time_in_which_online_leaves_the_engine_idle(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = "simulate --workload conversation-0.1 --policies bound --seeds 1 --hours 0.1 --json"
    assert main([*arguments.split(), str(out)], {}, COMMANDS) == 0
    found = json.loads(out.read_text())["workloads"]["conversation-0.1"]
    bound, alone = (
        found["policies"]["bound"],
        run(
            replace(PLAN, workload=workloads.by_name("conversation-0.1"), slots=64, hours=0.1),
            policies.by_name("online-only"),
        ),
    )
    assert bound["harvest"] == pytest.approx(alone.idle_ratio)
    assert 0.2 < bound["harvest"] < 0.9
    assert bound["price_ms"]["mean"] == 0
    assert bound["offline_tokens_per_s"] == pytest.approx(bound["harvest"] * bound["ceiling_tokens_per_s"])


@pytest.mark.slow
def test_sliced_items_set_the_ceiling_where_whole_ones_reserve_too_much(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = "simulate --workload kv-tight --policies ours --seeds 1 --hours 0.1 --json"
    assert main([*arguments.split(), str(out)], {}, COMMANDS) == 0
    found = json.loads(out.read_text())["workloads"]["kv-tight"]
    ceilings = found["ceilings_tokens_per_s"]
    assert ceilings["offline-only-sliced"] > 1.1 * ceilings["offline-only"]
    assert found["policies"]["ours"]["ceiling_tokens_per_s"] == ceilings["offline-only-sliced"]


def result(e2e_s: Sequence[float], **fields: Any) -> Result:
    """A run whose online requests took so long, each with its first token after half of that."""
    served = [
        Served(id=f"o{n}", tenant="t", arrived_s=float(n), ttft_s=each / 2, e2e_s=each) for n, each in enumerate(e2e_s)
    ]
    usual: dict[str, Any] = {
        "refused": 0,
        "offline_tokens_per_s": 0.0,
        "busy_ratio": 0.5,
        "idle_ratio": 0.4,
        "offline_rows": 3.0,
        "wasted_ratio": 0.0,
        "redone_ratio": 0.0,
        "shared_ratio": 0.0,
        "preemptions": 0,
        "victims_least": 0,
        "promise": ReservationRecord(every=10),
        "starvation_gap_s": 1.0,
        "gaps_s": [(0.02, 10)],
        "jobs": [],
        "sha256": "0",
        "requests": len(served),
        "events": 9,
    }
    return Result(served=served, **(usual | fields))


def row(mixed: Result, name: str = "ours", hours: float = 1.0) -> dict[str, Any]:
    alone = result([1.0, 2.0, 3.0])
    return report.figures(replace(PLAN, hours=hours), policies.by_name(name), [alone], [mixed], [1000.0])


def test_the_price_is_what_each_request_took_longer_than_the_same_one_alone() -> None:
    found = row(result([1.1, 2.2, 3.3]))
    assert found["price_ms"]["mean"] == pytest.approx(200)
    assert found["price_ms"]["paired_p50"] == pytest.approx(200)
    assert found["price_ms"]["paired_p99"] == pytest.approx(300, rel=0.02)
    assert found["ttft_price_ms"]["mean"] == pytest.approx(100)
    assert found["e2e_ratio"]["mean"] == pytest.approx(1.1)


def test_the_harvest_is_a_share_of_the_ceiling_and_cannot_exceed_it() -> None:
    assert row(result([1.0, 2.0, 3.0], offline_tokens_per_s=250.0))["harvest"] == 0.25
    above = result([1.0, 2.0, 3.0], offline_tokens_per_s=1100.0)
    with pytest.raises(MeasurementError, match="above the ceiling"):
        row(above)
    assert row(above, hours=0.1)["harvest"] is None, "a short run fills its batch in step: it says nothing"


def test_what_did_not_occur_has_no_figure() -> None:
    found = row(result([1.0, 2.0, 3.0]))
    assert found["over_eviction"] is None
    assert found["completion_spread_days"] is None
    assert row(result([1.0, 2.0, 3.0]), name="online-only")["harvest"] is None
    assert row(result([1.0, 2.0, 3.0], preemptions=6, victims_least=4))["over_eviction"] == 1.5


def test_the_table_has_a_line_for_each_policy_with_its_price_and_harvest() -> None:
    shown = report.table("origin", {"ours": row(result([1.1, 2.2, 3.3], offline_tokens_per_s=250.0))})
    (cells,) = shown.rows
    assert cells[:2] == ("ours", "+200.0")
    assert "25.0%" in cells
