"""Tables of figures, as plain text on stdout or stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

GAP = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title, the names of the columns, and rows of as many cells. The first column holds text, the others figures."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Append one row. Raises ValueError if it has not one cell per column."""
        if len(cells) != len(self.columns):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(self.columns)} columns")
        self.rows.append(cells)

    def text(self) -> str:
        """Return the title, the names, a rule and the rows, one line each. No cell is cut."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        names, *rows = (_line(line, widths) for line in lines)
        rule = GAP.join("─" * width for width in widths)
        return "\n".join((self.title, names, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the cells side by side: the first one to the left of its column, the figures to the right of theirs."""
    figures = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    return GAP.join((cells[0].ljust(widths[0]), *figures)).rstrip()


def printed(table: Table, *, to_stderr: bool = False) -> None:
    """Print the table, with an empty line after it."""
    print(table.text(), end="\n\n", file=sys.stderr if to_stderr else sys.stdout)
