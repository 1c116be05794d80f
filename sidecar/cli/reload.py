"""`sidecar reload`: a running sidecar reads its settings and keys again, if they have no mistake."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidecar.core.errors import SettingsError, SidecarError
from sidecar.keys import load_keys
from sidecar.settings.file import load_settings

PROCESSES = Path("/proc")


class ReloadError(SidecarError):
    """No sidecar, or more than one, could be meant."""


def register_reload(subparsers: Any) -> None:
    """Add `reload`."""
    parser = subparsers.add_parser(
        "reload",
        help="let a running sidecar read its settings and keys again",
        description="Check the settings and the file of keys, and send SIGHUP to the sidecar that serves with them. Its"
        " log says what has changed, and what only a restart changes. Exit code 2: a mistake, and nothing was sent.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, as YAML")
    parser.add_argument("--pid", type=int, metavar="N", help="the process; else the one that serves with this file")
    parser.set_defaults(run=_reload)


def _reload(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = load_settings(options.config, environment)
    if settings.keys is not None:
        load_keys(settings.keys.file)
    pid = _the_one(options.config, options.pid)
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise ReloadError(f"process {pid}: {error.strerror}") from None
    print(f"process {pid} reads {options.config} again; its log says what has changed")
    return 0


def _the_one(config: Path, pid: int | None) -> int:
    """The process that serves: any other one would be ended by the signal."""
    found = list(serving(config))
    if pid is not None:
        if pid not in (each for each, _ in found):
            raise SettingsError(f"--pid {pid} is no `sidecar serve`")
        return pid
    same = [each for each, with_it in found if with_it]
    if len(same) != 1:
        which = f": {', '.join(map(str, same))}; say --pid" if same else ""
        raise ReloadError(f"{len(same) or 'no'} sidecars serve with {config}{which}")
    return same[0]


def serving(config: Path) -> Iterator[tuple[int, bool]]:
    """Each `sidecar serve` of this host that can be seen: its process id, and whether it has this file."""
    for each in PROCESSES.iterdir() if PROCESSES.is_dir() else ():
        if not each.name.isdigit() or int(each.name) == os.getpid():
            continue
        try:
            words = (each / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (each / "cwd").readlink()
        except OSError:  # it has ended, or is somebody else's
            continue
        if "serve" in words and any(Path(word).name in ("sidecar", "__main__.py") for word in words):
            files = (word.removeprefix("--config=") for word in words)
            yield int(each.name), any((here / file).resolve() == config.resolve() for file in files if file)
