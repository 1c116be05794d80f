"""The reservation's arithmetic, against a brute-force reading of its definitions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.reservation import WINDOWS, ContendedRecord, Reservation


@given(st.integers(2, 6), st.lists(st.booleans(), max_size=150))
def test_the_record_counts_what_a_look_at_every_window_counts(every: int, grants: list[bool]) -> None:
    record = ContendedRecord(every)
    for offline in grants:
        record.add(offline=offline)

    def windows(size: int) -> list[int]:
        return [sum(grants[end - size : end]) for end in range(size, len(grants) + 1)]

    assert record.window_violations == sum(held < k - 1 for k in WINDOWS for held in windows(k * every))
    assert record.worst_window == min(windows(2 * every), default=None)
    runs = "".join("x" if offline else "." for offline in grants).split("x")
    assert record.starvation_gap == max(len(run) for run in runs)


@given(st.integers(2, 15), st.integers(0, 400))
def test_a_backlogged_lane_gets_every_nth_contended_grant_exactly(every: int, grants: int) -> None:
    subject = Reservation(every, turns_max=2)
    for _ in range(grants):
        subject.turn_taken() if subject.due else subject.online_granted(0.0)
    assert subject.turns_taken == grants // every
    assert subject.record.window_violations == 0
    assert subject.record.starvation_gap <= every - 1


def test_saved_turns_are_capped() -> None:
    subject = Reservation(4, turns_max=2)
    for _ in range(50):
        subject.online_granted(0.0)
    assert (subject.credit, subject.turns_due) == (6, 2)


def test_turns_lapse_when_offline_has_nothing_waiting_and_windows_begin_anew() -> None:
    subject = Reservation(4, turns_max=2)
    for _ in range(3):
        subject.online_granted(0.0)
    subject.offline_emptied()
    assert (subject.credit, subject.turns_due, subject.turns_lapsed) == (0, 1, 1)
    for _ in range(3):
        subject.online_granted(0.0)
    assert subject.record.worst_window is None
