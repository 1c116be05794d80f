"""Tables on stdout or stderr."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

WIDTH = 120  # where there is no terminal: a file has no width, and eighty columns would cut the figures


def printed(table: Table, *, to_stderr: bool = False) -> None:
    """The table is printed: by `print`, so that a reader who went away is an error like any other."""
    console = Console(stderr=to_stderr)
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as capture:
        console.print(table)
    print(capture.get(), end="", file=sys.stderr if to_stderr else sys.stdout)
