"""What changes while the sidecar runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.call import Outcome, Timeline
from sidecar.core.events import Action, Event, TenantsChanged
from sidecar.core.request import Request
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.keys import Keyring
from sidecar.reload import follow_keys
from sidecar.settings.keys import KeysSettings
from tests.fakes.engine import FakeEngine, running_driver
from tests.test_keys import Clock, written


class Heard:
    """A listener that keeps what tenants may have."""

    def __init__(self) -> None:
        self.tenants: list[Mapping[str, TenantSettings]] = []

    def handled(self, _now_s: float, event: Event, _actions: Sequence[Action]) -> None:
        if isinstance(event, TenantsChanged):
            self.tenants.append(event.tenants)

    def finished(self, _request: Request, _timeline: Timeline, _outcome: Outcome) -> None:
        pass


async def test_the_weights_that_keys_name_are_the_schedulers_at_once_and_after_each_change(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.yaml", Clock()
    settings: KeysSettings = written(path, "tenant: t, certificate: a, weight: 2")
    keyring = Keyring(settings, time_s=clock, now_s=clock)
    heard = Heard()
    async with running_driver(FakeEngine(), listeners=(heard,)) as driver:
        follow_keys(keyring, driver, SchedulerSettings(tenants={"u": TenantSettings(slots_max=1)}))
        written(path, "tenant: t, certificate: a, weight: 33")
        clock.now_s += 1
        keyring.refresh()
    assert [each["t"].weight for each in heard.tenants] == [2, 33]
    assert [each["u"].slots_max for each in heard.tenants] == [1, 1]
