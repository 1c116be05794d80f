"""`sidecar simulate`: workloads x policies x seeds in simulated time, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.core.errors import SettingsError
from sidecar.inflight.measured import measured_profile
from sidecar.inflight.profile import PROFILES, IterationTimes, profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.arrivals_file import Arrivals, write_csv
from sidecar.sim.comparison import REFERENCE, compare
from sidecar.sim.frontier import plotted, points, points_table, swept
from sidecar.sim.policies import Policy
from sidecar.sim.public_traces import read_arrivals
from sidecar.sim.report import table
from sidecar.sim.simulation_run import RunPlan
from sidecar.sim.tables import printed
from sidecar.sim.workloads import WorkloadError

DEFAULT_POLICIES = "online-only,bound,ours,plain-nth,naive,static-cap,aimd,bands,static-batch"
HOURS_MAX = 8784.0  # a year

HOURS_HELP = (
    "simulated per run (default: the workload's own); `diurnal` puts its week into them: the time of day then runs "
    "faster, requests and iterations do not"
)

ARRIVALS_HELP = (
    "recorded online arrivals instead of drawn ones, over the span of the file: CSV that begins with "
    "arrived_s,tenant,prompt_tokens,output_tokens,output_tokens_max (see --write-arrivals), or a public trace of "
    "Azure, BurstGPT or Mooncake as published; FILE@1.5 keeps so many requests that 1.5/s come, others with each seed"
)

PROFILE_HELP = (
    f"iteration times and KV size of the engine: {', '.join(PROFILES)}, or a JSON file of measured times, as "
    "scripts/gpu_check writes one (default: the workload's, 70b-tp4-a100 but for 8b)"
)

FRONTIER_HELP = (
    "sweep each policy's own knob (ours, static caps, the AIMD that looks at TTFT) instead of --policies, and print "
    "the price and the harvest of each point"
)


def register_simulate(subparsers: Any) -> None:
    """Add `simulate`."""
    parser = subparsers.add_parser(
        "simulate",
        help="compare policies on simulated engines",
        description="Run the scheduler of production over simulated engines, on the same arrivals as other policies.",
    )
    parser.add_argument("--workload", default="origin", metavar="W,…", help=f"of {', '.join(workloads.WORKLOADS)}")
    parser.add_argument("--profile", metavar="NAME|FILE", help=PROFILE_HELP)
    parser.add_argument("--slots", type=int, help="max_batch_size of the engine (default: the workload's, 8 or 64)")
    parser.add_argument("--policies", default=DEFAULT_POLICIES, metavar="P,…", help="known: see docs/simulation.md")
    parser.add_argument("--seeds", type=int, default=5, metavar="K", help="seeds 1 … K, the same for each policy")
    parser.add_argument("--hours", type=float, help=HOURS_HELP)
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="seeds N … N+K-1 instead of 1 … K")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a scheduler setting of `ours`")
    parser.add_argument("--arrivals", metavar="FILE[@R]", help=ARRIVALS_HELP)
    parser.add_argument("--write-arrivals", type=Path, metavar="CSV", help="write those of seed 1, and run nothing")
    parser.add_argument("--frontier", action="store_true", help=FRONTIER_HELP)
    parser.add_argument("--knob", default="", metavar="KEY=V,…", help="what --frontier sweeps of `ours`")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the points of --frontier as SVG")
    parser.add_argument("--faults", action="store_true", help="cancels, failures, losses, engine deaths; ours only")
    parser.add_argument("--check-every", type=int, default=0, metavar="N", help="check the invariants each N events")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--json", metavar="FILE", help="the figures as JSON; - for stdout")
    parser.set_defaults(run=_command)


def _command(options: argparse.Namespace, _: Mapping[str, str]) -> int:
    names = options.workload.split(",")
    if options.write_arrivals:
        workload = workloads.by_name(names[0])
        write_csv(options.write_arrivals, workload.online(1, _hours(options, workload.hours)))
        return 0
    plans = _plans(options, names)
    seeds, found = range(options.first_seed, options.first_seed + options.seeds), {}
    for name, plan in plans.items():
        chosen = _policies(options)
        found[name] = compare(name, plan, chosen, seeds, options.jobs)
    report = {
        "sidecar": __version__,
        "profile": next(iter(plans.values())).profile.name,
        "slots": next(iter(plans.values())).slots,
        "seeds": options.seeds,
        "set": options.set,
        "arrivals": str(options.arrivals) if options.arrivals else None,
        "workloads": found,
    }
    if options.frontier:
        report["points"] = [point for name, each in found.items() for point in points(name, each["policies"])]
    for name, each in found.items():
        shown = points_table(name, report["points"]) if options.frontier else table(name, each["policies"])
        printed(shown, to_stderr=options.json == "-")
    if options.plot:
        options.plot.write_text(plotted(report["points"]), encoding="utf-8")
    if options.json:
        _write(options.json, report)
    return 0


def _plans(options: argparse.Namespace, names: Sequence[str]) -> dict[str, RunPlan]:
    """What to run, by the name that its figures have. Everything that can be wrong is found here, before any run."""
    for name, least, most in (("seeds", 1, 10_000), ("slots", 1, 4096), ("jobs", 1, 256)):
        if getattr(options, name) is not None and not least <= getattr(options, name) <= most:
            raise SettingsError(f"--{name} must be in {least}..{most}, not {getattr(options, name)}")
    for name in ("first_seed", "check_every"):
        if getattr(options, name) < 0:
            raise SettingsError(f"--{name.replace('_', '-')} must be >= 0, not {getattr(options, name)}")
    chosen, overrides = _policies(options), policies.parse_overrides(options.set)
    if options.faults and any(policy.baseline for policy in chosen):
        raise SettingsError("--faults needs policies of ours: the baselines do not know what to do about a fault")
    if options.plot and not options.frontier:
        raise SettingsError("--plot needs --frontier, whose points it shows")
    for name, file in (("--json", options.json), ("--plot", options.plot)):
        if file not in (None, "-"):
            _check_writable(name, Path(file))
    chosen_workloads = [workloads.by_name(name) for name in names]
    profiles = [profile_of(options.profile or each.profile) for each in chosen_workloads]
    arrivals = None if options.arrivals is None else _arrivals(options, names, profiles[0])
    plans = {}
    for name, workload, profile in zip(names, chosen_workloads, profiles, strict=True):
        hours = _hours(options, workload.hours if arrivals is None else arrivals[0].hours)
        trace, per_s = (None, 0.0) if arrivals is None else arrivals
        plan = RunPlan(
            workload=workload,
            profile=profile,
            slots=options.slots or workload.slots,
            hours=hours,
            seed=1,
            recorded=_used(trace, hours) if trace and not per_s else None,
            trace=trace if per_s else None,
            trace_per_s=per_s,
            every=int(overrides.get("reservation_every", 10)),
            check_every=options.check_every,
            overrides={**workload.settings(hours), **overrides},
            faults=options.faults,
        )
        for policy in chosen:
            policy.settings(plan.shape)
        if trace is not None:
            _say_what_arrives(trace, per_s, hours)
        plans[name if trace is None else trace.name] = plan
    return plans


def profile_of(name: str) -> IterationTimes:
    """Return the profile of that name or, for a name that ends in .json, the one that the file holds."""
    path = Path(name)
    try:
        return measured_profile(path.read_text(encoding="utf-8")) if path.suffix == ".json" else profile_named(name)
    except OSError as error:
        raise SettingsError(f"--profile: cannot read {name}: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError too
        raise SettingsError(f"--profile {name}: {error}" if path.suffix == ".json" else str(error)) from error


def _arrivals(options: argparse.Namespace, names: Sequence[str], profile: IterationTimes) -> tuple[Arrivals, float]:
    """Return the arrivals of the file, and the rate to which they are to be thinned; 0 = they all come."""
    if len(names) > 1:
        raise SettingsError("--arrivals takes one --workload: the one whose backlog runs beside them")
    file, _, rate = options.arrivals.rpartition("@")
    per_s = float(rate) if rate.replace(".", "", 1).isdigit() and not Path(options.arrivals).exists() else 0.0
    found = read_arrivals(Path(file if per_s else options.arrivals), profile.kv_tokens_max)
    if per_s > found.rate_per_s:
        raise SettingsError(
            f"--arrivals: {found.path} has {found.rate_per_s:.3g} requests/s, which is less than {per_s}"
        )
    return found, per_s


def _used(arrivals: Arrivals, hours: float) -> Sequence[workloads.SimulatedRequest]:
    """The arrivals within so many hours."""
    used = arrivals.within(hours)
    if not used:
        raise WorkloadError(f"{arrivals.path}: no arrival lies within --hours {hours:g}")
    return arrivals.jobs[:used]


def _say_what_arrives(trace: Arrivals, per_s: float, hours: float) -> None:
    """Say on stderr how much of the file is used, and what was done to it."""
    used = (
        f"{per_s:g}/s of {trace.rate_per_s:.3g}/s" if per_s else f"{trace.within(hours)} of {len(trace.jobs)} arrivals"
    )
    moved = f", moved by {trace.moved_s:g} s to begin at 0" if trace.moved_s else ""
    left_out = f", {trace.left_out} left out: without an answer, or too long" if trace.left_out else ""
    print(f"{trace.path}: {used} over {60 * hours:g} min{moved}{left_out}", file=sys.stderr)


def _hours(options: argparse.Namespace, usual: float) -> float:
    hours = usual if options.hours is None else float(options.hours)
    if not 0.001 <= hours <= HOURS_MAX:
        raise SettingsError(f"--hours must be in 0.001..{HOURS_MAX:g}, not {hours:g}")
    return hours


def _check_writable(name: str, path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{name}: cannot write to {path}")


def _policies(options: argparse.Namespace) -> list[Policy]:
    """Return what is to run, the reference first."""
    names = swept(options.knob) if options.frontier else options.policies.split(",")
    return [policies.by_name(name) for name in dict.fromkeys([REFERENCE, *names])]


def _write(where: str, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, indent=2)
    if where == "-":
        print(text)
    else:
        Path(where).write_text(text + "\n")
