"""Items of each job that ended here: unknown before the first one, and bounded, whatever producers call their jobs."""

from __future__ import annotations

import pytest

from sidecar.offline import job_counts
from sidecar.offline.job_counts import JobCounts
from tests.offline.builders import finished, of_job, record


def test_a_job_of_which_nothing_ended_here_is_unknown_and_not_at_zero() -> None:
    assert JobCounts().of("lab", "nightly") == {"done": None, "failed": None}


def test_each_end_that_is_no_result_is_a_failed_item() -> None:
    counts = JobCounts()
    for outcome in ("done", "dlq", "done", "expired"):
        counts.committed(finished(of_job(0, "nightly"), outcome=outcome))
    assert counts.of("lab", "nightly") == {"done": 2, "failed": 2}
    assert counts.of("other", "nightly") == {"done": None, "failed": None}  # another tenant's job of the same name


@pytest.mark.parametrize("headers", [(), (("x-job", b""),), (("x-job", b"j"), ("x-tenant", b"\xff"))])
def test_items_of_no_job_and_of_a_name_that_is_none_count_nowhere(headers: tuple[tuple[str, bytes], ...]) -> None:
    counts = JobCounts()
    counts.committed(finished(record(headers=headers)))
    assert counts.of("default", "j") == {"done": None, "failed": None}


def test_of_too_many_jobs_the_one_that_was_quiet_for_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_counts, "JOBS_MAX", 3)
    counts = JobCounts()
    for name in ("a", "b", "c", "a", "d"):
        counts.committed(finished(of_job(0, name)))
    assert [counts.of("lab", name)["done"] for name in "abcd"] == [2, None, 1, 1]


def test_the_newest_jobs_are_those_of_which_an_item_ended_last() -> None:
    counts = JobCounts()
    for name in ("a", "b", "c", "a"):
        counts.committed(finished(of_job(0, name)))
    assert counts.newest(2) == [(("lab", "c"), {"done": 1, "failed": 0}), (("lab", "a"), {"done": 2, "failed": 0})]
