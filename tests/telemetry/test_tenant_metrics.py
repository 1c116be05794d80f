"""Metrics per tenant: few labels, and counters that never go back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.events import Arrived, Ended
from sidecar.core.request import EndReason, Lane
from sidecar.core.snapshot import OTHERS, TENANTS_NAMED, TenantSnapshot
from sidecar.settings.file import EngineEndpoint
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.tenant_metrics import TenantMetrics, _Labels
from tests.core.builders import online, scheduler


def test_sixty_tenants_have_fifty_labels_and_one_for_the_others() -> None:
    subject = scheduler(slots=1)
    for number in range(60):
        subject.handle(Arrived(request=online(f"a{number}", tenant=f"t{number}")), float(number))
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=2), number + 0.5)
    tokens = TenantMetrics().tokens(subject.snapshot())
    labels = {tenant for (_, lane, tenant, _), _ in tokens if lane is Lane.ONLINE}
    assert len(labels) == TENANTS_NAMED + 1
    assert OTHERS in labels
    assert sum(count for (*_, kind), count in tokens if kind == "input") == 600


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50)), max_size=60))
def test_no_counter_of_a_label_goes_back_whoever_rises_and_falls(steps: list[tuple[int, int]]) -> None:
    labels, served = _Labels(), dict.fromkeys("abcdef", 0)
    before: dict[str, int] = {}
    for who, tokens in steps:
        served["abcdef"[who]] += tokens
        top = sorted(served, key=lambda name: (-served[name], name))[:2]
        rows = [TenantSnapshot(tenant=n, waiting=0, slots=0, input_tokens=served[n], output_tokens=0) for n in top]
        hidden = sum(served.values()) - sum(served[name] for name in top)
        shown = {name: tokens[0] for name, tokens in labels.show(rows, (hidden, 0)).items()}
        assert all(shown[name] >= before[name] for name in shown.keys() & before.keys())
        assert sum(shown.values()) + labels.left[0] == sum(served.values())
        before = shown


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_page_survives_every_name_that_a_tenant_may_choose(accept: str) -> None:
    names = ['"', "\\", "a\nb", "\r", "{}", "=,", "Ü", "\U0001f600", "\x00", "\u2028", "\udcff", "other", ""]
    subject = scheduler(slots=1)
    for number, name in enumerate(names):
        subject.handle(Arrived(request=online(f"a{number}", tenant=name)), float(number))
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=2), number + 0.5)
    metrics = Metrics((EngineEndpoint(name="e0"),), version="test", config_hash="test")
    metrics.snapshot = dataclasses.replace(subject.snapshot(), engines={})
    text = metrics.render(accept)[0].decode()

    families = {family.name: family for family in text_string_to_metric_families(text.replace("# EOF\n", ""))}
    shown = {each.labels["tenant"] for each in families["sidecar_tenant_waiting"].samples}
    assert shown == {*names} - {"\udcff"} | {"\\udcff"}


def test_ten_thousand_tenants_with_the_longest_names_leave_the_page_small() -> None:
    engine = EngineEndpoint(name="e", slots=1)
    metrics = Metrics((engine,), version="test", config_hash="test")
    subject = scheduler(slots=1)
    for number in range(10_000):
        name = f"{number}".rjust(256, "\n")  # each is escaped to two characters
        subject.handle(Arrived(request=online(f"a{number}", tenant=name)), float(number))
        subject.handle(Ended(request_id=f"a{number}", reason=EndReason.END_ID, output_tokens=2), number + 0.5)
        if number % 1_000 == 0:
            metrics.snapshot = subject.snapshot()
            metrics.render()
    metrics.snapshot = subject.snapshot()
    page = metrics.render()[0].decode()
    tenants = {line.partition('tenant="')[2].partition('"')[0] for line in page.splitlines() if 'tenant="' in line}
    assert len(tenants) <= TENANTS_NAMED + 1
    assert len(page) < 400_000
