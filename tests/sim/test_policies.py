"""Policies by name: each is ours with what its name says, or a baseline of its own, and travels by its name."""

from __future__ import annotations

import pickle
from dataclasses import asdict

import pytest

from sidecar.core.errors import SettingsError
from sidecar.core.scheduler import Scheduler
from sidecar.inflight.profile import profile_named
from sidecar.sim import policies
from sidecar.sim.baselines import Gateway
from sidecar.sim.policies import CEILINGS, POLICIES, WITHOUT, EngineShape

SHAPE = EngineShape(slots=8, profile=profile_named("70b-tp4-a100"), tokens_max=4096)


@pytest.mark.parametrize("name", [*POLICIES, *(each.name for each in CEILINGS)])
def test_each_policy_is_found_by_its_name_and_decides_on_any_engine(name: str) -> None:
    policy = policies.by_name(name)
    assert policy.name == name
    decider = pickle.loads(pickle.dumps(policy)).decider(SHAPE)
    assert isinstance(decider, Scheduler if policy.baseline is None else Gateway)


@pytest.mark.parametrize("name", WITHOUT)
def test_ours_without_one_mechanism_differs_from_ours_in_that_alone(name: str) -> None:
    ours, without = policies.by_name("ours").settings(SHAPE), policies.by_name(f"ours-no-{name}").settings(SHAPE)
    before, after = (asdict(scheduler) | asdict(engine) for scheduler, engine in (ours, without))
    differing = {key for key, value in before.items() if after[key] != value}
    assert differing
    assert differing <= WITHOUT[name].keys()


def test_a_caller_may_change_ours_and_not_what_a_policy_stands_for() -> None:
    shape = EngineShape(slots=8, profile=SHAPE.profile, tokens_max=4096, overrides={"window_ms": 33.0, "preempt": True})
    scheduler, engine = policies.by_name("ours-no-preempt").settings(shape)
    assert (scheduler.window_ms, scheduler.preempt, engine.slots) == (33.0, False, 8)


def test_what_is_known_of_the_engine_goes_into_its_settings() -> None:
    _, engine = policies.by_name("ours").settings(EngineShape(slots=8, profile=SHAPE.profile, tokens_max=4096))
    assert engine.kv_tokens == SHAPE.profile.kv_tokens_max
    shape = EngineShape(slots=8, profile=SHAPE.profile, tokens_max=4096, kv_tokens_max=9000)
    assert policies.by_name("ours").settings(shape)[1].kv_tokens == 9000


@pytest.mark.parametrize("pair", ["windows=3", "model=x", "window_ms=soon", "preempt=perhaps", "window_ms"])
def test_an_override_that_means_nothing_is_refused(pair: str) -> None:
    with pytest.raises(SettingsError):
        policies.parse_overrides([pair])


def test_a_name_that_nobody_knows_is_refused_with_those_that_are_known() -> None:
    for name in ("best", "static-cap-", "aimd-ttft-soon", "naive@window_ms=3", "online-only@window_ms=3"):
        with pytest.raises(SettingsError, match="known: online-only"):
            policies.by_name(name)
