"""When the jobs of each model are looked at, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from sidecar.core.deadlines import WINDOW_S
from sidecar.core.events import Forecast
from sidecar.core.handling import Handling
from sidecar.core.pool import Pool
from sidecar.core.settings import SchedulerSettings


class Forecasts:
    """Samples the rate that jobs share, and makes the forecasts that are owed, as many at a time as one look may."""

    __slots__ = ("_handling", "_pools", "_sample_at_s", "_settings", "look_at_s")

    def __init__(self, settings: SchedulerSettings, pools: Mapping[str, Pool], handling: Handling) -> None:
        self._settings = settings
        self._pools = pools
        self._handling = handling
        self._sample_at_s = -inf
        self.look_at_s = -inf  # when to look next

    def owe(self, pool: Pool) -> None:
        """A job of `pool` was never forecast: look as soon as a look is worth its price."""
        self.look_at_s = min(self.look_at_s, pool.jobs.look_from_s)

    def look(self) -> None:
        """Make the forecasts that are owed now, and decide when to look again."""
        now_s = self._handling.now_s
        if now_s >= self._sample_at_s:
            self._sample_at_s = now_s + WINDOW_S
            for pool in self._pools.values():
                pool.jobs.rate.sample(pool.harvested_tokens, now_s, backlogged=pool.offline.waiting > 0)
                pool.jobs.begin_round()
                self._judge(pool)  # also with no job left: then nothing is urgent
        self.look_at_s = self._sample_at_s
        for pool in self._pools.values():
            if pool.jobs.owed and now_s >= pool.jobs.look_from_s:
                self._judge(pool)
            if pool.jobs.owed:
                self.owe(pool)

    def _judge(self, pool: Pool) -> None:
        """Look at some jobs anew: say what has changed; the most urgent one decides how often offline is due."""
        for job in pool.jobs.look(self._handling.now_s, self._weight):
            if job.deadline_s < inf:
                self._handling.actions.append(
                    Forecast(
                        model=pool.model,
                        tenant=job.tenant,
                        job=job.name,
                        verdict=job.verdict,
                        deadline_s=job.deadline_s,
                        eta_p50_s=job.eta.p50_s,
                        eta_p90_s=job.eta.p90_s,
                    )
                )
        for engine in pool.engines:
            engine.reservation.earns = 1 + round(pool.jobs.urgency * (self._settings.credit_urgent - 1))

    def _weight(self, tenant: str) -> float:
        return self._settings.tenants.get(tenant, self._settings.tenant_default).weight
