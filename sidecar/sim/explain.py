"""`sidecar explain`: why one request took as long as it did, in sentences, and what would have made it faster."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.core.events import DeadLetter, Ending, Reject
from sidecar.core.request import Lane
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.sim import recording
from sidecar.sim.causes import TimeAccount, account, costs_of
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.gaps import TooFewGapsError
from sidecar.sim.progress import RequestProgress
from sidecar.sim.recording import Recording
from sidecar.sim.simulation_run import DRAIN_S, PROGRESS_S
from sidecar.sim.story import Scanned, Stay, Story, scan, told
from sidecar.sim.whatif import machine_of

NO_TURN = 1_000_000  # every so many contended dispatches one is offline's: none is


@dataclass(slots=True)
class OneRequest(Observer):
    """Keeps when one request of a simulated run got its first token and was over."""

    request_id: str
    times_ms: dict[str, float] = field(default_factory=dict)

    def finished(self, progress: RequestProgress) -> None:
        """Note it."""
        if progress.request.id == self.request_id and progress.outcome == "ended":
            since_s = progress.request.arrived_s
            self.times_ms = {
                "ttft_ms": round(1000 * (progress.first_token_s - since_s), 1),
                "e2e_ms": round(1000 * (progress.finished_s - since_s), 1),
            }


def explained(scanned: Scanned, request_id: str, *, replays: bool = True) -> dict[str, Any]:
    """Everything about one request: sentences, causes in ms, and the same minute under other conditions."""
    story = told(scanned, request_id)
    engine = next((each for each in scanned.engines if each.name == story.engine), scanned.engines[0])
    costs = costs_of(story)
    found = account(story, scanned.settings, engine, costs)
    request = story.request
    return {
        "request_id": request_id,
        "trace_id": story.trace_id or None,
        "sentences": list(sentences(story, engine, partial(_clock, scanned.wall_s, request.arrived_s))),
        "verdict": verdict(story, found),
        "main": None if found.main is None else found.main.kind,
        "alone_ms": round(1000 * found.alone_s, 1),
        "took_ms": round(1000 * (story.end_s - request.arrived_s), 1),
        "causes": [{**asdict(each), "seconds": round(each.seconds, 4)} for each in found.causes],
        "replays": counterfactuals(scanned, story) if replays else {},
    }


# ---- in sentences ----------------------------------------------------------------------------------------------------


def sentences(story: Story, engine: EngineSettings, clock: Callable[[float], str]) -> Iterator[str]:
    """What happened to it, in order, each with its time."""
    request = story.request
    lanes = {lane: sum(each.slots for each in story.at_arrival if each.lane is lane) for lane in Lane}
    yield (
        f"{clock(request.arrived_s)} arrived: {request.lane} request of `{request.tenant}`, {request.prompt_tokens:,}"
        f" prompt tokens; {lanes[Lane.ONLINE]} online and {lanes[Lane.OFFLINE]} offline rows had"
        f" {sum(lanes.values())} of {engine.slots} slots"
    )
    stopped: Counter[tuple[float, str]] = Counter()
    for request_id, at_s in story.stops.items():
        owner = next((each.owner for each in story.others if each.request_id == request_id), "somebody")
        stopped[story.end_s if at_s is None else at_s, owner] += 1
    for (at_s, owner), count in sorted(stopped.items()):
        rows = "1 row" if count == 1 else f"{count} rows"
        took_ms = 1000 * (at_s - request.arrived_s)
        yield f"{clock(at_s)} {rows} of `{owner}`, told to stop, had stopped, {took_ms:,.0f} ms after the arrival"
    for number, stay in enumerate(story.stays):
        yield from _stay(story, stay, number, clock)
    yield f"{clock(story.end_s)} {_end(story)}"


def _stay(story: Story, stay: Stay, number: int, clock: Callable[[float], str]) -> Iterator[str]:
    since_s = story.request.arrived_s if not number else (story.stays[number - 1].ended_s or stay.begun_s)
    wait_ms = 1000 * (stay.begun_s - since_s)
    waited = f" after {wait_ms:,.0f} ms" if wait_ms >= 1 else " at once"
    yield f"{clock(stay.begun_s)} got its slot on {story.engine}{waited} ({stay.kind} dispatch)"
    until_s = stay.first_s or stay.ended_s or story.end_s
    beside = [
        f"a prompt of `{each.owner}` ({each.prompt_tokens:,} tokens{', reserved' if each.kind == 'reserved' else ''})"
        for each in story.others
        if each.prompt_tokens
        and each.prefill_share(stay.begun_s, until_s) > 0
        and each.overlap_s(stay.begun_s, until_s)
    ]
    if stay.first_s is not None:
        told_beside = (
            f"; computed meanwhile: {', '.join(beside[:4])}{' …' if len(beside) > 4 else ''}" if beside else ""
        )
        yield f"{clock(stay.first_s)} first token, {1000 * (stay.first_s - stay.begun_s):,.0f} ms later{told_beside}"
    for begin_s, end_s in story.silences:
        if stay.begun_s <= begin_s < (stay.ended_s or story.end_s):
            yield f"{clock(begin_s)} the engine gave nobody a token for {1000 * (end_s - begin_s):,.0f} ms"
    if story.foreign and not number:
        yield f"{clock(stay.begun_s)} the gauges showed up to {story.foreign} requests that are not ours"


def _end(story: Story) -> str:
    tokens = sum(each.tokens for each in story.stays)
    match story.outcome:
        case Ending() as ending:
            how = story.stays[-1].how if story.stays else "before it ran"
            return f"over, {ending} ({how}): {tokens:,} tokens"
        case Reject(reason=reason):
            return f"refused: {reason}"
        case DeadLetter(reason=reason):
            return f"given up: {reason.partition(':')[0]}"
        case _:
            return f"the recording ends, with {tokens:,} tokens"


def verdict(story: Story, found: TimeAccount) -> str:
    """One sentence: what delayed it most."""
    took_ms, alone_ms = 1000 * (story.end_s - story.request.arrived_s), 1000 * found.alone_s
    times = f"it took {took_ms:,.0f} ms, alone it would have taken some {alone_ms:,.0f}"
    if (main := found.main) is None:
        return f"Nothing worth a name delayed it: {times}."
    return f"Mostly because {main.text} ({1000 * main.seconds:,.0f} ms): {times}."


def _clock(wall_s: float | None, zero_s: float, at_s: float) -> str:
    """A clock time where the recording has one, else seconds since the arrival."""
    if wall_s is None:
        return f"{at_s - zero_s:+9.3f} s"
    return datetime.fromtimestamp(wall_s + at_s).strftime("%H:%M:%S.%f")[:-3]


# ---- by replay -------------------------------------------------------------------------------------------------------


def counterfactuals(scanned: Scanned, story: Story) -> dict[str, dict[str, float]]:
    """TTFT and end to end of this request in the simulator: as it was, and under other conditions. {} where the
    recording is too short to know how fast the engine is."""
    world = recording.of_window(scanned.settings, scanned.engines, story.alive, story.records)
    try:
        profile, _ = world.gaps.profile()
    except TooFewGapsError:
        return {}
    settings = scanned.settings
    wider = [replace(each, slots=each.slots + 1) for each in world.engines]
    alone = replace(world, jobs=[each for each in world.jobs if each.request.lane is Lane.ONLINE])
    rare = replace(settings, reservation_every=NO_TURN, reservation_every_urgent=NO_TURN)
    runs: dict[str, tuple[Recording, SchedulerSettings, Sequence[EngineSettings]]] = {
        "as recorded": (world, settings, world.engines),
        "without offline": (alone, settings, world.engines),
        "without reserved dispatches": (world, rare, world.engines),
        "with one slot more": (world, settings, wider),
    }
    found = {}
    for name, (jobs, changed, engines) in runs.items():
        seen = OneRequest(story.request.id)
        machines = {each.name: machine_of(each, profile) for each in engines}
        driver = SimulatedDriver(
            scheduler=Scheduler(changed, engines), machines=machines, observer=seen, progress_s=PROGRESS_S
        )
        driver.begin(iter(jobs.jobs))
        for at_s, request_id in jobs.cancels:
            driver.at(at_s, partial(driver.cancel, request_id))
        while not seen.times_ms and driver.now_s < jobs.seconds + DRAIN_S:
            driver.run(driver.now_s + 1.0)
        if seen.times_ms:
            found[name] = seen.times_ms
    return found


# ---- the command -----------------------------------------------------------------------------------------------------


def register_explain(subparsers: Any) -> None:
    """Add `explain` to the command line."""
    parser = subparsers.add_parser(
        "explain",
        help="why one request took as long as it did, from a recording",
        description="Tell the decisions that touched one request, what delayed it, and what would have been otherwise.",
    )
    parser.add_argument(
        "id", metavar="ID", help="a request id of the recording or the log, or a trace id (32 hex digits)"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="decisions-NNNNNN.jsonl.gz, in order")
    parser.add_argument("--no-replay", action="store_true", help="leave the simulated runs out, which take seconds")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write it there; - is stdout")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, _environment: Mapping[str, str]) -> int:
    scanned = scan(options.files)
    found = [explained(scanned, each, replays=not options.no_replay) for each in scanned.ids(options.id)]
    if options.json:
        text = json.dumps(found, indent=1)
        print(text) if options.json == "-" else Path(options.json).write_text(f"{text}\n")
    if options.json != "-":
        print("\n\n".join("\n".join(_lines(each)) for each in found))
    sys.stdout.flush()
    return 0


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"request {found['request_id']}" + (f", trace {found['trace_id']}" if found["trace_id"] else "")
    yield from (f"  {each}" for each in found["sentences"])
    yield f"  {found['verdict']}"
    for each in found["causes"]:
        yield f"  {1000 * each['seconds']:9,.0f} ms  {each['text']}"
    if found["replays"]:
        yield "  The same half minute in the simulator:"
        for name, times in found["replays"].items():
            yield f"  {name:>28}: first token {times['ttft_ms']:,.0f} ms, end {times['e2e_ms']:,.0f} ms"
