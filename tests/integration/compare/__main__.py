"""Play the table and print what differs; or write docs/wire.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.compare.document import PATH, document
from tests.integration.compare.runner import Outcome, run
from tests.integration.compare.table import SUBJECTS


def main() -> int:
    """0 if every scenario has its verdict."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.compare", description=__doc__)
    parser.add_argument("--only", default="", help="play scenarios whose subject and name hold this text")
    parser.add_argument("--all", action="store_true", help="print allowed differences too")
    parser.add_argument("--write", action="store_true", help="write docs/wire.md from the table, and play nothing")
    arguments = parser.parse_args()
    if arguments.write:
        PATH.write_text(document())
        return 0
    chosen = [
        scenario
        for subject in SUBJECTS
        for scenario in subject.scenarios
        if arguments.only in f"{subject.title}: {scenario.name}"
    ]
    begun_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        outcomes = asyncio.run(run(chosen, Path(directory)))
    for outcome in outcomes:
        show(outcome, everything=arguments.all)
    failed = sum(bool(each.wrong) for each in outcomes)
    print(f"{len(outcomes)} outcomes, {failed} against their verdict, {time.monotonic() - begun_s:.0f} s")
    return int(failed > 0)


def show(outcome: Outcome, *, everything: bool) -> None:
    """Print where it differs, and what of that contradicts the verdict."""
    lines = [str(each) for each in outcome.found] if everything else outcome.wrong
    if lines or outcome.skipped:
        print(f"{outcome.scenario.name} ({outcome.client}){': skipped, ' * bool(outcome.skipped)}{outcome.skipped}")
    for line in lines:
        print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
