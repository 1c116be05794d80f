"""The description of each model, kept: fetched when first needed, used on while nobody tells, fetched anew in doubt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import grpc

from sidecar.errors import BadRequestError, EngineError
from sidecar.frontend.schema import ModelSchema, classified

logger = logging.getLogger(__name__)
AGE_MAX_S = 60.0  # a model may be loaded anew without our knowing; one small call a minute costs nothing
FRESH_S = 1.0  # so young a description is not fetched again, however many requests do not fit it
RETRY_S = 10.0  # after a fetch failed: requests do not wait for one failing fetch after another


@dataclass(slots=True)
class _Known:
    """What is known of one model, and when it may be asked for again."""

    schema: ModelSchema | None = None
    old_at_s: float = -inf  # from then on it is asked for anew
    not_before_s: float = -inf  # until then nobody is asked
    fault: str = ""  # why the last fetch failed, as it was logged
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


class Schemas:
    """Checks requests against the models' descriptions. Without one Triton alone checks, as it does anyway.

    `fetch` asks an engine, in bounded time, and raises EngineError; `may_ask` says whether an engine of a model is up.
    """

    def __init__(
        self,
        fetch: Callable[[str], Awaitable[ModelSchema]],
        may_ask: Callable[[str], bool],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._may_ask = may_ask
        self._now_s = now_s
        self._known: dict[str, _Known] = {}

    async def check(self, request: Any, model: str) -> None:
        """Raise BadRequestError, naming the tensor, unless `request` fits `model`.

        A description that refuses a request may be older than the model: it is fetched anew before it is believed.
        """
        known = self._known.setdefault(model, _Known())
        schema = await self._current(model, known)
        if schema is None:
            return
        try:
            schema.check(request)
        except BadRequestError:
            await self._look(model, known, schema)
            if known.schema is None or known.schema is schema:
                raise
            known.schema.check(request)

    async def check_classes(self, request: Any, model: str) -> None:
        """Raise BadRequestError if `request` wants classes of an output that holds texts.

        Raises EngineError if no engine tells what it holds. An unknown model is for Triton to refuse.
        """
        outputs = classified(request)
        if not outputs:
            return
        try:
            (await self._fetch(model)).check_classes(outputs)
        except EngineError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    async def of(self, model: str) -> ModelSchema | None:
        """The description of a model; None while nobody tells."""
        return await self._current(model, self._known.setdefault(model, _Known()))

    def doubt(self, model: str = "") -> None:
        """The model, or any if none is named, may have changed: its description is fetched anew when next needed."""
        for known in [self._known[model]] if model in self._known else [] if model else self._known.values():
            known.old_at_s = -inf
            if not model:
                known.not_before_s = -inf

    async def _current(self, model: str, known: _Known) -> ModelSchema | None:
        """Waits only while nothing is known yet, or for a fetch of its own: one fetch for all who wait."""
        old = self._now_s() >= known.old_at_s
        if old and (known.schema is None or not known.fetching.locked()):
            await self._look(model, known, known.schema)
        return known.schema

    async def _look(self, model: str, known: _Known, before: ModelSchema | None) -> None:
        """The description has been fetched, by us or by another who waited, if anybody tells."""
        async with known.fetching:  # cancelled: the next one who waits fetches
            if known.schema is not before or self._now_s() < known.not_before_s or not self._may_ask(model):
                return
            try:
                known.schema = await self._fetch(model)
            except EngineError as error:
                known.not_before_s = self._now_s() + RETRY_S
                if known.fault != str(error):
                    known.fault = str(error)
                    use = "an older description is used" if known.schema else "Triton alone checks its requests"
                    logger.warning("model %s: no ModelConfig (%s); %s", model, known.fault, use)
                return
            now_s = self._now_s()
            known.old_at_s, known.not_before_s, known.fault = now_s + AGE_MAX_S, now_s + FRESH_S, ""
