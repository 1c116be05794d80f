"""Each policy is swept over its own knob, and the points of all lie in one plane."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.core.errors import SettingsError
from sidecar.sim import policies
from sidecar.sim.frontier import plotted, points, points_table, swept


def row(mean_ms: float, harvest: float | None) -> dict[str, Any]:
    return {
        "price_ms": {"mean": mean_ms, "paired_p50": 0.0, "paired_p95": 2 * mean_ms, "paired_p99": 3 * mean_ms},
        "e2e_ratio": {"mean": 1.1},
        "ttft_ratio": {p: {"mean": 1.2} for p in ("p50", "p95", "p99")},
        "itl_ratio": {"p99": None},
        "harvest": harvest,
    }


ROWS = {
    "online-only": row(0.0, None),
    "bound": row(0.0, 0.6),
    "ours@itl_added=0.1": row(10.0, 0.5),
    "ours@itl_added=0.2": row(20.0, 0.55),
    "static-cap-4": row(12.0, 0.2),
    "static-cap-8": row(5.0, 0.3),
}


def test_every_name_of_a_sweep_is_a_policy() -> None:
    names = swept()
    assert [policies.by_name(name).name for name in names] == names
    assert len({name for name in names if name.startswith("ours@")}) >= 5


def test_the_caller_may_name_the_knob_of_ours() -> None:
    ours = [policies.by_name(name) for name in swept("window_ms=5,20") if name.startswith("ours")]
    assert [policy.changes["window_ms"] for policy in ours] == [5, 20]
    with pytest.raises(SettingsError, match="KEY=VALUE"):
        swept("window_ms")


def test_a_point_is_dominated_by_one_with_less_price_and_more_harvest_and_never_by_the_bound() -> None:
    found = {(each["policy"], each["knob"]): each["dominated_by"] for each in points("w", ROWS)}
    assert found == {
        ("bound", ""): None,
        ("ours", "itl_added=0.1"): None,
        ("ours", "itl_added=0.2"): None,
        ("static-cap", "4"): "ours itl_added=0.1",
        ("static-cap", "8"): None,
    }


def test_the_table_has_the_points_of_its_workload_alone() -> None:
    both = [*points("w", ROWS), *points("x", {"bound": row(0.0, 0.1)})]
    text = points_table("w", both).text()
    assert "itl_added=0.2" in text
    assert "10.0 %" not in text


def test_the_plot_is_well_formed_and_holds_every_point_and_its_name() -> None:
    both = [*points("a & b", ROWS), *points("x", {"bound": row(0.0, 0.1)})]
    tree = ElementTree.fromstring(plotted(both))
    space = "{http://www.w3.org/2000/svg}"
    assert len(tree.findall(f".//{space}circle")) == 6
    texts = [each.text for each in tree.iter(f"{space}text")]
    assert {"a & b", "x", "ours", "static-cap", "bound"} <= set(texts)
    for circle in tree.iter(f"{space}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 760


@pytest.mark.slow
def test_the_command_sweeps_prints_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "front.svg"
    arguments = "simulate --frontier --knob window_ms=5,20 --slots 8 --seeds 1 --hours 0.01"
    assert main([*arguments.split(), "--json", str(out), "--plot", str(plot)], {}, COMMANDS) == 0
    found = json.loads(out.read_text())["points"]
    assert {each["policy"] for each in found} == {"bound", "ours", "static-cap", "aimd-ttft", "aimd-published"}
    assert {"workload", "policy", "knob", "price_ms", "ttft_ratio", "itl_ratio", "harvest"} <= set(found[0])
    assert "less price, more harvest" in capsys.readouterr().out
    assert plot.read_text().startswith("<svg")


def test_a_plot_without_a_frontier_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--plot", str(tmp_path / "x.svg")], {}, COMMANDS) == 2
    assert "--frontier" in capsys.readouterr().err
