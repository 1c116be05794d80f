"""Tables of figures are plain text: whole cells, figures to the right, and nothing that only a terminal can show."""

from __future__ import annotations

import pytest

from sidecar.sim.tables import Table, printed


def table() -> Table:
    shown = Table(title="origin", columns=("policy", "p50", "harvest"))
    shown.add_row("online-only", "185", "")
    shown.add_row("ours", "190", "94.9%")
    return shown


def test_figures_stand_to_the_right_of_their_columns_and_no_cell_is_cut() -> None:
    assert table().text().splitlines() == [
        "origin",
        "policy       p50  harvest",
        "───────────  ───  ───────",
        "online-only  185",
        "ours         190    94.9%",
    ]


def test_a_row_with_a_cell_too_few_is_a_defect() -> None:
    with pytest.raises(ValueError, match="a row of 2 cells in a table of 3 columns"):
        table().add_row("ideal", "1")


def test_a_table_is_printed_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    printed(table(), to_stderr=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == table().text() + "\n\n"
