"""`sidecar dlq` from the command line, without a broker."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from sidecar.batch.dead_items import DeadChoice, DeadItem, dead_item
from sidecar.cli import dlq, main
from sidecar.cli.dlq import register_dlq
from sidecar.offline.dead_letters import DeadReason
from tests.batch.test_dead_items import dead
from tests.fakes.topics import FakeTopics


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[DeadChoice]:
    """What was asked for, of three dead letters."""
    topics, choices = FakeTopics(), list[DeadChoice]()
    there = [dead(topics, 1), dead(topics, 2, DeadReason.INVALID), dead(topics, 3, headers=())]

    async def found(_: Any, choice: DeadChoice) -> AsyncGenerator[DeadItem, None]:
        choices.append(choice)
        for each in map(dead_item, there):
            if choice.holds(each):
                yield each

    async def retry(_: Any, choice: DeadChoice, on_sent: Callable[[int], None]) -> tuple[int, int]:
        choices.append(choice)
        on_sent(2)
        return 2, 1

    monkeypatch.setattr(dlq, "dead_items", found)
    monkeypatch.setattr(dlq, "retry", retry)
    return choices


def call(*arguments: str) -> int:
    return main.main(("dlq", *arguments), {}, [register_dlq])


@pytest.mark.usefixtures("asked")
def test_each_has_a_line_that_names_it_and_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--job", "nightly") == 0
    assert capsys.readouterr().out.splitlines() == [
        "inference.requests/1/1  1  failed: it broke",
        "inference.requests/1/2  2  invalid: it broke",
    ]
    assert call("list", "--json", "--reason", "invalid") == 0
    assert json.loads(capsys.readouterr().out)["source"] == "inference.requests/1/2"


@pytest.mark.usefixtures("asked")
def test_they_are_counted_by_job_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--count") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["1", "failed", "(no", "job)"],
        ["1", "failed", "nightly"],
        ["1", "invalid", "nightly"],
    ]


@pytest.mark.usefixtures("asked")
def test_one_is_shown_with_its_item_on_stdout_alone(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert call("show", "inference.requests/1/2") == 0
    told = capsysbinary.readouterr()
    assert told.out == b'{"id": "2", "prompt": "p"}\n'
    assert b"dlq.error.class: invalid" in told.err
    assert call("show", "inference.requests/1/9") == 2


def test_a_retry_says_how_many_were_sent(asked: list[DeadChoice], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("retry", "--job", "nightly", "--reason", "failed", "--source", "a/1/2") == 0
    assert asked == [
        DeadChoice(job="nightly", reasons=frozenset(["failed"]), sources=frozenset(["a/1/2"])),
    ]
    assert "2 dead letters sent again; 1 were left out" in capsys.readouterr().out


def test_nobody_retries_everything_by_mistake(asked: list[DeadChoice], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("retry") == 2
    assert "say which dead letters" in capsys.readouterr().err
    assert asked == []
    assert call("retry", "--all") == 0
    assert asked == [DeadChoice()]
