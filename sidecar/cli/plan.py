"""`sidecar plan`: what fits on the GPUs, what a million items cost, how many replicas an objective needs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from sidecar.core.errors import SettingsError
from sidecar.inflight.profile import PROFILES
from sidecar.plan.capacity import KV_BYTES, MODELS, WEIGHT_BITS, CostModel, MemoryPlan, ModelSize, replicas, warm
from sidecar.plan.chart import chart
from sidecar.sim.tables import Table, printed

_MODEL = re.compile(r"([\w.-]+)(?:=(\d+\.?\d*),(\d+),(\d+),(\d+))?:(\d+)")
PROFILE_OF = {"7b": "8b-a100", "8b": "8b-a100"}  # whose o and c a model has; the 70B's, if it is not named
UTILISATIONS = (0.2, 0.4, 0.6, 0.8)
SLOTS = 64  # of an engine: more sequences than it decodes together save nothing
ABOVE_0 = "gpu_gib length slo_ms wait_share users tpot_ms tokens_per_s stream_tokens_per_s peak_to_mean".split()
DISK_BYTES_PER_S = 5e9  # what a fast network disk gives to a replica that starts


def register_plan(subparsers: Any) -> None:
    """Add `plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="reckon what fits on the GPUs, what it costs, and how many replicas are needed",
        description="Plain arithmetic, no GPU: memory for weights and KV cache, T(b) = o + c·b for a batch of b, USD"
        " per million items (a token of one sequence is an item), and replicas. Exit code 1: a model does not fit.",
    )
    add, known = parser.add_argument, f"{', '.join(MODELS)}, or NAME=10⁹ PARAMETERS,LAYERS,KV HEADS,HEAD SIZE"
    add("--model", default="70b:4", metavar="MODEL:GPUS", help=f"{known} (%(default)s)")
    add("--against", metavar="MODEL:GPUS", help="another one beside it, such as 8b:1; a GPU costs the same there")
    add("--weights", choices=WEIGHT_BITS, default="bf16", help="type of the weights (%(default)s)")
    add("--kv", choices=KV_BYTES, default="bf16", help="type of the KV cache (%(default)s)")
    add("--without-reuse", action="store_true", help="no reuse of KV blocks: a stopped item is computed again")
    add("--gpu-gib", type=float, default=79.2, help="usable memory of a GPU (%(default)s, an A100 80 GB)")
    add("--length", type=int, default=16_384, help="prompt + output of one sequence (%(default)s)")
    add("--cost", metavar="O,C", help="o and c of a batch in ms; by default those of simulate's profiles")
    add("--fit", metavar="B:MS,B:MS", help="o and c through two measured batches, instead of --cost")
    add("--batches", default="1,2,4,8,16,32,64,128,256,512", metavar="B,…", help="of the cost table (%(default)s)")
    add("--usd-per-hour", default="3.00", metavar="USD,…", help="of a replica; one for all, or one per batch")
    add("--slo-ms", type=float, help="objective of a request: the largest batch that whoever comes behind it can bear")
    add("--wait-share", type=float, default=0.4, help="what waiting may take of it (%(default)s)")
    add("--users", type=int, help="streaming users at a time: how many replicas they need")
    add("--tpot-ms", type=float, default=30.0, help="objective between two tokens of a stream (%(default)s)")
    add("--tokens-per-s", type=float, default=90.0, help="as published for a replica (%(default)s)")
    add("--stream-tokens-per-s", type=float, default=20.0, help="what one stream needs (%(default)s)")
    add("--peak-to-mean", type=float, default=10.0, help="of the users; for the replicas to keep warm (%(default)s)")
    add("--json", metavar="FILE", help="the figures as JSON; - for stdout")
    add("--plot", type=Path, metavar="FILE", help="USD per million items over the batch, as SVG")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace, _: Mapping[str, str]) -> int:
    try:
        report = figures(options)
    except (ValueError, ArithmeticError) as error:
        raise SettingsError(f"plan: {error}") from None
    text = json.dumps(report, indent=2)
    for table in tables(report):
        printed(table, to_stderr=options.json == "-")
    refusals = [
        f"{each['model']} over {each['tp']} GPUs: {each['refusal']}" for each in report["memory"] if each["refusal"]
    ]
    for each in refusals:
        print(f"sidecar: refused: {each}", file=sys.stderr)
    if options.json == "-":
        print(text)
    elif options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    if options.plot:
        points = [(row["batch"], row["usd_per_million"]) for row in report["usd_per_million"]]
        options.plot.write_text(chart("What a million items cost", "batch", "USD", points), encoding="utf-8")
    return int(bool(refusals))


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reckoned. Raises ValueError for numbers that make no sense."""
    for name in ABOVE_0:
        if (value := getattr(options, name)) is not None and not 0 < value < inf:
            raise ValueError(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    plans = [_memory(options, each) for each in (options.model, options.against) if each]
    cost, batches = _cost(options, plans[0].model.name), [int(each) for each in options.batches.split(",")]
    prices = [float(each) for each in options.usd_per_hour.split(",")]
    prices *= len(batches) if len(prices) == 1 else 1
    if min(batches) < 1 or not all(0 < each < inf for each in prices) or len(prices) != len(batches):
        raise ValueError("--batches must be >= 1, and --usd-per-hour above 0: one for all batches, or one for each")
    rows = [cost.row(batch, usd, (batches[0], prices[0])) for batch, usd in zip(batches, prices, strict=True)]
    usd_per_gpu = prices[0] / plans[0].tp
    report = {
        "memory": [_fits(each, _cost(options, each.model.name), usd_per_gpu) for each in plans],
        "o_ms": cost.o_ms,
        "c_ms": cost.c_ms,
        "usd_per_million": rows,
        "batch_enough": cost.enough(),
        "utilisation": [{"utilisation": each, "cost_factor": 1 / each} for each in UTILISATIONS],
    }
    if options.slo_ms is not None:
        report["batch_max"] = cost.batch_within_ms(options.wait_share * options.slo_ms)
    if options.users is not None:
        rates = (options.tokens_per_s, options.stream_tokens_per_s, options.tpot_ms)
        needed = replicas(options.users, *rates, cost, plans[0].sequences)
        report["replicas"] = [{**each, "warm": warm(each["replicas"], options.peak_to_mean)} for each in needed]
    return report


def _memory(options: argparse.Namespace, text: str) -> MemoryPlan:
    found = _MODEL.fullmatch(text)
    if found is None or not (found[2] or found[1] in MODELS):
        raise ValueError(f"{text!r} is no MODEL:GPUS; known models: {', '.join(MODELS)}")
    name, billions, layers, heads, size, gpus = found.groups()
    model = MODELS.get(name)
    if billions:
        sizes = {"layers": int(layers), "kv_heads": int(heads), "head_dim": int(size)}
        model = ModelSize(name=name, parameters=1e9 * float(billions), **sizes)
    assert model is not None
    fields = {"weights": options.weights, "kv": options.kv, "reuse": not options.without_reuse}
    return MemoryPlan(model=model, tp=int(gpus), gpu_gib=options.gpu_gib, length=options.length, **fields)


def _cost(options: argparse.Namespace, model: str) -> CostModel:
    if options.fit:
        points = re.findall(r"(\d+):([\d.]+)", options.fit)
        if len(points) != 2:
            raise ValueError(f"--fit must be two measurements, B:MS,B:MS, not {options.fit!r}")
        return CostModel.fitted([(int(batch), float(ms)) for batch, ms in points])
    if options.cost:
        if options.cost.count(",") != 1:
            raise ValueError(f"--cost must be two numbers, O,C, not {options.cost!r}")
        o_ms, c_ms = map(float, options.cost.split(","))
        return CostModel(o_ms=o_ms, c_ms=c_ms)
    profile = PROFILES[PROFILE_OF.get(model, "70b-tp4-a100")]
    return CostModel(o_ms=profile.overhead_ms, c_ms=profile.decode_row_ms)


def _fits(plan: MemoryPlan, cost: CostModel, usd_per_gpu: float) -> dict[str, Any]:
    names = ("tp", "weights_gpu_gib", "kv_gpu_gib", "kv_tokens", "length", "sequences", "refusal")
    full = max(1, min(plan.sequences, SLOTS))
    return {
        "model": plan.model.name,
        **{name: getattr(plan, name) for name in names},
        "kv_token_kib": plan.model.kv_token_bytes(plan.kv) / 1024,
        "load_s": plan.model.weight_bytes(plan.weights) / DISK_BYTES_PER_S,
        "usd_per_million_when_full": cost.usd_per_million(full, usd_per_gpu * plan.tp),
    }


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The figures for people."""
    columns = "model GPUs weights KV KiB/token KV·tokens sequences of·tokens loads USD/million".split()
    memory = Table(title="Memory per GPU in GiB, with 4 GiB for activations", columns=columns)
    further = Table(title="Further", columns=("what", "figure"))
    for each in report["memory"]:
        sizes = (f"{each[name]:.1f}" for name in ("weights_gpu_gib", "kv_gpu_gib", "kv_token_kib"))
        counts = (f"{each[name]:,}" for name in ("kv_tokens", "sequences", "length"))
        price = f"{each['usd_per_million_when_full']:.4f}"
        memory.add_row(each["model"], str(each["tp"]), *sizes, *counts, f"{each['load_s']:.0f} s", price)
    title = (
        f"T(b) = {report['o_ms']:.4g} + {report['c_ms']:.4g}·b ms; doubling saves < 5 % from {report['batch_enough']}"
    )
    cost = Table(title=title, columns="batch ms ms/item items/h USD/h USD/million items× cheaper×".split())
    for row in report["usd_per_million"]:
        formats = dict(zip(row, ("d", ".2f", ".4f", ",.0f", ".2f", ".4f", ".1f", ".1f"), strict=True))
        cost.add_row(*(f"{value:{formats[name]}}" for name, value in row.items()))
    for each in report["utilisation"]:
        further.add_row(f"cost at {each['utilisation']:.0%} utilisation", f"{each['cost_factor']:.2f}×")
    if "batch_max" in report:
        further.add_row("largest batch that whoever comes behind can bear", str(report["batch_max"]))
    for each in report.get("replicas", ()):
        told = f"{each['replicas']}: {each['streams']} streams at {each['tpot_ms']:.0f} ms a token; {each['warm']} warm"
        further.add_row(f"replicas, if {each['reading']}", told)
    return [memory, cost, further]
