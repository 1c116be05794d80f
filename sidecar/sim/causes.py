"""Where the time of one request went: so much in its own work, so much because of each other thing.

What it would have taken alone follows from iteration times that are fitted to the half minute before it. What it took
beyond that is shared out among what was there: prompts and rows beside it by what they cost an iteration, silences of
the engine as long as they lasted, and what is left is of load that is not ours, if the gauges saw any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from sidecar.core.request import Lane
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.sim.gaps import GapFit, TooFewGapsError
from sidecar.sim.policies import CHUNK_TOKENS
from sidecar.sim.story import Stay, Story

TOKENS_PER_GAP = 150  # where nothing can be fitted: prompt tokens that take as long as an iteration, on an A100
WORTH_S, WORTH_SHARE = 0.020, 0.10  # a cause is worth a name from this on, and from this share of the time alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What an iteration takes, in seconds."""

    iteration_s: float
    row_s: float
    prompt_token_s: float
    fitted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayCause:
    """One reason why it took longer."""

    kind: str  # stop, reserved, burst, prompt, offline, stall, foreign, unknown
    seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAccount:
    """All of its time."""

    alone_s: float
    causes: tuple[DelayCause, ...]  # the largest first

    @property
    def main(self) -> DelayCause | None:
        """The cause to name; None if nothing worth a name delayed it."""
        largest = self.causes[0] if self.causes else None
        return largest if largest and largest.seconds >= max(WORTH_S, WORTH_SHARE * self.alone_s) else None


def costs_of(story: Story) -> Costs:
    """Fitted to what was seen before it and meanwhile, or guessed from the usual gap."""
    fit = GapFit()
    for now_s, event, actions in story.records:
        if now_s <= story.request.arrived_s:
            fit.take(now_s, event, actions, lambda _request_id: 0)
    usual_s = story.usual_gap_s or 0.025
    try:
        profile, _ = fit.profile()
    except TooFewGapsError:
        return Costs(iteration_s=usual_s, row_s=0.0, prompt_token_s=usual_s / TOKENS_PER_GAP, fitted=False)
    token_s = profile.prefill_token_ms / 1000
    return Costs(
        iteration_s=max(profile.overhead_ms / 1000, 1e-4),
        row_s=profile.decode_row_ms / 1000,
        prompt_token_s=token_s if token_s > 0 else usual_s / TOKENS_PER_GAP,
        fitted=True,
    )


