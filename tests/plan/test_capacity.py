"""Every published example is reproduced: the table of A100 shapes, the two regimes, the caps and the replicas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sidecar.plan.capacity import GIB, MODELS, CostModel, MemoryPlan, ModelSize, replicas, warm

REGIMES = CostModel(o_ms=6.0, c_ms=0.18)


@pytest.mark.parametrize(
    ("model", "weights", "tp", "weights_gib", "kv_gib", "kv_millions", "sequences"),
    [
        ("70b", "bf16", 8, 16.4, 52.9, 1.39, 84),
        ("70b", "bf16", 4, 32.9, 38.1, 0.50, 30),
        ("70b", "bf16", 2, 65.7, 8.5, 0.056, 3),
        ("70b", "int8", 2, 32.9, 38.1, 0.25, 15),
        ("70b", "int4", 2, 18.5, 51.0, 0.33, 20),
        ("70b", "int4", 1, 37.0, 34.4, 0.11, 6),
        ("8b", "bf16", 1, 15.0, 54.2, 0.44, 27),
    ],
)
def test_what_fits_on_an_a100(
    model: str, weights: str, tp: int, weights_gib: float, kv_gib: float, kv_millions: float, sequences: int
) -> None:
    plan = MemoryPlan(model=MODELS[model], tp=tp, weights=weights)
    assert plan.weights_gpu_gib == pytest.approx(weights_gib, abs=0.06)
    assert plan.kv_gpu_gib == pytest.approx(kv_gib, abs=0.06)
    assert plan.kv_tokens / 1e6 == pytest.approx(kv_millions, abs=0.006)
    assert plan.sequences == sequences
    assert bool(plan.refusal) is (sequences == 3)


def test_weights_that_fit_two_gpus_leave_no_room_for_a_batch() -> None:
    assert MODELS["70b"].weight_bytes() == pytest.approx(140e9, rel=0.01)
    assert MODELS["7b"].weight_bytes() == 14e9
    plan = MemoryPlan(model=MODELS["70b"], tp=2)
    assert plan.refusal.startswith("only 3 sequences of 16,384 tokens fit beside 65.8 GiB of weights")
    assert "no room for a KV cache" in MemoryPlan(model=MODELS["70b"], tp=1).refusal


def test_the_cache_is_a_matter_of_kv_heads_which_some_formulas_leave_out() -> None:
    large = MODELS["70b"]
    ungrouped = ModelSize(name="no GQA", parameters=70e9, layers=80, kv_heads=64, head_dim=128)
    assert (large.kv_token_bytes(), MODELS["8b"].kv_token_bytes()) == (320 * 1024, 128 * 1024)
    assert 4096 * large.kv_token_bytes() == 1.25 * GIB
    assert 4096 * ungrouped.kv_token_bytes() == 10 * GIB


def test_beyond_the_kv_heads_further_gpus_hold_copies() -> None:
    eight, sixteen = (MemoryPlan(model=MODELS["70b"], tp=tp) for tp in (8, 16))
    assert sixteen.kv_tokens / eight.kv_tokens == pytest.approx(sixteen.kv_gpu_gib / eight.kv_gpu_gib, rel=1e-5)


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_a_quantised_cache_is_refused_where_blocks_are_to_be_reused(kv: str) -> None:
    with pytest.raises(ValueError, match=rf"a KV cache in {kv} has no paged context attention .* neither reuse"):
        MemoryPlan(model=MODELS["70b"], tp=4, kv=kv)
    whole = MemoryPlan(model=MODELS["70b"], tp=4, kv=kv, reuse=False)
    assert whole.kv_tokens == pytest.approx(2 * MemoryPlan(model=MODELS["70b"], tp=4).kv_tokens, abs=1)


@pytest.mark.parametrize("wrong", [{"tp": 0}, {"length": 0}, {"gpu_gib": 0.0}, {"gpu_gib": float("nan")}])
def test_sizes_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a plan needs"):
        replace(MemoryPlan(model=MODELS["8b"], tp=1), **wrong)


def test_the_two_regimes() -> None:
    online, offline = REGIMES.row(1, 3.00, (1, 3.00)), REGIMES.row(512, 0.90, (1, 3.00))
    assert (round(online["item_ms"], 4), round(online["items_per_hour"])) == (6.18, 582_524)
    assert round(online["usd_per_million"], 4) == 5.15
    assert (round(offline["item_ms"], 4), round(offline["items_per_hour"])) == (0.1917, 18_777_506)
    assert (round(offline["usd_per_million"], 4), round(offline["batch_ms"], 2)) == (0.0479, 98.16)
    assert (round(offline["times_items"], 1), round(offline["times_cheaper"], 1)) == (32.2, 107.4)


def test_two_measurements_predict_a_third() -> None:
    fitted = CostModel.fitted([(1, REGIMES.batch_ms(1)), (512, REGIMES.batch_ms(512))])
    assert fitted.o_ms == pytest.approx(6.0)
    assert fitted.c_ms == pytest.approx(0.18)
    assert fitted.batch_ms(1024) == pytest.approx(190.32)
    with pytest.raises(ValueError, match="two measurements of different batches"):
        CostModel.fitted([(8, 1.0), (8, 2.0)])
    with pytest.raises(ValueError, match="needs o >= 0 ms and c > 0 ms"):
        CostModel.fitted([(1, 10.0), (8, 9.0)])


def test_from_some_batch_on_doubling_is_not_worth_it() -> None:
    def saving(batch: int) -> float:
        return 1 - REGIMES.item_ms(2 * batch) / REGIMES.item_ms(batch)

    assert REGIMES.enough() == 301
    assert saving(300) == pytest.approx(0.05)
    assert saving(301) < 0.05
    assert [batch for batch in (64, 128, 256, 512) if batch >= REGIMES.enough()] == [512]


def test_whoever_comes_behind_a_batch_bears_170_items() -> None:
    cost = CostModel(o_ms=6.0, c_ms=0.2)
    assert cost.batch_within_ms(0.4 * 100) == 170
    assert cost.batch_ms(170) == 40
    assert cost.batch_within_ms(6.1) == 0


def test_400_million_documents_take_weeks_one_at_a_time_and_under_two_days_in_batches() -> None:
    one, batched = (400e6 / REGIMES.items_per_hour(batch) / 24 for batch in (1, 512))
    assert one > 28
    assert batched < 2


def test_idle_hours_are_paid_like_busy_ones() -> None:
    busy = REGIMES.usd_per_million(8, 3.0)
    factors = [round(REGIMES.usd_per_million(8, 3.0, used) / busy, 2) for used in (0.2, 0.4, 0.6, 0.8)]
    assert factors == [5.0, 2.5, 1.67, 1.25]
    # Three models on a GPU each, 15 % busy, or all of them on one:
    assert REGIMES.usd_per_million(8, 3.0, 0.15) / REGIMES.usd_per_million(8, 3.0, 3 * 0.15) == pytest.approx(3)


def test_reported_throughputs_by_batch_lie_near_the_line_through_the_first_and_the_last() -> None:
    line = CostModel.fitted([(1, 1.0), (16, 16 / 7)])
    for batch, reported in ((4, 3.5), (8, 5.5)):
        assert batch / line.batch_ms(batch) == pytest.approx(reported, rel=0.1)


def test_500_streaming_users_need_100_to_125_replicas_or_far_fewer_in_flight() -> None:
    cost = CostModel(o_ms=22.0, c_ms=0.15)
    many, few, in_flight = replicas(500, 90, 20, 30, cost, sequences=84)
    assert [(each["streams"], each["replicas"]) for each in (few, many)] == [(4, 125), (5, 100)]
    assert few["tpot_ms"] > 30  # read so, the rate misses the objective that it was sized for
    assert (in_flight["streams"], in_flight["replicas"]) == (53, 10)
    assert in_flight["tpot_ms"] <= 30
    assert 15 <= warm(many["replicas"], 10) <= warm(few["replicas"], 10) <= 20
    assert replicas(500, 90, 20, 30, cost, sequences=30)[-1]["streams"] == 30  # the cache binds first
    with pytest.raises(ValueError, match=r"500 users at 20 ms a token cannot be: T\(1\) is 22.15 ms"):
        replicas(500, 90, 20, 20, cost, sequences=84)
