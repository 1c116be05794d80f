"""Both lanes on the real stack: TTFT and harvest by policy, and whether the simulator predicts them.

    scripts/bench mixed [--workloads knee,origin] [--seeds K] [--seconds S] [--policies P,…] [--slots N]
                        [--preset tiny|small] [--profile NAME] [--json FILE]

Real Triton with the CPU engine paced to a profile, real Kafka, the real sidecar as a child process. Requests arrive as
in the lab's workload of that name (`origin` with its time 8 times faster); every policy but `online-only` has an
offline backlog that never runs dry. Harvest = offline tokens/s ÷ ceiling, the ceiling measured on the same stack with
no online load. A run in which more than 1 % of the iterations took longer than the profile says is not valid.

The prediction: iteration costs are fitted to the recorded token gaps of `ours` on the first seed, and what lies around
the engine (gRPC, tokenizer, ensemble) is what its median TTFT lacks in simulation; then the second seed is simulated,
with the engine's own draws of the output lengths, and compared with what was measured. Both harvests are of the
ceiling that was measured: what few rows cost says little of 64. At the top level stand the figures of the first
workload; `workloads` has them all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from dev.bench._mixed_load import OnlineLoad, Prompts
from dev.bench._mixed_prediction import (
    FILL_TIMEOUT_S,
    WARM_S,
    Run,
    World,
    predicted,
)
from dev.bench._mixed_worker import BASELINES
from dev.demo import engine_report, server_report
from dev.deployment import ENGINE, PARTITIONS, DeploymentShape, Kafka, broker, settings
from dev.figures import ran_on, write
from dev.interrupt import run_until_told
from dev.load import LoadResult, percentiles, run_load
from dev.server import SidecarProcess, serving
from dev.triton import Triton, TritonSettings, running
from sidecar.core.errors import SidecarError
from sidecar.inflight.profile import PROFILES, profile_named
from sidecar.sim.policies import OFFLINE_ALONE
from sidecar.sim.workloads import SimulatedRequest, WorkloadError, by_name

OURS, ALONE = "ours", "online-only"
TOKENS_MAX = 4112  # the lab cuts prompts at 3,072 and items at 1,024 tokens; a few more, because words are not tokens
KV_TOKENS = 131_072
OUTPUT_TOKENS_MEAN = 120.0  # less than an item really gives, so that the backlog never runs dry


@dataclass(slots=True, kw_only=True)
class Stack:
    """The broker, which all runs share. Each has a Triton of its own: in a warm KV cache prompts that came before cost
    nothing. And a sidecar and a consumer group, so that each reads the same backlog from its beginning."""

    options: argparse.Namespace
    kafka: Kafka
    triton_settings: TritonSettings
    directory: Path
    triton_version: str = ""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def run(self, policy: str, seed: int, online: OnlineLoad | None) -> Run:
        """One run of so many seconds; without `online`, nobody calls."""
        directory = self.directory / f"run-{next(self._numbers)}"
        directory.mkdir()
        command = ("sidecar", "serve") if policy in (OURS, ALONE) else ("dev.bench._mixed_worker", policy)
        async with contextlib.AsyncExitStack() as stack:
            triton = await stack.enter_async_context(running(directory, self.triton_settings))
            self.triton_version = (await server_report(triton))["version"]
            file = self._settings(policy, triton, directory)
            server = await stack.enter_async_context(serving(directory, file, command))
            if policy != ALONE:
                await self._full(server)
            before, engine_before = await server.status(), await engine_report(triton)
            load = LoadResult()
            async with asyncio.TaskGroup() as tasks:
                if online is not None:
                    tasks.create_task(run_load(server.listen, online.arrivals, load), name="online load")
                await asyncio.sleep(self.options.seconds)
                after, engine_after = await server.status(), await engine_report(triton)
            if policy == OURS:
                await server.drain()  # the recording is whole; the others are broken off
        offline = _offline_tokens(after) - _offline_tokens(before)
        found = Run(
            policy=policy,
            seed=seed,
            load=load,
            offline_tokens_per_s=offline / (after["now_s"] - before["now_s"]),
            overrun_ratio=_overrun_ratio(engine_before, engine_after),
            directory=directory,
        )
        _say(f"{policy}, seed {seed}: {_line(found)}")
        return found

    async def _full(self, server: SidecarProcess) -> None:
        """Offline work has filled the slots, and some time has passed since. Raises SidecarError if it does not."""
        enough = 4 * self.options.slots
        try:
            async with asyncio.timeout(FILL_TIMEOUT_S):
                while _offline_tokens(await server.status()) < enough:  # noqa: ASYNC110 - of another process
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise SidecarError(f"no {enough} offline tokens within {FILL_TIMEOUT_S:.0f} s: see {server.log}") from None
        await asyncio.sleep(WARM_S)

    def _settings(self, policy: str, triton: Triton, directory: Path) -> dict[str, Any]:
        shape = DeploymentShape(slots=self.options.slots, profile=self.options.profile)
        found = settings(shape, triton, self.kafka, directory)
        found["engines"][0]["tokens_max"] = TOKENS_MAX
        found["offline"] |= {"group": directory.name, "instance_id": directory.name}
        if policy != OURS:
            found.pop("recorder")
        if policy == ALONE:
            found.pop("offline")
        return found


def _offline_tokens(status: dict[str, Any]) -> int:
    return int(status["engines"][ENGINE]["output_tokens"]["offline"])


def _overrun_ratio(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Of the iterations between two readings."""
    iterations = after["iterations"] - before["iterations"]
    overruns = sum(
        sign * each["iterations"] * each["pacing_overrun_ratio"] for sign, each in ((1, after), (-1, before))
    )
    return max(0.0, overruns) / iterations if iterations else 0.0


