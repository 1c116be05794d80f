"""Public traces are read as they are published, thinned to a rate, and keep their shared prefixes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.inflight.batch import BatcherSettings
from sidecar.inflight.profile import profile_named
from sidecar.sim.arrivals_file import Arrivals
from sidecar.sim.machine import CallEnded, Machine, SimulatedDispatch
from sidecar.sim.public_traces import read_arrivals
from sidecar.sim.workloads import SimulatedRequest, WorkloadError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.1805900,5000,7
2023-11-16 18:16:00.0000000,12,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,GPT-4,1087,230,1317,API log
50,GPT-4,10,0,10,API log
"""
BURST_GPT_2 = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
0,a,1.5,GPT-4,100,10,110,Conversation log
"""
MOONCAKE = "\n".join(
    json.dumps({"timestamp": 1000 * at, "input_length": length, "output_length": 5, "hash_ids": blocks})
    for at, length, blocks in ((0, 1100, [0, 1, 2]), (3, 1600, [0, 1, 3, 4]), (4, 600, [7, 8]))
)


def written(directory: Path, text: str, name: str = "trace.csv") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def rows(found: Arrivals) -> list[tuple[float, int, int]]:
    return [(round(job.request.arrived_s, 3), job.request.prompt_tokens, job.output_tokens) for job in found.jobs]


@pytest.mark.parametrize(
    ("text", "expected", "left_out"),
    [
        (AZURE, [(0.0, 374, 44), (1.5, 5000, 7), (4.315, 396, 109)], 1),
        (AZURE_2024, [(0.0, 2162, 5), (1.007, 2399, 6)], 0),
        (BURST_GPT, [(0.0, 472, 18), (40.5, 1087, 230)], 1),
        (BURST_GPT_2, [(0.0, 100, 10)], 0),
        (MOONCAKE, [(0.0, 1100, 5), (3.0, 1600, 5), (4.0, 600, 5)], 0),
    ],
)
def test_a_trace_is_read_as_it_is_published(
    tmp_path: Path, text: str, expected: list[tuple[float, int, int]], left_out: int
) -> None:
    found = read_arrivals(written(tmp_path, text), 10_000)
    assert (rows(found), found.left_out) == (expected, left_out)
    longest = max(output for _, _, output in expected)
    assert {job.request.output_tokens_max for job in found.jobs} == {longest}


def test_what_the_engine_cannot_hold_is_left_out(tmp_path: Path) -> None:
    found = read_arrivals(written(tmp_path, AZURE), 1000)
    assert (len(found.jobs), found.left_out) == (2, 2)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (AZURE + "soon,1,2\n", ":6: no request of this trace: soon,1,2"),
        (BURST_GPT + "1,GPT-4,ten,2,12,API log\n", ":5: no request"),
        (BURST_GPT + "1,GPT-4\n", ":5: no request"),
        (BURST_GPT + "nan,GPT-4,1,2,3,API log\n", ":5: no request"),
        (MOONCAKE + "\n{}", ":4: no request"),
        (MOONCAKE + '\n{"timestamp": "x"}', ":4: no request"),
        (MOONCAKE + "\n[]", ":4: no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
    ],
)
def test_a_row_that_is_no_request_is_named_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(WorkloadError, match=reason):
        read_arrivals(written(tmp_path, text), 10_000)


def test_another_file_is_answered_with_what_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="Azure, BurstGPT or Mooncake"):
        read_arrivals(written(tmp_path, "hello\n", "notes.txt"), 1000)


def steady(count: int, every_s: float) -> str:
    lines = [f"{number * every_s},GPT-4,100,10,110,API log" for number in range(count)]
    return "\n".join([BURST_GPT.splitlines()[0], *lines])


def test_a_thinned_trace_has_the_rate_and_each_seed_its_own_requests(tmp_path: Path) -> None:
    found = read_arrivals(written(tmp_path, steady(6000, 0.2)), 1000)
    assert found.rate_per_s == pytest.approx(5, rel=0.01)
    for seed in (1, 2):
        kept = found.thinned(1.5, 0.25, seed)
        assert len(kept) == pytest.approx(0.25 * 3600 * 1.5, rel=0.1)
        assert kept == found.thinned(1.5, 0.25, seed)
    assert found.thinned(1.5, 0.25, 1) != found.thinned(1.5, 0.25, 2)
    moments = [job.request.arrived_s for job in found.thinned(1.5, 0.25, 1)]
    assert moments == sorted(moments)
    assert np.min(moments) >= 0
    assert np.max(moments) < 900


def reused(first: SimulatedRequest, then: SimulatedRequest) -> int:
    settings = BatcherSettings(max_batch_size=4, max_num_tokens=512, max_seq_len=4096)
    engine = Machine(settings, profile_named("8b-a100"))
    for job in (first, then):
        request = job.request
        engine.submit(
            SimulatedDispatch(
                request_id=request.id,
                lane=request.lane,
                context_tokens=request.prompt_tokens,
                output_tokens=5,
                output_tokens_max=5,
                slots=1,
                prefix_key=request.prefix_key,
                prefix_tokens=job.prefix_tokens,
                prompt_blocks=job.prompt_blocks,
            ),
            engine.next_s() if engine.next_s() < 1e9 else 0.0,
        )
        ended: list[CallEnded] = []
        while not ended:
            ended = [each for each in engine.advance(engine.next_s()) if isinstance(each, CallEnded)]
    return ended[0].reused_tokens


def test_blocks_that_requests_share_are_reused_and_no_others(tmp_path: Path) -> None:
    one, two, other = read_arrivals(written(tmp_path, MOONCAKE, "trace.jsonl"), 10_000).jobs
    assert one.request.prefix_key == two.request.prefix_key == "blocks-1"
    assert other.request.prefix_key == ""
    assert reused(one, two) == 2 * 512
    assert reused(one, other) == 0


@pytest.mark.slow
def test_the_command_takes_a_trace_at_a_rate(tmp_path: Path) -> None:
    trace = written(tmp_path, steady(3000, 0.2), "busy.csv")
    out = tmp_path / "out.json"
    arguments = f"simulate --arrivals {trace}@2.5 --workload conversation --policies ours --seeds 2 --hours 0.02"
    assert main([*arguments.split(), "--json", str(out)], {}, COMMANDS) == 0
    row = json.loads(out.read_text())["workloads"]["busy"]["policies"]["ours"]
    assert row["online"]["n"] == pytest.approx(2 * 0.02 * 3600 * 2.5, rel=0.25)


def test_a_trace_cannot_be_thinned_to_more_than_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = written(tmp_path, steady(300, 1.0), "calm.csv")
    assert main(f"simulate --arrivals {trace}@2.5".split(), {}, COMMANDS) == 2
    assert "less than 2.5" in capsys.readouterr().err
