"""The reservation's arithmetic, against a brute-force reading of its definitions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.reservation import WINDOWS, ContendedRecord, Reservation


@given(st.integers(2, 6), st.lists(st.booleans(), max_size=150))
def test_the_record_counts_what_a_look_at_every_window_counts(every: int, dispatches: list[bool]) -> None:
    record = ContendedRecord(every)
    for offline in dispatches:
        record.add(offline=offline)

    def windows(size: int) -> list[int]:
        return [sum(dispatches[end - size : end]) for end in range(size, len(dispatches) + 1)]

    assert record.window_violations == sum(held < k - 1 for k in WINDOWS for held in windows(k * every))
    assert record.worst_window == min(windows(2 * every), default=None)
    runs = "".join("x" if offline else "." for offline in dispatches).split("x")
    assert record.starvation_gap == max(len(run) for run in runs)


@given(st.integers(2, 15), st.integers(0, 400))
def test_a_backlogged_lane_gets_every_nth_contended_dispatch_exactly(every: int, dispatches: int) -> None:
    subject = Reservation(every, saved_max=2)
    for _ in range(dispatches):
        subject.take_reserved() if subject.due else subject.online_dispatched(0.0)
    assert subject.reserved_taken == dispatches // every
    assert subject.record.window_violations == 0
    assert subject.record.starvation_gap <= every - 1


def test_saved_reserved_dispatches_are_capped() -> None:
    subject = Reservation(4, saved_max=2)
    for _ in range(50):
        subject.online_dispatched(0.0)
    assert (subject.credit, subject.reserved_due) == (6, 2)


def test_reserved_dispatches_lapse_when_offline_has_nothing_waiting_and_windows_begin_anew() -> None:
    subject = Reservation(4, saved_max=2)
    for _ in range(3):
        subject.online_dispatched(0.0)
    subject.offline_emptied()
    assert (subject.credit, subject.reserved_due, subject.reserved_lapsed) == (0, 1, 1)
    for _ in range(3):
        subject.online_dispatched(0.0)
    assert subject.record.worst_window is None
