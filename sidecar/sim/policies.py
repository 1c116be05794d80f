"""The policies that a simulation compares, by name: ours, ours with one mechanism off, the bounds, the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from sidecar.core.errors import SettingsError
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import IterationTimes
from sidecar.sim.baselines import BatchGatewayAimd, Budget, Cap, Fixed, Gateway, Nights, Tidal
from sidecar.sim.driver import Decides
from sidecar.sim.machine import Prices

ENGINE = "e0"
CHUNK_TOKENS = 512  # max_num_tokens of the engine: bounds one iteration to about 0.1 s (chunked context)
NEVER = 1_000_000_000
T = TypeVar("T", SchedulerSettings, EngineSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """One engine of the simulation, and the settings that the caller gave for `ours`."""

    slots: int
    profile: IterationTimes
    tokens_max: int
    kv_tokens_max: int = 0  # 0 = that of the profile
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One row of the table: who decides, what the engine charges, and whether there is a backlog at all."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of ours: settings of the scheduler or of its engine
    baseline: Callable[[EngineShape], Decides] | None = None  # decides in the place of ours
    offline: bool = True
    online: bool = True
    prices: Prices = field(default_factory=Prices)
    resumable: bool = True  # False: what is stopped starts from zero
    queues_in_engine: bool = False

    def __reduce__(self) -> tuple[Callable[[str], Policy], tuple[str]]:
        return by_name, (self.name,)  # between processes it travels by its name: a maker cannot be pickled

    def settings(self, shape: EngineShape) -> tuple[SchedulerSettings, EngineSettings]:
        """The settings of ours on such an engine."""
        own = {
            "kv_tokens": shape.kv_tokens_max or shape.profile.kv_tokens_max,
            # The engine's check period and two iterations, as EngineSettings asks.
            "lost_hold_s": self.prices.cancel_s + 2 * shape.profile.iteration_s(shape.slots, CHUNK_TOKENS),
        }
        wanted = {**own, **shape.overrides, **self.changes}
        engine = EngineSettings(name=ENGINE, slots=shape.slots, tokens_max=shape.tokens_max)
        return changed(SchedulerSettings(), wanted), changed(engine, wanted)

    def decider(self, shape: EngineShape) -> Decides:
        """Return who decides in one run."""
        if self.baseline is not None:
            return self.baseline(shape)
        scheduler, engine = self.settings(shape)
        return Scheduler(scheduler, [engine])


def changed(settings: T, wanted: Mapping[str, Any]) -> T:
    """`settings` with those of the `wanted` values that are its own."""
    known = {each.name for each in fields(settings)}
    return replace(settings, **{name: value for name, value in wanted.items() if name in known})


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`key=value` pairs as settings. Raises SettingsError for an unknown key or a value of another kind."""
    both = (*fields(SchedulerSettings), *fields(EngineSettings))
    known = {each.name: each.default for each in both if isinstance(each.default, str | int | float | None)}
    known.pop("model")  # what an engine is, not how it is shared
    found: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise SettingsError(f"unknown setting {name!r}; known: {', '.join(sorted(known))}")
        try:
            found[name] = _value(known[name], text)
        except ValueError as error:
            raise SettingsError(f"{pair}: {error}") from error
    return found


def _value(default: Any, text: str) -> Any:
    """`text` as a value of the kind that `default` is; where that is a word or nothing, a number if it is one."""
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError("must be true or false")
        return text == "true"
    if isinstance(default, int | float) or text.replace(".", "", 1).isdigit():
        return int(text) if isinstance(default, int) or text.isdigit() else float(text)
    return None if text == "none" else text if default is None else type(default)(text)


def gateway(cap: Callable[[int], Cap], **changes: Any) -> Callable[[EngineShape], Gateway]:
    """A maker of a baseline whose cap is made from the number of slots."""
    return lambda shape: Gateway(engine=ENGINE, slots=shape.slots, cap=cap(shape.slots), **changes)


def static_cap(rows: int) -> Callable[[EngineShape], Gateway]:
    """A maker of the baseline with a cap of so many rows, whatever the slots."""
    return gateway(lambda _: Fixed(rows))


def aimd_ttft(late_ms: float) -> Policy:
    """The baseline that takes a first token later than so many ms for congestion."""
    maker = gateway(lambda slots: BatchGatewayAimd(most=slots, least=1, cap=1.0, refused=False), late_s=late_ms / 1000)
    return Policy(name="aimd-ttft" if late_ms == 300 else f"aimd-ttft-{late_ms:g}", baseline=maker)


