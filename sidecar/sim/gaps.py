"""What an iteration of each engine costs, learnt from the token gaps of a recording."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from statistics import median

from sidecar.core.errors import SidecarError
from sidecar.core.events import Action, Dispatch, Ended, Event, Failed, Lost, Progressed, Stopped
from sidecar.inflight.profile import Profile
from sidecar.sim.least_squares import Fit

_Sample = tuple[tuple[float, float, float], float]
WINDOW_S = 2.0  # tokens and prompts are set against time in windows, so long that few prompts straddle their edges
BUSY_LEAST = 0.9  # of a window that is used, some row was decoding
WINDOWS_MIN = 5  # fewer fit anything
ROUNDS, ERROR_LEAST = 20, 0.001  # of the reweighting: to 3 digits


class TooFewGapsError(SidecarError):
    """The recording is too short, or its engine was idle too often."""


@dataclass(slots=True)
class _Window:
    iteration_s: float = 0.0  # sum over those that were seen
    iterations: int = 0
    tokens: int = 0  # with a gap before them
    busy_s: float = 0.0  # with a row that decodes
    prefill_tokens: float = 0.0


@dataclass(slots=True, kw_only=True)
class _RowGaps:
    engine: str
    context: int  # sent; what the KV cache spared is known at the end
    since_s: float
    decodes: bool = False
    shares: list[tuple[_Window, float]] = field(default_factory=list)  # where its prompt was counted, and what part


@dataclass(slots=True, eq=False)
class GapFit:
    """What an iteration costs, from the gaps between tokens, in windows in which some row always decoded.

    The mean of a window is the time of an iteration; tokens ÷ iterations are the rows, and prompts that were computed
    in it divide by the iterations: one sample of `o + c · rows + p · prefill tokens`. Unlike the scheduler's own model
    it may look back, so it needs no iteration whose batch is known exactly. A prompt counts evenly from its dispatch to
    its first token.
    """

    windows: dict[tuple[str, int], _Window] = field(default_factory=lambda: defaultdict(_Window))
    _running: dict[str, _RowGaps] = field(default_factory=dict)
    _decoding: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # rows by engine
    _last_s: float = 0.0
    _sampled_s: dict[str, float] = field(default_factory=dict)  # the newest iteration that was seen, by engine

    def take(self, now_s: float, event: Event, actions: Sequence[Action], context: Callable[[str], int]) -> None:
        """One more record; `context(request_id)` gives the tokens of a request as its next dispatch sends them."""
        self._pass(now_s)
        match event:
            case Progressed(engine=engine):
                self._gaps(engine, event.gaps_s, now_s)
                for request_id in event.first_tokens:
                    self._computed(request_id, now_s, decodes=True)
            case Ended():  # a chunk of a prompt brings no token: it was computed when it ends
                self._computed(event.request_id, now_s, decodes=False)
                self._over(event.request_id, event.reused_tokens or 0)
            case Stopped():
                self._over(event.request_id, event.reused_tokens or 0)
            case Failed() | Lost():
                self._over(event.request_id, 0)
            case _:
                pass
        for action in actions:
            if isinstance(action, Dispatch):
                tokens = action.prompt_tokens or context(action.request_id)
                self._running[action.request_id] = _RowGaps(engine=action.engine, context=tokens, since_s=now_s)

    def _gaps(self, engine: str, gaps_s: Sequence[float], now_s: float) -> None:
        """The gaps of a tick are of one iteration, unless they come so soon that they belong to the one before.

        Each iteration counts once: those that compute a prompt often decode few rows, and must not weigh less.
        """
        if not gaps_s:
            return
        window, gap_s = self.windows[engine, int(now_s / WINDOW_S)], median(gaps_s)
        window.tokens += len(gaps_s)
        if now_s - self._sampled_s.get(engine, -inf) >= gap_s / 2:
            self._sampled_s[engine] = now_s
            window.iteration_s += gap_s
            window.iterations += 1

    def _pass(self, now_s: float) -> None:
        """Time has passed: it counts for every engine on which a row decodes."""
        for engine, rows in self._decoding.items():
            for window, part_s in self._between(engine, self._last_s, now_s) if rows else ():
                window.busy_s += part_s
        self._last_s = now_s

    def _between(self, engine: str, begin_s: float, end_s: float) -> Iterator[tuple[_Window, float]]:
        """The windows from one moment to the other, and how much of each lies between."""
        while begin_s < end_s:
            number = int(begin_s / WINDOW_S)
            until_s = min(end_s, (number + 1) * WINDOW_S)
            until_s = until_s if until_s > begin_s else end_s
            yield self.windows[engine, number], until_s - begin_s
            begin_s = until_s

    def _computed(self, request_id: str, now_s: float, *, decodes: bool) -> None:
        running = self._running.get(request_id)
        if running is None or running.shares:
            return
        for window, part_s in self._between(running.engine, running.since_s, now_s):
            share = part_s / (now_s - running.since_s)
            window.prefill_tokens += share * running.context
            running.shares.append((window, share))
        running.decodes = decodes
        self._decoding[running.engine] += decodes

    def _over(self, request_id: str, reused_tokens: int) -> None:
        running = self._running.pop(request_id, None)
        if running is None:
            return
        for window, share in running.shares:
            window.prefill_tokens -= share * min(reused_tokens, running.context)
        self._decoding[running.engine] -= running.decodes

    def profile(self) -> tuple[Profile, float]:
        """Iteration times, and the mean error of their samples (a fraction). Raises TooFewGapsError."""
        samples = list(self._samples())
        if len(samples) < WINDOWS_MIN:
            raise TooFewGapsError(
                f"{len(samples)} windows of steady decoding are too few to learn iteration times from; name a profile"
            )
        fit = _fitted(samples)
        overhead, row, prefill = fit.theta
        error = sum(_error(fit, *sample) for sample in samples) / len(samples)
        profile = Profile(
            name="fitted",
            overhead_ms=overhead,
            decode_row_ms=row / 100,
            prefill_token_ms=prefill / 100,
        )
        return profile, error

    def _samples(self) -> Iterator[_Sample]:
        """((1, rows / 100, prefill tokens per iteration / 100), milliseconds) of each window that is steady."""
        for window in self.windows.values():
            if window.iterations and window.busy_s >= BUSY_LEAST * WINDOW_S:
                iteration_s = window.iteration_s / window.iterations
                rows, iterations = window.tokens / window.iterations, window.busy_s / iteration_s
                prefill = max(0, window.prefill_tokens) / iterations
                yield (1.0, rows / 100, prefill / 100), 1000 * iteration_s


def _fitted(samples: Sequence[_Sample]) -> Fit:
    """The least sum of errors, by reweighting least squares: a long prompt across the edge of a window makes two
    samples that are far off, and where rows hardly vary one of them would tilt the whole."""
    weights = [1.0] * len(samples)
    for _ in range(ROUNDS):
        fit = Fit(3, forgetting=1.0)
        for (x, gap_ms), weight in zip(samples, weights, strict=True):
            fit.learn([weight * each for each in x], weight * gap_ms)
        weights = [max(_error(fit, *sample), ERROR_LEAST) ** -0.5 for sample in samples]
    return fit


def _error(fit: Fit, x: Sequence[float], gap_ms: float) -> float:
    return abs(fit.predict(x) - gap_ms) / gap_ms
