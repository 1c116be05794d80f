"""Plays the whole table: everything against Triton itself, then everything through the sidecar.

Scenarios that nobody can disturb run side by side; the two rounds follow each other, so that neither takes slots from
the other. Those that look at counts or change the server run one by one, and last those that may end Triton.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.compare import go_client
from tests.integration.compare.comparison import Found, differences, wrong
from tests.integration.compare.deployment import INFERENCE, Pair, guarded_pair, header, main_pair
from tests.integration.compare.messages import ids, query
from tests.integration.compare.player import Played, play
from tests.integration.compare.programs_runner import run_programs
from tests.integration.compare.reading import read
from tests.integration.compare.scenario import DIRECT, THROUGH, Ask, Program, Scenario, Where

SIDE_BY_SIDE = 6
TRIES_MAX = 4  # of a round: Triton 2.51 dies now and then of errors with triton_grpc_error, and of models unloaded
CRASHED = ("Socket closed)", "Connection refused")
KEYS = (header(INFERENCE),)
BACK = tuple(  # directly, and through the sidecar, which has to see that the engine is there; at once but after a crash
    Scenario(name="back", steps=(Ask(method="ModelInfer", body=body, metadata=KEYS, until_status="OK"),))
    for body in (query(), ids(streaming=False))
)
NO_GO = "Go is not installed"
Seen = dict[tuple[int, str], dict[str, Any]]  # by the identity of the scenario, and the client


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one scenario brought with one client. `skipped`: why it was not played."""

    scenario: Scenario
    client: str
    direct: dict[str, Any]
    through: dict[str, Any]
    skipped: str = ""

    @property
    def found(self) -> list[Found]:
        """Where the two runs differ."""
        return differences(self.scenario, self.direct, self.through)

    @property
    def wrong(self) -> list[str]:
        """What contradicts the verdict of the scenario."""
        return [] if self.skipped else wrong(self.scenario, self.found)


async def run(scenarios: Sequence[Scenario], directory: Path) -> list[Outcome]:
    """Every scenario with each of its clients, on servers of our own."""
    go = await go_client.built()
    at = {where: [each for each in scenarios if each.where is where] for where in Where}
    main, guarded = await asyncio.gather(_on_main(at[Where.MAIN], directory, go), _on_guarded(at, directory, go))
    return [*main, *guarded]


async def _on_main(scenarios: Sequence[Scenario], directory: Path, go: Path | None) -> list[Outcome]:
    if not scenarios:
        return []
    together = [each for each in scenarios if not each.alone and not each.risky]
    (directory / "main").mkdir()
    async with main_pair(directory / "main") as pair:
        found = await _both(together, pair, go)
        for each in scenarios:
            if each.alone:
                found += await _both([each], pair, go)
        for each in scenarios:
            if each.risky:
                found += await _both([each], pair, go)
    return found


async def _on_guarded(at: dict[Where, list[Scenario]], directory: Path, go: Path | None) -> list[Outcome]:
    if not at[Where.GUARDED] and not at[Where.GONE]:
        return []
    found: list[Outcome] = []
    (directory / "guarded").mkdir()
    async with guarded_pair(directory / "guarded") as guarded:
        for each in at[Where.GUARDED]:
            found += await _both([each], guarded.pair, go)
        if at[Where.GONE]:
            await guarded.end_triton()
            found += await _both(at[Where.GONE], guarded.pair, go)
    return found


async def _both(scenarios: Sequence[Scenario], pair: Pair, go: Path | None) -> list[Outcome]:
    """What came of each. One that contradicts its verdict is played again, alone: a difference comes back each time,
    what two free-running programs and a busy host do to each other does not."""
    found = await _twice(scenarios, pair, go, "")
    for number in range(1, TRIES_MAX):
        for doubted in {id(each.scenario): each.scenario for each in found if each.wrong}.values():
            again = {each.client: each for each in await _twice([doubted], pair, go, str(number))}
            found = [again[each.client] if each.scenario is doubted and each.wrong else each for each in found]
    return found


async def _twice(scenarios: Sequence[Scenario], pair: Pair, go: Path | None, number: str) -> list[Outcome]:
    """Played directly and through the sidecar, under names of its own."""
    direct = await _survived(scenarios, pair, pair.direct, DIRECT + number, go)
    through = await _survived(scenarios, pair, pair.through, THROUGH + number, go)
    return [_outcome(each, client, direct, through) for each in scenarios for client in clients(each)]


async def _survived(scenarios: Sequence[Scenario], pair: Pair, target: str, word: str, go: Path | None) -> Seen:
    """A round that Triton survived: what a caller sees of a crash is no answer that could be compared."""
    seen: Seen = {}
    gone = scenarios[0].where is Where.GONE
    for _ in range(TRIES_MAX):
        if not gone:
            await play(BACK[0], pair.direct, DIRECT)
            await play(BACK[1], pair.through, THROUGH)
        before = pair.incarnation
        seen = await _round(scenarios, target, word, go)
        if gone or (pair.incarnation == before and not any(map(_unavailable, seen.values()))):
            break
    return seen


def _unavailable(calls: dict[str, Any]) -> bool:
    """A crash shows in the calls before it shows in the process."""
    return any(words in str(calls) for words in CRASHED)


def _outcome(scenario: Scenario, client: str, direct: Seen, through: Seen) -> Outcome:
    key = (id(scenario), client)
    if key not in direct:
        return Outcome(scenario=scenario, client=client, direct={}, through={}, skipped=NO_GO)
    return Outcome(scenario=scenario, client=client, direct=direct[key], through=through[key])


def clients(scenario: Scenario) -> tuple[str, ...]:
    """Who plays it: a program is its own client."""
    return ("tritonclient",) if isinstance(scenario.steps[0], Program) else scenario.clients


async def _round(scenarios: Sequence[Scenario], target: str, word: str, go: Path | None) -> Seen:
    """What each scenario brought with each client against one target."""
    limit = asyncio.Semaphore(SIDE_BY_SIDE)
    seen: Seen = {}

    async def with_python(scenario: Scenario) -> None:
        async with limit:
            played = await play(scenario, target, word)
        seen[id(scenario), "python"] = read(played, word, scenario)

    async def with_go(program: Path, chosen: Sequence[Scenario]) -> None:
        found = await go_client.play_with_go(program, chosen, target, word)
        for each, each_found in zip(chosen, found, strict=True):
            seen[id(each), "go"] = read(each_found, word, each)

    async def programs(release: str, chosen: Sequence[tuple[Scenario, Program]]) -> None:
        found = await run_programs(release, [program.name for _, program in chosen], target, word)
        for scenario, program in chosen:
            played = Played(programs={"program": found[program.name]})
            seen[id(scenario), "tritonclient"] = read(played, word, scenario)

    by_release: dict[str, list[tuple[Scenario, Program]]] = {}
    async with asyncio.TaskGroup() as tasks:
        for each in scenarios:
            if isinstance(program := each.steps[0], Program):
                by_release.setdefault(program.release, []).append((each, program))
            elif "python" in each.clients:
                tasks.create_task(with_python(each), name=each.name)
        if go is not None and (chosen := [each for each in scenarios if "go" in clients(each)]):
            tasks.create_task(with_go(go, chosen), name="Go client")
        for release, pairs in by_release.items():
            tasks.create_task(programs(release, pairs), name=f"tritonclient {release}")
    return seen
