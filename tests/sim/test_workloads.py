"""What arrives: the same for the same seed, with the rates and lengths that the workload states."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest

from sidecar.sim import lengths, rates, workloads
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
    seen = {each.rate_per_s for each in origin.segments(np.random.default_rng(1), 10.0)}
    assert max(seen) == pytest.approx(3 * rates.ORIGIN_MEAN_PER_S)


def test_lengths_have_the_percentiles_of_the_origin() -> None:
    outputs = lengths.TOY.offline_output
    drawn = outputs.draw(np.random.default_rng(1), 100_000)
    assert np.percentile(drawn, 50) == pytest.approx(outputs.p50, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(outputs.p99, rel=0.03)
    assert max(drawn) <= outputs.at_most


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


def gaps_cv(times: Sequence[float]) -> float:
    gaps = np.diff(times)
    return float(np.std(gaps) / np.mean(gaps))


@pytest.mark.parametrize(("name", "rate", "cv"), [("conversation", 1.5, 1.0), ("bursty", 1.0, 3.0), ("8b", 2.0, 1.0)])
def test_a_workload_of_one_rate_has_that_rate_and_its_gaps_vary_as_stated(name: str, rate: float, cv: float) -> None:
    arrived_s = [job.request.arrived_s for job in workloads.by_name(name).online(1, 4.0)]
    assert len(arrived_s) == pytest.approx(4 * 3600 * rate, rel=0.05)
    assert gaps_cv(arrived_s) == pytest.approx(cv, rel=0.05)


def test_code_in_bursts_is_silent_for_minutes_as_the_trace_is() -> None:
    arrived_s = [job.request.arrived_s for job in workloads.by_name("code-bursts").online(1, 40.0)]
    assert len(arrived_s) / (40 * 3600) == pytest.approx(0.8, rel=0.15)
    assert gaps_cv(arrived_s) == pytest.approx(13, rel=0.25)


def test_a_conversation_has_the_lengths_of_the_public_trace() -> None:
    jobs = workloads.by_name("conversation").online(1, 2.0)
    assert np.median([job.request.prompt_tokens for job in jobs]) == pytest.approx(1020, rel=0.05)
    assert np.median([job.output_tokens for job in jobs]) == pytest.approx(129, rel=0.05)


def test_a_rate_behind_the_name_changes_the_rate_alone() -> None:
    fast, usual = workloads.by_name("conversation-3"), workloads.by_name("conversation")
    assert len(fast.online(1, 1.0)) == pytest.approx(10_800, rel=0.05)
    assert (fast.mix, fast.slots) == (usual.mix, usual.slots)
    assert pickle.loads(pickle.dumps(fast)).online(1, 0.01) == fast.online(1, 0.01)


def test_the_rate_changes_in_the_middle_of_a_step() -> None:
    arrived_s = np.array([job.request.arrived_s for job in workloads.by_name("step").online(1, 2.0)])
    assert [np.sum(arrived_s < 3600) / 3600, np.sum(arrived_s >= 3600) / 3600] == pytest.approx([0.3, 4.0], rel=0.1)


def test_the_first_of_a_thousand_tenants_sends_most_in_both_lanes() -> None:
    crowd = workloads.by_name("tenants")
    for jobs in (crowd.online(1, 4.0), list(islice(crowd.backlog(1), 10_000))):
        counts = Counter(job.request.tenant for job in jobs)
        assert len(counts) > 700
        assert counts["t0"] == pytest.approx(2 * counts["t1"], rel=0.3)


def test_every_item_of_prefixes_begins_with_one_of_400_prompts_of_300_tokens() -> None:
    items = list(islice(workloads.by_name("prefixes").backlog(1), 4000))
    assert {item.prefix_tokens for item in items} == {300}
    assert len({item.request.prefix_key for item in items}) == 400


def test_items_to_enrich_have_prompts_of_8000_tokens_and_labels_a_few_tokens_of_output() -> None:
    assert np.median([prompt for prompt, _ in islice(workloads.by_name("enrich").offline(1), 4000)]) == pytest.approx(
        8000, rel=0.05
    )
    assert max(output for _, output in islice(workloads.by_name("labels").offline(1), 4000)) <= 16


def test_the_published_eviction_load_has_three_jobs_beside_bursts_as_wide_as_the_engine() -> None:
    load = workloads.by_name("eviction")
    arrived_s = [job.request.arrived_s for job in load.online(1, load.hours)]
    assert Counter(arrived_s) == {6.0 * number: 32 for number in range(15)}
    items = load.items(1, load.hours)
    assert Counter((item.request.job, item.request.deadline_s) for item in items) == {
        ("a", 30.0): 64,
        ("b", 55.0): 64,
        ("c", 80.0): 64,
    }
    assert {job.output_tokens for job in load.online(1, load.hours)} == {256}
    assert {item.output_tokens for item in items} == {1500}
