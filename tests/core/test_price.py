from __future__ import annotations

from functools import cache
from math import inf, sqrt
from random import Random

import pytest

from sidecar.core.arrivals import ArrivalRate
from sidecar.core.iteration_model import BIN_TOKENS, IterationModel
from sidecar.core.price import (
    AIM,
    BESIDE_PROMPT,
    CHUNK_MIN,
    CHUNK_UNKNOWN,
    FIRST,
    KAPPA_FIRST,
    KAPPA_MAX,
    KAPPA_MIN,
    NO_ROOM,
    RESIDENT_FEW,
    RESIDENT_MANY,
    SCALE_MAX,
    SCALE_MIN,
    Price,
    Resident,
    Room,
)

ALONE_MS, TOKEN_MS = 22.0, 0.15
STEADY_TOKENS = 128


@cache
def trusted_model(tokens_max: int = STEADY_TOKENS) -> IterationModel:
    """A model that has learnt ALONE_MS an iteration and TOKEN_MS a token, of up to `tokens_max` tokens."""
    model, random = IterationModel(), Random(1)
    for sample in range(800):
        tokens = random.randint(1, tokens_max)
        model.observe((ALONE_MS + TOKEN_MS * tokens) / 1000, tokens, 0, float(sample))
    assert model.trusted
    return model


def price(
    *, ttft_added: float = 0.1, itl_added: float = 0.25, kappa: float = KAPPA_MIN, mean_per_s: float = 1.0
) -> Price:
    built = Price(trusted_model(), ttft_added=ttft_added, itl_added=itl_added)
    built.kappa, built.mean_per_s = kappa, mean_per_s
    for _ in range(FIRST):
        built.decoded(1.0, 0.0)  # what decoding takes alone: with `mean_per_s` that says how many are there at a time
    built.gap_scale = 1.0
    return built


def resident(online_rows: int = 0, offline_rows: int = 0, *, prompt: int = 0) -> Resident:
    return Resident(
        online_rows=online_rows, online_context=0, offline_rows=offline_rows, offline_context=0, prompt_tokens=prompt
    )


def room(built: Price, beside: Resident, *, rate_per_s: float = 0.0, now_s: float = 0.0) -> Room:
    return built.room(beside, STEADY_TOKENS, rate_per_s, now_s)


# ---- what offline may have -------------------------------------------------------------------------------------------


def test_without_a_trusted_model_offline_has_nothing_beside_online_and_small_chunks_alone() -> None:
    doubted = Price(IterationModel(), ttft_added=0.1, itl_added=0.25)
    assert room(doubted, resident(1)) == NO_ROOM
    assert room(doubted, resident(prompt=300)) == NO_ROOM
    assert room(doubted, resident()) == Room(inf, CHUNK_UNKNOWN)


@pytest.mark.parametrize("online_rows", [1, 8, 40])
def test_offline_may_lengthen_the_gap_between_tokens_by_the_stated_share(online_rows: int) -> None:
    found, model = room(price(), resident(online_rows)), trusted_model()
    gap_s = 1.25 * model.iteration_s(online_rows)
    assert model.iteration_s(online_rows + found.rows) <= gap_s < model.iteration_s(online_rows + found.rows + 1)


def test_a_smaller_gap_share_leaves_fewer_rows() -> None:
    built = price()
    rows = room(built, resident(8)).rows
    built.gap_scale = 0.5
    assert 0 < room(built, resident(8)).rows < rows


def test_prompts_fill_what_the_rows_leave() -> None:
    empty = room(price(), resident(1))
    assert empty.chunk_tokens == empty.rows > 20
    assert room(price(), resident(1, 10)) == Room(empty.rows, empty.chunk_tokens - 10)
    assert room(price(), resident(1, 64)) == Room(empty.rows, 0)


