"""The watermark and its gaps: what is committed says exactly what is done, whatever order items finish in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.offline.offsets import Committed, OffsetsError, PartitionOffsets
from sidecar.settings.offline import metadata_chars_max


@st.composite
def committed_states(draw: st.DrawFn) -> Committed:
    watermark = draw(st.integers(0, 10**12))
    gaps = draw(st.lists(st.integers(1, 3_000_000), max_size=60))
    gaps = [watermark] if gaps else []
    for gap in gaps[1:]:
        gaps.append(gaps[-1] + gap)
    high = (gaps[-1] + 1 + draw(st.integers(0, 10**6))) if gaps else watermark
    suspect = draw(st.none() | st.integers(watermark, watermark + 10**6))
    return Committed(
        watermark=watermark, high=high, gaps=tuple(gaps), restarts=draw(st.integers(0, 300)), suspect=suspect
    )


@given(committed_states())
def test_what_is_encoded_is_decoded(state: Committed) -> None:
    assert Committed.decode(state.watermark, state.encode()) == state


@given(committed_states())
def test_metadata_never_exceed_the_bound_for_their_gaps_and_span(state: Committed) -> None:
    assert len(state.encode()) <= metadata_chars_max(len(state.gaps), state.high - state.watermark)


@pytest.mark.parametrize(("gaps", "span", "chars"), [(256, 500_000, 739), (1000, 1_000_000, 2_757), (1000, 0, 1_353)])
def test_the_bound_is_that_of_the_worst_pattern(gaps: int, span: int, chars: int) -> None:
    assert metadata_chars_max(gaps, span) == chars


def test_a_thousand_gaps_within_a_million_offsets_fit_below_the_brokers_limit() -> None:
    assert metadata_chars_max(1000, 1_000_000) < 4096 <= metadata_chars_max(1024, 20_000_000)


def test_no_metadata_mean_no_gaps_so_that_kafkas_own_reset_replays() -> None:
    assert Committed.decode(7, "") == Committed.decode(7, None) == Committed(watermark=7, high=7, by_hand=True)


def test_what_a_person_set_is_told_from_what_the_lane_committed() -> None:
    assert Committed(watermark=7, high=7, by_hand=True).encode() == ""
    assert Committed.decode(7, Committed(watermark=7, high=7).encode()) == Committed(watermark=7, high=7)


@pytest.mark.parametrize(
    "state", [Committed(watermark=7, high=7, by_hand=True), Committed(watermark=7, high=7, by_hand=True, restarts=2)]
)
def test_that_a_person_set_the_watermark_is_kept_until_an_outcome_is_committed(state: Committed) -> None:
    assert Committed.decode(7, state.encode()) == state
    progress = PartitionOffsets(state)
    progress.deliver(7)
    assert progress.after([]).by_hand
    assert not progress.after([7]).by_hand


def test_offsets_that_are_done_after_all_move_the_watermark() -> None:
    state = Committed(watermark=5, high=9, gaps=(5, 7))
    assert state.with_done([7, 9]) == Committed(watermark=5, high=10, gaps=(5,))
    assert state.with_done([5, 7, 10]) == Committed(watermark=9, high=11, gaps=(9,))
    assert state.with_done([5, 7]) == Committed(watermark=9, high=9)


@pytest.mark.parametrize("metadata", ["bitmap:0101", "T2.AAAA", "T1.", "T1.!!!!", "T1._w", "T1.AIA", "T1.AAUB"])
def test_metadata_that_are_not_ours_are_refused_and_named(metadata: str) -> None:
    with pytest.raises(OffsetsError, match=r"offset 7 is not this project's"):
        Committed.decode(7, metadata)


@pytest.mark.parametrize(
    ("watermark", "high", "gaps"),
    [(5, 4, ()), (5, 5, (5,)), (5, 9, ()), (5, 9, (6,)), (5, 9, (5, 9)), (5, 9, (5, 7, 6)), (-1, -1, ())],
)
def test_a_contradictory_state_cannot_be_built(watermark: int, high: int, gaps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="gaps must ascend"):
        Committed(watermark=watermark, high=high, gaps=gaps)


class Partition:
    """A log with gaps, what is committed of it, and every visible result: the world around `PartitionOffsets`."""

    def __init__(self, items: set[int], end: int) -> None:
        self.items = items
        self.end = end
        self.offset, self.metadata = 0, ""
        self.results: list[int] = []
        self.watermarks = [0]
        self.open()

    def open(self) -> None:
        self.progress = PartitionOffsets(Committed.decode(self.offset, self.metadata))
        self.position = self.progress.committed.watermark
        self.finished: set[int] = set()

    def deliver(self, count: int) -> None:
        coming = sorted(offset for offset in self.items if offset >= self.position)[:count]
        for offset in coming:
            self.progress.deliver(offset)
            self.position = offset + 1
        if not coming:
            self.progress.skip_to(self.end)

    def finish(self, choose: st.DataObject) -> None:
        if open_items := sorted(self.progress.pending - self.finished):
            self.finished.add(choose.draw(st.sampled_from(open_items)))

    def commit(self, *, applied: bool, known: bool) -> None:
        state = self.progress.after(self.finished)
        if applied:
            self.results += sorted(self.finished)
            self.offset, self.metadata = state.watermark, state.encode()
            self.watermarks.append(self.offset)
        if applied and known:
            self.progress.install(state)
            self.finished.clear()
        else:
            self.open()  # the outcome is unknown to the owner: what is committed decides

    def check(self) -> None:
        state = Committed.decode(self.offset, self.metadata)
        assert {offset for offset in self.items if state.is_done(offset)} == set(self.results)  # I1
        assert len(self.results) == len(set(self.results))
        assert self.watermarks == sorted(self.watermarks)  # I4
        assert not state.is_done(state.watermark)  # I6
        undone = {offset for offset in self.items if offset < self.position} - set(self.results)
        assert all(offset in state.gaps or offset >= state.high for offset in undone)  # I7
        assert self.progress.pending == {offset for offset in undone if offset >= self.progress.committed.watermark}


@given(st.sets(st.integers(0, 60)), st.data())
def test_whatever_happens_a_result_is_visible_exactly_for_what_is_done(items: set[int], data: st.DataObject) -> None:
    partition = Partition(items, end=61)
    steps = st.sampled_from(["deliver", "finish", "finish", "commit", "lost commit", "unknown commit", "crash"])
    for step in data.draw(st.lists(steps, max_size=60)):
        match step:
            case "deliver":
                partition.deliver(data.draw(st.integers(1, 20)))
            case "finish":
                partition.finish(data)
            case "commit":
                partition.commit(applied=True, known=True)
            case "lost commit":
                partition.commit(applied=False, known=False)
            case "unknown commit":
                partition.commit(applied=True, known=False)
            case "crash":
                partition.open()
        partition.check()
    while partition.offset < partition.end:
        partition.deliver(20)
        partition.finished |= partition.progress.pending
        partition.commit(applied=True, known=True)
    assert sorted(partition.results) == sorted(items)
    assert Committed.decode(partition.offset, partition.metadata).gaps == ()


def test_a_result_from_before_the_opening_is_not_committed_until_its_record_comes_again() -> None:
    progress = PartitionOffsets(Committed(watermark=3, high=3))
    assert progress.after([5]) == Committed(watermark=3, high=3)
    for offset in (3, 4, 5):
        assert progress.deliver(offset)
    assert progress.after([5]) == Committed(watermark=3, high=6, gaps=(3, 4))


def test_offsets_that_the_broker_passes_over_count_as_done() -> None:
    progress = PartitionOffsets(Committed(watermark=0, high=6, gaps=(0, 3, 4)))
    assert [offset for offset in (0, 5, 8) if progress.deliver(offset)] == [0, 8]
    assert progress.after([0]) == Committed(watermark=8, high=8)
    progress.skip_to(11)
    assert progress.after([0, 8]) == Committed(watermark=11, high=11)


def test_a_record_that_comes_twice_is_taken_once() -> None:
    progress = PartitionOffsets(Committed(watermark=0, high=0))
    assert [progress.deliver(0), progress.deliver(0)] == [True, False]


def test_room_counts_what_is_pending_and_the_gaps_still_to_come() -> None:
    progress = PartitionOffsets(Committed(watermark=10, high=20, gaps=(10, 12, 15)))
    assert progress.room(pending_max=5, span_max=1000) == 2
    progress.deliver(10)
    assert progress.room(pending_max=5, span_max=1000) == 2
    assert progress.room(pending_max=5, span_max=1) == 0


def test_progress_forgives_the_restarts_and_standing_still_does_not() -> None:
    progress = PartitionOffsets(Committed(watermark=0, high=2, gaps=(0,), restarts=2, suspect=0))
    progress.deliver(0)
    progress.deliver(2)
    assert (progress.after([2]).restarts, progress.after([2]).suspect) == (2, 0)
    assert (progress.after([0]).restarts, progress.after([0]).suspect) == (0, None)
