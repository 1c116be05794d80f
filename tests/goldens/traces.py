"""Short runs of the first workloads, as hashes of all actions with their times, and one recording of decisions.

`python -m tests.goldens.traces` writes them anew: for a change that is meant to decide otherwise, or that renames
what the text of an action holds.
"""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from sidecar.inflight.profile import profile_named
from sidecar.sim import policies, workloads
from sidecar.sim.simulation_run import RunPlan, run
from tests.sim.recorded_minute import record

HERE = Path(__file__).parent
TRACES = HERE / "traces.json"
RECORDING = HERE / "recording.jsonl.gz"
PROFILE = profile_named("70b-tp4-a100")
SLOTS, SEEDS = (8, 64), (1, 2, 3)
HOURS = 0.02
# The workloads that were there first, wide and narrow. Those of later days are bounded by tests of their own.
NAMES = ("origin", "knee", "overload", "diurnal", "shared-prefix", "long-prompt")
CASES = [f"{name} {slots} {seed}" for name, slots, seed in product(NAMES, SLOTS, SEEDS)]


def trace(case: str) -> str:
    """The hash of one run of our scheduler; `case` holds the workload, the slots and the seed."""
    name, slots, seed = case.split()
    plan = RunPlan(workload=workloads.by_name(name), profile=PROFILE, slots=int(slots), hours=HOURS, seed=int(seed))
    return run(plan, policies.by_name("ours")).sha256


if __name__ == "__main__":
    TRACES.write_text(json.dumps({case: trace(case) for case in CASES}, indent=1) + "\n")
    with TemporaryDirectory() as directory:
        (segment,) = record(Path(directory), per_token=False)
        shutil.copy(segment, RECORDING)
