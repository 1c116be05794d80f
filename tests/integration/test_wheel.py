"""The wheel, built from what the image's builder copies and installed where no checkout is, is a whole product."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from dev.broker import free_ports
from sidecar import __version__
from sidecar.cli.init import FILES
from tests.test_image import copied

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).parent / "uv"
TIMEOUT_S = 180.0  # for one command; the slowest installs seventy packages, which a cold cache has to fetch
DATA = {
    *("__init__.py", "page.html", "page.css", "page.js", "sidecar.example.yaml", "topics.yaml", "compose.yml"),
    *("item.schema.json", "progress.schema.json", "result.schema.json"),
}
IMPORT_ALL = """
import importlib, pkgutil, sys, sidecar
for each in pkgutil.walk_packages(sidecar.__path__, "sidecar."):
    if each.name != "sidecar.__main__":
        importlib.import_module(each.name)
print(sidecar.__file__, *sorted({"dev", "engine", "tests"} & sys.modules.keys()))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An environment that holds the wheel and what it asks for, and a directory far from the checkout."""

    wheel: Path
    environment: Path
    elsewhere: Path

    def command(self, *arguments: str) -> tuple[str, ...]:
        """Return the command line of the installed program."""
        return (str(self.environment / "bin" / "sidecar"), *arguments)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the installed program to its end."""
        return run(*self.command(*arguments), directory=self.elsewhere)


def clean_environment() -> dict[str, str]:
    """Return the environment without anything that shows a checkout to Python, or settings to the sidecar."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SIDECAR", "VIRTUAL"))}


def run(*command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory. Fails the test if it takes longer than TIMEOUT_S."""
    return subprocess.run(
        command,
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def done(*command: str | Path, directory: Path) -> None:
    """Run a command that must succeed."""
    found = run(*map(str, command), directory=directory)
    assert found.returncode == 0, found.stderr


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Build the wheel, and install it with the pinned versions of what it asks for."""
    source, dist, environment, elsewhere = (
        tmp_path_factory.mktemp(name) for name in ("source", "dist", "environment", "elsewhere")
    )
    for name in copied():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    done(UV, "build", "-q", "--wheel", "--out-dir", dist, source, directory=source)
    (wheel,) = dist.glob("*.whl")
    done(UV, "venv", "-q", "--clear", "--python", sys.executable, environment, directory=elsewhere)
    pins = source / "constraints.txt"
    python = environment / "bin" / "python"
    done(UV, "pip", "install", "-q", "--python", python, "-c", pins, wheel, directory=elsewhere)
    done(UV, "pip", "check", "-q", "--python", python, directory=elsewhere)
    shutil.rmtree(source)
    return Installation(wheel=wheel, environment=environment, elsewhere=elsewhere)


def test_the_wheel_holds_the_sidecar_alone_and_all_that_an_installation_needs(installation: Installation) -> None:
    names = zipfile.ZipFile(installation.wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"sidecar", f"backfill_sidecar-{__version__}.dist-info"}
    assert {name.removeprefix("sidecar/data/") for name in names if name.startswith("sidecar/data/")} == DATA
    beside = {name for name in names if name.startswith("sidecar/") and not name.endswith(".py")}
    profiles = {str(path.relative_to(ROOT)) for path in (ROOT / "sidecar/inflight/profiles").glob("*.json")}
    assert len(profiles) >= 5
    assert beside == {"sidecar/py.typed", *(f"sidecar/data/{name}" for name in DATA - {"__init__.py"}), *profiles}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sidecar").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_every_module_can_be_imported_where_only_the_wheel_is_installed(installation: Installation) -> None:
    python = str(installation.environment / "bin" / "python")
    found = run(python, "-c", IMPORT_ALL, directory=installation.elsewhere)
    assert found.returncode == 0, found.stderr
    (package,) = found.stdout.split()
    assert Path(package).is_relative_to(installation.environment)


def test_the_commands_run_and_simulate_needs_nothing_else(installation: Installation) -> None:
    shown = installation.run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in ("init", "serve", "topics", "simulate"):
        assert f"\n    {command} " in shown.stdout
    simulated = installation.run(*"simulate --hours 0.01 --seeds 1 --policies online-only".split())
    assert simulated.returncode == 0, simulated.stderr
    assert simulated.stdout.startswith("origin\npolicy ")


async def test_a_starting_set_serves_without_engine_and_kafka_and_ends_on_sigterm(installation: Installation) -> None:
    directory = installation.elsewhere / "set"
    assert installation.run("init", str(directory)).returncode == 0
    assert {path.name for path in directory.iterdir()} == FILES.keys()
    told = installation.run("serve", "--config", str(directory / "sidecar.yaml"))
    assert (told.returncode, told.stderr) == (2, "sidecar: tokenizer: no such file: tokenizer.json\n")

    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(ROOT / "model_repository/tokenizer" / name, directory)
    listen, http = free_ports(2)
    process = await asyncio.create_subprocess_exec(
        *installation.command("serve", "--config", "sidecar.yaml"),
        cwd=directory,
        env=clean_environment()
        | {
            "SIDECAR__LISTEN": f"127.0.0.1:{listen}",
            "SIDECAR__HTTP": f"127.0.0.1:{http}",
            "SIDECAR__ENGINES__0__TARGET": "127.0.0.1:1",
            "SIDECAR__ENGINES__0__METRICS_URL": "http://127.0.0.1:1/metrics",
            "SIDECAR__OFFLINE__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(TIMEOUT_S), aiohttp.ClientSession(f"http://127.0.0.1:{http}") as client:
            first = (await process.stderr.readline()).decode()
            assert f"serving on 127.0.0.1:{listen}" in first
            for path, status in (("/healthz", 200), ("/readyz", 503), ("/", 200)):  # no engine answers
                async with client.get(path) as found:
                    assert (path, found.status) == (path, status)
            process.send_signal(signal.SIGTERM)
            log = (await process.stderr.read()).decode()
            assert (await process.wait(), "Traceback" in log) == (0, False), log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
