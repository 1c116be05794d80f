"""Who sends an HTTP request, and what it may ask for: its key says it, and a header can only narrow that.

The programs of the OpenAI API send their key as `Authorization: Bearer KEY`, which is how callers by gRPC send theirs.
"""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.core.request import Lane, Request
from sidecar.keys import Keyring
from sidecar.openai.api_error import ApiError
from sidecar.settings.keys import KeySettings

TENANT = "x-tenant"


class KeyHolder:
    """The holder of one valid key, for one request."""

    def __init__(self, keyring: Keyring, key: KeySettings) -> None:
        self._keyring = keyring
        self._key = key

    @property
    def tenant(self) -> str:
        """Whose request it is."""
        return self._key.tenant

    def headers(self, given: Mapping[str, str]) -> dict[str, str]:
        """`given` with the key's tenant. Raises ApiError if they name another one."""
        found = {name.lower(): value for name, value in given.items() if name.lower() != "authorization"}
        if found.get(TENANT, self.tenant) != self.tenant:
            raise ApiError(403, f"this key is not of the tenant that {TENANT} names", code="wrong_tenant")
        return {**found, TENANT: self.tenant}

    def lane(self, asked: Lane | None) -> Lane:
        """The lane that is asked for, or the key's first. Raises ApiError for one that it does not grant."""
        lanes = self._key.lanes
        if asked is not None and asked not in lanes:
            raise ApiError(403, f"this key may use the lanes {', '.join(lanes)}, not {asked}", code="wrong_lane")
        return asked or lanes[0]

    def count(self) -> None:
        """One request more. Raises ApiError beyond what the key may send in a minute."""
        if wait_s := self._keyring.request_wait_s(self._key):
            raise self._beyond(f"{self._key.requests_per_minute:g} requests", wait_s)

    def book(self, request: Request) -> None:
        """The tokens that it may take are booked; what it does not use is given back. Raises ApiError beyond them."""
        if wait_s := self._keyring.tokens_wait_s(self._key, request):
            raise self._beyond(f"{self._key.tokens_per_minute:g} tokens", wait_s)

    def _beyond(self, bound: str, wait_s: float) -> ApiError:
        text = f"this key may use {bound} a minute; try again in {wait_s:.1f} s"
        return ApiError(429, text, code="rate_limit_exceeded", retry_after_s=wait_s)


def holder_of(keyring: Keyring, authorization: str) -> KeyHolder:
    """Who sends this header. Raises ApiError if its key is not valid."""
    scheme, _, sent = authorization.partition(" ")
    found = keyring.of_key(sent.strip()) if scheme.lower() == "bearer" else None
    if found is None:
        text = "the key is not valid here: unknown, revoked or expired" if authorization else "send a key"
        raise ApiError(401, f"{text} (Authorization: Bearer KEY)", code="invalid_api_key")
    return KeyHolder(keyring, found)
