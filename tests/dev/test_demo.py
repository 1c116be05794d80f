"""The demo's options, its backlog and its figures; the run itself is an integration test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dev.demo import RATE_PER_S, backlog_of, engine_document, late_ratio, leaves, offline_table, online, parse
from dev.deployment import DeploymentShape


def test_without_options_a_chat_model_talks_at_a_rate_that_a_host_can_bear() -> None:
    options = parse([])
    assert (options.shape.model, options.rate_per_s, options.shape.slots) == ("smollm2", RATE_PER_S["smollm2"], 8)
    assert parse(["--model", "toy"]).rate_per_s == RATE_PER_S["toy"]


@pytest.mark.parametrize(("text", "rows"), [("3", 3), ("auto", "auto"), ("never", "never")])
def test_rows_that_offline_keeps_are_a_number_or_a_word(text: str, rows: int | str) -> None:
    assert parse(["--yield-rows", text]).shape.yield_rows == rows


@pytest.mark.parametrize(
    "arguments",
    [
        "--seconds 4",
        "--slots 65",
        "--rate 0",
        "--yield-rows 9",
        "--yield-rows often",
        "--model gpt",
        "--profile 400b",
        "--json /nowhere/out.json",
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anything_starts(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments.split())
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_backlog_is_more_than_can_be_done_while_the_demo_runs() -> None:
    options = parse(["--model", "toy", "--seconds", "10"])
    lines = backlog_of(options)
    assert len(lines) > options.shape.finished_per_s(1000) * options.seconds
    assert len(backlog_of(replace(options, seconds=60.0))) > len(lines)
    assert lines == backlog_of(options) != backlog_of(replace(options, seed=2))


def test_the_toys_callers_arrive_at_the_rate_in_the_phase() -> None:
    options = parse(["--model", "toy"])
    arrived = online(options, rate_per_s=20.0, seconds=50.0, seed=3)
    assert len(arrived) == pytest.approx(1000, rel=0.15)
    assert all(0 <= each.due_s < 50 for each in arrived)


def test_late_iterations_count_between_the_first_and_the_last_reading() -> None:
    paces = [{"iterations": 100, "late": 50}, {"iterations": 150, "late": 50}, {"iterations": 300, "late": 54}]
    assert late_ratio(paces) == 0.02
    assert late_ratio(paces[:1]) is None
    shape = DeploymentShape()
    assert engine_document(shape, {"iterations": 300, "late": 54}, paces)["late_iterations_ratio"] == 0.02
    chat = engine_document(DeploymentShape(model="smollm2"), {"iterations": 300}, paces)
    assert (chat["model"], chat["profile"], chat["late_iterations_ratio"]) == ("smollm2", None, None)


def test_the_errors_of_nested_groups_are_told_one_by_one() -> None:
    one, two = ValueError("one"), OSError("two")
    assert leaves(ExceptionGroup("all", [ExceptionGroup("some", [one]), two])) == [one, two]
    assert leaves(one) == [one]


def test_the_count_of_the_reader_is_shown_a_row_a_figure() -> None:
    offline = {"source_offsets": 9, "results": 8, "dead": 1, "early": 0, "lost": 0, "duplicated": 0}
    table = offline_table({**offline, "ended_by": {"end_id": 5, "stop_word": 2, "length": 1}})
    assert table.row_count == 9
