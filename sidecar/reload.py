"""What changes while the sidecar runs: the weights and limits of tenants, and the keys that name them."""

from __future__ import annotations

from sidecar.core.events import TenantsChanged
from sidecar.core.settings import SchedulerSettings
from sidecar.driver.driver import Driver
from sidecar.keys import Keyring


def follow_keys(keyring: Keyring, driver: Driver, scheduler: SchedulerSettings) -> None:
    """The tenants have the weights and limits that the keys name, now and whenever these change."""

    def tell() -> None:
        driver.handle(TenantsChanged(tenants=keyring.tenants(scheduler), tenant_default=scheduler.tenant_default))

    tell()
    keyring.on_change(tell)
