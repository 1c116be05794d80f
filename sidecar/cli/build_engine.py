"""`sidecar build-engine`: from a Hugging Face checkpoint to an engine, a repository to serve it, and a manifest.

An engine loads only in the release of TensorRT-LLM that built it, and on the kind of GPU that it was built on: the
manifest says which those were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sidecar.cli.engine_build import (
    GPUS,
    IMAGE,
    CheckpointShape,
    Command,
    as_script,
    build_commands,
    checkpoint_shape,
    in_docker,
    memory_plan,
    refusals,
)
from sidecar.cli.fill import EXAMPLE, ServingPlace, sidecar_settings, write_repository
from sidecar.cli.serving_profile import ServingProfile, load_profile
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.plan.capacity import GIB

QUERY = ("nvidia-smi", "--query-gpu=compute_cap,memory.total,name", "--format=csv,noheader,nounits")


class BuildError(SidecarError):
    """A step of the build failed, or this machine cannot do it."""


def register_build_engine(subparsers: Any) -> None:
    """Add `build-engine`."""
    parser = subparsers.add_parser(
        "build-engine",
        help="build the TensorRT-LLM engine of a serving profile",
        description="Convert or quantise a checkpoint, build the engine, fill the repository that serves it, and write"
        " manifest.json; all below --out. What the GPUs cannot do, or what would not serve, is refused with the"
        " arithmetic before anything runs.",
    )
    add = parser.add_argument
    add("profile", metavar="PROFILE", help="a name of model_repository/profiles, or a file")
    add("--model", type=Path, required=True, metavar="DIR", help="the Hugging Face checkpoint")
    add("--out", type=Path, required=True, metavar="DIR", help="gets ckpt/, engine/, serving/ and manifest.json")
    add("--calibration", type=Path, metavar="DIR", help="a data set for int4_awq and int8_sq (fetched without it)")
    add("--project", type=Path, default=Path(), metavar="DIR", help="holds model_repository/ and engine/ (here)")
    add("--image", default=IMAGE, metavar="NAME", help="what builds, and later serves (%(default)s)")
    add("--inside", action="store_true", help="the commands run in the image already, without docker")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--dry-run", action="store_true", help="print the commands as a script, and run nothing")
    steps.add_argument("--finish", action="store_true", help="the engine is there: fill, and write the manifest")
    parser.set_defaults(run=_build_engine)


def _build_engine(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    del environment
    profile, shape = load_profile(options.profile, options.project), checkpoint_shape(options.model)
    if found := list(refusals(profile, shape)):
        raise SettingsError("\n".join(f"{options.profile}: {each}" for each in found))
    commands = _commands(options, profile, shape)
    if options.dry_run:
        print(as_script(options.profile, memory_plan(profile, shape), commands), end="")
        return 0
    if not options.finish:
        _check_gpus(profile)
        options.out.mkdir(parents=True, exist_ok=True)
        _check_disk(options.out, shape.size.weight_bytes(memory_plan(profile, shape).weights) / GIB)
        for command in commands:
            _run(command)
    _finish(options, profile, commands)
    return 0


def _commands(options: argparse.Namespace, profile: ServingProfile, shape: CheckpointShape) -> list[Command]:
    """Return the commands as this machine runs them."""
    if options.inside:
        calibration = str(options.calibration) if options.calibration else None
        return build_commands(profile, shape, model=str(options.model), out=str(options.out), calibration=calibration)
    mounts = {str(options.model.absolute()): "/model:ro", str(options.out.absolute()): "/out"}
    if options.calibration:
        mounts[str(options.calibration.absolute())] = "/calib:ro"
    calibration = "/calib" if options.calibration else None
    commands = build_commands(profile, shape, model="/model", out="/out", calibration=calibration)
    return [in_docker(command, options.image, mounts) for command in commands]


def _check_gpus(profile: ServingProfile) -> None:
    """Raise BuildError unless this machine has the GPUs of the profile: an engine fits no other kind."""
    try:
        shown = subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"nvidia-smi says nothing of a GPU here ({error}); --dry-run prints the commands") from None
    kind = GPUS[profile.gpu]
    fitting = 0
    for line in shown:
        capability, mebibytes, *_ = (each.strip() for each in line.split(","))
        fits = capability == f"{kind.sm // 10}.{kind.sm % 10}" and mebibytes.isdecimal()
        fitting += fits and int(mebibytes) / 1024 >= kind.usable_gib
    if fitting < profile.tensor_parallel_size:
        raise BuildError(
            f"the profile needs {profile.tensor_parallel_size} GPUs of SM {kind.sm} with {kind.usable_gib} GiB"
            f" ({profile.gpu}); this machine has {fitting}: {'; '.join(shown) or 'none'}"
        )


def _check_disk(out: Path, weights_gib: float) -> None:
    """Raise BuildError unless there is room for the weights twice: as a checkpoint for the GPUs, and in the engine."""
    free_gib = shutil.disk_usage(out).free / GIB
    if free_gib < 2 * weights_gib:
        raise BuildError(f"{out} has {free_gib:.0f} GiB free; checkpoint and engine take {2 * weights_gib:.0f} GiB")


def _run(command: Command) -> None:
    print("build-engine:", " ".join(command), file=sys.stderr)
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode:
        raise BuildError(f"{command[0]} ended with code {done.returncode}; nothing after it was done")


def _finish(options: argparse.Namespace, profile: ServingProfile, commands: list[Command]) -> None:
    """Write what serves the engine, and the manifest."""
    built = options.out / "engine" / "config.json"
    try:
        engine: Mapping[str, Any] = json.loads(built.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildError(f"no engine was built: {built}: {error}") from None
    name, place, serving = Path(options.profile).stem, ServingPlace(), options.out / "serving"
    write_repository(profile, place, options.project, serving)
    settings = sidecar_settings(name, profile, place, EXAMPLE, profile.triton)
    (serving / "sidecar.yaml").write_text(settings, encoding="utf-8")
    document = {
        "profile": {"name": name, **asdict(profile)},
        "image": options.image,
        "image_digest": None if options.inside else _digest(options.image),
        "tensorrt_llm": engine.get("version"),
        "model_config_sha256": hashlib.sha256((options.model / "config.json").read_bytes()).hexdigest(),
        "commands": [list(command) for command in commands],
        "build_config": engine.get("build_config"),
    }
    (options.out / "manifest.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {options.out}: engine, serving, manifest.json")


def _digest(image: str) -> str | None:
    """Return what the registry knows the image by, for ever; None if docker does not say."""
    command = ("docker", "image", "inspect", "--format", "{{index .RepoDigests 0}}", image)
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return found or None
