"""The string parameters of a model's config.pbtxt, read with errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping


class EngineParameters:
    """An empty value or an unfilled `${…}` counts as unset, as for NVIDIA's engine model."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {key: value for key, value in values.items() if value and not value.startswith("${")}

    def text(self, key: str, default: str) -> str:
        return self._values.get(key, default)

    def number(self, key: str, default: int) -> int:
        try:
            return int(self._values.get(key, default))
        except ValueError as error:
            raise ValueError(f"parameter '{key}' must be a whole number, not {self._values[key]!r}") from error

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, str(default)).lower()
        if value not in ("true", "false"):
            raise ValueError(f"parameter '{key}' must be true or false, not {value!r}")
        return value == "true"
