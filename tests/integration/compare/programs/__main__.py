"""Run the named programs against one server: `python -m tests.integration.compare.programs TARGET WORD NAME…`."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from tests.integration.compare.programs import ENDED_BY, IT_HUNG, about, calls, nvidia, streams

TIMEOUT_S = 20.0  # of one program; one that hangs is left behind, and says so
PROGRAMS = {**about.PROGRAMS, **calls.PROGRAMS, **nvidia.PROGRAMS, **streams.PROGRAMS}


def seen_by(name: str, target: str, word: str) -> Any:
    """What the program returned, or the exception that it ended with."""
    seen: list[Any] = []

    def run() -> None:
        try:
            seen.append(PROGRAMS[name](target, word))
        except Exception as error:  # the user's program would end by it: that is what is compared
            seen.append({ENDED_BY: type(error).__name__, "saying": str(error)})

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return seen[0] if seen else IT_HUNG


def main() -> None:
    """Print what each saw, as JSON."""
    target, word, *names = sys.argv[1:]
    print(json.dumps({name: seen_by(name, target, word) for name in names}), flush=True)


if __name__ == "__main__":
    main()
