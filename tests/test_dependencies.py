"""What an installation brings: ranges for those who install the wheel, one exact version each for this checkout."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sidecar import __version__

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file: str) -> dict[str, str]:
    """The version of each package that `file` pins."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    found = [Requirement(line) for line in lines]
    for each in found:
        assert each.url is None, f"{file} names a place: {each}"
        assert [part.operator for part in each.specifier] == ["=="], f"{file} must pin one version: {each}"
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in found}


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_a_dependency_of_the_wheel_is_a_range_with_both_ends_that_holds_the_pinned_version(text: str) -> None:
    wanted = Requirement(text)
    assert {part.operator for part in wanted.specifier} == {">=", "<"}
    assert wanted.specifier.contains(pins("constraints.txt")[canonicalize_name(wanted.name)])


def test_every_tool_of_the_workshop_is_pinned() -> None:
    tools = {canonicalize_name(Requirement(text).name) for text in PROJECT["optional-dependencies"]["dev"]}
    assert tools <= pins("constraints.txt").keys()


def unmet(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """What `requirement`, and whatever it asks for in turn, contradicts: the pins, or what is installed by them."""
    name = canonicalize_name(requirement.name)
    key = f"{name}[{','.join(sorted(requirement.extras))}]"
    pinned = pins("constraints.txt").get(name)
    if pinned is not None and not requirement.specifier.contains(pinned, prereleases=True):
        yield f"{requirement}, but constraints.txt pins {pinned}"
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return  # not in this environment: the pins are all that can be compared
    if not requirement.specifier.contains(installed.version, prereleases=True):
        yield f"{requirement}, but {installed.version} is installed"
    if key in seen:
        return
    seen.add(key)
    for each in map(Requirement, installed.requires or ()):
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}):
            yield from (f"{name} wants {fault}" for fault in unmet(each, seen))


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
def test_an_extra_can_be_installed_beside_what_the_wheel_needs(extra: str) -> None:
    asked = [Requirement(each) for each in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra])]
    assert [fault for each in asked for fault in unmet(each, set())] == []


def test_a_contradiction_between_requirements_is_found() -> None:
    assert list(unmet(Requirement("numpy<2"), set()))
    assert list(unmet(Requirement("tritonclient[grpc]<2"), set()))
    assert list(unmet(Requirement("numpy>=2"), set())) == []


def test_nobody_is_asked_to_install_the_library_that_only_its_container_holds() -> None:
    asked = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    for file in (ROOT / "model_repository").glob("requirements*.txt"):
        asked += [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert "tensorrt-llm" not in {canonicalize_name(Requirement(text).name) for text in asked}


def test_the_server_counts_tokens_with_the_version_that_the_sidecar_counts_with() -> None:
    assert pins("model_repository/requirements.txt")["tokenizers"] == pins("constraints.txt")["tokenizers"]


def test_the_changelog_begins_with_this_version() -> None:
    first = next(line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## "))
    assert first == f"## {__version__}"
    assert PROJECT["dynamic"] == ["version"], "it is stated in sidecar/__init__.py alone"
