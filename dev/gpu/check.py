"""Measure this machine's GPU under both lanes: one table, one JSON, and a profile file for the simulator.

    scripts/gpu_check --out DIR [--presets 70b-tp4-shard,8b] [--budget-s 290]
    scripts/gpu_check --out DIR --device cpu --presets tiny

For each preset, in this order: conversations with online callers alone, with the sidecar, and with a static cap of 16
offline requests straight to Triton, all with the same arrivals; short answers alone and with the sidecar; offline work
alone (the ceiling); then how long an iteration takes; then whether slices say what the whole says. Each step has a time
limit; a step that fails or for which no time is left takes nothing from the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dev.figures import ran_on
from dev.gpu.runs import BLOCK_TOKENS, CardRun, paired, run
from dev.gpu.table import table
from dev.interrupt import run_until_told
from dev.triton import ROOT, Triton, TritonSettings

PYTHON = os.environ.get("GPU_CHECK_PYTHON", sys.executable)  # has PyTorch
SERVER = Path(os.environ.get("GPU_CHECK_SERVER", ROOT / ".venv-server"))
CONVERSATION = CardRun(policy="alone", workload="conversation", rate_per_s=1.5, seconds=30.0)
SHORT = CardRun(policy="alone", workload="short", rate_per_s=1.0, seconds=24.0)
CEILING = CardRun(policy="ceiling", workload="conversation", rate_per_s=0.0, seconds=10.0, warm_s=8.0)
ON_A_CARD = (
    *(replace(CONVERSATION, policy=policy) for policy in ("alone", "ours", "cap-16")),
    *(replace(SHORT, policy=policy) for policy in ("alone", "ours")),
    CEILING,
)
SMOKE = CardRun(policy="alone", workload="smoke", rate_per_s=4.0, seconds=4.0, warm_s=1.0)
ON_A_CPU = tuple(replace(SMOKE, policy=policy) for policy in ("alone", "ours", "cap-4", "ceiling"))
START_S, AROUND_RUN_S = 25.0, 10.0  # what a server's start takes with 34 GB of weights, and what a run takes beside
CURVE_S, RESUME_S = 45.0, 45.0


@dataclass(slots=True)
class Check:
    """What was asked for, what was found, and how much time is left."""

    options: argparse.Namespace
    directory: Path
    begin_s: float = field(default_factory=time.monotonic)
    steps: list[dict[str, Any]] = field(default_factory=list)
    servers: int = 0

    @property
    def cuda(self) -> bool:
        return bool(self.options.device != "cpu")

    def left_s(self) -> float:
        return float(self.options.budget_s) - (time.monotonic() - self.begin_s)

    async def step(self, name: str, preset: str, needs_s: float, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Run one step, and keep what it found or why it found nothing. Twice its expected time is its limit."""
        found: dict[str, Any] = {"step": name, "preset": preset}
        begin_s = time.monotonic()
        if self.left_s() < needs_s:
            found["skipped"] = f"it needs {needs_s:.0f} s, and {max(0.0, self.left_s()):.0f} s are left"
        else:
            try:
                async with asyncio.timeout(min(2 * needs_s + 15, self.left_s() + 5)):
                    found |= await work()
            except Exception as error:  # whatever it is, it is this step's
                found["failed"] = f"{type(error).__name__}: {error}"[:1000]
        found["took_s"] = round(time.monotonic() - begin_s, 1)
        self.steps.append(found)
        self.save()
        told = found.get("failed") or found.get("skipped") or "done"
        print(f"[{time.monotonic() - self.begin_s:5.0f} s] {preset} {name}: {told} ({found['took_s']} s)", flush=True)

    def save(self) -> None:
        """Write the JSON and the table as they are now."""
        document = {"ran_on": {**ran_on(), "device": self.options.device}, "steps": self.steps}
        (self.options.out / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n")
        (self.options.out / "gpu_check.md").write_text(table(self.steps))

    async def preset(self, preset: str) -> None:
        """Take all steps of one preset."""
        if "runs" in self.options.steps:
            await self._runs(preset)
        flags = ("--device", self.options.device)
        if "curve" in self.options.steps:
            profile = self.options.out / f"profile-{preset}.json"
            budget_s = CURVE_S if self.cuda else 15.0
            name = re.sub("[^a-z0-9]+", "-", self.options.card.lower()).strip("-")
            curve = (*flags, "--name", name, "--budget-s", str(budget_s), "--repeats", "7" if self.cuda else "2")
            await self.step("curve", preset, budget_s, lambda: self._program("dev.gpu.curve", preset, profile, *curve))
        if "resume" in self.options.steps:
            resume = (*flags, "--items", "96" if self.cuda else "8")
            file = self.directory / "resume.json"
            await self.step("resume", preset, RESUME_S, lambda: self._program("dev.gpu.resume", preset, file, *resume))

    async def _runs(self, preset: str) -> None:
        """Start one server, and run every plan on it; one that died is started again."""
        triton, found = self._triton(preset), dict[tuple[str, str], dict[str, Any]]()

        async def start() -> dict[str, Any]:
            await triton.stop()
            await triton.start()
            return {}

        try:
            await self.step("server", preset, START_S if self.cuda else 10.0, start)
            if not triton.alive:  # a second try would fail in the same way
                return
            for plan in ON_A_CARD if self.cuda else ON_A_CPU:
                if not triton.alive and self.left_s() > 2 * START_S:
                    await self.step("server again", preset, START_S, start)
                name = f"{plan.workload} {plan.policy}"

                async def one(plan: CardRun = plan, name: str = name) -> dict[str, Any]:
                    figures = await run(plan, triton, self._folder(f"{preset} {name}"))
                    found[plan.workload, plan.policy] = figures
                    alone = found.get((plan.workload, "alone"))
                    if alone is not None and plan.policy not in ("alone", "ceiling"):
                        figures["paired"] = paired(figures["online"], alone["online"])
                    return figures

                await self.step(name, preset, plan.seconds + plan.warm_s + AROUND_RUN_S, one)
        finally:
            await triton.stop()
            with (self.options.out / "logs.txt").open("a") as logs:
                for log in sorted(self.directory.glob("**/*.log")):
                    logs.write(f"##### {log}\n{log.read_text(errors='replace')[-100_000:]}\n")

    def _folder(self, name: str) -> Path:
        made = self.directory / name.replace(" ", "-")
        made.mkdir()
        return made

    def _triton(self, preset: str) -> Triton:
        """A server that is not started yet."""
        parameters = {
            "engine": "torch",
            "preset": preset,
            "device": self.options.device,
            "max_seq_len": "8192" if self.cuda else "512",
            "max_tokens_in_paged_kv_cache": "240000" if self.cuda else "16384",
            "tokens_per_block": str(BLOCK_TOKENS),
        }
        slots = 64 if self.cuda else 8
        settings = TritonSettings(slots=slots, parameters=parameters, server_environment=SERVER, start_timeout_s=120.0)
        return Triton(self._folder(f"triton {preset}"), settings)

    async def _program(self, module: str, preset: str, file: Path, *arguments: str) -> dict[str, Any]:
        """Run a module with PyTorch in a process of its own; return what it wrote to `file`."""
        process = await asyncio.create_subprocess_exec(
            *(PYTHON, "-m", module, preset, str(file), *arguments),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise RuntimeError(f"{module} ended with {process.returncode}: {said.decode(errors='replace')[-600:]}")
        return _read(file)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


async def card(device: str) -> str:
    """Return the card's name."""
    if device == "cpu" or shutil.which("nvidia-smi") is None:
        return "cpu"
    process = await asyncio.create_subprocess_exec(
        *("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode().splitlines()[0].strip()


async def check(options: argparse.Namespace) -> int:
    """Return 0 if every step that was taken succeeded."""
    options.out = Path(os.environ.get("GPU_CHECK_FROM", ".")) / options.out
    options.out.mkdir(parents=True, exist_ok=True)
    options.card = await card(options.device)
    found = Check(options, Path(tempfile.mkdtemp(prefix="gpu-check-")))
    for preset in options.presets:
        await found.preset(preset)
    print(table(found.steps))
    return int(any("failed" in step for step in found.steps))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--presets", type=lambda text: text.split(","), default=["70b-tp4-shard", "8b"], metavar="P,…")
    parser.add_argument(
        "--steps", type=lambda text: text.split(","), default=["runs", "curve", "resume"], metavar="S,…"
    )
    parser.add_argument("--budget-s", type=float, default=900.0, help="no step begins that would not end by then")
    return run_until_told(check(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
