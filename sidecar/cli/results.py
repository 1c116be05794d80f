"""`sidecar results`: what became of a job's items, as files in the order of the input."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sidecar.batch.results import Gathered, gather
from sidecar.cli.ticker import Ticker
from sidecar.cli.where import Environment, add_where, job_settings, next_where, run
from sidecar.offline.item import TENANT_DEFAULT

HELP = """
Write the results of a job to one file and its errors to another: complete, in the order of the input, none twice. The
lines are those of an OpenAI Batch output and error file. While the job runs the files hold what is there up to now;
called again, the command reads on where it was (it keeps a file FILE.sidecar until the job is complete).

examples:
  sidecar results --job nightly -o out.jsonl --config sidecar.yaml
  sidecar results --job nightly -o out.jsonl --errors err.jsonl --follow --config sidecar.yaml

exit codes:
  0    every item has its outcome, and the files hold it
  3    the job is not over; the files hold what is there
"""
UNFINISHED = 3


def register_results(subparsers: Any) -> None:
    """Add `results`."""
    parser = subparsers.add_parser(
        "results",
        help="write a job's results to a file, in the order of its input",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_where(parser)
    parser.add_argument("--job", required=True, metavar="JOB")
    parser.add_argument("--tenant", default=TENANT_DEFAULT, help=f"whose job it is; by default {TENANT_DEFAULT!r}")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the results")
    parser.add_argument(
        "--errors", type=Path, metavar="FILE", help="the errors; by default FILE with .errors before its end"
    )
    parser.add_argument("--follow", action="store_true", help="wait until every item has its outcome")
    parser.add_argument("--json", action="store_true", help="say on stdout how many there are as JSON")
    parser.set_defaults(run=_results)


def _results(options: argparse.Namespace, environment: Environment) -> int:
    settings = job_settings(options, environment)
    output: Path = options.output
    errors: Path = options.errors or output.with_name(f"{output.stem}.errors{output.suffix}")
    ticker = Ticker("gathered")

    def tell(found: Gathered) -> None:
        ticker.total = found.items
        ticker.tell(found.results + found.errors)

    job = (options.tenant, options.job)
    found = run(gather(settings, job, output, errors, follow=options.follow, on_progress=tell))
    ticker.end()
    if options.json:
        told = {"results": found.results, "errors": found.errors, "items": found.items, "complete": found.complete}
        print(json.dumps(told))
    else:
        of = "" if found.items is None else f" of {found.items:,} items"
        print(f"{found.results:,} results in {output}, {found.errors:,} errors in {errors}{of}")
        if not found.complete:
            print(f"the job is not over; wait for it: sidecar job show {options.job}{next_where(options)}")
    return 0 if found.complete else UNFINISHED
