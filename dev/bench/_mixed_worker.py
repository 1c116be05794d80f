"""`sidecar serve` with a baseline of the lab in the place of the scheduler, for `scripts/bench mixed`.

python -m dev.bench._mixed_worker POLICY --config FILE
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sidecar.app import serve
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Closing, EngineDown, EngineUp, Event, Woke
from sidecar.core.scheduler import Scheduler
from sidecar.core.settings import EngineSettings, SchedulerSettings
from sidecar.inflight.profile import PROFILES
from sidecar.settings.file import load_settings
from sidecar.sim.baselines import Gateway
from sidecar.sim.policies import OFFLINE_ALONE, POLICIES, EngineShape

BASELINES = {
    each.name: each.baseline
    for each in (*POLICIES.values(), OFFLINE_ALONE)
    if each.baseline is not None and each.resumable and not each.queues_in_engine
}


class Governed(Scheduler):
    """A scheduler that only knows whether its engine is up; a baseline decides in its place.

    What the status page says of queues and dispatches therefore stays empty. Tokens and slots in use do not come from
    here.
    """

    def __init__(self, settings: SchedulerSettings, engines: Sequence[EngineSettings], baseline: Gateway) -> None:
        super().__init__(settings, engines)
        self.baseline = baseline

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Return what the baseline wants."""
        super().handle(event if isinstance(event, EngineUp | EngineDown | Closing) else Woke(), now_s)
        return self.baseline.handle(event, now_s)

    def next_deadline_s(self) -> float | None:
        """The baseline's."""
        return self.baseline.next_deadline_s()


def governed(policy: str, settings: SchedulerSettings, engines: Sequence[EngineSettings]) -> Governed:
    """The baseline `policy` on the first engine. Raises SettingsError if there is no such baseline."""
    if policy not in BASELINES:
        raise SettingsError(f"no baseline {policy!r} that real engines could run; known: {', '.join(BASELINES)}")
    engine = engines[0]
    profile = next(iter(PROFILES.values()))  # a shape has one, and no baseline looks at it
    shape = EngineShape(slots=engine.slots, profile=profile, tokens_max=engine.tokens_max)
    baseline = BASELINES[policy](shape)
    assert isinstance(baseline, Gateway), "all baselines of the lab are gateways"
    baseline.engine = engine.name
    return Governed(settings, engines, baseline)


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    policy, _, config = arguments
    settings = load_settings(Path(config), os.environ)
    asyncio.run(
        serve(
            settings,
            instance=f"{os.getpid()}-",
            config_hash=policy,
            make_scheduler=lambda scheduler, engines: governed(policy, scheduler, engines),
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
