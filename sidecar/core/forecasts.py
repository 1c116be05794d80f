"""When the jobs of each model are looked at, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from sidecar.core.deadlines import WINDOW_S
from sidecar.core.events import Forecast
from sidecar.core.served_model import ServedModel
from sidecar.core.settings import SchedulerSettings
from sidecar.core.step import Step


class Forecasts:
    """Samples the rate that jobs share, and makes the forecasts that are owed, as many at a time as one look may."""

    __slots__ = ("_sample_at_s", "_served_models", "_settings", "_step", "look_at_s")

    def __init__(self, settings: SchedulerSettings, served_models: Mapping[str, ServedModel], step: Step) -> None:
        self._settings = settings
        self._served_models = served_models
        self._step = step
        self._sample_at_s = -inf
        self.look_at_s = -inf  # when to look next

    def owe(self, served: ServedModel) -> None:
        """A job of `served` was never forecast: look as soon as a look is worth its price."""
        self.look_at_s = min(self.look_at_s, served.jobs.look_from_s)

    def look(self) -> None:
        """Make the forecasts that are owed now, and decide when to look again."""
        now_s = self._step.now_s
        if now_s >= self._sample_at_s:
            self._sample_at_s = now_s + WINDOW_S
            for served in self._served_models.values():
                served.jobs.rate.sample(served.harvested_tokens, now_s, backlogged=served.offline.waiting > 0)
                served.jobs.begin_round()
                self._judge(served)  # also with no job left: then nothing is urgent
        self.look_at_s = self._sample_at_s
        for served in self._served_models.values():
            if served.jobs.owed and now_s >= served.jobs.look_from_s:
                self._judge(served)
            if served.jobs.owed:
                self.owe(served)

    def _judge(self, served: ServedModel) -> None:
        """Look at some jobs anew: say what has changed; the most urgent one decides how often offline is due."""
        for job in served.jobs.look(self._step.now_s, self._weight):
            if job.deadline_s < inf:
                self._step.actions.append(
                    Forecast(
                        model=served.model,
                        tenant=job.tenant,
                        job=job.name,
                        verdict=job.verdict,
                        deadline_s=job.deadline_s,
                        eta_p50_s=job.eta.p50_s,
                        eta_p90_s=job.eta.p90_s,
                    )
                )
        for engine in served.engines:
            engine.reservation.earns = 1 + round(served.jobs.urgency * (self._settings.credit_urgent - 1))

    def _weight(self, tenant: str) -> float:
        return self._settings.tenants.get(tenant, self._settings.tenant_default).weight
