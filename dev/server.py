"""`sidecar serve` as a child process: started with a settings file, watched over HTTP, drained with SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from sidecar.core.errors import SidecarError

START_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 60.0
POLL_S = 0.1


class ServerError(SidecarError):
    """The sidecar did not start or did not end as it should; the message names its log."""


class SidecarProcess:
    """One running sidecar. `listen` is for callers, `http` for operators (both host:port)."""

    def __init__(self, process: asyncio.subprocess.Process, settings: Mapping[str, Any], log: Path) -> None:
        self._process = process
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5))
        self.listen = str(settings["listen"])
        self.http = str(settings["http"])
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @classmethod
    async def start(
        cls, directory: Path, settings: Mapping[str, Any], command: Sequence[str] = ("sidecar", "serve")
    ) -> SidecarProcess:
        """A sidecar that is ready for callers; `command` is the module that serves, and its arguments.

        Raises ServerError if it ends or is not ready in time.
        """
        config, log = directory / "sidecar.yaml", directory / "sidecar.log"
        config.write_text(yaml.safe_dump({"log_format": "text", **settings}, sort_keys=False))
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command, "--config", str(config)),
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is ours to pass on, in order
            )
        server = cls(process, settings, log)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await server._until_ready()
        except BaseException as error:
            await server.kill()
            if isinstance(error, TimeoutError):
                raise ServerError(f"the sidecar was not ready within {START_TIMEOUT_S:.0f} s: see {log}") from None
            raise
        return server

    async def _until_ready(self) -> None:
        while True:
            self.check_alive()
            with contextlib.suppress(aiohttp.ClientError):
                async with self._session.get(f"http://{self.http}/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(POLL_S)

    def check_alive(self) -> None:
        """Raise ServerError, with the last line of its log, if the process has ended."""
        if self._process.returncode is not None:
            raise ServerError(f"the sidecar ended with {self._process.returncode}: {_last_line(self.log)}")

    async def status(self) -> dict[str, Any]:
        """The status document, as the status page shows it."""
        async with self._session.get(f"http://{self.http}/status.json") as answer:
            answer.raise_for_status()
            document: dict[str, Any] = await answer.json()
            return document

    def signal(self, number: signal.Signals) -> None:
        """The process gets this signal."""
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        return await self._process.wait()

    async def drain(self) -> None:
        """SIGTERM: intake stops, what is in flight ends, results are committed. Raises ServerError if unclean."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = await asyncio.wait_for(self._process.wait(), DRAIN_TIMEOUT_S)
        except TimeoutError:
            raise ServerError(f"the sidecar did not drain within {DRAIN_TIMEOUT_S:.0f} s: see {self.log}") from None
        if code != 0:
            raise ServerError(f"the sidecar ended with {code}: {_last_line(self.log)}")

    async def kill(self) -> None:
        """It is gone, whatever it was doing."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self._session.close()


@contextlib.asynccontextmanager
async def serving(
    directory: Path, settings: Mapping[str, Any], command: Sequence[str] = ("sidecar", "serve")
) -> AsyncIterator[SidecarProcess]:
    """A sidecar for the time of the block; drained by the caller, or killed when the block ends early."""
    server = await SidecarProcess.start(directory, settings, command)
    try:
        yield server
    finally:
        await server.kill()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1]} (all of it: {log})" if lines else f"see {log}"
