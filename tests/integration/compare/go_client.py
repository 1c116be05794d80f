"""The Go client: built once into .cache, given a plan of scenarios, read back as transcripts."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dev.triton import ROOT
from tests.integration.compare.player import Played, Transcript
from tests.integration.compare.scenario import RUN, Ask, Await, Cancel, Close, Metadata, Open, Scenario, Send, Step

SOURCE = Path(__file__).parent / "go"
BUILT = ROOT / ".cache" / "compare-go"
BUILD_TIMEOUT_S = 240.0  # the first build fetches and compiles grpc-go
PLAN_TIMEOUT_S = 60.0


class GoError(Exception):
    """The Go client could not be built, or broke."""


async def built() -> Path | None:
    """The program, built from its present source; None where Go is not installed. Raises GoError."""
    if (go := shutil.which("go")) is None:
        return None
    sources = b"".join((SOURCE / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    program = BUILT / f"client-{blake2b(sources, digest_size=8).hexdigest()}"
    if not program.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        process = await asyncio.create_subprocess_exec(
            *(go, "build", "-o", str(program), "."), cwd=SOURCE, env=environment, stderr=asyncio.subprocess.PIPE
        )
        _, said = await asyncio.wait_for(process.communicate(), BUILD_TIMEOUT_S)
        if process.returncode != 0:
            raise GoError(f"the Go client could not be built: {said.decode(errors='replace')}")
    return program


async def play_with_go(program: Path, scenarios: Sequence[Scenario], target: str, run: str) -> list[Played]:
    """What each scenario brought. Raises GoError."""
    plan = {
        "target": target,
        "scenarios": [
            {"name": str(at), "steps": [_step(step, run) for step in each.sent(run)]}
            for at, each in enumerate(scenarios)
        ],
    }
    process = await asyncio.create_subprocess_exec(
        str(program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, said = await asyncio.wait_for(process.communicate(json.dumps(plan).encode()), PLAN_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise GoError(f"the Go client ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}")
    seen = json.loads(output)
    return [
        Played(calls={call: _transcript(each) for call, each in seen[str(at)].items()}) for at in range(len(scenarios))
    ]


def _step(step: Step, run: str) -> dict[str, Any]:
    def told(metadata: Metadata) -> list[list[str]]:
        return [[key, value.replace(RUN, run)] for key, value in metadata]

    def body(raw: bytes) -> str:
        return base64.b64encode(raw.replace(RUN.encode(), run.encode())).decode()

    match step:
        case Ask():
            common = {"metadata": told(step.metadata), "timeout_s": step.timeout_s, "compression": step.compression}
            return {"do": "ask", "method": step.method, "body": body(step.body), "call": step.call, **common}
        case Open():
            common = {"metadata": told(step.metadata), "timeout_s": step.timeout_s, "compression": step.compression}
            return {"do": "open", "call": step.call, "channel": step.channel, **common}
        case Send():
            return {"do": "send", "call": step.call, "body": body(step.body)}
        case Await():
            return {"do": "await", "call": step.call, "responses": step.responses}
        case Close():
            return {"do": "close", "call": step.call}
        case Cancel():
            return {"do": "cancel", "call": step.call}
        case _:
            raise TypeError(f"the Go client does not play {step}")


def _transcript(found: dict[str, Any]) -> Transcript:
    return Transcript(
        method=found["method"],
        messages=[base64.b64decode(each or "") for each in found["messages"] or ()],
        status=found["status"],
        details=found["details"],
        initial=[(key, value) for key, value in found["initial"] or ()],
        trailing=[(key, value) for key, value in found["trailing"] or ()],
        awaited=found["awaited"],
    )