def nights(shape: EngineShape) -> Gateway:
    """The baseline that parts day and night, in the week of the workload."""
    cap = Nights(week_s=float(shape.overrides.get("week_s", SchedulerSettings().week_s)))
    return Gateway(engine=ENGINE, slots=shape.slots, cap=cap, forward_all=True)


# No slices, no preemption, no yield, no window: what is left is "online first, each Nth to offline".
PLAIN = {
    "window_ms": 0.0,
    "slice_tokens": 0,
    "slice_tokens_busy": 0,
    "preempt": False,
    "yield_rows": "never",
    "headroom_share_max": 0.0,
    "offline_prefill_tokens": NEVER,
    "kv_guard_share_min": 0.0,
    "kv_guard_share_max": 0.0,
}
WITHOUT: dict[str, dict[str, Any]] = {
    "reserved": {"reservation_every": NEVER},
    "slices": {"slice_tokens": 0, "slice_tokens_busy": 0},
    "preempt": {"preempt": False},
    "yield": {"yield_rows": "never"},
    "window": {"window_ms": 0.0},
    "headroom": {"headroom_share_max": 0.0},
    "pacing": {"offline_prefill_tokens": 0, "prefill_slice_tokens": 0},
    "classes": {"long_prompt_tokens": 0},
    "grouping": {"prefix_group_window": 0},
}
FREE = Prices(stop_s=0.0, cancel_s=0.0, resume_tokens=1, offline_prefill=False)

# What perfect foresight harvests at price zero: the time in which online leaves the engine idle, at the ceiling's pace.
BOUND = Policy(name="bound", offline=False)

POLICIES = {
    each.name: each
    for each in (
        Policy(name="online-only", offline=False),
        BOUND,
        Policy(name="ours-at-no-cost", prices=FREE, changes=WITHOUT["pacing"]),
        Policy(name="ours"),
        *(Policy(name=f"ours-no-{name}", changes=changes) for name, changes in WITHOUT.items()),
        Policy(name="ours-one-free", changes={"slots_online_min": 1}),
        Policy(name="plain-nth", changes=PLAIN),
        Policy(name="naive", baseline=gateway(Fixed, forward_all=True), queues_in_engine=True),
        Policy(name="static-cap", baseline=gateway(lambda slots: Fixed(max(1, slots // 2)))),
        *(Policy(name=f"static-cap-{k}", baseline=static_cap(k)) for k in (1, 2, 4, 8, 16, 32)),
        Policy(name="aimd", baseline=gateway(lambda _: BatchGatewayAimd())),
        Policy(name="aimd-published", baseline=gateway(lambda _: BatchGatewayAimd(refused=False))),
        aimd_ttft(300.0),
        Policy(name="bands", baseline=gateway(lambda slots: Fixed(slots), evict=True), resumable=False),
        Policy(name="static-batch", baseline=gateway(Fixed, batches=True)),
        Policy(name="tidal", baseline=gateway(lambda _: Tidal())),
        Policy(name="budget", baseline=gateway(lambda _: Budget(), forward_all=True), queues_in_engine=True),
        Policy(name="two-queues", baseline=gateway(Fixed, batches=True, batch_s=1.0)),
        Policy(name="time-partition", baseline=nights, queues_in_engine=True),
    )
}
# The two ceilings: items whole, and sliced as we slice, which is more where prompt and output of whole ones bind.
OFFLINE_ALONE = Policy(name="offline-only", baseline=gateway(Fixed), online=False)
OFFLINE_SLICED = Policy(name="offline-only-sliced", online=False)
CEILINGS = (OFFLINE_ALONE, OFFLINE_SLICED)


def by_name(name: str) -> Policy:
    """Return the policy of that name. Raises SettingsError with the known ones.

    `static-cap-K` and `aimd-ttft-MS` take any number, `ours@KEY=VALUE+KEY=VALUE` other settings of ours.
    """
    known = POLICIES | {each.name: each for each in CEILINGS}
    kind, _, number = name.rpartition("-")
    base, _, settings = name.partition("@")
    if name == "ideal":  # what it was called
        return replace(POLICIES["ours-at-no-cost"], name=name)
    if name in known:
        return known[name]
    if kind == "static-cap" and number.isdigit():
        return Policy(name=name, baseline=static_cap(int(number)))
    if kind == "aimd-ttft" and number.replace(".", "", 1).isdigit():
        return replace(aimd_ttft(float(number)), name=name)
    if settings and base in known and known[base].baseline is None and known[base].offline:
        changes = {**known[base].changes, **parse_overrides(settings.split("+"))}
        return replace(known[base], name=name, changes=changes)
    raise SettingsError(
        f"unknown policy {name!r}; known: {', '.join(POLICIES)}, static-cap-K, aimd-ttft-MS and ours@KEY=VALUE+…"
    )
