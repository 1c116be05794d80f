"""Transcripts of the batcher, in words. `python -m tests.engine.transcript FILE` renders one anew from its event lines.

A line that starts with a time is an event: a request arrives, a stop is asked for, or the engine runs iterations. A
prompt is spelled by its content, `A*16+B*8`: equal letters are equal tokens. Lines that start with `→` are what came
of it, of several iterations the last one's; lines that start with `#` are prose.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sidecar.inflight.batch import BatchedSequence, BatcherSettings, CapacityPolicy, Iteration, Row, RowState
from sidecar.inflight.batcher import Batcher
from sidecar.inflight.blocks import Retention, RetentionRange


def render(text: str) -> str:
    """The transcript that the batcher of today writes for the events of `text`, prose kept."""
    scene = Scene()
    return "\n".join(rendered for line in text.splitlines() for rendered in scene.lines(line)) + "\n"


class Scene:
    """A batcher that reads event lines and answers in words."""

    def __init__(self) -> None:
        self._batcher = Batcher(BatcherSettings())

    def lines(self, line: str) -> list[str]:
        if line.startswith("settings "):
            values: dict[str, Any] = {name: _value(text) for name, text in re.findall(r"(\w+)=(\S+)", line)}
            self._batcher = Batcher(BatcherSettings(**values))
        elif re.match(r"[\d.]+ ", line):
            time, words = line.split(" ", 1)
            return [line, *(f"        → {told}" for told in self._event(float(time), words))]
        elif re.match(r" +→", line):
            return []
        return [line]

    def _event(self, now_s: float, words: str) -> list[str]:
        if found := re.match(r"(\w+) arrives: (\S+), up to (\d+) tokens(.*)", words):
            self._batcher.add(_request(found[1], found[2], int(found[3]), found[4]), now_s)
            return []
        if found := re.match(r"stop (\w+)", words):
            seen_s = self._batcher.next_check_s(now_s)
            self._batcher.stop(found[1], seen_s=seen_s)
            return [f"the engine looks at {seen_s:.2f}"]
        if found := re.match(r"(\d+) iterations?", words):
            return [self._iterate(now_s) for _ in range(int(found[1]))][-1]
        raise ValueError(f"no event: {words}")

    def _iterate(self, now_s: float) -> list[str]:
        step = self._batcher.plan(now_s)
        if step is None:
            return ["nothing to do"]
        told = self._planned(step)
        ended = self._batcher.finish(step, now_s)
        told += [f"{row.id} ends by {row.end} after {row.generated_tokens} tokens" for row in ended]
        pool = self._batcher.pool
        blank = pool.free - pool.cached
        told.append(f"blocks: {pool.blocks_max - pool.free} held, {pool.cached} cached, {blank} blank")
        return told

    def _planned(self, step: Iteration) -> list[str]:
        told = [f"{row.id} is stopped after {row.generated_tokens} tokens" for row in step.stopped]
        told += [f"{row.id} pauses, its blocks are cached" for row in step.paused]
        told += [f"block {source} is copied to {target}" for source, target in step.copies]
        told += [self._chunk(chunk.row, chunk.begin, chunk.tokens) for chunk in step.chunks]
        if step.decoding:
            told.append("decodes " + ", ".join(row.id for row in step.decoding))
        waiting = [row for row in self._batcher.rows.values() if row.state in (RowState.ACTIVE, RowState.QUEUED)]
        if waiting:
            told.append("waiting: " + ", ".join(f"{row.id} ({row.state})" for row in waiting))
        return told

    def _chunk(self, row: Row, begin: int, tokens: int) -> str:
        reused = f", {begin} of them found in the cache" if row.reused_tokens == begin and begin else ""
        return f"computes {row.id}: prompt tokens {begin} to {begin + tokens - 1} of {len(row.prompt_ids)}{reused}"


def _request(name: str, content: str, output: int, more: str) -> BatchedSequence:
    ids: tuple[int, ...] = ()
    for letter, tokens in re.findall(r"(\w)\*(\d+)", content):
        ids += (ord(letter),) * int(tokens)
    ends = re.search(r"ends after (\d+)", more)
    kept = re.search(r"kept with priority (\d+)", more)
    priority = int(kept[1]) if kept else 35
    span = RetentionRange(token_start=0, priority=priority)
    return BatchedSequence(
        id=name,
        prompt_ids=ids,
        output_tokens_max=output,
        ends_after=int(ends[1]) if ends else None,
        output_key=ids[-1],
        retention=Retention(ranges=(span,), decode_priority=priority),
    )


def _value(text: str) -> Any:
    if text in list(CapacityPolicy):
        return CapacityPolicy(text)
    if text in ("True", "False"):
        return text == "True"
    return float(text) if "." in text else int(text)


if __name__ == "__main__":
    sys.stdout.write(render(Path(sys.argv[1]).read_text()))
