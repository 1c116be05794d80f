"""What changes while the sidecar runs: the weights and limits of tenants, and the keys that name them.

SIGHUP reads the settings file again. What can change at once does, and what cannot is named: it needs a restart. A file
with a mistake changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from sidecar.core.errors import SettingsError
from sidecar.core.events import TenantsChanged
from sidecar.core.settings import SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.keys import Keyring
from sidecar.settings.file import ServeSettings

logger = logging.getLogger(__name__)
AT_ONCE = ("scheduler.tenants", "scheduler.tenant_default")  # these settings change while the sidecar runs


class Reloader:
    """Reads the settings again, and carries out what has changed."""

    def __init__(
        self,
        settings: ServeSettings,
        read_again: Callable[[], ServeSettings],
        driver: Driver,
        keyring: Keyring | None,
    ) -> None:
        """`read_again` raises SettingsError for a file with a mistake."""
        self._settings = settings
        self._read_again = read_again
        self._driver = driver
        self._keyring = keyring

    def reload(self) -> None:
        """Take the settings and the keys as their files are now; log what has changed, and what has to wait."""
        if self._keyring is not None:
            self._keyring.refresh(now=True)
        try:
            new = self._read_again()
        except SettingsError as error:
            logger.error("the settings before stay in force: %s", "; ".join(str(error).splitlines()))
            return
        changed = sorted(set(differences(self._settings, new)))
        taken = [each for each in changed if each.startswith(AT_ONCE)]
        if taken:
            self._take(new.scheduler)
        waiting = [each for each in changed if each not in taken]
        told = f"settings read again; changed: {', '.join(taken) or 'nothing'}"
        if waiting:
            logger.warning("%s; only a restart changes %s", told, ", ".join(waiting))
        else:
            logger.info(told)

    def _take(self, new: SchedulerSettings) -> None:
        scheduler = replace(self._settings.scheduler, tenants=new.tenants, tenant_default=new.tenant_default)
        self._settings = replace(self._settings, scheduler=scheduler)
        if self._keyring is None:
            self._driver.handle(TenantsChanged(tenants=new.tenants, tenant_default=new.tenant_default))
        else:
            self._keyring.rebase(scheduler)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """The names of all settings that differ. Values are not told: a password may be among them."""
    if type(old) is type(new) and is_dataclass(old):
        for each in fields(old):
            name = f"{where}.{each.name}" if where else each.name
            yield from differences(getattr(old, each.name), getattr(new, each.name), name)
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}.{at}")
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in old.keys() | new.keys():
            yield from differences(old.get(name), new.get(name), f"{where}.{name}")
    elif old != new:
        yield where


def follow_keys(keyring: Keyring | None, driver: Driver, scheduler: SchedulerSettings) -> None:
    """The tenants have the weights and limits that the settings and the keys name, now and whenever these change."""
    if keyring is None:
        return

    def tell() -> None:
        tenants, default = keyring.tenants()
        driver.handle(TenantsChanged(tenants=tenants, tenant_default=default))

    keyring.on_change(tell)
    keyring.rebase(scheduler)
