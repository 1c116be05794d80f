"""Every event, action and setting survives the way through text, and nothing else comes out of a text."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.events import Action, Arrived, Event, TenantsChanged
from sidecar.core.record import (
    RecordError,
    codec_of,
    decode_action,
    decode_as,
    decode_event,
    encode,
    shown,
)
from sidecar.core.request import DispatchKind, Lane, Request
from sidecar.core.settings import EngineSettings, SchedulerSettings, TenantSettings

COUNTS = st.integers(1, 9)
REQUESTS = st.builds(
    Request,
    prompt_tokens=COUNTS,
    output_tokens_max=COUNTS,
    slots=COUNTS,
    arrived_s=st.floats(allow_nan=False, allow_infinity=False),
    deadline_s=st.floats(allow_nan=False),
)
TENANTS = st.builds(TenantSettings, weight=st.floats(0.1, 9), waiting_max=COUNTS, slots_max=COUNTS)
CHANGES = st.builds(TenantsChanged, tenants=st.dictionaries(st.text(max_size=4), TENANTS), tenant_default=TENANTS)
st.register_type_strategy(Request, REQUESTS)
st.register_type_strategy(TenantsChanged, CHANGES)
EVENTS = st.one_of([st.from_type(each) for each in typing.get_args(Event)])
ACTIONS = st.one_of([st.from_type(each) for each in typing.get_args(Action)])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)


def through_text(value: Any) -> Any:
    return json.loads(json.dumps(encode(value)))


@given(EVENTS)
def test_an_event_comes_back_bit_for_bit(event: Any) -> None:
    assert repr(decode_event(through_text(event))) == repr(event)  # repr: NaN is not equal to itself


@given(ACTIONS)
def test_an_action_comes_back_bit_for_bit(action: Any) -> None:
    assert repr(decode_action(through_text(action))) == repr(action)


def test_settings_come_back_with_their_mappings_and_their_unions() -> None:
    settings = SchedulerSettings(tenants={"a": TenantSettings(weight=2.5)}, window_ms=0.1 + 0.2)
    engine = EngineSettings(name="e0", slots=3, yield_rows="never", prefill_slice_tokens=9)
    assert decode_as(SchedulerSettings, through_text(settings)) == settings
    for rows in ("never", "auto", 2):
        one = EngineSettings(name="e0", slots=3, yield_rows=rows)
        assert decode_as(EngineSettings, through_text(one)) == one
    assert decode_as(EngineSettings, through_text(engine)) == engine


@given(ANYTHING)
def test_whatever_is_no_event_is_an_error(plain: Any) -> None:
    for decode in (decode_event, decode_action):
        with pytest.raises(RecordError):
            decode(plain)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (["Woken"], "no event"),
        (["Dispatch"], "no event"),
        (["EngineUp"], "EngineUp has 1 fields"),
        (["EngineUp", 5], r"EngineUp.engine: 5 is no text"),
        (["Failed", "a", "b", 1], r"Failed.retryable: 1 is no boolean"),
        (["Ended", "a", "finished", 1, None], r"Ended.reason: 'finished' is no EndReason"),
        (["Ended", "a", "length", True, None], r"Ended.output_tokens: True is no integer"),
        (["Progressed", "a", [["x"]], [], []], r"Progressed.tokens: \['x'\] has not 2 values"),
        (["Arrived", ["EngineUp", "a"]], "Arrived.request: Request has"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(plain: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        decode_event(plain)


def test_a_value_that_its_own_class_refuses_is_an_error() -> None:
    request = Request(id="a", lane=Lane.ONLINE, model="m", arrived_s=0.0, prompt_tokens=7, output_tokens_max=9)
    plain = through_text(Arrived(request=request))
    plain[1][plain[1].index(7)] = -1
    with pytest.raises(RecordError, match=r"Arrived.request: Request: .*prompt_tokens >= 0"):
        decode_event(plain)


def test_a_type_that_may_change_or_has_no_exact_form_is_refused() -> None:
    for hint in (list[int], Any, bytes, dict[int, str], Lane | DispatchKind, int | EngineSettings | Request):
        with pytest.raises(TypeError):
            codec_of(hint)


def test_a_foreign_value_is_shown_short_and_on_one_line() -> None:
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"
    assert len(shown("x" * 10_000)) < 100
