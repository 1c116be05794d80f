"""Unmodified client programs, under both releases of tritonclient."""

from __future__ import annotations

from tests.integration.compare.allowed import PRIORITY_TO_A_PROGRAM, SERVED_TO_A_PROGRAM
from tests.integration.compare.programs_runner import NEWEST, OLDER
from tests.integration.compare.scenario import Program, Scenario, Subject, Where

CALLS = ("infer", "wrong calls", "calls of scheduled models", "callbacks", "asyncio calls", "shared memory")
STREAMS = (
    "stream of four",
    "stream with empty finals",
    "stream with options",
    "stream given up and begun again",
    "stream with a timeout",
    "asyncio stream",
    "asyncio stream cancelled",
    "about the server",
)
NVIDIA = (
    "end to end, streamed",
    "end to end, whole",
    "end to end, two sequences",
    "end to end, figures",
    "batcher, stopped",
    "batcher, older stop",
    "perf_analyzer",
    "perf_analyzer, streaming",
)


DIFFERS = {
    "calls of scheduled models": (SERVED_TO_A_PROGRAM,),
    "stream with options": (PRIORITY_TO_A_PROGRAM,),
}


def program(name: str, where: Where = Where.MAIN) -> tuple[Scenario, ...]:
    """The program under each release."""
    return tuple(
        Scenario(
            name=f"{name} ({release})",
            steps=(Program(name=name, release=release),),
            where=where,
            differs=DIFFERS.get(name, ()),
        )
        for release in (OLDER, NEWEST)
    )


CLIENTS = Subject(
    title="Programs on top of tritonclient",
    scenarios=(
        *(each for name in (*CALLS, *STREAMS) for each in program(name)),
        *program("a guarded server", Where.GUARDED),
    ),
)
NVIDIAS = Subject(
    title="NVIDIA's programs",
    scenarios=tuple(each for name in NVIDIA for each in program(name)),
)