def test_a_gap_that_may_not_grow_leaves_only_what_costs_nothing() -> None:
    found, model = room(price(itl_added=0.0), resident(8)), trusted_model()
    assert model.iteration_s(8 + found.rows) == model.iteration_s(8)


def test_beside_an_online_prompt_no_chunk_is_computed_and_rows_stay_that_hardly_lengthen_its_iterations() -> None:
    built, model = price(), trusted_model()
    found = room(built, resident(3, prompt=60))
    assert found.chunk_tokens == 0
    assert 0 < found.rows < room(built, resident(3)).rows
    alone_s = model.iteration_s(63)
    assert model.iteration_s(63 + found.rows) <= alone_s * (1 + 0.1 * BESIDE_PROMPT)
    assert model.iteration_s(63 + found.rows + BIN_TOKENS) > alone_s * (1 + 0.1 * BESIDE_PROMPT)


@pytest.mark.parametrize("beside", [resident(1), resident(3), resident(3, prompt=300)])
def test_where_online_is_rarely_resident_nothing_is_added_beside_it(beside: Resident) -> None:
    assert room(price(mean_per_s=RESIDENT_FEW), beside) == NO_ROOM


@pytest.mark.parametrize(
    ("resident_online", "weight"), [(0.1, 0), (RESIDENT_FEW, 0), (0.3, 0.5), (RESIDENT_MANY, 1), (9, 1)]
)
def test_gaps_keep_the_more_of_their_budget_the_more_often_online_is_resident(
    resident_online: float, weight: float
) -> None:
    assert price(mean_per_s=resident_online).gap_weight == pytest.approx(weight)


def test_a_higher_price_never_leaves_less_room() -> None:
    for beside in (resident(), resident(1), resident(8, 8)):
        by_share = [room(price(itl_added=each), beside) for each in (0.0, 0.03, 0.1, 0.25, 1.0)]
        by_kappa = [room(price(kappa=each), beside, rate_per_s=1.0) for each in (2000.0, 200.0, 20.0, 2.0, 0.2)]
        for rooms in (by_share, by_kappa):
            assert [each.rows for each in rooms] == sorted(each.rows for each in rooms)
            assert [each.chunk_tokens for each in rooms] == sorted(each.chunk_tokens for each in rooms)
        assert by_kappa[0].rows < by_kappa[-1].rows


