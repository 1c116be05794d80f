"""The keys at work: who a caller is, what it may ask for, and how much in a minute.

A key is 256 random bits, so its hash needs no salt and no cost: nobody guesses it. The file holds hashes alone. It is
looked at once a second while somebody calls; a file that cannot be used is told, and the keys before stay valid. A key
that was taken out opens nothing any more, also not for the next request of a stream that it opened.
"""

from __future__ import annotations

import logging
import secrets
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sidecar.call import Outcome, Timeline
from sidecar.core.errors import SettingsError
from sidecar.core.events import Action, Event
from sidecar.core.request import Request
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.settings.file import mistake, read_yaml
from sidecar.settings.keys import KeySettings, KeysSettings
from sidecar.settings.values import mistakes
from sidecar.tls import ChangingFiles

logger = logging.getLogger(__name__)
PREFIX = "sk-"  # so that a scanner of repositories finds a key that somebody committed
_OF_TENANT = ("weight", "waiting_max", "slots_max")


def new_key() -> str:
    """Return a key that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return a key as the file holds it."""
    return f"sha256:{sha256(key.encode()).hexdigest()}"


class RateMeter:
    """What may be used in a minute: it fills evenly, and holds a minute's worth. 0 per minute = no limit."""

    __slots__ = ("_at_s", "_left", "_per_minute")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_minute = per_minute
        self._left = per_minute
        self._at_s = now_s

    def wait_s(self, amount: float, now_s: float) -> float:
        """In how many seconds `amount` may be used; 0.0 = now. More than a minute's worth waits for a full meter."""
        if not self._per_minute:
            return 0.0
        self._left = min(self._per_minute, self._left + (now_s - self._at_s) * self._per_minute / 60)
        self._at_s = now_s
        missing = min(amount, self._per_minute) - self._left
        return max(missing, 0.0) * 60 / self._per_minute

    def use(self, amount: float) -> None:
        """`amount` is used; a negative one is given back."""
        self._left -= amount

    def limit(self, per_minute: float) -> None:
        """From now on so much may be used in a minute."""
        self._left = min(self._left, per_minute) if self._per_minute else per_minute
        self._per_minute = per_minute


class _Meters:
    __slots__ = ("requests", "tokens")

    def __init__(self, key: KeySettings, now_s: float) -> None:
        self.requests = RateMeter(key.requests_per_minute, now_s)
        self.tokens = RateMeter(key.tokens_per_minute, now_s)


