"""Kills, stops and delays everything around the offline lane, from a seed, and counts what was lost or written twice.

Real Apache Kafka, sidecar processes with a fast engine, and the checker that shares no code with them. `--break` runs a
scratch copy of the sidecar with one protection patched away (tests/mutants): then something must be lost or duplicated.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from dev.broker import ROOT, LocalKafka
from dev.chaos_faults import (
    GROWING,
    ONLY_FAST,
    PARTITIONS_MAX,
    REQUEST_TIMEOUT_S,
    REQUESTS,
    SESSION_TIMEOUT_S,
    USER,
    ChaosFaults,
    until,
)
from dev.chaos_sidecars import ChaosSidecar
from dev.checker import TopicCount, check, is_finished
from dev.deployment import sidecar_settings
from dev.endtxn_proxy import FaultProxy, ProxyFaults
from dev.figures import write
from dev.interrupt import run_until_told
from dev.triton import Triton, TritonSettings, running

GROUP = "chaos"
PARTITIONS = 4
ITEMS_PER_S = {"fast": 120, "triton": 20}
TRITON_SLOTS = 4  # of each sidecar
REVEALING = {  # with --break nothing else is drawn, so that a run cannot pass for want of the one fault that shows it
    "taint": ["late_endtxn"],
    "fence": ["sigstop"],
    "metadata": ["kill9", "rebalance"],
    "futures": ["leaderless"],  # a batch has to expire while its partition has no leader: a restart rarely does that
}
AUTHORIZED = {  # the sidecars log in, so that rights can be taken from them; everybody else may do everything
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",
    "allow.everyone.if.no.acl.found": "true",
    "sasl.enabled.mechanisms": "PLAIN",
    "listener.name.proxied.plain.sasl.jaas.config": (
        f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{USER}";'
    ),
}
SETTLE_S = 120.0  # after the last fault, for everything to be done


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """What to do. `broken` names a patch under tests/mutants, without its ending."""

    faults: int
    seed: int
    brokers: int = 1
    sidecars: int = 2
    broken: str | None = None
    triton: bool = False
    keep_logs: Path | None = None
    verbose: bool = False


def schedule(kinds: Sequence[str], options: ChaosOptions, draw: random.Random) -> list[str]:
    """Draw the faults of a run: each of `kinds`, as far as their number allows; with a break only what reveals it."""
    if options.broken is not None:
        return [draw.choice(REVEALING[options.broken]) for _ in range(options.faults)]
    first = draw.sample(kinds, k=len(kinds))[: options.faults]
    growing = sum(each in GROWING for each in first)
    while len(first) < options.faults:
        kind = draw.choice(kinds)
        if kind in GROWING and growing == PARTITIONS_MAX - PARTITIONS:
            continue
        growing += kind in GROWING
        first.append(kind)
    draw.shuffle(first)
    return first


class Chaos:
    """One run: a cluster, its proxies, the sidecars, and a steady stream of items."""

    def __init__(self, options: ChaosOptions, directory: Path, triton: Triton | None = None) -> None:
        self._options = options
        self._triton = triton
        self._directory = directory
        self._random = random.Random(options.seed)
        self._kafka = LocalKafka(
            brokers=options.brokers, listeners={"PROXIED": "SASL_PLAINTEXT"}, properties=AUTHORIZED
        )
        self._proxy = ProxyFaults()
        ports = [self._kafka.port(index, "PROXIED") for index in range(options.brokers)]
        self._proxies = [FaultProxy(port, self._proxy) for port in ports]
        self._sidecars: list[ChaosSidecar] = []
        self._gone: list[ChaosSidecar] = []
        self._producing = True
        self._counts: Counter[str] = Counter()
        self._faults = ChaosFaults(
            self._kafka,
            self._proxy,
            self._sidecars,
            self._gone,
            lambda instance_id: self._sidecar("guest", instance_id),
            partitions=PARTITIONS,
            directory=directory,
            draw=self._random,
        )

    async def run(self) -> dict[str, Any]:
        """The figures of the run; everything it started has ended."""
        self._begun_s = time.monotonic()
        for index, proxy in enumerate(self._proxies):
            await proxy.start()
            self._kafka.advertise(index, "PROXIED", proxy.port)
        try:
            async with self._kafka:
                await self._kafka.create_topics(PARTITIONS)
                await self._break_things()
                verdict = await asyncio.to_thread(check, self._kafka.bootstrap_servers, GROUP)
        finally:
            for each in self._sidecars:
                await each.end(signal.SIGKILL)
            for proxy in self._proxies:
                proxy.close()
        return self._figures(verdict, time.monotonic() - self._begun_s)

    async def _break_things(self) -> None:
        producing = asyncio.create_task(self._produce(), name="produce")
        self._sidecars += [self._sidecar(f"sidecar-{number}") for number in range(self._options.sidecars)]
        await asyncio.gather(*(each.start() for each in self._sidecars))
        await until(lambda: all(each.count("executions") > 0 for each in self._sidecars), 30.0)
        kinds = [each for each in self._faults.kinds if self._triton is None or each not in ONLY_FAST]
        for kind in schedule(kinds, self._options, self._random):
            if producing.done():
                break  # with an error, which is raised below
            self._say(f"fault: {kind}")
            await self._faults.kinds[kind]()
            self._counts[kind] += 1
            await asyncio.sleep(self._random.uniform(0.2, 1.0))
        self._producing = False
        await producing
        self._say("no more items; waiting until all are done")
        await self._settle()
        self._say("draining")
        await asyncio.gather(*(each.end(signal.SIGTERM) for each in self._sidecars))

    # -- around them

    async def _produce(self) -> None:
        """Items until told to stop; one that may have been sent twice is two items, so nothing is retried here."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka.bootstrap_servers,
            enable_idempotence=True,
            request_timeout_ms=60_000,
            metadata_max_age_ms=1_000,  # so that added partitions get items, too
        )
        await producer.start()
        number = 0
        try:
            while self._producing:
                value = json.dumps({"id": f"item-{number}", "prompt": f"item {number}", "max_tokens": 8}).encode()
                known = sorted(await producer.partitions_for(REQUESTS))
                await producer.send(REQUESTS, value, key=value[:12], partition=known[number % len(known)])
                number += 1
                await asyncio.sleep(1 / ITEMS_PER_S["fast" if self._triton is None else "triton"])
        finally:
            await producer.stop()

    async def _settle(self) -> None:
        """Everything below the ends is done, or the time is over (then the figures say what is missing)."""
        deadline_s = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline_s:
            if await asyncio.to_thread(is_finished, self._kafka.bootstrap_servers, GROUP):
                return
            await asyncio.sleep(0.5)

    def _sidecar(self, name: str, instance_id: str | None = None) -> ChaosSidecar:
        settings = {
            "bootstrap_servers": ",".join(f"127.0.0.1:{proxy.port}" for proxy in self._proxies),
            "group": GROUP,
            "instance_id": name if instance_id is None else instance_id,
            "first_start": "earliest",
            "model_default": "fast",
            "pending_max": 200,
            "tick_s": 0.1,
            "session_timeout_s": SESSION_TIMEOUT_S,
            "heartbeat_s": 0.5,
            "rebalance_timeout_s": 10.0,
            "request_timeout_s": REQUEST_TIMEOUT_S,
            "metadata_max_age_s": 1.0,
            "look_again_s": 2.0,
            "security": {"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": USER, "password": USER},
            "transaction_timeout_s": 10.0,
            "revoke_commit_s": 2.0,
            "stuck_after_s": 20.0,
            "poison_restarts": 1000,  # here processes are killed for no fault of any item
        }
        seed = self._random.randrange(1 << 30)
        if self._triton is None:
            return ChaosSidecar(name, self._directory, settings, seed)
        offline = settings | {"model_default": "tensorrt_llm"}
        whole = sidecar_settings(self._triton, {"slots": TRITON_SLOTS}, offline=offline)
        return ChaosSidecar(name, self._directory, whole, seed)

    def _figures(self, verdict: TopicCount, seconds: float) -> dict[str, Any]:
        everyone = [*self._sidecars, *self._gone]
        return {
            "faults": {kind: self._counts[kind] for kind in self._faults.kinds},
            "items": verdict.source_offsets + verdict.above_watermark,
            "unfinished": verdict.above_watermark,
            "results": verdict.results,
            "dead": verdict.dead,
            "dead_reasons": dict(sorted(verdict.dead_reasons.items())),
            "lost": len(verdict.lost),
            "duplicated": len(verdict.duplicated),
            **{name: sum(each.count(name) for each in everyone) for name in ("executions", "fenced", "reopens")},
            "seconds": round(seconds, 1),
            "seed": self._options.seed,
            "brokers": self._options.brokers,
            "broken": self._options.broken,
            "engine": "fast" if self._triton is None else "triton",
            "kafka_version": self._kafka.version,
            "date": datetime.now(UTC).date().isoformat(),
        }

    def _say(self, text: str) -> None:
        if self._options.verbose:
            done = sum(each.count("done") for each in [*self._sidecars, *self._gone])
            print(f"chaos: {time.monotonic() - self._begun_s:6.1f} s, {done} done: {text}", file=sys.stderr, flush=True)


