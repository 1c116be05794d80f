"""What is foreseen of a job is told in human times."""

from __future__ import annotations

from math import inf

import pytest

from sidecar.core.deadlines import JobVerdict
from sidecar.core.events import Forecast
from sidecar.driver.forecasts import tell


@pytest.mark.parametrize(
    ("verdict", "ends", "expected"),
    [
        (
            JobVerdict.AT_RISK,
            (38_680.0, 40.0, 130.0),
            "WARNING job night\\nly of labels: due in 10 h 43 min, done in about 40 s,"
            " at most 2 min 10 s in nine cases of ten, at risk",
        ),
        (JobVerdict.UNKNOWN, (160.0, inf, inf), "INFO job night\\nly of labels: due in 1 min, end not known yet"),
        (
            JobVerdict.ON_TIME,
            (90.0, 4.0, inf),
            "INFO job night\\nly of labels: was due 10 s ago, done in about 4 s, on time",
        ),
        (JobVerdict.NO_DEADLINE, (inf, 4.0, inf), "INFO job night\\nly of labels: no deadline, done in about 4 s"),
    ],
)
def test_a_forecast_is_told_in_human_times_and_what_is_not_known_is_said(
    caplog: pytest.LogCaptureFixture, verdict: JobVerdict, ends: tuple[float, float, float], expected: str
) -> None:
    caplog.set_level("INFO")
    deadline_s, p50_s, p90_s = ends
    forecast = Forecast(
        model="m",
        tenant="labels",
        job="night\nly",
        verdict=verdict,
        deadline_s=deadline_s,
        eta_p50_s=p50_s,
        eta_p90_s=p90_s,
    )
    tell(forecast, 100.0)
    assert [f"{record.levelname} {record.message}" for record in caplog.records] == [expected]


def test_items_without_a_job_are_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    ends = {"deadline_s": 70.0, "eta_p50_s": 90.0, "eta_p90_s": inf}
    tell(Forecast(model="m", tenant="labels", job="", verdict=JobVerdict.INFEASIBLE, **ends), 10.0)
    assert caplog.messages == ["items without a job of labels: due in 1 min, done in about 1 min 30 s, infeasible"]
