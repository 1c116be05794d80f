"""What a profile of iteration times says about the settings, for `doctor --profile`."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.settings.file import ServeSettings
from sidecar.sim.simulate import profile_of


def profile_findings(name: str, settings: ServeSettings) -> Iterator[tuple[str, str]]:
    """Yield how long iterations of each engine take by the profile (a name or a file), and what that means.

    Raises SettingsError if there is no such profile.
    """
    times, objective_ms = profile_of(name), settings.scheduler.ttft_objective_ms
    for engine in settings.engines:
        one_ms, full_ms = (1e3 * times.iteration_s(rows, 0) for rows in (1, engine.slots))
        told = f"an iteration takes {one_ms:.1f} ms with one row and {full_ms:.1f} ms with {engine.slots}"
        yield "ok", f"engine {engine.name}, by profile {times.name}: {told}"
        if full_ms > objective_ms:
            yield "warning", f"engine {engine.name}: no first token comes within ttft_objective_ms, {objective_ms:g}"
