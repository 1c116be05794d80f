"""Which models of a Triton run on an engine's model, and whether the sidecar schedules them.

An ensemble names its steps, so that one over the engine's model is found. A model that calls another by itself (BLS)
does not say so, and stays unseen here; the engine's gauges show its load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from sidecar.errors import EngineError
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.client import SERVICE, EngineClient

logger = logging.getLogger(__name__)
LOOK_TIMEOUT_S = 5.0
LOOK_AGAIN_S = 300.0  # models may be loaded while we serve
LOOK_AGAIN_AT_A_FAULT_S = 5.0  # Triton loads one model after the other: the text model may be on its way
MODELS_MAX = 200  # of one Triton that are looked at
NAMED_MAX = 20  # in one line


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModels:
    """What one Triton has, seen from one engine."""

    ready: tuple[str, ...]  # all its models that serve
    over_engine: tuple[str, ...]  # ensembles with the engine's model among their steps, however deep

    def text_model_fault(self, engine: EngineEndpoint) -> str:
        """Return why the configured text model cannot be scheduled; "" if it can, or none is configured."""
        name = engine.text_model
        if name is None or name in self.over_engine:
            return ""
        if name not in self.ready:
            return f"Triton has no text model {name}; it has {named(self.ready)}. {_MEND}"
        return ""  # no ensemble: its own steps cannot be seen, and the operator says that it is one over the engine

    def unscheduled(self, scheduled: Sequence[str]) -> tuple[str, ...]:
        """The ensembles over the engine's model that the sidecar does not schedule."""
        return tuple(each for each in self.over_engine if each not in scheduled)


_MEND = "Name the ensemble over the engine as text_model, or set text_model: null if callers send token ids only"


def named(models: Sequence[str]) -> str:
    """Some names in one line."""
    more = f" and {len(models) - NAMED_MAX} more" if len(models) > NAMED_MAX else ""
    return (", ".join(models[:NAMED_MAX]) or "none") + more


async def look(client: EngineClient, engine_model: str, timeout_s: float = LOOK_TIMEOUT_S) -> EngineModels:
    """Return what Triton says of its models. Raises EngineError if it does not say, e.g. because that is restricted."""
    try:
        async with asyncio.timeout(timeout_s):
            index = await _ask(client, "RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=True))
            found = service_pb2.RepositoryIndexResponse.FromString(index)
            ready = sorted({each.name for each in found.models})
            steps = {name: await _steps(client, name) for name in ready[:MODELS_MAX]}
    except TimeoutError:
        raise EngineError(f"no answer within {timeout_s:g} s", grpc.StatusCode.DEADLINE_EXCEEDED) from None
    except DecodeError:
        raise EngineError("the answer cannot be read", grpc.StatusCode.INTERNAL) from None
    return EngineModels(
        ready=tuple(ready), over_engine=tuple(each for each in ready if _runs_on(each, engine_model, steps))
    )


async def config_of(client: EngineClient, model: str) -> Any | None:
    """The model's config.pbtxt as Triton has it; None if there is no such model. Raises EngineError."""
    try:
        raw = await _ask(client, "ModelConfig", service_pb2.ModelConfigRequest(name=model))
        return service_pb2.ModelConfigResponse.FromString(raw).config
    except DecodeError:
        raise EngineError("the answer cannot be read", grpc.StatusCode.INTERNAL) from None
    except EngineError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise


async def _steps(client: EngineClient, model: str) -> tuple[str, ...]:
    """The models that an ensemble names; none for any other model, and for one that is gone meanwhile."""
    config = await config_of(client, model)
    return () if config is None else tuple(step.model_name for step in config.ensemble_scheduling.step)


def _runs_on(model: str, engine_model: str, steps: Mapping[str, tuple[str, ...]]) -> bool:
    reached, todo = {model}, [model]
    for each in todo:  # grows
        for step in steps.get(each, ()):
            if step == engine_model:
                return True
            if step not in reached:
                reached.add(step)
                todo.append(step)
    return False


async def _ask(client: EngineClient, method: str, request: Message) -> bytes:
    try:
        ask = client.raw_unary(f"/{SERVICE}/{method}")
        return await ask(request.SerializeToString(), metadata=client.own_metadata)
    except grpc.aio.AioRpcError as error:
        raise EngineError(error.details() or error.code().name, error.code()) from None


class Unscheduled:
    """Says which models share an engine without being scheduled, and refuses them where a text model is misnamed.

    A text model that Triton does not have is a mistake in the settings: the one that callers do use would then pass by
    the scheduler, so it is refused until the settings name it. With a right one, others over the engine are said.
    """

    def __init__(
        self, engines: Sequence[EngineEndpoint], clients: Mapping[str, EngineClient], scheduled: Sequence[str]
    ) -> None:
        self.refused: dict[str, str] = {}  # by model: what its callers are told
        self._engines = {each.name: each for each in engines}
        self._clients = clients
        self._scheduled = scheduled
        self._found: dict[str, EngineModels] = {}
        self._said: dict[str, str] = {}
        self._seen: set[str] = set()  # engines that have been up
        self._due: set[str] = set()
        self._wake = asyncio.Event()

    @property
    def faults(self) -> dict[str, str]:
        """By engine: what is wrong with its text model, where something is."""
        found = ((name, each.text_model_fault(self._engines[name])) for name, each in self._found.items())
        return {name: fault for name, fault in found if fault}

    def look_soon(self, engine: str) -> None:
        """This engine has come up: its models may be other ones than before."""
        self._seen.add(engine)
        self._due.add(engine)
        self._wake.set()

    async def run(self) -> None:
        """Look when asked, and now and then, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_AGAIN_AT_A_FAULT_S if self.faults else LOOK_AGAIN_S):
                    await self._wake.wait()
            except TimeoutError:
                self._due.update(self._seen)
            self._wake.clear()
            while self._due:
                await self.look_at(self._due.pop())

    async def look_at(self, name: str) -> None:
        """Its models are known, or it has been said why they are not."""
        engine = self._engines[name]
        try:
            self._found[name] = await look(self._clients[name], engine.model)
        except EngineError as error:
            self._say(name, logging.INFO, f"engine {name}: which models run on it is not known: {error}")
            return
        self._judge()
        fault, others = self._found[name].text_model_fault(engine), self._found[name].unscheduled(self._scheduled)
        if fault:
            refused = f" Callers of {named(others)}, which would pass by the scheduler, are refused." if others else ""
            self._say(name, logging.ERROR, f"engine {name}: {fault}.{refused}")
        elif others:
            self._say(name, logging.WARNING, f"engine {name}: {shares(others, engine.model)}")
        else:
            self._said.pop(name, None)

    def _judge(self) -> None:
        refused = {}
        for name in self.faults:
            engine = self._engines[name]
            for model in self._found[name].unscheduled(self._scheduled):
                refused[model] = (
                    f"model {model} runs on {engine.model} and is not scheduled: the sidecar's settings name"
                    f" {engine.text_model} as text_model, which is not there"
                )
        self.refused.clear()
        self.refused.update(refused)

    def _say(self, name: str, level: int, text: str) -> None:
        """One line, unless it was the last that was said of this engine."""
        if self._said.get(name) != text:
            self._said[name] = text
            logger.log(level, "%s", text)


def shares(models: Sequence[str], engine_model: str) -> str:
    """That these models pass by the scheduler."""
    verb = "is" if len(models) == 1 else "are"
    return (
        f"{named(models)} {verb} not scheduled and shares {engine_model} with what is: its requests are passed through,"
        " take slots that the sidecar believes free, and hold up online requests"
    )