def scratch_copy(directory: Path, broken: str | None) -> None:
    """`directory` holds the sidecar, this patch applied. Raises CalledProcessError if it does not fit."""
    shutil.copytree(ROOT / "sidecar", directory / "sidecar", ignore=shutil.ignore_patterns("__pycache__"))
    if broken is not None:
        patch = ROOT / "tests" / "mutants" / f"chaos-{broken}.patch"
        with patch.open("rb") as lines:
            subprocess.run(["patch", "-p1", "--quiet", "-d", str(directory)], stdin=lines, check=True)


async def run(options: ChaosOptions) -> dict[str, Any]:
    """The figures of one run; its scratch copy and all processes are gone."""
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        scratch_copy(directory, options.broken)
        if not options.triton:
            return await Chaos(options, directory).run()
        slots = TRITON_SLOTS * (options.sidecars + 1)  # what each sidecar owns, the guest of a rebalance too
        parameters = {"preset": "tiny", "profile": "8b-a100", "seed": "1"}
        async with running(directory / "triton", TritonSettings(slots=slots, parameters=parameters)) as triton:
            return await Chaos(options, directory, triton).run()
    finally:
        if options.keep_logs is not None:
            shutil.copytree(
                directory, options.keep_logs, ignore=shutil.ignore_patterns("sidecar", "triton"), dirs_exist_ok=True
            )
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """The command line; 0 if nothing was lost or duplicated (with --break: if something was)."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1)
    parser.add_argument("--sidecars", type=int, default=2)
    parser.add_argument("--break", dest="broken", choices=tuple(REVEALING))
    parser.add_argument("--triton", action="store_true", help="whole sidecars before the real Triton")
    parser.add_argument("--keep-logs", type=Path, help="copy the sidecars' logs there")
    parser.add_argument("--json", metavar="FILE", help="the figures; - is standard output")
    arguments = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it reports each retry of ours while a broker is down
    options = ChaosOptions(
        faults=arguments.faults,
        seed=arguments.seed,
        brokers=arguments.brokers,
        sidecars=arguments.sidecars,
        broken=arguments.broken,
        triton=arguments.triton,
        keep_logs=arguments.keep_logs,
        verbose=True,
    )
    figures = run_until_told(run(options))
    write(figures, arguments.json)
    harmed = figures["lost"] + figures["duplicated"] + figures["unfinished"] > 0
    if options.broken:
        return 0 if figures["lost"] + figures["duplicated"] > 0 else 1
    return 1 if harmed else 0


if __name__ == "__main__":
    sys.exit(main())
