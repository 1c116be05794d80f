"""The main job on one machine: real Kafka, real Triton, the sidecar, an online load and an offline backlog.

Three phases on one deployment: online only; the same arrivals with an offline backlog; a short overload. Then intake
stops, what is in flight drains, and a checker that shares no code with the sidecar compares every source offset below
the watermark with the results and the dead letters.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import aio as triton_client

from dev import backlog, chats
from dev.checker import CheckerError, check
from dev.deployment import ENGINE, GROUP, PARTITIONS, Deployment, DeploymentShape, Kafka, addresses, deployed
from dev.figures import write
from dev.interrupt import INTERRUPTED, on_signals
from dev.load import Arrival, arrivals
from dev.observe.pipeline import Pipeline, observed
from dev.phases import PhaseRunner
from dev.report import interference, interference_line, phase_table
from dev.terminal_view import View
from dev.triton import ENGINE_MODEL, MODELS, Triton, TritonSettings
from dev.verdict import judged
from sidecar.core.errors import SidecarError
from sidecar.inflight.profile import PROFILES
from sidecar.telemetry.logs import configure

# At the pace of a 70B engine some request is in it two thirds of the time; an answer of the chat model is longer.
RATE_PER_S = {"toy": 2.0, "smollm2": 1.0}
ONLINE_TOKENS = 18.5  # mean output of an online-like prompt
OFFLINE_TOKENS = 120.0  # less than the mean of the items, stop words included, so that the backlog never runs dry
COMPARED = ("online_only", "mixed")
OVERLOAD = 1.3  # times what the slots could serve if all were online's, so that both lanes wait
OVERLOAD_SECONDS = 10.0
EPILOG = """
It runs the product's default settings, and ends with what was promised, what was seen, and a verdict.

examples:
  scripts/demo
  scripts/demo --seconds 20 --json report.json
  scripts/demo --model toy --slots 64 --keep
  scripts/demo --model toy --profile 70b-tp4-a100

exit codes:
  0    every promise was kept
  1    a promise was broken, or a part did not start; what and how is said
  2    wrong options, or something that must be installed first is missing
  3    the host was too slow: figures of latency say nothing about the sidecar, all else was kept
  130  interrupted
"""
STOP_WORD = " Therefore"  # in four of five offline-like answers of the CPU engine; half of the items declare it


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the command line asks for."""

    seconds: float
    seed: int
    rate_per_s: float
    json_path: str | None
    keep: bool
    bootstrap_servers: str | None
    observe: bool
    shape: DeploymentShape


