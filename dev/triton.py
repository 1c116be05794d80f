"""A real tritonserver on this machine: started, probed with real requests, restarted when it dies, cleaned away.

The server is the one in `.venv-server` (the nvidia-pytriton wheel carries it). Facts this file rests on, all measured
with Triton 2.51: the Python backend finds its stub only in a backends directory of our own; the stub takes its
environment from the first `python3` on PATH; both ready URLs stay 200 when a stub has died; SIGTERM takes 2 to 3 s and
may hang, so the server is killed; after a kill the stubs live on and their shared memory stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sysconfig
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dev.broker import free_ports as free_ports
from sidecar.call import Metadata
from sidecar.cli.model_config import with_batch_size, with_parameters
from sidecar.core.errors import SidecarError
from sidecar.errors import EngineError, StreamBrokenError
from sidecar.triton.client import EngineClient

ROOT = Path(__file__).resolve().parent.parent
ENGINE_MODEL = "tensorrt_llm"
MODELS = ("toy", "smollm2")
# 8,192 tokens of the chat model's KV take 380 MB in float32, and each slot has a buffer of its own.
CHAT_PARAMETERS = {"preset": "smollm2", "max_tokens_in_paged_kv_cache": "8192"}
ABSOLUTE_TOKENIZER = re.compile(r'"tokenizer_dir" value: \{ string_value: "/')
START_TIMEOUT_S = 60.0  # 1.4 s when idle; sixty leaves room for a machine busy with other things
PROBE_PERIOD_S = 1.0
PROBE_TIMEOUT_S = 5.0
PROBE_FAILURES_MAX = 3  # in a row: one slow answer of a busy machine is no death


class TritonError(SidecarError):
    """The server could not be started; the message names its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonSettings:
    """How the local server is run. `parameters` are those of the engine model's config.pbtxt."""

    model: str = "toy"  # one of MODELS
    slots: int = 8  # max_batch_size of the engine: what one iteration takes at most
    parameters: Mapping[str, str] = field(default_factory=dict)
    server_environment: Path = ROOT / ".venv-server"
    start_timeout_s: float = START_TIMEOUT_S
    repository: Path = ROOT / "model_repository"
    trace_url: str | None = None  # OTLP over HTTP, as JSON
    restricted: tuple[str, ...] = ()  # PROTOCOL,…:KEY=VALUE each: Triton serves these to who sends the key
    flags: tuple[str, ...] = ()  # further ones of tritonserver

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise TritonError(f"unknown model {self.model!r}; known: {', '.join(MODELS)}")

    @property
    def tokenizer_dir(self) -> Path:
        """The model directory: tokenizer.json, and what else the model brings."""
        return self.repository / "tokenizer" if self.model == "toy" else ROOT / ".cache" / self.model

    @property
    def engine_parameters(self) -> dict[str, str]:
        """The parameters of the engine model's config.pbtxt."""
        return {**({} if self.model == "toy" else CHAT_PARAMETERS), **self.parameters}


