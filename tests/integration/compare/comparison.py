"""Where two runs of a scenario differ, and which part of the answer that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.integration.compare.player import HUNG
from tests.integration.compare.programs import ENDED_BY, IT_HUNG
from tests.integration.compare.scenario import Part, Scenario

_MISSING = "nothing"
# The last known word on the path to a difference says which part of the answer it is in.
_PARTS = {
    "status": Part.STATUS,
    "details": Part.TEXT,
    "error_message": Part.TEXT,
    "initial": Part.INITIAL,
    "trailing": Part.TRAILING,
    "responses": Part.RESPONSES,
    "id": Part.ID,
    "model": Part.MODEL,
    "version": Part.MODEL,
    "parameters": Part.FLAGS,
    "outputs": Part.TENSORS,
    "raw contents": Part.TENSORS,
    "answer": Part.ANSWER,
    "content": Part.TENSORS,
    "seen": Part.SEEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One place in which the runs differ."""

    part: Part
    path: str
    direct: Any
    through: Any

    def __str__(self) -> str:
        return f"[{self.part}] {self.path}: {_short(self.direct)} directly, {_short(self.through)} through the sidecar"


def differences(scenario: Scenario, direct: dict[str, Any], through: dict[str, Any]) -> list[Found]:
    """Each place in which they differ, or in which something broke, but for parts that the scenario ignores."""
    found = [*_differences(direct, through, ()), *_broken(direct, through)]
    return [each for each in found if each.part not in scenario.ignored]


def wrong(scenario: Scenario, found: list[Found]) -> list[str]:
    """What contradicts the verdict: differences in parts that must be the same, and allowed ones that are gone."""
    unlisted = [str(each) for each in found if each.part not in scenario.expected]
    parts = {each.part for each in found}
    gone = [
        f"{each.name}: listed, but the {part} is the same now"
        for each in scenario.differs
        for part in each.parts
        if part not in parts
    ]
    return unlisted + gone


def _broken(direct: dict[str, Any], through: dict[str, Any]) -> Iterator[Found]:
    """A call or a program that hung, and a program that ended by an error: wrong, though both runs may agree."""
    for name in [*direct, *(name for name in through if name not in direct)]:
        one, other = direct.get(name, {}), through.get(name, {})
        for key, part in (("status", Part.STATUS), ("seen", Part.SEEN)):
            if any(_is_broken(each.get(key)) for each in (one, other)):
                yield Found(part=part, path=f"{name} / {key}", direct=one.get(key), through=other.get(key))


def _is_broken(found: Any) -> bool:
    return found in (HUNG, IT_HUNG) or (isinstance(found, dict) and ENDED_BY in found)


def _differences(direct: Any, through: Any, path: tuple[str, ...]) -> Iterator[Found]:
    if isinstance(direct, dict) and isinstance(through, dict):
        for key in [*direct, *(key for key in through if key not in direct)]:
            yield from _differences(direct.get(key, _MISSING), through.get(key, _MISSING), (*path, str(key)))
    elif isinstance(direct, list) and isinstance(through, list) and len(direct) == len(through):
        for at, (one, other) in enumerate(zip(direct, through, strict=True)):
            yield from _differences(one, other, (*path, str(at)))
    elif direct != through:
        yield Found(part=_part(path), path=" / ".join(path), direct=direct, through=through)


def _part(path: tuple[str, ...]) -> Part:
    """A call's name, which comes first, may be any word, and so may a request's id, which follows `responses`."""
    if len(path) == 1:
        return Part.RESPONSES
    words = [word for at, word in enumerate(path) if at and (at < 2 or path[at - 1] != "responses")]
    if "seen" in words:
        return Part.SEEN
    if "outputs" in words:
        return Part.TENSORS
    return next((_PARTS[word] for word in reversed(words) if word in _PARTS), Part.RESPONSES)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:300]} … {text[-80:]}"
