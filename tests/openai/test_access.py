"""Programs with keys: who is let in, as whom, and what a header can still say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sidecar.core.request import Lane
from sidecar.keys import Keyring, hash_of
from sidecar.settings.keys import KeysSettings
from tests.openai.test_api_request import CHAT_BODY
from tests.openai.test_completions import Client, client

PATH = "/v1/chat/completions"
LABELS, BILLING, SLOW = "sk-labels", "sk-billing", "sk-slow"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    lines = (
        f"{{key: '{hash_of(LABELS)}', tenant: labels, lanes: [offline]}}",
        f"{{key: '{hash_of(BILLING)}', tenant: billing, requests_per_minute: 2}}",
        f"{{key: '{hash_of(SLOW)}', tenant: slow, tokens_per_minute: 20}}",
    )
    (tmp_path / "keys.yaml").write_text("".join(f"- {each}\n" for each in lines))
    return Keyring(KeysSettings(file=tmp_path / "keys.yaml"))


async def ask(
    found: Client, key: str | None, more: Mapping[str, Any] = {}, headers: Mapping[str, str] = {}
) -> tuple[int, Any]:
    sent = headers if key is None else {"Authorization": f"Bearer {key}", **headers}
    async with found.http.post(PATH, json={**CHAT_BODY, **more}, headers=sent) as response:
        return response.status, (await response.json()).get("error", {}).get("code")


async def test_without_a_valid_key_nothing_runs(keyring: Keyring) -> None:
    async with client(keyring=keyring) as found:
        for key in (None, "", "sk-unknown", hash_of(BILLING)):
            assert await ask(found, key) == (401, "invalid_api_key")
        assert await ask(found, None, headers={"Authorization": f"Basic {BILLING}"}) == (401, "invalid_api_key")
    assert found.driver.requests == []


async def test_the_key_names_the_tenant_and_a_header_cannot_name_another(keyring: Keyring) -> None:
    async with client(keyring=keyring) as found:
        assert await ask(found, BILLING, headers={"x-tenant": "labels"}) == (403, "wrong_tenant")
        assert await ask(found, BILLING, headers={"X-Tenant": "billing"}) == (200, None)
    assert [each.tenant for each in found.driver.requests] == ["billing"]


async def test_the_key_grants_lanes_and_its_first_is_the_usual_one(keyring: Keyring) -> None:
    async with client(keyring=keyring) as found:
        assert await ask(found, LABELS) == (200, None)
        assert await ask(found, LABELS, {"service_tier": "default"}) == (403, "wrong_lane")
    assert [each.lane for each in found.driver.requests] == [Lane.OFFLINE]


async def test_beyond_its_requests_or_tokens_of_a_minute_a_key_waits(keyring: Keyring) -> None:
    async with client(keyring=keyring) as found:
        answers = [await ask(found, BILLING) for _ in range(3)]
        assert answers == [(200, None), (200, None), (429, "rate_limit_exceeded")]
        tokens = [await ask(found, SLOW, {"max_tokens": 16}) for _ in range(2)]
        assert tokens == [(200, None), (429, "rate_limit_exceeded")]