def account(story: Story, settings: SchedulerSettings, engine: EngineSettings, costs: Costs) -> TimeAccount:
    """Share its time out."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for kind, owner, each in _waited(story, settings, engine):
        seconds[kind, owner] += each
    alone_s = 0.0
    for stay in story.stays:
        alone, parts = _stayed(story, stay, costs)
        alone_s += alone
        for kind, owner, each in parts:
            seconds[kind, owner] += each
    found = [
        DelayCause(kind=kind, seconds=each, text=_TEXTS[kind].format(owner=owner))
        for (kind, owner), each in seconds.items()
        if each > 0.001
    ]
    return TimeAccount(alone_s=alone_s, causes=tuple(sorted(found, key=lambda each: -each.seconds)))


_TEXTS = {
    "stop": "it waited until a row of `{owner}` had stopped",
    "reserved": "a reserved dispatch of `{owner}` was due, and came first or beside it",
    "burst": "other online requests had the slots, or were computed with it",
    "prompt": "a prompt of `{owner}` was computed",
    "offline": "offline rows of `{owner}` were computed with it",
    "stall": "the engine gave nobody a token",
    "foreign": "the engine worked for somebody else",
    "unknown": "nothing that was recorded explains it",
}


def _waited(story: Story, settings: SchedulerSettings, engine: EngineSettings) -> Iterator[tuple[str, str, float]]:
    """The time until its first slot, by cause: between two changes of who is there the cause is the same."""
    begin_s = story.request.arrived_s
    end_s = story.stays[0].begun_s if story.stays else story.end_s
    changes = {begin_s, end_s, *(at_s for at_s in story.stops.values() if at_s is not None)}
    changes |= {
        at_s for each in story.others for at_s in (each.begun_s, each.first_s, each.ended_s) if at_s is not None
    }
    changes |= {at_s for silence in story.silences for at_s in silence}
    within = sorted(each for each in changes if begin_s <= each <= end_s)
    for since_s, until_s in pairwise(within):
        kind, owner = _keeps_waiting(story, settings, engine, (since_s + until_s) / 2)
        yield kind, owner, until_s - since_s


def _keeps_waiting(story: Story, settings: SchedulerSettings, engine: EngineSettings, at_s: float) -> tuple[str, str]:
    """Why it had no slot at this moment, and whose doing that was."""
    if any(begin_s < at_s < end_s for begin_s, end_s in story.silences):
        return "stall", ""
    there = [each for each in story.others if each.begun_s <= at_s and (each.ended_s is None or at_s < each.ended_s)]
    online = [each for each in there if each.lane is Lane.ONLINE]
    reserved = [each for each in there if each.kind == "reserved"]
    pending = {name for name, stopped_s in story.stops.items() if stopped_s is None or at_s < stopped_s}
    stopping = [each for each in there if each.request_id in pending]
    if sum(each.slots for each in there) < engine.slots:
        least = settings.long_prompt_tokens or CHUNK_TOKENS
        long = [each for each in online if each.prompt_tokens > least and (each.first_s is None or at_s < each.first_s)]
        return ("prompt", long[0].owner) if long else ("burst", "") if online else ("unknown", "")
    if stopping:
        return "stop", stopping[0].owner
    if reserved and 2 * len(online) < engine.slots:
        return "reserved", reserved[0].owner
    if online:
        return "burst", ""
    return ("offline", there[0].owner) if there else ("unknown", "")


def _stayed(story: Story, stay: Stay, costs: Costs) -> tuple[float, list[tuple[str, str, float]]]:
    """What one dispatch of it would have taken alone, and what came on top."""
    begin_s, end_s = stay.begun_s, stay.ended_s or story.end_s
    prompt = max(stay.prompt_tokens - stay.reused_tokens, 1)
    iterations = ceil(prompt / CHUNK_TOKENS) + max(stay.tokens - 1, 0)
    alone_s = iterations * (costs.iteration_s + costs.row_s) + prompt * costs.prompt_token_s
    excess_s = max(0.0, end_s - begin_s - alone_s)
    silent_s = min(excess_s, _silent(story, begin_s, end_s))
    parts: dict[tuple[str, str], float] = defaultdict(float)
    for each in story.others:
        busy_s = each.overlap_s(begin_s, end_s)
        if busy_s <= 0:
            continue
        kind = "reserved" if each.kind == "reserved" else "offline" if each.lane is Lane.OFFLINE else ""
        sent = max(each.prompt_tokens - each.reused_tokens, 0) * each.prefill_share(begin_s, end_s)
        rows_s = costs.row_s * each.slots * busy_s / max(costs.iteration_s, story.usual_gap_s)
        if kind:
            parts[kind, each.owner] += sent * costs.prompt_token_s + rows_s
        else:
            parts["prompt" if sent > CHUNK_TOKENS else "burst", each.owner if sent > CHUNK_TOKENS else ""] += (
                sent * costs.prompt_token_s
            )
            parts["burst", ""] += rows_s
    left_s, wanted_s = excess_s - silent_s, sum(parts.values())
    scale = min(1.0, left_s / wanted_s) if wanted_s else 0.0
    found = [("stall", "", silent_s), *((kind, owner, each * scale) for (kind, owner), each in parts.items())]
    found.append(("foreign" if story.foreign > 0 else "unknown", "", left_s - wanted_s * scale))
    return alone_s, found


def _silent(story: Story, begin_s: float, end_s: float) -> float:
    """For how long its engine stood still between the two, beyond a usual gap each time."""
    return sum(
        max(0.0, min(until_s, end_s) - max(since_s, begin_s) - story.usual_gap_s) for since_s, until_s in story.silences
    )
