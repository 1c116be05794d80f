"""Figures in the units of Grafana's panels, as text."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_PER_S = {"reqps": "req/s", "ops": "/s", "tokens/s": "tok/s"}
_AFTER = {"watt": "W", "h": "h"}


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """Return the value with its unit, with three digits unless `decimals` says how many follow the point."""
    if math.isnan(value):
        return "no data"
    if unit == "s":
        return _time(value)
    if unit == "percentunit":
        return f"{_digits(100 * value, decimals)} %"
    if unit == "bytes":
        return _bytes(value)
    if unit == "currencyUSD":
        return f"${_digits(value, 2 if decimals is None else decimals)}"
    if unit == "dateTimeAsIso":
        return datetime.fromtimestamp(value / 1000, UTC).strftime("%b %-d, %H:%M")
    if unit == "bool_yes_no":
        return "yes" if value else "no"
    if unit == "none":
        return _digits(value, decimals)
    for size, letter in _SI:
        if abs(value) >= size:
            return f"{_digits(value / size, decimals)}{letter}{_suffix(unit)}"
    return f"{_digits(value, decimals)}{_suffix(unit)}"


def _suffix(unit: str) -> str:
    known = _PER_S.get(unit) or _AFTER.get(unit)
    return f" {known}" if known else ""


def _digits(value: float, decimals: int | None = None) -> str:
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2 if size >= 0.1 else 3
        text = f"{value:.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.{decimals}f}"


def _time(seconds: float) -> str:
    for size, letter in _TIMES:
        if abs(seconds) >= size:
            return f"{_digits(seconds / size)} {letter}"
    return "0 s"


def _bytes(value: float) -> str:
    for size, letter in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(value) >= size:
            return f"{_digits(value / size)} {letter}"
    return f"{_digits(value)} B"


def ticks(most: float, unit: str = "short", count: int = 4) -> list[float]:
    """Return values from 0 to at least `most` that are round in this unit."""
    if most <= 0 or not math.isfinite(most):
        return [0.0, 1.0]
    binary = unit == "bytes"
    base = 2.0 if binary else 10.0
    scale = next((size for size, _ in _TIMES[:3] if most >= 2 * size), 1.0) if unit == "s" else 1.0
    size = scale * base ** math.floor(math.log(most / scale / count, base))
    step = next(size * factor for factor in ((1, 2) if binary else (1, 2, 2.5, 5, 10)) if size * factor * count >= most)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]
