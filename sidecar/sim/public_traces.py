"""Public traces of production as online arrivals, in the formats in which they are published.

The project carries none of them; a file is known by its first line:

- Azure LLM inference 2023 and 2024 (github.com/Azure/AzurePublicDataset, CC-BY 4.0): a CSV file with the columns
  `TIMESTAMP,ContextTokens,GeneratedTokens`;
- BurstGPT (github.com/HPMLL/BurstGPT): a CSV file with `Timestamp` (seconds), `Request tokens`, `Response tokens`;
- Mooncake (github.com/kvcache-ai/Mooncake, Apache-2.0): lines of JSON with `timestamp` (ms), `input_length`,
  `output_length` and `hash_ids`.

A trace says how long an answer was, not how long it might have been: every request declares the longest of the file.
Rows without an answer, and those that the engine cannot hold, are left out and counted. Mooncake's `hash_ids` name the
blocks of 512 tokens of a prompt: equal ids are equal tokens, in the simulated KV cache as on an engine.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from math import isfinite
from pathlib import Path

from sidecar.core.request import Lane, Request
from sidecar.sim.arrivals_file import FIELDS, Arrivals, read_csv
from sidecar.sim.workloads import PROMPT_BLOCK, SimulatedRequest, WorkloadError

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURST_GPT = ("Timestamp", "Request tokens", "Response tokens")
LINE_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class _Row:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


def read_arrivals(path: Path, sequence_max: int) -> Arrivals:
    """Return the arrivals of a file, in our format or a public one. Raises WorkloadError with file and line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(LINE_BYTES_MAX)
            if first.startswith("{"):
                return _arrivals(path, list(_mooncake(path, chain([first], file))), sequence_max)
            header = next(csv.reader([first]), [])
            for columns in (AZURE, BURST_GPT):
                if set(columns) <= set(header):
                    return _arrivals(path, list(_table(path, csv.reader(file), header, columns)), sequence_max)
    except UnicodeDecodeError:
        raise WorkloadError(f"{path} is not UTF-8 text") from None
    except csv.Error as error:
        raise WorkloadError(f"{path}: {error}") from None
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from None
    if tuple(header) != FIELDS and path.suffix != ".csv":
        raise WorkloadError(f"{path}: neither {','.join(FIELDS)} nor a trace of Azure, BurstGPT or Mooncake")
    return read_csv(path, sequence_max)


def _table(path: Path, rows: Iterator[list[str]], header: list[str], columns: tuple[str, str, str]) -> Iterator[_Row]:
    """The rows of a CSV trace. Times are dates (Azure) or seconds (BurstGPT)."""
    at, prompt, output = map(header.index, columns)
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            moment = _date_s(row[at]) if columns is AZURE else float(row[at])
            yield _checked(_Row(moment, int(row[prompt]), int(row[output])))
        except (ValueError, IndexError):
            raise WorkloadError(f"{path}:{number}: no request of this trace: {','.join(row)[:80]}") from None


def _date_s(text: str) -> float:
    """Return seconds since 1970. The trace writes seven decimals and no zone; later ones have one."""
    date, _, zone = text.partition("+")
    return datetime.fromisoformat(f"{date[:26]}+{zone or '00:00'}").timestamp()


def _mooncake(path: Path, lines: Iterator[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            blocks = tuple(int(each) for each in value.get("hash_ids", ()))
            row = _Row(value["timestamp"] / 1000, value["input_length"], value["output_length"], blocks)
            yield _checked(row)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WorkloadError(f"{path}:{number}: no request of this trace: {line[:80]!r}") from None


def _checked(row: _Row) -> _Row:
    """Return the row. Raises ValueError for what is no time and no count."""
    counts = (row.prompt_tokens, row.output_tokens)
    if not isfinite(row.at_s) or not all(isinstance(each, int) and 0 <= each < 10**9 for each in counts):
        raise ValueError(row)
    return row


def _arrivals(path: Path, rows: list[_Row], sequence_max: int) -> Arrivals:
    """The requests of the trace by time, from 0 on."""
    answered = [row for row in rows if row.prompt_tokens and row.output_tokens]
    longest = max((row.output_tokens for row in answered), default=0)
    kept = sorted((row for row in answered if row.prompt_tokens + longest <= sequence_max), key=lambda row: row.at_s)
    if not kept:
        raise WorkloadError(f"{path} holds no request that the engine of {sequence_max} tokens can serve")
    depths = Counter(block for row in kept for block in row.blocks)
    jobs = tuple(_job(f"o{n}", row, row.at_s - kept[0].at_s, longest, depths) for n, row in enumerate(kept))
    return Arrivals(path=path, jobs=jobs, moved_s=kept[0].at_s, left_out=len(rows) - len(kept))


def _job(name: str, row: _Row, at_s: float, longest: int, seen: Counter[int]) -> SimulatedRequest:
    shared = next((n for n, block in enumerate(row.blocks) if seen[block] == 1), len(row.blocks))
    request = Request(
        id=name,
        lane=Lane.ONLINE,
        model="tensorrt_llm",
        arrived_s=at_s,
        prompt_tokens=row.prompt_tokens,
        output_tokens_max=longest,
        prefix_key=f"blocks-{row.blocks[shared - 1]}" if shared else "",
    )
    shared_tokens = min(shared * PROMPT_BLOCK, row.prompt_tokens - 1)
    return SimulatedRequest(
        request=request, output_tokens=row.output_tokens, prefix_tokens=shared_tokens, prompt_blocks=row.blocks[:shared]
    )