def option_parser() -> argparse.ArgumentParser:
    """Return what the command line takes."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description=__doc__.split("\n\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of each of the first two phases (60)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the arrivals and the backlog")
    parser.add_argument("--json", dest="json_path", metavar="FILE", help="write the figures there; - is stdout")
    parser.add_argument("--keep", action="store_true", help="leave everything running until Ctrl-C, and say where")
    parser.add_argument("--bootstrap-servers", metavar="HOST:PORT", help="use this Kafka instead of a local one")
    parser.add_argument("--slots", type=int, default=8, help="of the engine: 8, or 64 for a wide one")
    parser.add_argument(
        "--profile",
        default=DeploymentShape().profile,
        choices=sorted(PROFILES),
        help="whose iteration times the toy keeps (%(default)s)",
    )
    parser.add_argument(
        "--model",
        default="smollm2",
        choices=MODELS,
        help="smollm2 talks, as fast as this host computes; the toy keeps a profile's times (%(default)s)",
    )
    parser.add_argument("--rate", type=float, metavar="R", help="online requests per second (1; toy: 2)")
    parser.add_argument(
        "--yield-rows",
        metavar="K",
        help="rows left to offline beside online, auto or never (auto)",
    )
    parser.add_argument(
        "--observe", action="store_true", help="run Prometheus, an OpenTelemetry collector and Jaeger beside it"
    )
    parser.add_argument("--install-prerequisites", action="store_true", help="on Debian: Python 3.11, Java 17, Maven")
    return parser


def parse(arguments: Sequence[str]) -> DemoOptions:
    """The options of the command line; exits with 2 and one line if they make no sense."""
    parser = option_parser()
    options = parser.parse_args(arguments)
    options.rate = RATE_PER_S[options.model] if options.rate is None else options.rate
    if not 5 <= options.seconds <= 3600:
        parser.error(f"--seconds must be in 5..3600, not {options.seconds}")
    if not 1 <= options.slots <= 64:
        parser.error(f"--slots must be in 1..64, not {options.slots}: two cores carry no more")
    if not 0.1 <= options.rate <= 50:
        parser.error(f"--rate must be in 0.1..50, not {options.rate}")
    rows = int(options.yield_rows) if (options.yield_rows or "").isdigit() else options.yield_rows
    if rows not in (None, "auto", "never", *range(options.slots + 1)):
        parser.error(f"--yield-rows must be in 0..{options.slots}, auto or never, not {rows}")
    if options.json_path not in (None, "-") and not Path(options.json_path).absolute().parent.is_dir():
        parser.error(f"--json: no such directory: {Path(options.json_path).parent}")
    return DemoOptions(
        shape=DeploymentShape(slots=options.slots, model=options.model, profile=options.profile, yield_rows=rows),
        rate_per_s=options.rate,
        seconds=options.seconds,
        seed=options.seed,
        json_path=options.json_path,
        keep=options.keep,
        bootstrap_servers=options.bootstrap_servers,
        observe=options.observe,
    )


async def demo(options: DemoOptions, view: View, started_s: float) -> dict[str, Any]:
    """The report of one whole run. Everything it started has ended when it returns or raises."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    async with contextlib.AsyncExitStack() as stack:
        pipeline = await watched(stack, directory, view) if options.observe else None
        deployment = await stack.enter_async_context(
            deployed(options.shape, options.bootstrap_servers, directory, pipeline)
        )
        ready_s = time.monotonic()
        view.say(f"ready after {ready_s - started_s:.0f} s; logs, settings and recorded decisions are in {directory}")
        stage = PhaseRunner(deployment.server, ENGINE, view)
        lines = backlog_of(options)
        if not options.shape.paced:
            await chats.ask_first(view, directory / "sidecar.yaml")
        paces = await phases(stage, deployment, options, lines)
        triton_report, engine = await server_report(deployment.triton), await engine_report(deployment.triton)
        if options.keep:
            view.say(addresses(deployment, options.shape, directory))
            await interrupted()
        view.say("intake stops; what is in flight drains")
        await stage.drain()
        offline = await asyncio.to_thread(offline_report, deployment.kafka)
        answers = await answers_of(stage, deployment.kafka, options, lines)
    found = stage.phases()
    report = {
        "triton": triton_report,
        "kafka": {"version": deployment.kafka.version, "cluster_id": deployment.kafka.cluster_id},
        "engine": engine_document(options.shape, engine, paces),
        "phases": found,
        "interference": interference(found),
        "offline": offline,
        "answers": answers,
        "late_sends_ms": stage.late_sends_ms(COMPARED),
        "seconds": {"setup": round(ready_s - started_s, 1), "run": round(time.monotonic() - ready_s, 1)},
    }
    return {**report, "verdict": judged(report).document()}


async def watched(stack: contextlib.AsyncExitStack, directory: Path, view: View) -> Pipeline:
    """What can be had of the pipeline runs until the stack ends; where, and what is missing, is said."""
    view.say("the pipeline starts; what Go has to build takes some minutes, once")
    pipeline = await stack.enter_async_context(observed(directory / "observe"))
    view.say("\n".join(["watched by", pipeline.addresses(), *(f"  not there: {each}" for each in pipeline.missing)]))
    return pipeline


