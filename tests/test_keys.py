"""The file of keys: who somebody is by it, how much may be used, and what becomes of it when it changes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from sidecar.call import Outcome, Timeline
from sidecar.core.errors import SettingsError
from sidecar.core.settings import SchedulerSettings, TenantSettings
from sidecar.keys import PREFIX, Keyring, RateMeter, hash_of, load_keys, names_in, new_key
from sidecar.settings.keys import KeysSettings
from tests.core.builders import online


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def written(path: Path, *lines: str) -> KeysSettings:
    path.write_text("".join(f"- {{{line}}}\n" for line in lines))
    return KeysSettings(file=path)


def keyring(path: Path, *lines: str, clock: Clock | None = None) -> Keyring:
    clock = clock or Clock()
    return Keyring(written(path, *lines), time_s=clock, now_s=clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_two_keys_are_never_the_same_and_a_scanner_finds_them() -> None:
    found = {new_key() for _ in range(100)}
    assert len(found) == 100
    assert all(each.startswith(PREFIX) and len(each) > 40 for each in found)


def test_a_key_is_known_by_its_hash_and_another_is_not(path: Path) -> None:
    key = new_key()
    ring = keyring(path, f'key: "{hash_of(key)}", tenant: labels')
    found = ring.of_key(key)
    assert found is not None
    assert found.tenant == "labels"
    assert ring.of_key(new_key()) is None
    assert ring.of_key(hash_of(key)) is None  # who reads the file has no key
    assert key not in path.read_text()


def test_a_certificate_is_known_by_its_fingerprint_or_a_name_in_it(path: Path) -> None:
    ring = keyring(path, f"certificate: 'sha256:{'ab' * 32}', tenant: a", "certificate: billing, tenant: b")
    by_both = ring.of_certificate("ab" * 32, ["billing"])
    by_name = ring.of_certificate("cd" * 32, ["other", "billing"])
    assert by_both is not None
    assert by_name is not None
    assert (by_both.tenant, by_name.tenant) == ("a", "b")
    assert ring.of_certificate("cd" * 32, ["nobody"]) is None


def test_a_name_in_a_certificate_opens_no_line_of_a_key(path: Path) -> None:
    hashed = hash_of("k")
    ring = keyring(path, f'key: "{hashed}", tenant: labels')
    assert ring.of_certificate("", [hashed]) is None


def test_names_are_read_from_grpcs_authentication_context() -> None:
    context = {"x509_common_name": [b"a"], "x509_subject_alternative_name": [b"b", b"\xff"], "x509_pem_cert": [b"-"]}
    assert names_in(context) == ["b", "�", "a"]


def test_an_expired_key_opens_nothing(path: Path) -> None:
    clock, key = Clock(), new_key()
    ring = keyring(path, f'key: "{hash_of(key)}", tenant: t, expires: "1970-01-01T00:20:00Z"', clock=clock)
    assert ring.of_key(key) is not None
    clock.now_s = 1200.0
    assert ring.of_key(key) is None


def test_a_key_that_is_taken_out_is_revoked_within_a_second_and_a_new_one_is_let_in(path: Path) -> None:
    clock, old, new = Clock(), new_key(), new_key()
    ring = keyring(path, f'key: "{hash_of(old)}", tenant: t', clock=clock)
    written(path, f'key: "{hash_of(new)}", tenant: longer-name')
    clock.now_s += 1.0
    assert ring.of_key(old) is None
    assert ring.of_key(new) is not None


def test_a_file_with_a_mistake_is_told_once_and_the_keys_before_stay_valid(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, key, heard = Clock(), new_key(), []
    ring = keyring(path, f'key: "{hash_of(key)}", tenant: t', clock=clock)
    ring.on_change(lambda: heard.append(1))
    path.write_text("- {tenant: t, weigth: 2}\n")
    for _ in range(3):
        clock.now_s += 1.0
        assert ring.of_key(key) is not None
    (told,) = [each.getMessage() for each in caplog.records]
    assert "weigth: unknown setting" in told
    assert told.endswith("the keys before stay valid")
    path.unlink()
    clock.now_s += 1.0
    assert ring.of_key(key) is not None
    assert heard == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "must be a list"),
        ("- {tenant: t, certificate: a}\n- 7\n", "1: "),
        ("- {tenant: t, certificate: a}\n- {tenant: u, certificate: a}\n", "of tenant u stands there twice"),
        (
            "- {tenant: t, certificate: a, weight: 1}\n- {tenant: t, certificate: b, weight: 2}\n",
            "the keys of tenant t name two values for weight",
        ),
        ("- {tenant: t, certificate: a, weight: 0}\n", "weight must be > 0"),
        ("- {tenant: t, certificate: a, requests_per_minute: .nan}\n", "requests_per_minute"),
        ("- {tenant: t, key: sk-secret-itself}\n", "not the key"),
        ("- {tenant: t, certificate: a, slots_max: yes}\n", "must be a number"),
    ],
)
def test_each_mistake_is_named_with_the_file_and_without_a_secret(path: Path, text: str, said: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_keys(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    assert "sk-secret" not in str(refused.value)


def test_the_tenants_have_what_the_keys_say_over_what_the_settings_say(path: Path) -> None:
    ring = keyring(
        path,
        "tenant: a, certificate: a1, weight: 3",
        "tenant: a, certificate: a2, slots_max: 4",
        "tenant: b, certificate: b, waiting_max: 9",
        "tenant: c, certificate: c",
    )
    scheduler = SchedulerSettings(
        tenants={"a": TenantSettings(waiting_max=5), "d": TenantSettings(weight=7)},
        tenant_default=TenantSettings(slots_max=2),
    )
    ring.rebase(scheduler)
    found, default = ring.tenants()
    assert default == TenantSettings(slots_max=2)
    assert found == {
        "a": TenantSettings(weight=3, waiting_max=5, slots_max=4),
        "b": TenantSettings(waiting_max=9, slots_max=2),
        "d": TenantSettings(weight=7),
    }


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_only_an_operators_key_opens_the_status_as_bearer_or_as_a_browser_sends_it(path: Path) -> None:
    boss, worker = new_key(), new_key()
    ring = keyring(
        path, f'key: "{hash_of(boss)}", tenant: ops, operator: true', f'key: "{hash_of(worker)}", tenant: labels'
    )
    opens = (f"Bearer {boss}", f"bearer {boss}", basic(f"anybody:{boss}"))
    keeps_out = ("", boss, f"Bearer {worker}", basic(f"x:{worker}"), basic(boss), "Basic ?", "Basic /w==", "Digest a")
    assert [ring.operates(each) for each in opens] == [True] * 3
    assert [ring.operates(each) for each in keeps_out] == [False] * len(keeps_out)


# ---- how much may be used --------------------------------------------------------------------------------------------


def test_a_meter_gives_a_minutes_worth_at_once_and_then_as_it_fills() -> None:
    meter = RateMeter(60, 0.0)
    for _ in range(60):
        assert meter.wait_s(1, 0.0) == 0
        meter.use(1)
    assert meter.wait_s(1, 0.0) == pytest.approx(1.0)
    assert meter.wait_s(1, 0.5) == pytest.approx(0.5)
    assert meter.wait_s(1, 1.0) == pytest.approx(0.0)


def test_more_than_a_minutes_worth_waits_for_a_full_meter_and_is_owed() -> None:
    meter = RateMeter(60, 0.0)
    assert meter.wait_s(180, 0.0) == 0
    meter.use(180)
    assert meter.wait_s(1, 0.0) == pytest.approx(121)


def test_a_meter_without_a_limit_never_waits_and_a_new_limit_holds_from_then_on() -> None:
    meter = RateMeter(0, 0.0)
    meter.use(1e9)
    assert meter.wait_s(1e9, 0.0) == 0
    meter.limit(60)
    assert meter.wait_s(60, 0.0) == 0
    meter.use(60)
    meter.limit(6)
    assert meter.wait_s(1, 0.0) == pytest.approx(10)


def outcome_of(ring: Keyring, request: Any, *, dispatches: int, output_tokens: int) -> None:
    line = Timeline(0.0)
    line.dispatches, line.output_tokens = dispatches, output_tokens
    ring.finished(request, line, Outcome(outcome="ok"))


@pytest.mark.parametrize(
    ("dispatches", "output_tokens", "left"),
    [(1, 5, 85), (0, 0, 100), (1, 40, 50), (1, 99, 50)],
    ids=["as used", "refused", "all", "never more than was booked"],
)
def test_what_a_request_did_not_use_of_its_tokens_is_given_back(
    path: Path, dispatches: int, output_tokens: int, left: int
) -> None:
    ring = keyring(path, "tenant: t, certificate: a, tokens_per_minute: 100")
    (key,) = load_keys(path)
    request = online("r", prompt_tokens=10, output_tokens_max=40)
    assert ring.tokens_wait_s(key, request) == 0
    assert ring.tokens_wait_s(key, online("more", prompt_tokens=50, output_tokens_max=1)) > 0
    outcome_of(ring, request, dispatches=dispatches, output_tokens=output_tokens)
    assert ring.tokens_wait_s(key, online("rest", prompt_tokens=left - 1, output_tokens_max=1)) == 0
    assert ring.tokens_wait_s(key, online("one", prompt_tokens=0, output_tokens_max=1)) > 0


def test_what_never_arrived_is_given_back_once(path: Path) -> None:
    ring = keyring(path, "tenant: t, certificate: a, tokens_per_minute: 100")
    (key,) = load_keys(path)
    assert ring.tokens_wait_s(key, online("r", prompt_tokens=99, output_tokens_max=1)) == 0
    ring.forget("r")
    ring.forget("r")
    assert ring.tokens_wait_s(key, online("r", prompt_tokens=99, output_tokens_max=1)) == 0
    assert ring.tokens_wait_s(key, online("s", prompt_tokens=0, output_tokens_max=1)) > 0


def test_what_was_used_stays_used_when_the_file_changes(path: Path) -> None:
    clock = Clock()
    ring = keyring(path, "tenant: t, certificate: a, requests_per_minute: 1", clock=clock)
    (key,) = load_keys(path)
    assert ring.request_wait_s(key) == 0
    written(path, "tenant: t, certificate: a, requests_per_minute: 1", "tenant: u, certificate: b")
    clock.now_s += 1.0
    assert ring.valid("b") is not None
    assert ring.request_wait_s(key) == pytest.approx(59)
