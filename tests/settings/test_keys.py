"""One line of the file of keys: what may stand there, and what may not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from sidecar.core.errors import SettingsError
from sidecar.core.request import Lane
from sidecar.settings.keys import KeySettings

HASH = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"key": "sk-the-key-itself"}, "not the key"),
        ({}, "either key or certificate"),
        ({"key": HASH, "certificate": "a"}, "either key or certificate"),
        ({"certificate": "sha256:AB"}, "lower case"),
        ({"key": HASH, "tenant": ""}, "tenant must be"),
        ({"key": HASH, "tenant": "a\nb"}, "tenant must be"),
        ({"key": HASH, "lanes": ()}, "lanes must name one"),
        ({"key": HASH, "tokens_per_minute": -1.0}, "tokens_per_minute must be >= 0"),
        ({"key": HASH, "expires": datetime(2027, 1, 31)}, "time zone"),
    ],
)
def test_a_line_that_means_nothing_cannot_be_built(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        KeySettings(**{"tenant": "t", **fields})
    assert "sk-the" not in str(refused.value)


def test_a_key_is_valid_until_it_expires() -> None:
    key = KeySettings(tenant="t", key=HASH, expires=datetime(2027, 1, 31, tzinfo=UTC))
    end_s = datetime(2027, 1, 31, tzinfo=UTC).timestamp()
    assert (key.expired(end_s - 1), key.expired(end_s)) == (False, True)
    assert key.lanes == (Lane.ONLINE, Lane.OFFLINE)
