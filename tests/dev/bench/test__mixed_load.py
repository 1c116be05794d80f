"""The lab's workloads as real requests: their lengths, their times, and what the engine will draw."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from dev.bench._mixed_load import Prompts
from engine.lengths import output_length
from sidecar.sim.workloads import by_name

TOKENIZER = Path(__file__).parents[3] / "model_repository" / "tokenizer"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts.load(TOKENIZER)


def test_online_requests_have_the_lengths_and_times_of_the_workload(prompts: Prompts) -> None:
    online = prompts.online("knee", 1, 60.0)
    wanted = by_name("knee").online(1, 60 / 3600)

    assert [job.request.arrived_s for job in online.jobs] == [job.request.arrived_s for job in wanted]
    assert [each.due_s for each in online.arrivals] == [job.request.arrived_s for job in wanted]
    lengths = [
        (job.request.prompt_tokens, other.request.prompt_tokens) for job, other in zip(online.jobs, wanted, strict=True)
    ]
    assert all(abs(theirs - ours) <= 8 for ours, theirs in lengths)


def test_the_origin_runs_eight_times_faster(prompts: Prompts) -> None:
    online = prompts.online("origin", 2, 30.0)
    wanted = by_name("origin").online(2, 240 / 3600)

    assert [each.due_s for each in online.arrivals] == [job.request.arrived_s / 8 for job in wanted]


def test_the_simulator_gets_the_lengths_that_the_engine_will_draw(prompts: Prompts) -> None:
    for value, job in islice(prompts.offline("knee", 20), 20):
        item = json.loads(value)
        ids = prompts.tokens.encode_prompt(item["prompt"])
        assert ids[0] == prompts.language.offline_id
        assert job.request.prompt_tokens == len(ids)
        assert job.output_tokens == min(item["max_tokens"], output_length(ids, prompts.language, 0))
    online = prompts.online("knee", 1, 20.0)
    for arrival, job in zip(online.arrivals, online.jobs, strict=True):
        ids = prompts.tokens.encode_prompt(arrival.prompt)
        assert job.output_tokens == min(arrival.output_tokens_max, output_length(ids, prompts.language, 0))