async def phases(
    stage: PhaseRunner, deployment: Deployment, options: DemoOptions, lines: Sequence[tuple[bytes, bytes]]
) -> list[dict[str, Any]]:
    """Online only; the same arrivals with an offline backlog; a short overload. The engine's pace around the first two,
    which are compared: before and after."""
    kafka, triton = deployment.kafka, deployment.triton
    plain = online(options, options.rate_per_s, options.seconds, options.seed)
    paces = [await engine_report(triton)]
    await stage.run("online_only", plain, options.seconds)
    await backlog.produce(kafka.bootstrap_servers, kafka.topics["requests"], PARTITIONS, lines)
    stage.view.say(f"offline backlog: {len(lines)} records in {PARTITIONS} partitions of {kafka.topics['requests']}")
    await stage.until_full()
    await stage.run("mixed", plain, options.seconds)
    paces.append(await engine_report(triton))
    crowd = online(options, OVERLOAD * finished_per_s(stage, options.shape), OVERLOAD_SECONDS, options.seed + 1)
    await stage.run("overload", crowd, OVERLOAD_SECONDS)
    return paces


def finished_per_s(stage: PhaseRunner, shape: DeploymentShape) -> float:
    """How many online requests a full batch finishes per second: by the profile, or by what this host has shown."""
    if shape.paced or (token_s := stage.token_s()) is None:
        return shape.finished_per_s(ONLINE_TOKENS)
    return shape.slots / (chats.ONLINE_TOKENS * chats.WIDE_ITERATION * token_s)


def online(options: DemoOptions, rate_per_s: float, seconds: float, seed: int) -> tuple[Arrival, ...]:
    """The arrivals of one phase: questions for a chat model, words for the toy."""
    if options.shape.paced:
        return arrivals(rate_per_s=rate_per_s, seconds=seconds, seed=seed)
    callers = chats.ChatPrompts(TritonSettings(model=options.shape.model).tokenizer_dir)
    return arrivals(rate_per_s=rate_per_s, seconds=seconds, seed=seed, output_tokens_max=160, prompt_of=callers)


def backlog_of(options: DemoOptions) -> list[tuple[bytes, bytes]]:
    """The records of the offline backlog: more than can be done while the demo runs."""
    seconds, shape = options.seconds + 3 * OVERLOAD_SECONDS, options.shape
    if shape.paced:
        count = round(shape.finished_per_s(OFFLINE_TOKENS) * seconds)
        return list(backlog.records(items=count, seed=options.seed, stop_word=STOP_WORD))
    return list(chats.items(count=round(shape.finished_per_s(chats.ITEM_TOKENS) * seconds), seed=options.seed))


async def answers_of(
    stage: PhaseRunner, kafka: Kafka, options: DemoOptions, lines: Sequence[tuple[bytes, bytes]]
) -> dict[str, list[dict[str, str]]]:
    """A handful of questions with their answers, by lane; none of the toy, whose words mean nothing."""
    if options.shape.paced:
        return {}
    offline = await chats.answers_of(kafka.bootstrap_servers, kafka.topics["results"], chats.asked_of(lines))
    found = {"online": list(stage.answers().items())[: chats.ANSWERS_SHOWN], "offline": offline}
    return {lane: [{"asked": asked, "answer": said} for asked, said in pairs] for lane, pairs in found.items()}


def engine_document(shape: DeploymentShape, engine: dict[str, Any], paces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return which model ran, how many iterations, and how many of a paced one's were late."""
    if not shape.paced:
        return {"model": shape.model, "profile": None, "iterations": engine["iterations"],
                "late": None, "pacing_overrun_ratio": None, "late_iterations_ratio": None}  # fmt: skip
    return {"model": shape.model, "profile": shape.profile, **engine, "late_iterations_ratio": late_ratio(paces)}


def late_ratio(paces: Sequence[dict[str, Any]]) -> float | None:
    """Return which share of the iterations between the first and the last reading was late; None without iterations."""
    iterations, late = (paces[-1][name] - paces[0][name] for name in ("iterations", "late"))
    return round(late / iterations, 4) if iterations else None


async def server_report(triton: Triton) -> dict[str, Any]:
    """Return which Triton ran, and which of its backends the engine model uses, in its own words."""
    async with triton_client.InferenceServerClient(triton.target) as client:
        metadata = await client.get_server_metadata()
        model = await client.get_model_config(ENGINE_MODEL)
    return {"version": metadata.version, "backend": model.config.backend}


async def engine_report(triton: Triton) -> dict[str, Any]:
    """Return how many iterations the engine ran, and which share of them took longer than its profile says."""
    async with aiohttp.ClientSession() as session, session.get(triton.metrics_url) as answer:
        page = await answer.text()
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name.startswith("backfill_engine_")
    }
    iterations, late = found["backfill_engine_iterations_total"], found["backfill_engine_pacing_overruns_total"]
    ratio = late / iterations if iterations else 0.0
    return {"iterations": int(iterations), "late": int(late), "pacing_overrun_ratio": round(ratio, 4)}


