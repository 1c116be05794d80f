"""`sidecar explain`: sentences, causes, and the same half minute under other conditions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sidecar.cli.main import main
from sidecar.sim.explain import explained, register_explain
from sidecar.sim.story import scan
from tests.sim.injected import AT_S, TARGET, Run, online, record, run_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A request that had to wait for a long prompt of another tenant."""
    trace_of = {TARGET: TRACE}
    return record(run_of("prompt", 3), tmp_path_factory.mktemp("prompt"), lambda name: trace_of.get(name, ""))


def test_the_command_tells_it_in_order_and_names_the_tenant(
    prompt: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", TRACE, *map(str, prompt)], {}, [register_explain]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"request {TARGET}, trace {TRACE}"
    words = ("arrived: online request of `chat`", "got its slot on e", "first token", "over, complete (end_id)")
    at = [next(n for n, line in enumerate(lines) if word in line) for word in words]
    assert at == sorted(at)
    assert any(line.startswith("  Mostly because a prompt of `legal` was computed") for line in lines)
    assert any("without offline: first token" in line for line in lines)


def test_one_slot_more_helps_where_others_had_them_all_and_nothing_else_does(tmp_path: Path) -> None:
    run = Run(rng=random.Random(1), slots=2, offline=False)
    run.online = [online(name, AT_S - 12.0, "chat", 100, 600) for name in ("a", "b")]
    run.online.append(online(TARGET, AT_S, "chat", 100, 10))
    found = explained(scan(record(run, tmp_path)), TARGET)
    assert found["main"] == "burst"
    replays = {name: each["ttft_ms"] for name, each in found["replays"].items()}
    assert replays["with one slot more"] < 0.2 * replays["as recorded"]
    assert replays["without offline"] == replays["as recorded"] == replays["without reserved dispatches"]


def test_without_offline_changes_little_where_somebody_elses_prompt_was_the_cause(prompt: list[Path]) -> None:
    replays = explained(scan(prompt), TARGET)["replays"]
    assert replays["without offline"]["ttft_ms"] > 0.7 * replays["as recorded"]["ttft_ms"]


def test_it_is_written_as_json(prompt: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", TARGET, *map(str, prompt), "--no-replay", "--json"], {}, [register_explain]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert (found["request_id"], found["trace_id"], found["main"], found["replays"]) == (TARGET, TRACE, "prompt", {})
    assert found["took_ms"] > found["alone_ms"] > 0


def test_an_id_that_is_not_there_is_told_in_one_line(prompt: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "x1", *map(str, prompt)], {}, [register_explain]) == 1
    told = capsys.readouterr().err
    assert told.startswith("sidecar: no request and no trace 'x1' in the recording")
    assert told.count("\n") == 1