def _line(run: Run) -> str:
    ttft = percentiles(run.load.ttft_ms)
    late = "" if run.valid else f", NOT VALID: {run.overrun_ratio:.1%} of the iterations were late"
    return (
        f"{run.load.sent} requests, {len(run.load.errors)} failed, TTFT p50 {ttft['p50']} ms, p95 {ttft['p95']} ms, "
        f"offline {run.offline_tokens_per_s:.0f} tokens/s{late}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- figures ---------------------------------------------------------------------------------------------------------


def policy_figures(runs: Sequence[Run], ceiling: float) -> dict[str, Any]:
    """The runs of one policy on all seeds, in the fields of the report."""
    rate = statistics.mean(each.offline_tokens_per_s for each in runs)
    return {
        "n": sum(each.load.sent for each in runs),
        "errors": sum(len(each.load.errors) for each in runs),
        "ttft_ms": percentiles([ms for each in runs for ms in each.load.ttft_ms]),
        "e2e_ms": percentiles([ms for each in runs for ms in each.load.e2e_ms]),
        "harvest": round(rate / ceiling, 4) if ceiling and runs[0].policy != ALONE else None,
        "offline_tokens_per_s": round(rate, 1),
        "pacing_overrun_ratio": [round(each.overrun_ratio, 4) for each in runs],
        "valid": all(each.valid for each in runs),
    }


# ---- prediction ------------------------------------------------------------------------------------------------------


# ---- the bench -------------------------------------------------------------------------------------------------------


async def fill(kafka: Kafka, values: Sequence[bytes]) -> None:
    """The requests topic holds these items, spread over its partitions."""
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, linger_ms=20) as producer:
        for number, value in enumerate(values):
            await producer.send(kafka.topics["requests"], value, partition=number % PARTITIONS)
        await producer.flush()


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    """All runs of all workloads, and what came of them."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-mixed-"))
    _say(f"logs and recordings are in {directory}")
    parameters = {
        "profile": options.profile,
        "preset": options.preset,
        "max_seq_len": str(TOKENS_MAX),
        "max_tokens_in_paged_kv_cache": str(KV_TOKENS),
    }
    triton_settings = TritonSettings(slots=options.slots, parameters=parameters)
    prompts = Prompts.load(triton_settings.repository / "tokenizer")
    backlog = list(prompts.offline(options.workloads[0], _items(options)))
    items = [job for _, job in backlog]
    async with broker(None, directory) as kafka:
        stack = Stack(options=options, kafka=kafka, triton_settings=triton_settings, directory=directory)
        await fill(kafka, [value for value, _ in backlog])
        ceiling = await stack.run(OFFLINE_ALONE.name, 0, None)
        workloads = {name: await _workload(stack, prompts, name, items, ceiling) for name in options.workloads}
    return {
        **workloads[options.workloads[0]],
        "valid": ceiling.valid and all(each["valid"] for each in workloads.values()),
        "workloads": workloads,
        "ceiling": {
            "tokens_per_s": round(ceiling.offline_tokens_per_s, 1),
            "pacing_overrun_ratio": round(ceiling.overrun_ratio, 4),
        },
        "seconds": options.seconds,
        "seeds": options.seeds,
        "ran_on": {
            **ran_on(),
            "triton": stack.triton_version,
            "kafka": kafka.version,
            "engine": {"profile": options.profile, "preset": options.preset, "slots": options.slots},
        },
    }


async def _workload(
    stack: Stack, prompts: Prompts, name: str, items: Sequence[SimulatedRequest], ceiling: Run
) -> dict[str, Any]:
    """Every policy on every seed of one workload."""
    options = stack.options
    loads = {seed: prompts.online(name, seed, options.seconds) for seed in range(1, options.seeds + 1)}
    runs: dict[str, list[Run]] = {policy: [] for policy in options.policies}
    for seed, load in loads.items():  # policies in turn: a machine that slows down slows all of them down
        for policy in options.policies:
            runs[policy].append(await stack.run(policy, seed, load))
    limit = ceiling.offline_tokens_per_s
    world = World(loads=loads, items=items, ceiling_tokens_per_s=limit, seconds=options.seconds)
    error = await asyncio.to_thread(predicted, runs.get(OURS, ()), world)
    figures = {policy: policy_figures(found, limit) for policy, found in runs.items()}
    valid = ceiling.valid and all(each["valid"] for each in figures.values())
    return {"policies": figures, "valid": valid, "prediction_error": error}


def _items(options: argparse.Namespace) -> int:
    """More than a run can finish."""
    iteration_s = profile_named(options.profile).iteration_s(options.slots, 0)
    finished_per_s: float = options.slots / (OUTPUT_TOKENS_MEAN * iteration_s)
    return int(finished_per_s * (options.seconds + 30)) + 256


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; exits with 2 and one line if they make no sense."""
    parser = argparse.ArgumentParser(prog="scripts/bench mixed", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--workloads", type=_names, default=["knee", "origin"], metavar="W,…", help="knee, origin, constant-R"
    )
    parser.add_argument("--policies", type=_names, default=[ALONE, "aimd", OURS], metavar="P,…", help="in this order")
    parser.add_argument("--seeds", type=int, default=3, metavar="K", help="seeds 1 … K of the arrivals")
    parser.add_argument("--seconds", type=float, default=180.0, metavar="S", help="of each run")
    parser.add_argument("--slots", type=int, default=64, help="of the engine")
    parser.add_argument("--profile", default="70b-tp4-a100", choices=sorted(PROFILES), help="whose times it keeps")
    parser.add_argument("--preset", default="tiny", choices=("tiny", "small"), help="how large the arithmetic is")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - = standard output")
    options = parser.parse_args(arguments)
    if unknown := [each for each in options.policies if each not in (ALONE, OURS, *BASELINES)]:
        parser.error(f"--policies: unknown {', '.join(unknown)}; known: {', '.join((ALONE, OURS, *BASELINES))}")
    try:
        for each in options.workloads:
            by_name(each)
    except WorkloadError as error:
        parser.error(str(error))
    if options.seeds < 1 or options.seconds < 5 or not 1 <= options.slots <= 64:
        parser.error("--seeds >= 1, --seconds >= 5 and --slots in 1..64 are needed")
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    chosen = parse()
    try:
        write(run_until_told(bench(chosen)), chosen.json)
    except SidecarError as error:
        sys.exit(f"scripts/bench mixed: {error}")
