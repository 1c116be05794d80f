"""Prometheus, collector and Jaeger as child processes: those that can be had, and why the others cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from dev.observe import configurations
from dev.observe.configurations import Ports, Targets
from dev.observe.programs import MissingProgramError, find
from sidecar.core.errors import SidecarError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.1


class PipelineError(SidecarError):
    """A program that was there did not start; the message names its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What runs. An empty address: that program could not be had, and `missing` says why."""

    directory: Path
    prometheus: str  # http://…
    otlp_grpc: str  # where spans go
    otlp_http: str
    jaeger: str
    missing: tuple[str, ...]

    @property
    def traces(self) -> Path:
        """The file with the kept traces: one document of OTLP JSON per line."""
        return self.directory / "traces.jsonl"

    def scrape(self, **jobs: list[str]) -> None:
        """From now on Prometheus scrapes these, and the span metrics."""
        known = yaml.safe_load((self.directory / "own.json").read_text())
        Targets(jobs=known | jobs).write(self.directory / "targets.yml")

    def addresses(self) -> str:
        """Where everything is, for people."""
        lines = [
            ("Prometheus, with the rules and alerts", self.prometheus),
            ("collector (OTLP over gRPC)", self.otlp_grpc),
            ("collector (OTLP over HTTP)", self.otlp_http),
            ("Jaeger's API, e.g. /api/traces?service=sidecar", self.jaeger),
            ("kept traces", str(self.traces) if self.otlp_grpc else ""),
        ]
        return "\n".join(f"  {what:<48} {where}" for what, where in lines if where)


@contextlib.asynccontextmanager
async def observed(directory: Path, *, build: bool = True) -> AsyncIterator[Pipeline]:
    """What can be had of the pipeline runs, and is ready; all of it is gone after the block.

    With `build` a program that Go makes is made first: some minutes, once.
    """
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    ports = Ports.free()
    programs, missing = await asyncio.to_thread(_programs, build)
    async with contextlib.AsyncExitStack() as stack:
        for name, program in programs.items():
            command, ready = _start(name, program, ports, directory)
            await stack.enter_async_context(_running(name, command, ready, directory))
        collector = "collector" in programs
        (directory / "own.json").write_text(
            yaml.safe_dump({"collector": [f"127.0.0.1:{ports.span_metrics}"]} if collector else {})
        )
        yield Pipeline(
            directory=directory,
            prometheus=f"http://127.0.0.1:{ports.prometheus}" if "prometheus" in programs else "",
            otlp_grpc=f"http://127.0.0.1:{ports.otlp_grpc}" if collector else "",
            otlp_http=f"http://127.0.0.1:{ports.otlp_http}/v1/traces" if collector else "",
            jaeger=f"http://127.0.0.1:{ports.jaeger_http}" if "jaeger" in programs else "",
            missing=missing,
        )


def _programs(build: bool) -> tuple[dict[str, Path], tuple[str, ...]]:
    found, missing = dict[str, Path](), []
    for name in ("prometheus", "jaeger", "collector"):  # the collector sends to Jaeger
        try:
            found[name] = find(name, build=build)
        except MissingProgramError as error:
            missing.append(str(error))
    return found, tuple(missing)


def _start(name: str, program: Path, ports: Ports, directory: Path) -> tuple[Sequence[str], str]:
    """Write the program's configuration; return its command, and the address that answers once it is ready."""

    def write(document: Mapping[str, Any]) -> str:
        file = directory / f"{name}.yaml"
        file.write_text(yaml.safe_dump(dict(document)))
        return str(file)

    if name == "prometheus":
        Targets().write(directory / "targets.yml")
        config = write(configurations.prometheus(directory / "targets.yml"))
        address = f"127.0.0.1:{ports.prometheus}"
        flags = ["--enable-feature=exemplar-storage", f"--storage.tsdb.path={directory / 'series'}", "--log.level=warn"]
        return [
            str(program),
            f"--config.file={config}",
            f"--web.listen-address={address}",
            *flags,
        ], f"{address}/-/ready"
    if name == "collector":
        config = write(configurations.collector(ports, directory / "traces.jsonl"))
        return [str(program), "--config", config], f"127.0.0.1:{ports.span_metrics}/metrics"
    config = write(configurations.jaeger(ports))
    return [str(program), "--config", config], f"127.0.0.1:{ports.jaeger_http}/api/services"


@contextlib.asynccontextmanager
async def _running(name: str, command: Sequence[str], ready: str, directory: Path) -> AsyncIterator[None]:
    log = directory / f"{name}.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=output,
            stderr=output,
            env={**os.environ, "OTEL_TRACES_SAMPLER": "always_off"},  # Jaeger would trace itself
            start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, in order
        )
    try:
        await _until_ready(name, process, f"http://{ready}", log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _until_ready(name: str, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S), aiohttp.ClientSession() as session:
            while process.returncode is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise PipelineError(f"{name} was not ready within {START_TIMEOUT_S:.0f} s: see {log}") from None
    raise PipelineError(f"{name} ended with {process.returncode}: see {log}")
