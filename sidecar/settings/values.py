"""Values of a settings file that a loader would take, and that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

NUMBER_MAX = 2**53  # beyond it a float is no exact count, and no protocol of ours carries it


def mistakes(document: Any, settings: Any, where: str = "") -> Iterator[str]:
    """One line for each number of `document` that is none: `slots: yes` would be one slot, `.inf` no number of seconds.

    `settings` is what the loader made of it.
    """
    if isinstance(document, Mapping):
        for name, value in document.items():
            made = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, str(name), None)
            yield from mistakes(value, made, f"{where}.{name}" if where else str(name))
    elif isinstance(document, Sequence) and not isinstance(document, str):
        for at, (value, made) in enumerate(zip(document, settings or (), strict=False)):
            yield from mistakes(value, made, f"{where}.{at}")
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        if isinstance(document, bool):
            yield f"{where}: must be a number, not {str(document).lower()}"
        elif not (isfinite(settings) and abs(settings) <= NUMBER_MAX):
            yield f"{where}: must be a number of at most {NUMBER_MAX}, not {document}"
