"""Who the caller of an RPC is, and what it may ask for: a key or a client's certificate says it, not a header.

A header or parameter can only narrow what the key grants: it may name the key's own tenant, and one of its lanes.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

import grpc

from sidecar.core.request import Lane, Request
from sidecar.frontend.caller_request import LANE, TENANT, CallerRequest, asked_by
from sidecar.frontend.models import stated
from sidecar.frontend.statuses import CallerError
from sidecar.keys import Keyring, names_in
from sidecar.settings.keys import KeySettings
from sidecar.triton.client import SERVICE

CALLER: ContextVar[KeySettings | None] = ContextVar("caller", default=None)
_BEARER = "bearer "
# Probes of load balancers have no key, and learn nothing but a boolean. The health service asks for none either.
OPEN = frozenset(f"{SERVICE}/{name}" for name in ("ServerLive", "ServerReady"))
OPERATORS = frozenset(
    f"{SERVICE}/{name}"
    for name in (
        *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
        *(f"{kind}SharedMemory{do}" for kind in ("System", "Cuda") for do in ("Status", "Register", "Unregister")),
    )
)


class Access:
    """Lets callers in by their keys. A sidecar without keys has none of it."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def enter(self, method: str, context: Any) -> None:
        """The caller of this RPC is known from here on, to this task and those that it begins. Raises CallerError."""
        CALLER.set(None)
        if method in OPEN:
            return
        key = self._key_of(context)
        if method in OPERATORS and not key.operator:
            name = method.rpartition("/")[2]
            raise CallerError(grpc.StatusCode.PERMISSION_DENIED, f"{name} is for operators; this key is of none")
        CALLER.set(key)

    def _key_of(self, context: Any) -> KeySettings:
        keyring = self._keyring
        sent = _bearer(context.invocation_metadata())
        by_key = keyring.of_key(sent) if sent is not None else None
        shown = context.auth_context()
        by_certificate = keyring.of_certificate(fingerprint(shown), names_in(shown)) if shown else None
        if sent is None and by_certificate is None:
            text = "send a key: metadata `authorization: Bearer KEY`" + (
                ", for the certificate names no tenant" if shown else ""
            )
            raise CallerError(grpc.StatusCode.UNAUTHENTICATED, text)
        if sent is not None and by_key is None:
            raise CallerError(grpc.StatusCode.UNAUTHENTICATED, "the key is not valid here: unknown, revoked or expired")
        key = by_key or by_certificate
        assert key is not None, "one of them was found"
        if by_certificate is not None and by_certificate.tenant != key.tenant:
            raise CallerError(grpc.StatusCode.UNAUTHENTICATED, "the key and the certificate are of different tenants")
        return key

    def check(self, asked: CallerRequest) -> None:
        """The caller may send this request, which counts from here on. Raises CallerError.

        Its stream may be older than the revocation of its key.
        """
        key = CALLER.get()
        if key is None:
            return
        by, valid = asked_by(asked.id), self._still_valid(key, asked.id)
        shared = any(each.shared_bytes is not None for each in asked.tensors) or any(
            each.shared for each in asked.outputs
        )
        if shared and not valid.operator:  # a region is known to all by its name
            text = f"{by}shared memory is for operators; this key is of none"
            raise CallerError(grpc.StatusCode.PERMISSION_DENIED, text)
        if wait_s := self._keyring.request_wait_s(valid):
            text = f"{by}this key may send {valid.requests_per_minute:g} requests a minute"
            raise CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{text}; try again in {wait_s:.1f} s", wait_s)

    def book(self, request: Request, caller_id: str) -> None:
        """The tokens that `request` may take are booked for the caller's key. Raises CallerError."""
        key = CALLER.get()
        if key is None:
            return
        valid = self._still_valid(key, caller_id)
        if wait_s := self._keyring.tokens_wait_s(valid, request):
            text = f"{asked_by(caller_id)}this key may use {valid.tokens_per_minute:g} tokens a minute"
            raise CallerError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{text}; try again in {wait_s:.1f} s", wait_s)

    def _still_valid(self, key: KeySettings, caller_id: str) -> KeySettings:
        valid = self._keyring.valid(key.id)
        if valid is None:
            text = f"{asked_by(caller_id)}the key of this stream is not valid any more"
            raise CallerError(grpc.StatusCode.UNAUTHENTICATED, text)
        return valid

    def forget(self, request_id: str) -> None:
        """What was booked for this request is given back: it never arrived."""
        self._keyring.forget(request_id)

    def narrowed(self, asked: CallerRequest, given: Mapping[str, str]) -> Mapping[str, str]:
        """`given` with tenant and lane as the caller's key grants them. Raises CallerError for what it does not."""
        key = CALLER.get()
        if key is None:
            return given
        by = asked_by(asked.id)
        if (tenant := stated(asked, given, TENANT)) not in (None, key.tenant):
            text = f"{by}this key is not of the tenant that {TENANT} names ({len(tenant or '')} characters)"
            raise CallerError(grpc.StatusCode.PERMISSION_DENIED, text)
        lane = stated(asked, given, LANE)
        if lane in tuple(Lane) and lane not in key.lanes:
            text = f"{by}this key may use the lanes {', '.join(key.lanes)}, not {lane}"
            raise CallerError(grpc.StatusCode.PERMISSION_DENIED, text)
        return {LANE: key.lanes[0], **given, TENANT: key.tenant}


def _bearer(metadata: Any) -> str | None:
    """The key that the caller sent; None if it sent none."""
    for name, value in metadata or ():
        if name == "authorization" and isinstance(value, str) and value.lower().startswith(_BEARER):
            return value[len(_BEARER) :].strip()
    return None


def fingerprint(shown: Mapping[str, Any]) -> str:
    """The SHA-256 of the certificate that a client has shown; "" if it has shown none."""
    pem = next(iter(shown.get("x509_pem_cert", ())), b"")
    try:
        return sha256(ssl.PEM_cert_to_DER_cert(pem.decode())).hexdigest() if pem else ""
    except (ValueError, UnicodeDecodeError):
        return ""
