"""What every test of the offline lane needs: pauses between tries that no test has to wait for."""

from __future__ import annotations

import pytest

from sidecar.offline import intake, pauses


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "BACKOFF_S", (0.001, 0.002, 0.005))
    monkeypatch.setattr(intake, "FETCH_WAIT_S", 0.01)
