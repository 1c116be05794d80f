"""Measure this machine's GPU under both lanes: one table, one JSON, and a profile file for the simulator.

    scripts/gpu_check --out DIR [--presets 70b-tp4-shard,8b] [--budget-s 290] [--set scheduler.slice_tokens=64]
    scripts/gpu_check --out DIR --device cpu --presets tiny

For each preset, in this order: conversations with online callers alone, with the sidecar, and with a static cap of 16
offline requests straight to Triton, all with the same arrivals; short answers alone and with the sidecar; offline work
alone (the ceiling); then how long an iteration takes; then whether slices say what the whole says. A step has twice its
time; one that fails or for which no time is left takes nothing from the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dev.figures import ran_on
from dev.gpu.runs import BLOCK_TOKENS, CardRun, paired, run
from dev.gpu.table import table
from dev.interrupt import run_until_told
from dev.triton import MODELS, ROOT, Triton, TritonSettings

PYTHON = os.environ.get("GPU_CHECK_PYTHON", sys.executable)  # has PyTorch
SERVER = Path(os.environ.get("GPU_CHECK_SERVER", ROOT / ".venv-server"))
CONVERSATION = CardRun(policy="alone", workload="conversation-1.5", seconds=30.0)
SHORT = CardRun(policy="alone", workload="constant-1", seconds=24.0)
SMOKE = CardRun(policy="alone", workload="conversation-4", seconds=4.0, warm_s=1.0, shrink=8)
START_S, AROUND_RUN_S = 25.0, 10.0  # what a server's start takes with 34 GB of weights, and what a run takes beside
CURVE_S, RESUME_S = 45.0, 60.0


@dataclass(slots=True)
class Check:
    """What was asked for, what was found, and how much time is left."""

    options: argparse.Namespace
    directory: Path
    begin_s: float = field(default_factory=time.monotonic)
    steps: list[dict[str, Any]] = field(default_factory=list)

    async def step(self, name: str, preset: str, needs_s: float, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Run one step; keep what it found, or why it found nothing, in the JSON and the table."""
        found: dict[str, Any] = {"step": name, "preset": preset}
        begin_s = time.monotonic()
        left_s = self.options.budget_s - (begin_s - self.begin_s)
        if left_s < needs_s:
            found["skipped"] = f"it needs {needs_s:.0f} s, and {max(0.0, left_s):.0f} s are left"
        else:
            try:
                async with asyncio.timeout(min(2 * needs_s + 15, left_s + 5)):
                    found |= await work()
            except Exception as error:  # whatever it is, it is this step's
                found["failed"] = f"{type(error).__name__}: {error}"[:1000]
        found["took_s"] = round(time.monotonic() - begin_s, 1)
        self.steps.append(found)
        document = {"commit": os.environ.get("GPU_CHECK_COMMIT", "unknown"), "ran_on": ran_on(), "steps": self.steps}
        document["options"] = {name: str(value) for name, value in vars(self.options).items()}
        (self.options.out / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n")
        (self.options.out / "gpu_check.md").write_text(table(self.steps))
        told = found.get("failed") or found.get("skipped") or "done"
        print(f"[{time.monotonic() - self.begin_s:5.0f} s] {preset} {name}: {told} ({found['took_s']} s)", flush=True)

    async def preset(self, preset: str) -> None:
        """Take all steps of one preset."""
        device, steps = self.options.device, self.options.steps
        model = preset if preset in MODELS else "toy"
        if "runs" in steps:
            await self._runs(preset, TritonSettings(model=model, **served(preset, device)))
        needs_s = CURVE_S if device != "cpu" else 15.0
        file = self.options.out / f"profile-{preset}.json"
        curve = ("dev.gpu.curve", preset, str(file), device, str(needs_s))
        if "curve" in steps:
            await self.step("curve", preset, needs_s, partial(asyncio.to_thread, program, file, *curve))
        file = self.directory / "resume.json"
        items = ("--items", "8" if device == "cpu" else "96", "--json", str(file))
        resume = ("dev.bench.resume", "--device", device, "--model", model, "--preset", preset, *items)
        if "resume" in steps:
            await self.step("resume", preset, RESUME_S, partial(asyncio.to_thread, program, file, *resume))

    async def _runs(self, preset: str, settings: TritonSettings) -> None:
        """Start one server, and run every plan on it; one that died is started again."""
        triton, alone = Triton(self._folder(f"triton {preset}"), settings), dict[str, Any]()

        async def start() -> dict[str, Any]:
            await triton.stop()
            await triton.start()
            return {"slots": settings.slots, "parameters": settings.parameters}

        async def one(plan: CardRun) -> dict[str, Any]:
            figures = await run(plan, triton, self._folder(f"{preset} {plan.name}"))
            if plan.policy == "alone":
                alone[plan.workload] = figures["online"]
            elif plan.policy != "ceiling" and plan.workload in alone:
                figures["paired"] = paired(figures["online"], alone[plan.workload])
            return figures

        try:
            for plan in plans(self.options):
                if not triton.alive:
                    await self.step("server", preset, START_S, start)
                if not triton.alive:  # a second try would fail in the same way
                    return
                await self.step(plan.name, preset, plan.seconds + plan.warm_s + AROUND_RUN_S, partial(one, plan))
        finally:
            await triton.stop()
            with (self.options.out / "logs.txt").open("a") as logs:
                for log in sorted(self.directory.glob("**/*.log")):
                    logs.write(f"##### {log}\n{log.read_text(errors='replace')[-100_000:]}\n")

    def _folder(self, name: str) -> Path:
        made = self.directory / re.sub("[^A-Za-z0-9.-]+", "-", name)
        made.mkdir()
        return made


def served(preset: str, device: str) -> dict[str, Any]:
    """Return how the server runs a preset."""
    tokens, cache, slots = ("1024", "16384", 8) if device == "cpu" else ("8192", "240000", 64)
    parameters = {"engine": "torch", "preset": preset, "device": device, "tokens_per_block": str(BLOCK_TOKENS)}
    parameters |= {"max_seq_len": tokens, "max_tokens_in_paged_kv_cache": cache}
    return {"slots": slots, "parameters": parameters, "server_environment": SERVER, "start_timeout_s": 120.0}


def plans(options: argparse.Namespace) -> list[CardRun]:
    """Return the runs of one preset."""
    found, cpu = list[CardRun](), options.device == "cpu"
    for plan, caps in ((SMOKE, ("cap-4",)),) if cpu else ((CONVERSATION, ("cap-16",)), (SHORT, ())):
        ours = replace(plan, policy="ours", settings=tuple(options.set))
        more = (replace(ours, settings=(*options.set, *each.split(","))) for each in options.ours)
        found += [plan, ours, *more, *(replace(plan, policy=cap) for cap in caps)]
    if cpu:
        return [*found, replace(SMOKE, policy="ceiling")]
    return [*found, replace(CONVERSATION, policy="ceiling", seconds=10.0, warm_s=8.0)]


def program(file: Path, *arguments: str) -> dict[str, Any]:
    """Run a module with PyTorch in a process of its own; return what it wrote to `file`."""
    done = subprocess.run((PYTHON, "-m", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-600:]}")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


async def check(options: argparse.Namespace) -> int:
    """Return 0 if every step that was taken succeeded."""
    found = Check(options, Path(tempfile.mkdtemp(prefix="gpu-check-")))
    for preset in options.presets:
        await found.preset(preset)
    print(table(found.steps))
    return int(any("failed" in step for step in found.steps))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    names: Callable[[str], list[str]] = lambda text: text.split(",")  # noqa: E731
    add("--out", type=Path, required=True, metavar="DIR")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--presets", type=names, default=["70b-tp4-shard", "8b"], metavar="P,…")
    add("--steps", type=names, default=["runs", "curve", "resume"], metavar="S,…")
    add("--budget-s", type=float, default=900.0, help="no step begins that would not end by then")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the sidecar in its runs")
    add("--ours", action="append", default=[], metavar="NAME=VALUE,…", help="one more run of the sidecar, with these")
    options = parser.parse_args()
    options.out = Path(os.environ.get("GPU_CHECK_FROM", ".")) / options.out
    options.out.mkdir(parents=True, exist_ok=True)
    return run_until_told(check(options))


if __name__ == "__main__":
    sys.exit(main())
