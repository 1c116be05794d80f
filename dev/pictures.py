"""Draws docs/pictures/overview.svg: two lanes, one sidecar, and who has which slot of an in-flight batch.

The slots are no drawing but a run: the scheduler over the simulator's engine with the load of `origin`, in a busy
moment.
"""

from __future__ import annotations

import argparse
import sys
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape

from sidecar.core.events import Action, Dispatch, Ended, Event, Failed, Lost, Stopped
from sidecar.core.request import Lane
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.driver import Observer, SimulatedDriver
from sidecar.sim.machine import Machine
from sidecar.sim.policies import CHUNK_TOKENS, ENGINE
from sidecar.sim.workloads import SimulatedRequest

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "overview.svg"
SLOTS, SEED, RUN_S, SHOWN_S = 8, 1, 600.0, 8.0
LEFT, TOP, ROW, STRIP = 345, 92, 22, 360  # of the slots, in units of the picture
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328; }
.quiet { fill: #656d76; font-size: 12px; }
.strong { font-weight: 600; }
.room { fill: #f6f8fa; stroke: #d0d7de; }
.free { fill: #ffffff; stroke: #d0d7de; stroke-width: 0.5; }
.online { fill: #0969da; }
.offline { fill: #e0982f; }
.way { fill: none; stroke: #656d76; stroke-width: 1.5; marker-end: url(#head); }
#head path { fill: #656d76; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .quiet { fill: #9198a1; }
  .room { fill: #151b23; stroke: #3d444d; }
  .free { fill: #0d1117; stroke: #3d444d; }
  .online { fill: #4493f8; }
  .offline { fill: #c9841f; }
  .way { stroke: #9198a1; }
  #head path { fill: #9198a1; }
}
"""


class SlotHistory(Observer):
    """Who had which slot: (slot, lane, from, until), in seconds of the run."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, Lane, float, float]] = []
        self._free = list(range(SLOTS))
        self._held: dict[str, tuple[int, Lane, float]] = {}

    def decided(self, event: Event, actions: Sequence[Action], driver: SimulatedDriver) -> None:
        """Note what gave a slot back, and what got one."""
        if isinstance(event, Ended | Stopped | Failed | Lost):
            slot, lane, since_s = self._held.pop(event.request_id)
            self.spans.append((slot, lane, since_s, driver.now_s))
            insort(self._free, slot)
        for action in actions:
            if isinstance(action, Dispatch):
                lane = driver.alive[action.request_id].request.lane
                # Any free slot is as good; online from the top and offline from the bottom can be told apart.
                slot = self._free.pop(0 if lane is Lane.ONLINE else -1)
                self._held[action.request_id] = (slot, lane, driver.now_s)

    def until(self, now_s: float) -> list[tuple[int, Lane, float, float]]:
        """Return all of it, with what still runs."""
        return self.spans + [(slot, lane, since_s, now_s) for slot, lane, since_s in self._held.values()]


@cache
def run() -> list[tuple[int, Lane, float, float]]:
    """Return who had which slot in the SHOWN_S seconds of a run that had most online work beside offline work."""
    profile, workload, policy = profile_named("70b-tp4-a100"), workloads.by_name("origin"), policies.by_name("ours")
    shape = policies.EngineShape(slots=SLOTS, profile=profile, tokens_max=4096)
    batch = BatcherSettings(
        max_batch_size=SLOTS, max_num_tokens=CHUNK_TOKENS, max_seq_len=4096, kv_tokens_max=profile.kv_tokens_max
    )
    seen, items = SlotHistory(), workload.backlog(SEED)
    machine = Machine(batch, profile, policy.prices)
    driver = SimulatedDriver(scheduler=policy.decider(shape), machines={ENGINE: machine}, observer=seen)

    def take(now_s: float) -> SimulatedRequest:
        item = next(items)
        return replace(item, request=replace(item.request, arrived_s=now_s))

    driver.begin(iter(workload.online(SEED, RUN_S / 3600)), take)
    driver.run(RUN_S)
    spans = seen.until(driver.now_s)
    starts = [begun_s for _, lane, begun_s, _ in spans if lane is Lane.ONLINE and begun_s < RUN_S - SHOWN_S]
    first_s = max(starts, key=lambda at_s: sum(at_s <= each < at_s + SHOWN_S for each in starts))
    shown = [(slot, lane, a - first_s, b - first_s) for slot, lane, a, b in spans]
    return [(slot, lane, max(a, 0.0), min(b, SHOWN_S)) for slot, lane, a, b in shown if b > 0 and a < SHOWN_S]


def room(x: int, y: int, width: int, height: int, title: str, *lines: str) -> Iterator[str]:
    """Yield a box with a title, and small text under it."""
    yield f'<rect class="room" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
    yield text(x + 14, y + 25, title, "strong")
    yield from (text(x + 14, y + 46 + 17 * number, line, "quiet") for number, line in enumerate(lines))


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>'


def way(x: int, y: int, to_x: int, to_y: int) -> str:
    """Return an arrow."""
    return f'<path class="way" d="M{x} {y}L{to_x} {to_y}"/>'


def slots() -> Iterator[str]:
    """Yield the strip of slots over time, with its legend."""
    spans, scale = run(), STRIP / SHOWN_S
    for slot in range(SLOTS):
        yield f'<rect class="free" x="{LEFT}" y="{TOP + slot * ROW}" width="{STRIP}" height="{ROW - 3}"/>'
    for slot, lane, begun_s, ended_s in spans:
        yield (
            f'<rect class="{lane.value}" x="{LEFT + begun_s * scale:.1f}" y="{TOP + slot * ROW}"'
            f' width="{max((ended_s - begun_s) * scale - 0.7, 0.7):.1f}" height="{ROW - 3}"/>'
        )
    below = TOP + SLOTS * ROW + 14
    yield text(LEFT, below, f"who has which of {SLOTS} slots over {SHOWN_S:g} s: a run of the simulator", "quiet")
    for x, kind, words in (
        (0, "online", "online"),
        (80, "offline", "offline, sliced and resumed"),
        (285, "free", "free"),
    ):
        yield f'<rect class="{kind}" x="{LEFT + x}" y="{below + 12}" width="12" height="12"/>'
        yield text(LEFT + x + 18, below + 22, words, "quiet")


def drawing() -> str:
    """Return the picture as SVG."""
    parts = [
        *room(20, 60, 210, 92, "Callers", "any tritonclient program,", "unchanged; they wait"),
        *room(20, 212, 210, 92, "Apache Kafka", "topics of items; nobody waits,", "but a job may have a deadline"),
        *room(320, 40, 410, 290, "Sidecar → slots of the in-flight batch"),
        text(334, 82, "online first, offline fills the rest, each 10th is its own", "quiet"),
        *room(790, 60, 150, 92, "NVIDIA Triton", "TensorRT-LLM,", "in-flight batching"),
        *room(790, 212, 150, 92, "Kafka", "results and dead", "letters, exactly once"),
        way(230, 106, 314, 106),
        way(230, 258, 314, 258),
        way(730, 106, 784, 106),
        way(730, 258, 784, 258),
        text(272, 98, "gRPC", "quiet", "middle"),
        text(272, 250, "items", "quiet", "middle"),
        *slots(),
    ]
    head = (
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker>'
    )
    title = "<title>Online callers and offline items share the slots of one in-flight batch</title>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 350" role="img">{title}<style>{STYLE}</style>'
        f"<defs>{head}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the picture."""
    description = "Draw docs/pictures/overview.svg from a run of the simulator."
    argparse.ArgumentParser(prog="python -m dev.pictures", description=description).parse_args(arguments)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing())
    return 0


if __name__ == "__main__":
    sys.exit(main())