def offline_report(kafka: Kafka) -> dict[str, Any]:
    """Return what became of every item, counted from outside by the checker."""
    verdict = check(
        kafka.bootstrap_servers,
        GROUP,
        requests=kafka.topics["requests"],
        results=kafka.topics["results"],
        dead_letters=kafka.topics["dlq"],
    )
    return {
        "source_offsets": verdict.source_offsets,
        "results": verdict.results,
        "dead": verdict.dead,
        "early": verdict.early,
        "lost": len(verdict.lost),
        "duplicated": len(verdict.duplicated),
        "ended_by": {reason: verdict.ended_by[reason] for reason in ("end_id", "stop_word", "length")},
    }


def offline_table(offline: dict[str, Any]) -> Table:
    """The checker's count, one row a figure."""
    table = Table(title="Offline, counted by an independent reader", title_justify="left")
    table.add_column("")
    table.add_column("items", justify="right")
    table.add_row("source offsets below the watermark", str(offline["source_offsets"]))
    for name in ("results", "dead", "lost", "duplicated"):
        table.add_row(f"  {name}", str(offline[name]))
    table.add_row("done above it already", str(offline["early"]))
    for name, count in offline["ended_by"].items():
        table.add_row(f"results ended by {name.replace('_', ' ')}", str(count))
    return table


async def run(options: DemoOptions, console: Console, started_s: float) -> dict[str, Any]:
    """`demo`, ended early and cleaned up by SIGTERM as by Ctrl-C."""
    task = asyncio.current_task()
    assert task is not None
    on_signals(task.cancel)
    with View(console) as view:
        return await demo(options, view, started_s)


async def interrupted() -> None:
    """Ctrl-C or SIGTERM came; from here on another one breaks off."""
    asked, task = asyncio.Event(), asyncio.current_task()
    assert task is not None
    on_signals(asked.set)
    await asked.wait()
    on_signals(task.cancel)


def main() -> int:
    """The exit code, as the help lists them."""
    options = parse(sys.argv[1:])
    configure("text", verbose=False, libraries=False)
    console = Console(stderr=options.json_path == "-")
    began = os.environ.get("DEMO_STARTED_S")  # when scripts/demo began, so that its installs count as set-up
    started_s = time.monotonic() - (time.time() - float(began) if began else 0.0)
    try:
        report = asyncio.run(run(options, console, started_s))
    except asyncio.CancelledError:
        console.print("interrupted; everything has been stopped")
        return INTERRUPTED
    except (SidecarError, CheckerError, OSError, ExceptionGroup) as error:
        for each in leaves(error):
            if not isinstance(each, SidecarError | CheckerError | OSError):
                raise
            console.print(f"demo: {each}", style="red", markup=False, highlight=False)
        return 1
    console.print(phase_table(report["phases"]))
    console.print(interference_line(report["interference"], report["engine"]), highlight=False)
    console.print(offline_table(report["offline"]))
    chats.show_lanes(console, report["answers"])
    verdict = judged(report)
    for line in verdict.lines():
        style = "red" if line.startswith("BROKEN") else None
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    if options.json_path is not None:
        write(report, options.json_path)
    return verdict.exit_code


def leaves(error: Exception) -> list[Exception]:
    """The errors of a group, however deep, or the one error."""
    if not isinstance(error, ExceptionGroup):
        return [error]
    return [leaf for each in error.exceptions for leaf in leaves(each)]


if __name__ == "__main__":
    sys.exit(main())
