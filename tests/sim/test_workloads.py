"""What arrives: the same for the same seed, with the rates and lengths that the workload states."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from sidecar.sim import workloads
from sidecar.sim.workloads import WorkloadError


@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_a_seed_gives_the_same_arrivals_again_and_another_seed_others(name: str) -> None:
    workload = workloads.by_name(name)
    assert workload.online(3, 0.2) == workload.online(3, 0.2)
    assert workload.online(3, 0.2) != workload.online(4, 0.2)


def test_origin_has_its_mean_rate_with_bursts_of_three_times_it() -> None:
    origin = workloads.by_name("origin")
    per_hour = [len(origin.online(seed, 10.0)) / 10 for seed in range(10)]
    assert np.mean(per_hour) == pytest.approx(1200, rel=0.1)
    rates = {each.rate_per_s for each in origin.segments(np.random.default_rng(1), 10.0)}
    assert max(rates) == pytest.approx(3 * workloads.ORIGIN_MEAN_PER_S)


def test_lengths_have_the_percentiles_of_the_origin() -> None:
    lengths = workloads.TOY.offline_output
    drawn = lengths.draw(np.random.default_rng(1), 100_000)
    assert np.percentile(drawn, 50) == pytest.approx(lengths.p50, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(lengths.p99, rel=0.03)
    assert max(drawn) <= lengths.at_most


def test_the_backlog_never_ends_and_repeats_itself_under_one_seed() -> None:
    origin = workloads.by_name("origin")
    assert list(islice(origin.offline(1), 10_000)) == list(islice(origin.offline(1), 10_000))


def test_nights_of_the_week_are_quieter_than_days_and_weekends_than_weekdays() -> None:
    arrived_s = np.array([job.request.arrived_s for job in workloads.by_name("diurnal").online(1, 168.0)])
    hour, day = arrived_s // 3600 % 24, arrived_s // 86_400
    assert np.sum((hour >= 1) & (hour < 5)) < 0.3 * np.sum((hour >= 13) & (hour < 17))
    assert np.mean([np.sum(day == each) for each in (5, 6)]) < 0.7 * np.mean([np.sum(day == each) for each in range(5)])


def test_one_tenant_sends_prompts_of_28000_tokens() -> None:
    jobs = workloads.by_name("long-prompt").online(1, 1.0)
    heavy = [job for job in jobs if job.request.tenant == "reasoning"]
    assert heavy
    assert {job.request.prompt_tokens for job in heavy} == {28_000}
    assert len(heavy) < len(jobs) / 10


def test_an_unknown_workload_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WorkloadError, match="origin"):
        workloads.by_name("orgin")


def test_a_constant_rate_can_be_asked_for_by_name() -> None:
    assert len(workloads.by_name("constant-2.5").online(1, 1.0)) == pytest.approx(9000, rel=0.05)
