"""What changes while the sidecar runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.call import Outcome, Timeline
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Event, TenantsChanged
from sidecar.core.request import Request
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.keys import Keyring
from sidecar.reload import Reloader, differences, follow_keys
from sidecar.settings.file import EngineEndpoint, ServeSettings
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


ENGINE = EngineEndpoint(name="e0", metadata={"key": "secret"})


def test_each_setting_that_differs_is_named_and_no_value_is_told() -> None:
    old = ServeSettings(engines=(ENGINE,), scheduler=SchedulerSettings(tenants={"a": TenantSettings()}))
    new = ServeSettings(
        engines=(replace(ENGINE, slots=4, metadata={"key": "other"}),),
        listen="127.0.0.1:7",
        scheduler=SchedulerSettings(window_ms=1, tenants={"a": TenantSettings(weight=2), "b": TenantSettings()}),
        keys=KeysSettings(file=Path("keys.yaml")),
    )
    assert sorted(differences(old, new)) == [
        "engines.0.metadata.key",
        "engines.0.slots",
        "keys",
        "listen",
        "scheduler.tenants.a.weight",
        "scheduler.tenants.b",
        "scheduler.window_ms",
    ]
    assert list(differences(old, old)) == []
    assert list(differences(old, replace(old, engines=(ENGINE, replace(ENGINE, name="e1"))))) == ["engines"]


async def test_what_changes_at_once_is_taken_once_and_what_does_not_is_named_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    heard, old = Heard(), ServeSettings(engines=(ENGINE,))
    new = replace(old, listen="127.0.0.1:7", scheduler=SchedulerSettings(tenants={"a": TenantSettings(weight=2)}))
    async with running_driver(FakeEngine(), listeners=(heard,)) as driver:
        reloader = Reloader(old, lambda: new, driver, None)
        reloader.reload()
        reloader.reload()
    assert heard.tenants == [{"a": TenantSettings(weight=2)}]
    assert [each.getMessage() for each in caplog.records if each.name == "sidecar.reload"] == [
        "settings read again; changed: scheduler.tenants.a; only a restart changes listen",
        "settings read again; changed: nothing; only a restart changes listen",
    ]


async def test_a_mistake_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong() -> ServeSettings:
        raise SettingsError("one\ntwo")

    heard = Heard()
    async with running_driver(FakeEngine(), listeners=(heard,)) as driver:
        Reloader(ServeSettings(engines=(ENGINE,)), wrong, driver, None).reload()
    assert heard.tenants == []
    assert [each.getMessage() for each in caplog.records] == ["the settings before stay in force: one; two"]


async def test_a_reload_takes_new_settings_and_new_keys_together(tmp_path: Path) -> None:
    path, clock, heard = tmp_path / "keys.yaml", Clock(), Heard()
    keyring = Keyring(written(path, "tenant: t, certificate: a, weight: 2"), time_s=clock, now_s=clock)
    old = ServeSettings(engines=(ENGINE,))
    new = replace(old, scheduler=SchedulerSettings(tenants={"t": TenantSettings(slots_max=3)}))
    async with running_driver(FakeEngine(), listeners=(heard,)) as driver:
        follow_keys(keyring, driver, old.scheduler)
        written(path, "tenant: t, certificate: a, weight: 44")
        Reloader(old, lambda: new, driver, keyring).reload()  # in the same second
    assert heard.tenants[-1] == {"t": TenantSettings(weight=44, slots_max=3)}