class Triton:
    """One supervised server. Its ports are chosen once and stay the same across restarts."""

    def __init__(self, directory: Path, settings: TritonSettings) -> None:
        self.directory = directory
        self.settings = settings
        self.log = directory / "triton.log"
        self.restarts = 0
        grpc_port, http_port, metrics_port = free_ports(3)
        self.target = f"127.0.0.1:{grpc_port}"
        self.http_url = f"http://127.0.0.1:{http_port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        self._shared_memory_prefix = f"sidecar_{os.getpid()}_{grpc_port}_"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Raises TritonError when it is not running."""
        if self._process is None:
            raise TritonError("tritonserver is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True while its process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def keys(self) -> Metadata:
        """The metadata that opens the restricted protocols."""
        pairs = [each.rpartition(":")[2].partition("=") for each in self.settings.restricted]
        return tuple((f"triton-grpc-protocol-{name}", value) for name, _, value in pairs)

    @property
    def tokenizer(self) -> Path:
        """The file that preprocessing loads; the sidecar must load the same one."""
        return self.settings.tokenizer_dir / "tokenizer.json"

    async def start(self) -> None:
        """A real generation has succeeded. Raises TritonError, naming the log, if none did in time."""
        lay_out(self.directory, self.settings)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,  # its group holds the stubs, so that they can be ended with it
            )
        try:
            async with asyncio.timeout(self.settings.start_timeout_s):
                await self._generates()
        except (TimeoutError, TritonError) as error:
            await self.stop()
            raise TritonError(f"tritonserver did not become ready ({error}); its log is {self.log}") from None

    async def stop(self) -> None:
        """Neither the server nor a stub of it is left, nor its shared memory."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        remove_shared_memory(self._shared_memory_prefix)
        await process.wait()

    async def supervise(self) -> None:
        """Run until cancelled: whenever the server dies, or real requests fail, it is stopped and started again."""
        while True:
            await self._fails()
            await self.stop()
            self.restarts += 1
            await self.start()

    async def _fails(self) -> None:
        """Return once the process has ended or several probes in a row have failed."""
        failures = 0
        async with EngineClient(self.target, self.keys) as client:
            while failures < PROBE_FAILURES_MAX and self._process is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_PERIOD_S):
                        await self._process.wait()
                        return
                try:  # stopping an id that nobody has takes no slot, yet goes through the stub
                    await client.stop(ENGINE_MODEL, "probe", PROBE_TIMEOUT_S)
                    failures = 0
                except (EngineError, StreamBrokenError):
                    failures += 1

    async def _generates(self) -> None:
        """Return once a generation gives back several prompt ids unchanged and new ones after them.

        With numpy 2 in the stub every array arrives as zeros, silently: hence the comparison.
        """
        prompt = (11, 12, 13, 14, 15)  # ids that every tokenizer has
        async with EngineClient(self.target, self.keys) as client:
            while True:
                if self._process is None or self._process.returncode is not None:
                    raise TritonError(f"it ended with code {self._process and self._process.returncode}")
                with contextlib.suppress(EngineError, StreamBrokenError):
                    ids = await client.generate(ENGINE_MODEL, prompt, 2, PROBE_TIMEOUT_S)
                    if ids[: len(prompt)] != prompt or len(ids) <= len(prompt):
                        raise TritonError(f"asked with ids {prompt}, it answered {ids}")
                    return
                await asyncio.sleep(0.1)

    def _command(self) -> list[str]:
        server = _pytriton(self.settings.server_environment) / "tritonserver"
        grpc_host, grpc_port = self.target.rsplit(":", 1)
        flags = {
            "backend-directory": str(self.directory / "backends"),
            "model-repository": str(self.directory / "models"),
            "grpc-address": grpc_host,
            "grpc-port": grpc_port,
            "http-address": grpc_host,
            "http-port": self.http_url.rsplit(":", 1)[1],
            "metrics-address": grpc_host,
            "metrics-port": self.metrics_url.removesuffix("/metrics").rsplit(":", 1)[1],
            "allow-gpu-metrics": "false",
            "backend-config": f"python,shm-region-prefix-name={self._shared_memory_prefix}",
        }
        command = [str(server / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in flags.items())]
        command += [f"--grpc-restricted-protocol={each}" for each in self.settings.restricted]
        if self.settings.trace_url is not None:
            command += [
                f"--trace-config={each}"
                for each in ("mode=opentelemetry", f"opentelemetry,url={self.settings.trace_url}", "rate=0",
                             "level=TIMESTAMPS", "count=-1")
            ]  # fmt: skip
        return [*command, *self.settings.flags]

    def _environment(self) -> dict[str, str]:
        libraries = [sysconfig.get_config_var("LIBDIR") or "", os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            **os.environ,
            "PATH": f"{self.settings.server_environment / 'bin'}:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": ":".join(each for each in libraries if each),
            "OPENBLAS_NUM_THREADS": "1",  # two threads are slower at these sizes
        }


@contextlib.asynccontextmanager
async def running(directory: Path, settings: TritonSettings) -> AsyncIterator[Triton]:
    """A ready server that is supervised inside the block and gone after it."""
    triton = Triton(directory, settings)
    try:
        await triton.start()
        async with asyncio.TaskGroup() as tasks:
            supervisor = tasks.create_task(triton.supervise(), name="supervise triton")
            try:
                yield triton
            finally:
                supervisor.cancel()
    finally:
        await triton.stop()


def lay_out(directory: Path, settings: TritonSettings) -> None:
    """`directory` holds a backends directory of symlinks and a model repository with our parameters set.

    A model whose configuration names an absolute tokenizer_dir keeps it.
    """
    for name in ("backends", "models"):
        shutil.rmtree(directory / name, ignore_errors=True)
    backend = directory / "backends" / "python"
    backend.mkdir(parents=True)
    pytriton = _pytriton(settings.server_environment)
    server, python = pytriton / "tritonserver", pytriton.parent.parent.name.removeprefix("python")
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    for source in (
        *(server / "backends" / "python").glob("*.so"),
        *(server / "backends" / "python").glob("*.py"),
        stub,
    ):
        (backend / source.name).symlink_to(source)
    for part in ("text", "engine_python"):
        shutil.copytree(settings.repository / part, directory / "models", dirs_exist_ok=True)
    common = {"tokenizer_dir": str(settings.tokenizer_dir)}
    for config in (directory / "models").glob("*/config.pbtxt"):
        (config.parent / "1").mkdir(exist_ok=True)  # an ensemble has no files, but Triton wants its version
        text = config.read_text()
        if config.parent.name == ENGINE_MODEL:
            text = with_parameters(with_batch_size(text, settings.slots), {**common, **settings.engine_parameters})
        elif not (config.parent.name.startswith("ensemble") or ABSOLUTE_TOKENIZER.search(text)):
            text = with_parameters(text, common)  # an ensemble has no tokenizer
        config.write_text(text)


def remove_shared_memory(prefix: str) -> None:
    """No region of ours is left in /dev/shm; a killed server leaves some behind."""
    for left in Path("/dev/shm").glob(f"{prefix}*"):
        left.unlink(missing_ok=True)


def _pytriton(environment: Path) -> Path:
    for found in environment.glob("lib/python3*/site-packages/pytriton"):
        return found
    raise TritonError(f"no tritonserver in {environment}; run scripts/setup")
