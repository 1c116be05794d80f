"""What is sent in one scenario, which parts of the answers are compared, and what is expected: all of it data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

RUN = "{runner}"  # in any text or message: replaced by a word of the same length that tells the two runs apart
DIRECT, THROUGH = "ondirect", "onpassed"  # those two words
TIMEOUT_S = 10.0  # of a call; a scenario that needs it has hung

Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Part(StrEnum):
    """What of an answer can differ."""

    STATUS = "status"
    TEXT = "text"  # details of a status, and error_message of a response
    INITIAL = "initial metadata"
    TRAILING = "trailing metadata"
    RESPONSES = "responses"  # how many, for which request, in which order
    ID = "id"
    MODEL = "model"  # its name and its version
    FLAGS = "parameters"  # of a response, the final flag among them
    TENSORS = "tensors"  # names, datatypes, shapes, values, order
    ANSWER = "answer"  # of a method that is not an inference
    SEEN = "what the client program sees"


class Where(StrEnum):
    """The pair of servers that a scenario is played against."""

    MAIN = "main"
    GUARDED = "guarded"  # restricted protocols, and models that are loaded and unloaded explicitly
    GONE = "gone"  # the engine's address has no server


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One unary call, answered before the next step. `until_status`: asked again until it is OK, or is not."""

    method: str  # of Triton's service, or a full path
    body: bytes = b""
    call: str = ""  # its name in the report; the method's, if empty
    metadata: Metadata = ()
    timeout_s: float = TIMEOUT_S
    compression: str = ""  # gzip | deflate
    until_status: str = ""  # OK | ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A ModelStreamInfer call begins. `channel`: those of one name share a connection."""

    call: str = "stream"
    metadata: Metadata = ()
    timeout_s: float = TIMEOUT_S
    compression: str = ""
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """One request on an open stream."""

    body: bytes
    call: str = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Await:
    """At least `responses` messages have come on this stream, or it has ended."""

    responses: int
    call: str = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """No more requests follow on this stream, and it has ended. Streams left open are closed at the end."""

    call: str = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The caller cancels this stream, and it has ended; of what came only the awaited responses are compared."""

    call: str = "stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """One unary call that runs while the next steps do; ended by `Close` or `Cancel`."""

    method: str
    body: bytes
    call: str
    timeout_s: float = TIMEOUT_S
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A system shared memory region of this name holds these bytes; removed when the scenario is over."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The bytes that the region holds now are part of what is compared."""

    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One function of programs.py, under one release of the tritonclient package."""

    name: str
    release: str


Step: TypeAlias = Ask | Open | Send | Await | Close | Cancel | Begin | Region | Look | Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference that is allowed, by name: in which parts, and why. `to_mend`: it should not be there."""

    name: str
    parts: tuple[Part, ...]
    reason: str
    to_mend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One line of the table. Without `differs` the two runs are the same in every part."""

    name: str
    steps: tuple[Step, ...]
    directly: tuple[Step, ...] = ()  # what Triton itself is sent instead, where it has another way to say it
    differs: tuple[Difference, ...] = ()
    where: Where = Where.MAIN
    alone: bool = False  # it reads or changes what other scenarios change
    clients: tuple[str, ...] = ("python",)  # python (grpc.aio), go (grpc-go)
    shortened: tuple[
        str, ...
    ] = ()  # ids of requests that are stopped: of their tokens only the first and the last count
    twins: bool = False  # several requests of one id with equal answers: how these interleave depends on time
    risky: bool = False  # Triton 2.51 may crash by it: played last, and again if it did
    ignored: tuple[Part, ...] = ()  # parts that differ between any two runs of this scenario

    def sent(self, run: str) -> tuple[Step, ...]:
        """The steps of this run."""
        return self.directly if self.directly and run.startswith(DIRECT) else self.steps

    @property
    def expected(self) -> frozenset[Part]:
        """The parts that must differ."""
        return frozenset(part for each in self.differs for part in each.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The scenarios about one thing, in the order in which they are shown."""

    title: str
    scenarios: tuple[Scenario, ...]