class Keyring:
    """The keys that are valid now. A driver's Listener: what a request did not use of its tokens is given back."""

    def __init__(
        self,
        settings: KeysSettings,
        *,
        time_s: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """`now_s` tells the time of day in seconds since 1970. Raises SettingsError if the file cannot be used."""
        self._path = settings.file
        self._time_s = time_s
        self._now_s = now_s
        self._files = ChangingFiles([settings.file], time_s)
        self._keys: dict[str, KeySettings] = {}
        self._meters: dict[str, _Meters] = {}
        self._booked: dict[str, tuple[_Meters, int]] = {}  # request id → tokens booked
        self._changed: list[Callable[[], None]] = []
        self._scheduler = SchedulerSettings()
        self._take(load_keys(settings.file))

    def on_change(self, heard: Callable[[], None]) -> None:
        """`heard` is called whenever other keys are valid, or grant something else."""
        self._changed.append(heard)

    def rebase(self, scheduler: SchedulerSettings) -> None:
        """What the keys say of tenants is said over these settings from now on."""
        self._scheduler = scheduler
        for heard in self._changed:
            heard()

    def refresh(self, *, now: bool = False) -> None:
        """Take the file as it is by now; a file that cannot be used changes nothing. `now`: however soon."""
        stamp = self._files.changed(now=now)
        if stamp is None:
            return
        try:
            keys = load_keys(self._path)
        except SettingsError as error:
            if stamp == self._files.stamp():
                self._files.take(stamp)
                logger.error("%s; the keys before stay valid", "; ".join(str(error).splitlines()))
            return
        self._files.take(stamp)
        self._take(keys)
        logger.info("the keys have changed: %d are valid", len(keys))
        for heard in self._changed:
            heard()

    def _take(self, keys: Sequence[KeySettings]) -> None:
        self._keys = {each.id: each for each in keys}
        now_s = self._time_s()
        meters = {each.id: self._meters.get(each.id) or _Meters(each, now_s) for each in keys}
        for each in keys:
            meters[each.id].requests.limit(each.requests_per_minute)
            meters[each.id].tokens.limit(each.tokens_per_minute)
        self._meters = meters

    # ---- who somebody is ---------------------------------------------------------------------------------------------

    def of_key(self, key: str) -> KeySettings | None:
        """What this key grants; None if it is not valid."""
        return self.valid(hash_of(key))

    def of_certificate(self, fingerprint: str, names: Iterable[str]) -> KeySettings | None:
        """What a client's certificate grants, by its fingerprint (64 hex digits), then by a name in it."""
        found = (self.valid(each) for each in (f"sha256:{fingerprint}", *names) if each)
        return next((each for each in found if each is not None and each.certificate), None)

    def valid(self, key_id: str) -> KeySettings | None:
        """What the key with this id grants now; None if it is not valid."""
        self.refresh()
        found = self._keys.get(key_id)
        return None if found is None or found.expired(self._now_s()) else found

    def operates(self, authorization: str) -> bool:
        """True if this HTTP header `Authorization` holds the key of an operator: as Bearer, or as Basic's password,
        which is what a browser asks its user for."""
        scheme, _, sent = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                sent = b64decode(sent, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
        elif scheme.lower() != "bearer":
            return False
        found = self.of_key(sent.strip())
        return found is not None and found.operator

    def tenants(self) -> tuple[dict[str, TenantSettings], TenantSettings]:
        """The weights and limits of tenants, and those of all others: as the settings say, where the keys do not."""
        scheduler = self._scheduler
        found = dict(scheduler.tenants)
        for key in self._keys.values():
            said = {name: getattr(key, name) for name in _OF_TENANT if getattr(key, name) is not None}
            if said:
                found[key.tenant] = replace(found.get(key.tenant, scheduler.tenant_default), **said)
        return found, scheduler.tenant_default

    # ---- how much it uses --------------------------------------------------------------------------------------------

    def request_wait_s(self, key: KeySettings) -> float:
        """In how many seconds this key may send a request. If now (0.0), it is counted."""
        meter = self._meters[key.id].requests
        wait_s = meter.wait_s(1, self._time_s())
        if not wait_s:
            meter.use(1)
        return wait_s

    def tokens_wait_s(self, key: KeySettings, request: Request) -> float:
        """In how many seconds this key may use the tokens that `request` may take. If now (0.0), they are booked."""
        meters = self._meters[key.id]
        tokens = (request.prompt_tokens + request.output_tokens_max) * request.slots
        wait_s = meters.tokens.wait_s(tokens, self._time_s())
        if not wait_s:
            meters.tokens.use(tokens)
            self._booked[request.id] = (meters, tokens)
        return wait_s

    def forget(self, request_id: str) -> None:
        """This request never arrived: all that was booked for it is given back."""
        if (booked := self._booked.pop(request_id, None)) is not None:
            booked[0].tokens.use(-booked[1])

    def handled(self, _now_s: float, _event: Event, _actions: Sequence[Action]) -> None:
        """Nothing of it concerns a key."""

    def finished(self, request: Request, timeline: Timeline, _outcome: Outcome) -> None:
        """The request is over: what it did not use is given back."""
        booked = self._booked.pop(request.id, None)
        if booked is not None:
            used = request.prompt_tokens * request.slots * (timeline.dispatches > 0) + timeline.output_tokens
            booked[0].tokens.use(min(used - booked[1], 0))


def load_keys(path: Path) -> list[KeySettings]:
    """The keys of a file. Raises SettingsError, one line per mistake; no line shows a key."""
    document: Any = read_yaml(path)
    if not isinstance(document, list):
        raise SettingsError(f"{path}: must be a list with one line per key")
    try:
        keys = TypeAdapter(list[KeySettings]).validate_python(document)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except ValidationError as error:
        raise SettingsError("\n".join(f"{path}: {mistake(each)}" for each in error.errors())) from None
    found = [f"{path}: {each}" for each in mistakes(document, keys)]
    counts = Counter(each.id for each in keys)
    found += [f"{path}: a key of tenant {each.tenant} stands there twice" for each in keys if counts[each.id] > 1]
    found += [f"{path}: {each}" for each in _contradictions(keys)]
    if found:
        raise SettingsError("\n".join(sorted(set(found))))
    return keys


def _contradictions(keys: Sequence[KeySettings]) -> Iterable[str]:
    """A tenant's weight and limits are the same, whichever of its keys says so."""
    said: dict[tuple[str, str], Any] = {}
    for key in keys:
        for name in _OF_TENANT:
            value = getattr(key, name)
            if value is not None and said.setdefault((key.tenant, name), value) != value:
                yield f"the keys of tenant {key.tenant} name two values for {name}"
        with_limits = {name: getattr(key, name) for name in _OF_TENANT if getattr(key, name) is not None}
        try:
            TenantSettings(**with_limits)
        except SettingsError as error:
            yield str(error)


def names_in(context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """The names in a client's certificate, as gRPC's authentication context holds them."""
    properties = ("x509_subject_alternative_name", "x509_common_name")
    return [name.decode(errors="replace") for each in properties for name in context.get(each, ())]
