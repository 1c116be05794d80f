"""A few minutes in the life of a deployment, in which every panel of every board has something to show.

Two online tenants; then a backlog of two jobs and of items without a job, one in fifty of which is bad; an overload;
and a calmer end. Some callers give up, and one job's deadline is too early. The backlog outlasts the scene.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from dev.boards.write import BOARDS
from dev.deployment import PARTITIONS, Deployment, DeploymentShape, deployed
from dev.load import PROMPT_WORDS, LoadResult, arrivals, run_load, toy_prompt
from dev.observe.pipeline import Pipeline, observed
from dev.observe.queries import Answer, PrometheusClient, filled
from dev.observe.stand_ins import stand_ins


def found_texts(draw: random.Random) -> tuple[str, str]:
    """A long prompt: a caller that searches sends what it found."""
    return "", " ".join(draw.choices(PROMPT_WORDS, k=draw.randint(60, 200)))


RATE_PER_S = {"chat": 1.4, "search": 0.6}
PROMPTS = {"chat": toy_prompt, "search": found_texts}
CROWD = 4.5  # times that rate in the overload
ITEMS_PER_S = 8.0  # more than are done
JOBS = {"nightly": ("labs", 7200), "digest": ("mail", 400), "": ("labs", None)}  # tenant, seconds to the deadline
SETTINGS: dict[str, Any] = {
    "scheduler": {
        "e2e_objective_ms": 6000.0,  # of answers of 64 tokens at the pace of a 70B model
        "tenants": {"labs": {"weight": 2.0}, "mail": {"weight": 1.0}},
    }
}
Record = tuple[bytes, bytes, list[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A deployment whose scene has been played, still running."""

    pipeline: Pipeline
    deployment: Deployment
    began_s: float  # since 1970
    ended_s: float


@contextlib.asynccontextmanager
async def played(directory: Path, seconds: float) -> AsyncIterator[Scene]:
    """The scene is over, and everything still runs; all of it is gone after the block."""
    async with contextlib.AsyncExitStack() as stack:
        pipeline = await stack.enter_async_context(observed(directory / "observe", build=False))
        gpu = await stack.enter_async_context(stand_ins())
        shape = DeploymentShape(slots=8)
        deployment = await stack.enter_async_context(deployed(shape, None, directory, pipeline, **SETTINGS))
        pipeline.scrape(**jobs_of(deployment), **gpu)
        began_s = time.time()
        await _play(deployment, seconds)
        yield Scene(pipeline=pipeline, deployment=deployment, began_s=began_s, ended_s=time.time())


def jobs_of(deployment: Deployment) -> dict[str, list[str]]:
    """Return what Prometheus scrapes of a deployment."""
    triton = deployment.triton.metrics_url.removeprefix("http://").split("/")[0]
    return {"sidecar": [deployment.server.http], "triton": [triton]}


async def _play(deployment: Deployment, seconds: float) -> None:
    await _online(deployment, seconds * 0.2, seed=1)
    await _submit(deployment, count=round(seconds * ITEMS_PER_S))
    await _online(deployment, seconds * 0.4, seed=2)
    await _online(deployment, seconds * 0.2, seed=3, times=CROWD)
    await _online(deployment, seconds * 0.2, seed=4)


async def _online(deployment: Deployment, seconds: float, *, seed: int, times: float = 1.0) -> None:
    """Both tenants ask for so long. Of ten callers of a tenant that searches one gives up early."""
    async with asyncio.TaskGroup() as tasks:
        for tenant, rate in RATE_PER_S.items():
            asked = arrivals(rate_per_s=rate * times, seconds=seconds, seed=seed, prompt_of=PROMPTS[tenant])
            patient = [each for number, each in enumerate(asked) if tenant == "chat" or number % 10]
            hasty = [each for each in asked if each not in patient]
            for some, timeout_s in ((patient, 60.0), (hasty, 0.4)):
                work = run_load(
                    deployment.server.listen, some, LoadResult(), timeout_s=timeout_s, headers={"x-tenant": tenant}
                )
                tasks.create_task(work)


async def _submit(deployment: Deployment, *, count: int) -> None:
    kafka = deployment.kafka
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, linger_ms=20) as producer:
        for number, (key, value, headers) in enumerate(items(count, datetime.now(UTC))):
            await producer.send(
                kafka.topics["requests"], value, key=key, headers=headers, partition=number % PARTITIONS
            )
        await producer.flush()


def items(count: int, now: datetime, *, seed: int = 1) -> Iterator[Record]:
    """Yield key, value and headers of `count` items, of each job in turn."""
    draw = random.Random(seed)
    for number, (job, (tenant, due_s)) in zip(range(count), itertools.cycle(JOBS.items()), strict=False):
        headers = [("x-tenant", tenant.encode())]
        if job:
            headers.append(("x-job", job.encode()))
        if due_s is not None:
            headers.append(("x-deadline", (now + timedelta(seconds=due_s)).isoformat().encode()))
        body = {"id": f"item-{number}", "prompt": toy_prompt(draw)[1], "max_tokens": 96}
        yield f"item-{number}".encode(), b"{" if number % 50 == 49 else json.dumps(body).encode(), headers


Answers = dict[int, Answer]  # by the panel's id


async def asked(scene: Scene, client: PrometheusClient, *, step_s: float = 2.0) -> dict[str, Answers]:
    """Return what every query of every panel brings, by board."""
    return {
        name: {
            panel["id"]: await _asked_of(panel, scene, client, step_s)
            for panel in make()["panels"]
            if "targets" in panel
        }
        for name, make in BOARDS.items()
    }


async def _asked_of(panel: dict[str, Any], scene: Scene, client: PrometheusClient, step_s: float) -> Answer:
    answer = Answer(series=[], exemplars=[])
    range_ = f"{max(round(scene.ended_s - scene.began_s), 60)}s"
    for target in panel["targets"]:
        query = filled(target["expr"], rate_interval="15s", range_=range_)
        if target["instant"]:
            answer.series.append(await client.instant(query, scene.ended_s))
        else:
            answer.series.append(await client.over(query, scene.began_s, scene.ended_s, step_s))
        if target.get("exemplar") and not answer.exemplars:
            answer.exemplars.extend(await client.exemplars(query, scene.began_s, scene.ended_s))
    return answer


def without_data(answers: dict[str, Answers]) -> list[str]:
    """Return the queries that brought no number, as board: panel: legend."""
    return [
        f"{name}: {panel['title']}: {target['legendFormat']}"
        for name, make in BOARDS.items()
        for panel in make()["panels"]
        if panel["id"] in answers[name]
        for target, series in zip(panel["targets"], answers[name][panel["id"]].series, strict=True)
        if not any(math.isfinite(value) for each in series for _, value in each.points)
    ]
