"""The last quarter of an hour in steps of five seconds: what the charts of the status page show.

It is kept here and not in the browser, so that a page that was opened a moment ago shows what happened before. A step
costs the same whether it saw ten tokens or a million: it keeps a bounded number of latencies, evenly spread over it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

from sidecar.core.request import Lane

STEP_S = 5.0
STEPS = 180
SAMPLES_MAX = 400  # latencies of one kind that a step keeps; 5 % of them still say what the 95th percentile is
TENANTS_MAX = 50  # per step and lane; callers choose their names
OTHERS = "other"
SPAN_S = 60.0  # what "in the last minute" means


class Samples:
    """Some values of many, evenly spread: when there are too many, every second one goes, and only those are taken."""

    __slots__ = ("_every", "_seen", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self._every, self._seen = 1, 0

    def extend(self, values: Sequence[float]) -> None:
        """Take in some more."""
        self.values.extend(values[-self._seen % self._every :: self._every])
        self._seen += len(values)
        while len(self.values) > SAMPLES_MAX:
            del self.values[1::2]
            self._every *= 2

    def percentile(self, share: float) -> float | None:
        """The value that `share` of the values do not exceed; None without one."""
        if not self.values:
            return None
        return sorted(self.values)[min(len(self.values) - 1, floor(share * len(self.values)))]


@dataclass(slots=True, eq=False)
class HistoryStep:
    """What happened in one step."""

    number: int
    ttft_s: Samples = field(default_factory=Samples)
    gaps_s: Samples = field(default_factory=Samples)
    tokens: Counter[tuple[Lane, str]] = field(default_factory=Counter)  # by lane and tenant
    slot_seconds: dict[tuple[str, Lane], float] = field(default_factory=dict)  # by engine and lane
    begun: int = 0  # online requests that got their first token
    late: int = 0  # of these after their objective
    refused: int = 0  # online requests
    told: dict[str, Any] | None = None  # as the document shows it, once the step is over

    def point(self, step_s: float) -> dict[str, Any]:
        """What the charts show of it."""
        lanes = {lane: sum(n for (each, _), n in self.tokens.items() if each is lane) for lane in Lane}
        slots = {lane: sum(s for (_, each), s in self.slot_seconds.items() if each is lane) for lane in Lane}
        values = {
            "ttft_p50_ms": _ms(self.ttft_s.percentile(0.5)),
            "ttft_p95_ms": _ms(self.ttft_s.percentile(0.95)),
            "gap_p50_ms": _ms(self.gaps_s.percentile(0.5)),
            "gap_p95_ms": _ms(self.gaps_s.percentile(0.95)),
            "refused": self.refused,
        }
        for lane in Lane:
            values[f"{lane}_tokens_per_s"] = round(lanes[lane] / step_s, 1)
            values[f"{lane}_slots"] = round(slots[lane] / step_s, 2)
        return values


class History:
    """The steps, newest last. Times in seconds of the loop's clock, which only goes forward."""

    def __init__(self, now_s: float, *, step_s: float = STEP_S, steps: int = STEPS) -> None:
        self._step_s = step_s
        self._steps: deque[HistoryStep] = deque([HistoryStep(floor(now_s / step_s))], maxlen=steps)
        self._in_use: Counter[tuple[str, Lane]] = Counter()  # slots
        self._began_s = self._at_s = now_s  # slot-seconds are counted from and up to here

    # ---- what happens ------------------------------------------------------------------------------------------------

    def began(self, now_s: float, ttft_s: float, objective_s: float) -> None:
        """An online request has got its first token."""
        step = self._now(now_s)
        step.ttft_s.extend((ttft_s,))
        step.begun += 1
        step.late += ttft_s > objective_s

    def streamed(self, now_s: float, tokens: Iterable[tuple[Lane, str, int]], gaps_s: Sequence[float]) -> None:
        """An engine gave tokens: of which lane and tenant, how many, and the gaps between them."""
        step = self._now(now_s)
        step.gaps_s.extend(gaps_s)
        counts = step.tokens
        for lane, tenant, count in tokens:
            key = lane, tenant
            counts[key if key in counts or len(counts) < TENANTS_MAX * len(Lane) else (lane, OTHERS)] += count

    def slots(self, now_s: float, engine: str, lane: Lane, more: int) -> None:
        """From now on a lane has so many more slots of an engine, or fewer."""
        self._now(now_s)
        self._in_use[engine, lane] += more

    def refused(self, now_s: float) -> None:
        """An online request was refused."""
        self._now(now_s).refused += 1

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def document(self, now_s: float) -> dict[str, Any]:
        """Each figure by step that is over, oldest first; null where a step has no value."""
        now = self._now(now_s)
        points = [each.told for each in self._steps if each.told is not None]
        return {
            "step_s": self._step_s,
            "age_s": round(now_s - now.number * self._step_s, 3),  # since the last of them was over
            **{name: [each[name] for each in points] for name in now.point(self._step_s)},
        }

    def recent(self, now_s: float, span_s: float = SPAN_S) -> dict[str, Any]:
        """What the last minute, in whole steps, was like; `began` is how many online requests got a first token."""
        self._now(now_s)
        steps = self._since(now_s - span_s)
        ttft_s = Samples()
        for each in steps:
            ttft_s.extend(each.ttft_s.values)
        return {
            "seconds": round(now_s - self._first_s(steps), 3),
            "began": sum(each.begun for each in steps),
            "late": sum(each.late for each in steps),
            "refused": sum(each.refused for each in steps),
            "ttft_p95_ms": _ms(ttft_s.percentile(0.95)),
        }

    def tokens(self) -> Mapping[tuple[Lane, str], int]:
        """Output tokens by lane and tenant, over all steps."""
        total: Counter[tuple[Lane, str]] = Counter()
        for each in self._steps:
            total.update(each.tokens)
        return total

    def slot_shares(self, now_s: float, slots: Mapping[str, int], span_s: float = 5 * SPAN_S) -> Mapping[str, Any]:
        """By engine: which share of its slots each lane had, over the last five minutes or as long as this knows."""
        self._now(now_s)
        steps = self._since(now_s - span_s)
        seconds = max(now_s - self._first_s(steps), 1e-9)
        return {
            name: {
                lane: sum(each.slot_seconds.get((name, lane), 0.0) for each in steps) / (seconds * total)
                for lane in Lane
            }
            for name, total in slots.items()
        }

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def _now(self, now_s: float) -> HistoryStep:
        """The step of now. Slots were in use since the last time, and each step between has its part of that."""
        last = self._steps[-1]
        if now_s <= self._at_s:
            return last
        number = floor(now_s / self._step_s)
        while last.number < number:
            end_s = (last.number + 1) * self._step_s
            self._count_slots(last, end_s)
            last.told = last.point(min(self._step_s, end_s - self._began_s))
            last.gaps_s.values.clear()  # they are told
            last = HistoryStep(last.number + 1)
            self._steps.append(last)
        self._count_slots(last, now_s)
        return last

    def _count_slots(self, step: HistoryStep, until_s: float) -> None:
        for key, slots in self._in_use.items():
            if slots:
                step.slot_seconds[key] = step.slot_seconds.get(key, 0.0) + slots * (until_s - self._at_s)
        self._at_s = until_s

    def _since(self, from_s: float) -> list[HistoryStep]:
        first = floor(from_s / self._step_s) + 1
        return [each for each in self._steps if each.number >= first] or [self._steps[-1]]

    def _first_s(self, steps: Sequence[HistoryStep]) -> float:
        return max(steps[0].number * self._step_s, self._began_s)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