def test_more_arrivals_never_leave_more_room() -> None:
    built = price(kappa=KAPPA_FIRST)
    rows = [room(built, resident(), rate_per_s=each).rows for each in (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > rows[-1]


@pytest.mark.parametrize("online_rows", [1, 2, 8])
def test_beside_online_nothing_is_added_that_is_not_worth_what_it_costs(online_rows: int) -> None:
    # A token costs TOKEN_MS for each online request, and gives what it takes in the best iteration without online.
    worth_ms = (ALONE_MS + TOKEN_MS * STEADY_TOKENS) / STEADY_TOKENS
    bound = worth_ms / (TOKEN_MS * online_rows)
    assert room(price(kappa=0.8 * bound), resident(online_rows)).rows > 0
    assert room(price(kappa=1.2 * bound), resident(online_rows)).rows == 0


def test_a_gap_is_never_shorter_than_that_of_online_alone() -> None:
    assert price(itl_added=0.0).gap_s(resident(8)) == trusted_model().iteration_s(8)


def test_alone_and_without_arrivals_offline_has_as_much_as_it_can_use() -> None:
    assert room(price(), resident(offline_rows=60)) == Room(STEADY_TOKENS, STEADY_TOKENS - 60)
    assert price().room(resident(), 48, 0.0, 0.0).rows == 48
    assert price().room(resident(), 1e9, 0.0, 0.0).rows <= trusted_model().tokens_max


@pytest.mark.parametrize("rate_per_s", [0.5, 0.75, 1.0, 1.2])
def test_alone_iterations_are_as_long_as_the_square_root_law_says(rate_per_s: float) -> None:
    most, built = 512, Price(trusted_model(512), ttft_added=0.1, itl_added=0.25)
    found = built.room(resident(), most, rate_per_s, 0.0)
    # T is o + c·n, and the best n/T(n) that is possible is worth 1: n/T(n) - κ·λ·T(n)/2 is largest at this T.
    worth = (ALONE_MS + TOKEN_MS * most) / (TOKEN_MS * most)
    best_s = sqrt(2 * worth * ALONE_MS / 1000 / (KAPPA_FIRST * rate_per_s))
    best_tokens = (1000 * best_s - ALONE_MS) / TOKEN_MS
    assert 150 < best_tokens < 400
    assert found.rows == pytest.approx(best_tokens, abs=3 * BIN_TOKENS)


def test_in_a_burst_offline_pauses_and_goes_on_when_the_rate_has_decayed() -> None:
    built, arrivals = price(kappa=200.0), ArrivalRate()
    for number in range(100):
        arrivals.note(10 + number / 50)
    built.recent_s = arrivals.recent_s
    paused = room(built, resident(), rate_per_s=arrivals.recent_per_s(12.0), now_s=12.0)
    assert (paused.rows, paused.chunk_tokens) == (0, 0)
    assert 12.0 < paused.until_s < 12.0 + 300
    before_s, after_s = paused.until_s - 0.1, paused.until_s + 0.01
    still = room(built, resident(), rate_per_s=arrivals.recent_per_s(before_s), now_s=before_s)
    assert still.rows == 0
    assert still.until_s == pytest.approx(paused.until_s)
    assert room(built, resident(), rate_per_s=arrivals.recent_per_s(after_s), now_s=after_s).rows > 0


def test_a_larger_burst_pauses_offline_for_longer() -> None:
    until_s = [room(price(kappa=200.0), resident(), rate_per_s=each).until_s for each in (5.0, 20.0, 80.0)]
    assert 0 < until_s[0] < until_s[1] < until_s[2] < inf


def test_the_size_of_chunks_is_that_of_the_last_room_for_one() -> None:
    built = price()
    assert built.chunk_tokens == CHUNK_MIN
    found = room(built, resident(8))
    assert built.chunk_tokens == max(CHUNK_MIN, found.chunk_tokens)
    room(built, resident(offline_rows=8))
    assert built.chunk_tokens == STEADY_TOKENS - 8
    room(built, resident(8, prompt=300))
    assert built.chunk_tokens == STEADY_TOKENS - 8


# ---- what was found --------------------------------------------------------------------------------------------------


def settled(**wanted: float) -> Price:
    """A price that has seen so many requests that their account moves κ, each just as late as is aimed at."""
    built = price(**wanted)
    for _ in range(FIRST):
        built.waited(0.4, 0.040 * AIM, 0.0)
    built.kappa = KAPPA_FIRST
    return built


def test_kappa_rises_when_first_tokens_come_later_than_stated_and_falls_when_they_come_sooner() -> None:
    built = settled()
    built.waited(0.4, 0.040 * AIM, 0.0)
    assert built.kappa == pytest.approx(KAPPA_FIRST)  # just as aimed at
    built.waited(0.4, 0.080, 0.0)
    risen = built.kappa
    assert risen > KAPPA_FIRST
    built.waited(0.4, 0.010, 0.0)
    assert built.kappa < risen


def test_what_gaps_leave_of_their_budget_passes_to_first_tokens() -> None:
    together, apart = settled(mean_per_s=0.0), settled(mean_per_s=1.0)
    for built in (together, apart):  # gaps of 1 s in all may add 0.25 s
        built.waited(0.4, (0.040 + 0.25) * AIM, 0.0)
    assert together.kappa == pytest.approx(KAPPA_FIRST)
    assert apart.kappa > KAPPA_FIRST


def test_what_gaps_take_beyond_their_budget_is_taken_from_first_tokens() -> None:
    honest, greedy = settled(), settled()
    greedy.decoded(1.0, 0.25 * 20)
    for built in (honest, greedy):
        built.waited(0.4, 0.040 * AIM, 0.0)
    assert greedy.kappa > honest.kappa == pytest.approx(KAPPA_FIRST)


def test_the_first_requests_say_about_where_kappa_begins() -> None:
    rare, frequent = (Price(trusted_model(), ttft_added=0.1, itl_added=0.25) for _ in range(2))
    rare.mean_per_s, frequent.mean_per_s = 0.1, 0.2
    for built in (rare, frequent):
        for _ in range(FIRST):
            built.waited(0.1, 10.0, 0.0)  # whatever was added
    assert KAPPA_MIN < frequent.kappa < rare.kappa < KAPPA_MAX


def test_kappa_and_the_gap_share_stay_in_their_bounds() -> None:
    dear, cheap = settled(), settled()
    for _ in range(3000):
        dear.waited(0.4, 4.0, 0.0)
        dear.decoded(1.0, 4.0)
        cheap.waited(0.4, 0.0, 0.0)
        cheap.decoded(1.0, 0.0)
    assert (dear.kappa, dear.gap_scale) == (KAPPA_MAX, SCALE_MIN)
    assert (cheap.kappa, cheap.gap_scale) == (KAPPA_MIN, SCALE_MAX)


def test_one_request_counts_at_most_so_much_and_the_first_ones_count_more() -> None:
    late, very_late, old = settled(), settled(), settled()
    late.waited(0.4, 0.4, 0.0)
    very_late.waited(0.4, 400.0, 0.0)
    assert late.kappa == very_late.kappa
    for _ in range(500):
        old.waited(0.4, 0.040 * AIM, 0.0)
    old.waited(0.4, 0.4, 0.0)
    assert KAPPA_FIRST < old.kappa < late.kappa


def test_a_request_with_an_objective_of_its_own_may_be_late_up_to_it() -> None:
    patient, hurried = settled(), settled()
    patient.waited(0.4, 0.080, 2.0)
    assert patient.kappa < KAPPA_FIRST
    hurried.waited(0.4, 0.010, 0.3)  # late alone: whatever is added is too much
    assert hurried.kappa > KAPPA_FIRST


def test_where_first_tokens_may_not_come_later_kappa_only_rises() -> None:
    built = price(ttft_added=0.0, kappa=KAPPA_FIRST)
    for _ in range(1000):
        built.waited(0.4, 0.0, 0.0)
    assert built.kappa == KAPPA_MAX


@pytest.mark.parametrize("stated", [0.03, 0.1, 0.3])
def test_kappa_settles_where_first_tokens_come_as_much_later_as_stated(stated: float) -> None:
    built, random = price(ttft_added=stated, kappa=KAPPA_FIRST), Random(3)
    for _ in range(3000):  # an engine on which the wait follows the square root of 1/κ
        built.waited(0.4, 0.4 * random.uniform(0, 1) / sqrt(built.kappa), 0.0)
    assert built.ttft_share == pytest.approx(AIM * stated, rel=0.3)


@pytest.mark.parametrize("times", [0.6, 1.0, 2.0])
def test_the_gap_share_moves_until_gaps_are_as_much_longer_as_stated(times: float) -> None:
    built, random = price(itl_added=0.25), Random(3)
    for _ in range(3000):  # an engine whose gaps grow by `times` what the model says
        alone_s = random.uniform(0.5, 5.0)
        built.decoded(alone_s, alone_s * 0.25 * built.gap_scale * times * random.uniform(0.5, 1.5))
    assert built.itl_share == pytest.approx(0.25, rel=0.1)
    assert built.gap_scale == pytest.approx(1 / times, rel=0.2)


def test_a_request_of_one_token_says_nothing_about_gaps() -> None:
    built = price()
    built.decoded(0.0, 4.0)
    assert (built.itl_share, built.gap_scale) == (0.0, 1.0)
