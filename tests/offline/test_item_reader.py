"""Every field of an item is served, refused by its name, or let through; the JSON Schema says the same of each line."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item_format import CHAT, COMPLETIONS, ChatBody, CompletionBody, Message
from sidecar.offline.item_reader import FAULTS_SHOWN_MAX, read_line
from sidecar.offline.item_schema import item_schema

SCHEMA = jsonschema.Draft202012Validator(item_schema())
BYTES_MAX = 1 << 20
SECRET = "the patient is called Erika"
UINT64 = (1 << 64) - 1
INT32 = (1 << 31) - 1
DROP = object()


def short(**fields: Any) -> dict[str, Any]:
    return _without({"id": "1", "prompt": SECRET} | fields)


def completion(**fields: Any) -> dict[str, Any]:
    body = _without({"prompt": SECRET} | fields)
    return {"custom_id": "c", "method": "POST", "url": COMPLETIONS, "body": body}


def chat(**fields: Any) -> dict[str, Any]:
    body = _without({"messages": [{"role": "user", "content": SECRET}]} | fields)
    return {"custom_id": "c", "method": "POST", "url": CHAT, "body": body}


def said(**fields: Any) -> dict[str, Any]:
    return chat(messages=[_without({"role": "user", "content": SECRET} | fields)])


def line(**fields: Any) -> dict[str, Any]:
    return _without(completion() | fields)


def _without(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not DROP}


FORMS = (short, completion, chat)
# Per field: values that are taken and values that are not, in every form.
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "model": (["m", "x" * 256], ["", "x" * 257, 1, [], True]),
    "max_tokens": ([1, INT32, 16.0], [0, -1, INT32 + 1, 1.5, "16", True, [], {}, 1e300]),
    "max_completion_tokens": ([1, 1e3], [0, 0.5, "1"]),
    "temperature": ([0, 0.0, -0.0, 1, 2, 1e-300], [-0.1, 2.1, 1e39, "1", True, [0.5], 10**400]),
    "top_p": ([0, 0.5, 1], [-1, 1.01, "1", False]),
    "top_k": ([0, 1, INT32, 40.0], [-1, 1 << 31, 1.5, "4", True]),
    "seed": ([0, UINT64, 7.0], [-1, 1 << 64, 0.5, "7", True, 10**30, 1e20]),
    "min_tokens": ([0, 1, 256], [-1, 1 << 31, "1", False]),
    "presence_penalty": ([-2, 0, 2.0], [-2.1, 3, "0", True]),
    "frequency_penalty": ([-2, 0, 2], [2.01, [], False]),
    "repetition_penalty": ([1, 1.2, 0.01, 100], [0, -1, 101, 1e39, "1"]),
    "n": ([1, 1.0], [0, 2, True, "1", 1.5]),
    "best_of": ([1], [2, "1", True]),
    "stop": (["a", ["a", "b"], [], ["x" * 256]], ["", [""], 5, [5], {"a": 1}, "x" * 257, ["a"] * 17, [["a"]], True]),
    "logprobs": ([False], [True, 0, 5, "no"]),
    "top_logprobs": ([0], [1, 5, False]),
    "echo": ([False], [True, 0, "false"]),
    "stream": ([False], [True, 0, "false"]),
    "stream_options": ([{}], [{"include_usage": True}]),
    "suffix": ([""], ["end"]),
    "tools": ([[]], [[{"type": "function"}], {}, "w"]),
    "tool_choice": (["none", "auto"], ["required", {"type": "function"}]),
    "functions": ([[]], [[{"name": "w"}]]),
    "function_call": (["none"], [{"name": "w"}]),
    "response_format": ([{"type": "text"}], [{"type": "json_object"}, {"type": "json_schema"}, {}, "text"]),
    "logit_bias": ([{}], [{"5": -100}, []]),
    "modalities": ([["text"]], [["text", "audio"], []]),
    "audio": ([], [{"voice": "alloy"}]),
    "prediction": ([], [{"type": "content", "content": "x"}]),
    "reasoning_effort": ([], ["low", "none"]),
    "verbosity": (["medium"], ["low"]),
    "web_search_options": ([], [{}]),
    "moderation": ([], [{"model": "m"}]),
    "min_p": ([0, 0.0], [0.1, False]),
    "use_beam_search": ([False], [True]),
    "ignore_eos": ([False], [True]),
    "stop_token_ids": ([[]], [[2]]),
    "skip_special_tokens": ([True], [False]),
    "include_stop_str_in_output": ([False], [True]),
    "guided_json": ([], [{"type": "object"}]),
    "guided_regex": ([], ["a+"]),
    "guided_choice": ([], [["a"]]),
    "guided_grammar": ([], ["root ::= a"]),
    "structured_outputs": ([], [{"json": {}}]),
    "chat_template": ([], ["{{ messages }}"]),
    "priority": ([0], [1]),
    "user": (["u", 5, {"a": None}], []),
    "metadata": ([{"a": "b"}, [], {"deep": [[[{}]]]}], []),
    "store": ([True, False], []),
    "service_tier": (["flex"], []),
    "safety_identifier": (["s"], []),
    "prompt_cache_key": (["k"], []),
    "prompt_cache_retention": (["24h"], []),
    "parallel_tool_calls": ([True, False], []),
}
GOOD: list[dict[str, Any]] = [
    *(form() for form in FORMS),
    *(form(**{name: value}) for form in FORMS for name, (taken, _) in RANGES.items() for value in (None, *taken)),
    short(prompt=[1, 2, INT32]),
    short(prompt=[1.0, 2]),
    short(prompt=DROP, input_ids=[1]),
    short(prompt=None, input_ids=[1]),
    short(input_ids=None),
    short(max_tokens=5, max_completion_tokens=5),
    short(id="x" * 512),
    short(messages=None, custom_id=None),
    completion(prompt=DROP, input_ids=[0]),
    chat(messages=DROP, input_ids=[5, 6]),
    chat(prompt=None),
    line(method=DROP),
    line(method=None),
    line(id=None),
    *(said(role=role) for role in ("developer", "system", "user", "assistant")),
    said(content=""),
    said(content=[{"type": "text", "text": ""}]),
    said(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b", "prompt_cache_breakpoint": {}}]),
    said(role="assistant", name=None, refusal=None, tool_calls=None, function_call=None, audio=None, annotations=[]),
    said(tool_calls=[], tool_call_id=None, reasoning_content=None),
    chat(messages=[{"role": "user", "content": "a"}] * 50),
]
NO_PROMPTS: list[Any] = [5, True, {}, ["a"], ["a", "b"], [[1, 2]], [1, -1], [1.5], [True], [None]]
NO_CONTENTS: list[Any] = [DROP, None, 5, [], {}, ["a"], [{"type": "text"}]]
NO_IDS: list[Any] = ["ids", 5, [1 << 31], [-1], ["1"], {"0": 1}]
NO_ROLES: list[Any] = ["tool", "function", "User", "usr", "", None, 5]
NO_BODIES: list[Any] = [DROP, None, [], "a", 5, True]
BAD: list[tuple[dict[str, Any], str]] = [
    *((form(**{name: value}), name) for form in FORMS for name, (_, bad) in RANGES.items() for value in bad),
    *((form(temprature=0), "temprature") for form in FORMS),
    *((form(foo=None), "foo") for form in FORMS),
    (short(id=DROP), "id"),
    (short(id=None), "id"),
    (short(id=7), "id"),
    (short(id=""), "id"),
    (short(id="x" * 513), "id"),
    (short(id=DROP, custom_id="c"), "id"),
    (short(custom_id="c"), "custom_id"),
    (short(messages=[{"role": "user", "content": "a"}]), "messages"),
    *((short(prompt=bad), "prompt") for bad in NO_PROMPTS),
    *((short(prompt=DROP, input_ids=bad), "input_ids") for bad in NO_IDS),
    (short(prompt=[1, 2], input_ids=[1]), "input_ids"),
    (completion(input_ids=[1]), "input_ids"),
    (completion(messages=[{"role": "user", "content": "a"}]), "messages"),
    (completion(prompt=DROP, messages=[]), "messages"),
    (completion(id="1"), "id"),
    (chat(input_ids=[1]), "input_ids"),
    (chat(prompt="a"), "prompt"),
    (chat(messages="a"), "messages"),
    (chat(messages={"role": "user"}), "messages"),
    (chat(messages=["a"]), "messages[0]"),
    (chat(messages=[None]), "messages[0]"),
    (chat(messages=[{"role": "user", "content": "a"}, 5]), "messages[1]"),
    (chat(max_output_tokens=5), "max_output_tokens"),
    (said(role=DROP), "messages[0].role"),
    *((said(role=bad), "messages[0].role") for bad in NO_ROLES),
    *((said(content=bad), "messages[0].content") for bad in NO_CONTENTS),
    (said(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[0].content"),
    (said(content=[{"type": "text", "text": "a", "foo": 1}]), "messages[0].content"),
    (said(content=[{"type": "text", "text": 5}]), "messages[0].content"),
    (said(name="erika"), "messages[0].name"),
    (said(refusal="no"), "messages[0].refusal"),
    (said(tool_calls=[{"id": "1"}]), "messages[0].tool_calls"),
    (said(tool_call_id="1"), "messages[0].tool_call_id"),
    (said(function_call={"name": "w"}), "messages[0].function_call"),
    (said(audio={"id": "1"}), "messages[0].audio"),
    (said(weight=1), "messages[0].weight"),
    (said(cache_control={"type": "ephemeral"}), "messages[0].cache_control"),
    (line(custom_id=DROP), "custom_id"),
    (line(custom_id=None), "custom_id"),
    (line(custom_id=""), "custom_id"),
    (line(custom_id=5), "custom_id"),
    (line(custom_id="x" * 513), "custom_id"),
    (line(method="GET"), "method"),
    (line(method="post"), "method"),
    (line(method=5), "method"),
    (line(url=DROP), "url"),
    (line(url=None), "url"),
    (line(url=5), "url"),
    (line(id="1"), "id"),
    (line(max_tokens=5), "max_tokens"),
    (line(prompt="a"), "prompt"),
    (line(foo=1), "foo"),
    *((line(body=bad), "body") for bad in NO_BODIES),
]
NO_PROMPT = [
    short(prompt=DROP),
    short(prompt=None),
    short(prompt=""),
    short(prompt=[]),
    short(prompt=DROP, input_ids=[]),
    completion(prompt=DROP),
    completion(prompt=""),
    chat(messages=[]),
    chat(messages=None),
    chat(messages=DROP),
    line(body={}),
]
NOT_SERVED_URLS = ["/v1/embeddings", "/v1/responses", "v1/completions", f"https://api.openai.com{CHAT}", "", "\n" * 99]
# What no schema can say; and Python's own reader of JSON makes something else of it, or nothing.
ONLY_READER: list[tuple[bytes, DeadReason, str | None]] = [
    (b'{"id": "1", "id": "2", "prompt": "a"}', DeadReason.INVALID, "id"),
    (b'{"id": "1", "prompt": "a", "metadata": {"k": 1, "k": 1}}', DeadReason.INVALID, "k"),
    (b'{"id": "1", "prompt": "a", "max_tokens": 1, "max_tokens": 1}', DeadReason.INVALID, "max_tokens"),
    (b'{"id": "1", "prompt": "a", "temperature": NaN}', DeadReason.NOT_JSON, None),
    (b'{"id": "1", "prompt": "a", "temperature": -Infinity}', DeadReason.NOT_JSON, None),
    (b'{"id": "1", "prompt": "a", "temperature": 1e999}', DeadReason.INVALID, "temperature"),
    (b'{"id": "1", "prompt": "a", "seed": 1e999}', DeadReason.INVALID, "seed"),
    (b'{"id": "1", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", DeadReason.INVALID, None),
    (b'{"id": "x\\ud83d", "prompt": "a"}', DeadReason.INVALID, "id"),
    (b'{"id": "1", "prompt": "cut \\uD83D"}', DeadReason.INVALID, "prompt"),
    (b'{"id": "1", "prompt": "a", "stop": ["b", "\\ude00"]}', DeadReason.INVALID, "stop[1]"),
    (b'{"id": "1", "prompt": "a", "model": "\\ud800"}', DeadReason.INVALID, "model"),
    (b'{"id": "1", "prompt": "a", "metadata": {"\\ud800": 1}}', DeadReason.INVALID, "metadata"),
    (b'{"id": "1", "prompt": "a", "\\ud800": 1}', DeadReason.INVALID, None),
    (b'{"custom_id": "1", "url": "/\\ud800", "body": {}}', DeadReason.INVALID, "url"),
    (
        b'{"id": "1", "prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}',
        DeadReason.INVALID,
        "max_completion_tokens",
    ),
    (b'{"id": "1", "prompt": "a"', DeadReason.NOT_JSON, None),
    (b'{"id": "1", "prompt": "a"} {}', DeadReason.NOT_JSON, None),
    (b"{'id': '1', 'prompt': 'a'}", DeadReason.NOT_JSON, None),
    (b'{"id": "1", "prompt": "a\nb"}', DeadReason.NOT_JSON, None),
    (b'{"id": "1", "prompt": "\xed\xa0\xbd"}', DeadReason.NOT_UTF8, None),
    (b'{"a":' * 90_000 + b"1" + b"}" * 90_000, DeadReason.NOT_JSON, None),
    (b"[" * 100_000, DeadReason.NOT_JSON, None),
    (b"null", DeadReason.INVALID, None),
    (b'"text"', DeadReason.INVALID, None),
    (json.dumps({f"k{number}": 1 for number in range(2000)}).encode(), DeadReason.INVALID, None),
]


def refusal(value: Any) -> DeadItemError:
    with pytest.raises(DeadItemError) as caught:
        read_line(value if isinstance(value, bytes) else json.dumps(value).encode(), BYTES_MAX)
    assert SECRET not in str(caught.value)
    assert json.loads(caught.value.openai())["param"] == caught.value.param
    str(caught.value).encode()
    return caught.value


def test_the_tables_are_large() -> None:
    assert len(GOOD) + len(BAD) + len(NO_PROMPT) + len(ONLY_READER) > 600


def test_what_is_good_is_read_and_keeps_the_schema() -> None:
    for value in GOOD:
        read_line(json.dumps(value).encode(), BYTES_MAX)
        SCHEMA.validate(value)


@pytest.mark.parametrize(("value", "param"), BAD)
def test_what_is_bad_is_refused_by_the_name_of_its_field_and_breaks_the_schema(value: Any, param: str) -> None:
    error = refusal(value)
    assert (error.reason, error.param) == (DeadReason.INVALID, param)
    assert param in str(error)
    assert not SCHEMA.is_valid(value)


@pytest.mark.parametrize("value", NO_PROMPT)
def test_an_item_without_a_prompt_has_a_reason_of_its_own(value: Any) -> None:
    assert refusal(value).reason is DeadReason.MISSING_PROMPT
    assert not SCHEMA.is_valid(value)


@pytest.mark.parametrize("url", NOT_SERVED_URLS)
def test_a_url_that_is_not_served_is_named(url: str) -> None:
    error = refusal(line(url=url))
    assert (error.reason, error.param) == (DeadReason.UNSUPPORTED_URL, "url")
    assert not SCHEMA.is_valid(line(url=url))


@pytest.mark.parametrize(("value", "reason", "param"), ONLY_READER, ids=range(len(ONLY_READER)))
def test_what_a_schema_cannot_say_is_refused_as_well(value: bytes, reason: DeadReason, param: str | None) -> None:
    error = refusal(value)
    assert (error.reason, error.param) == (reason, param)


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_line(b"\xef\xbb\xbf" + json.dumps(short()).encode(), BYTES_MAX) == read_line(
        json.dumps(short()).encode(), BYTES_MAX
    )


def test_whole_pairs_of_surrogates_are_text() -> None:
    read = read_line(
        b'{"id": "1", "prompt": "\\ud83d\\ude00", "metadata": {"\\ud83d\\ude00": ["\\uD83D\\uDE00"]}}', BYTES_MAX
    )
    assert getattr(read, "prompt", None) == "😀"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (short(temprature=0), "unknown field 'temprature'; did you mean 'temperature'?"),
        (short(zzz=0), "unknown field 'zzz'"),
        (line(max_tokens=5), "unknown field 'max_tokens'; it belongs into body"),
        (short(seed=-1), "seed must be an integer in 0..18446744073709551615, not -1"),
        (short(max_tokens="9"), "max_tokens must be an integer in 1..2147483647, not a text"),
        (short(n=True), "n must be 1: one item is one sequence, not true"),
        (short(n=2, best_of=2), "n must be 1: one item is one sequence, not 2; best_of must be"),
        (short(temperature=3), "temperature must be a number in 0..2, not 3"),
        (short(top_k=10**4000), "top_k must be an integer in 0..2147483647, not 1000"),
        (short(echo=True), "echo is not served: the answer comes without its prompt; leave it out"),
        (line(method="GET"), 'method must be "POST"'),
        (line(custom_id=DROP), "custom_id is missing"),
        (said(role="tool"), "messages[0].role must be one of developer, system, user, assistant"),
        (short(prompt=["a"]), "prompt must be text, or a list of token ids in 0..2147483647; one item is one prompt"),
    ],
)
def test_the_message_says_what_to_do(value: Any, message: str) -> None:
    assert str(refusal(value)).startswith(message)


def test_an_item_with_many_faults_names_some_of_them_in_bounded_time_and_space() -> None:
    error = refusal(short(**{f"{'k' * 1000}{number}": 1 for number in range(900)}))
    assert str(error).count("unknown field") <= FAULTS_SHOWN_MAX
    assert len(str(error)) < 1000


def test_a_name_of_any_length_and_depth_costs_bounded_memory_and_a_short_param() -> None:
    half = {"prompt": "\ud83d", "many": [""] * 20_000}
    value = json.dumps({"id": "1", "prompt": "a", "metadata": {"k" * 100_000: {"l" * 100_000: half}}}).encode()
    tracemalloc.start()
    error = refusal(value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(value)
    assert str(error).startswith("metadata.kkkkkkkk")
    assert len(error.openai()) < 500
    assert len(refusal(b'{"' + b"k" * 10_000 + b'": {"\\ud83d": 1}}').openai()) < 500


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([1 << 31, 1 << 63, 1 << 64, -(1 << 63)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from(["text", "user", "POST", CHAT, COMPLETIONS, "none", "auto"])
)
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=4), each), max_leaves=4
)
NAMES = st.sampled_from(
    [*ChatBody.model_fields, *CompletionBody.model_fields, *Message.model_fields, "id", "url", "body", "x"]
)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A good line with up to three places changed, anywhere inside."""
    value = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    for _ in range(draw(st.integers(1, 3))):
        at = value
        while draw(st.booleans()) and (inner := [each for each in _children(at) if isinstance(each, dict | list)]):
            at = draw(st.sampled_from(inner))
        if isinstance(at, list):
            at.insert(draw(st.integers(0, len(at))), draw(VALUES))
        elif at and draw(st.booleans()):
            name = draw(st.sampled_from(sorted(at)))
            if draw(st.booleans()):
                del at[name]
            else:
                at[name] = draw(VALUES)
        else:
            at[draw(NAMES)] = draw(VALUES)
    return value


def _children(at: Any) -> list[Any]:
    return list(at.values()) if isinstance(at, dict) else at


@given(mutations())
def test_the_reader_and_the_schema_agree_on_what_nobody_thought_of(value: Any) -> None:
    try:
        read_line(json.dumps(value).encode(), BYTES_MAX)
    except DeadItemError as error:
        told = str(error)
        assert not SCHEMA.is_valid(value) or "differ" in told or "surrogate" in told, told
    else:
        SCHEMA.validate(value)


@given(VALUES)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with pytest.raises(DeadItemError):
        read_line(json.dumps(value).encode(), BYTES_MAX)
