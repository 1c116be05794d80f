"""The section `openai` of the settings."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.core.errors import SettingsError
from sidecar.settings.openai import OpenAiSettings


@pytest.mark.parametrize("name", ["max_tokens_default", "body_bytes_max", "body_timeout_s", "requests_max"])
def test_a_bound_below_one_is_refused_by_its_name(name: str) -> None:
    wrong: dict[str, Any] = {name: 0}
    with pytest.raises(SettingsError, match=f"openai: {name} must be > 0, not 0"):
        OpenAiSettings(**wrong)


def test_what_is_held_has_room_for_one_request() -> None:
    with pytest.raises(SettingsError, match="openai: held_bytes_max must be >= body_bytes_max, not 9"):
        OpenAiSettings(body_bytes_max=10, held_bytes_max=9)
