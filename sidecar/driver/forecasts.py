"""What the scheduler foresees of a job, as a line of the log."""

from __future__ import annotations

import logging
from math import inf

from sidecar.core.deadlines import JobVerdict
from sidecar.core.events import Forecast
from sidecar.telemetry.wording import outlook, printable

logger = logging.getLogger(__name__)
_IN_DANGER = (JobVerdict.AT_RISK, JobVerdict.INFEASIBLE)


def tell(forecast: Forecast, now_s: float) -> None:
    """Whether the job will be in time stands in the log, as people read it; a warning where it will probably not."""
    p50_s, p90_s = _known(forecast.eta_p50_s), _known(forecast.eta_p90_s)
    told = outlook(p50_s, p90_s, _known(forecast.deadline_s - now_s), forecast.verdict)
    level = logging.WARNING if forecast.verdict in _IN_DANGER else logging.INFO
    name = f"job {printable(forecast.job)}" if forecast.job else "items without a job"
    logger.log(level, "%s of %s: %s", name, printable(forecast.tenant), told)


def _known(seconds: float) -> float | None:
    return None if seconds == inf else seconds
