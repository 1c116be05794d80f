"""The table of a check: a row for each run, a line for each other step."""

from __future__ import annotations

from dev.gpu.runs import online_figures, paired
from dev.gpu.table import HEAD, table


def test_a_run_is_a_row_with_its_share_of_the_ceiling_and_a_step_that_failed_is_a_line() -> None:
    each = {"number": 0, "error": "", "ttft_ms": 10.0, "e2e_ms": 100.0, "gaps_ms": [5.0]}
    online = online_figures([each])
    one = {"preset": "8b", "policy": "ours", "step": "short ours", "online": online, "paired": paired(online, online)}
    card = {"utilization.gpu": 90.0, "power.draw": 476.0}
    full = {"preset": "8b", "policy": "ceiling", "step": "short ceiling", "online": online_figures([])}
    found = table(
        [
            {**one, "gpu": card, "offline_tokens_per_s": 50.0},
            {**full, "gpu": None, "offline_tokens_per_s": 200.0},
            {"preset": "8b", "step": "curve", "failed": "TimeoutError: "},
            {"preset": "8b", "step": "resume", "items": 96, "items_identical": 6, "again_identical": 7},
        ]
    ).splitlines()
    assert found[0] == f"| {HEAD} |"
    assert found[2] == "| 8b | short ours | 10 / 10 | 100 / 100 | 1 | 0 | 5 | 50 | 25.0% | 90 | 476 |"
    assert found[3] == "| 8b | short ceiling | – / – | – / – | – | – | – | 200 | 100.0% | – | – |"
    assert found[5:] == [
        "8b curve: TimeoutError: ",
        "8b resume: of 96 answers 6 are the same in slices, 7 whole in another order",
    ]
