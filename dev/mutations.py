"""Odd items and odd gRPC messages, from a seed: each is a good one with one to three things about it changed.

Nothing here knows what the sidecar makes of them. What is still right after a change is answered, all else is refused.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from sidecar.triton import wire

Headers = tuple[tuple[str, bytes], ...]

INTEGERS = (0, 1, 2, -1, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40)
FLOATS = (0.0, -0.0, 0.5, 1.5, 1e-45, 3.4e38, 3.5e38, 1e308, -1e308, 1e-320)
TEXTS = ("", " ", "a", "\x00", "\ud83d", "\U0001f600", "é" * 200, "</s>", "<|end_of_prompt|>", "null", "x" * 5000, "-1")
NESTED: tuple[Any, ...] = ([], {}, [[]], [None], [""], ["a", 1], {"a": {}}, [[1, 2], [3]], [[[[[[[[]]]]]]]])
CONSTANTS = (None, True, False)
ODD: tuple[Any, ...] = (*INTEGERS, *FLOATS, *TEXTS, *NESTED, *CONSTANTS)

FIELDS = (
    *"model prompt input_ids messages max_tokens max_completion_tokens stop temperature top_p top_k seed".split(),
    *"min_tokens repetition_penalty presence_penalty frequency_penalty n best_of logprobs top_logprobs echo".split(),
    *"suffix logit_bias stream stream_options tools tool_choice functions response_format min_p ignore_eos".split(),
    *"stop_token_ids guided_json use_beam_search modalities reasoning_effort user metadata store".split(),
    *("service_tier", "temprature", "__proto__", ""),
)
LINE_FIELDS = ("custom_id", "method", "url", "body", "id", "priority", "input_file_id")
URLS = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "v1/completions", "")
HEADER_NAMES = ("x-tenant", "x-job", "x-deadline", "x-model", "traceparent", "x-source-offset", "x-lane", "")
HEADER_VALUES = (
    *(b"", b"\xff\xfe", b"default", b"a" * 300, b"\x00", b"2020-01-01T00:00:00Z", b"2099-01-01T00:00:00+02:00"),
    *(b"2099-01-01", b"tomorrow", b"9999-12-31T23:59:59-23:59", b"0001-01-01T00:00:00Z", "é\n".encode()),
    *(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"00-0-0-0", b"<script>", b"tensorrt_llm", b"-1"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OddRecord:
    """One record for the requests topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers


def good_line(number: int, prompt: str, *, chat: bool = False) -> dict[str, Any]:
    """An item of four greedy tokens that every lane must answer; its id says that it is good."""
    body: dict[str, Any] = {"max_tokens": 4, "temperature": 0}
    if chat:
        url = "/v1/chat/completions"
        body |= {"messages": [{"role": "user", "content": prompt}]}
    else:
        url = "/v1/completions"
        body |= {"prompt": prompt}
    return {"custom_id": f"good-{number}", "method": "POST", "url": url, "body": body}


def odd_record(draw: Random, number: int) -> OddRecord:
    """A record that begins as a good item and is changed in one to three places."""
    chat, short = draw.random() < 0.4, draw.random() < 0.25
    line = good_line(number, "how far is the sea", chat=chat)
    line["custom_id"] = f"odd-{number}"
    if short:
        line = {"id": f"odd-{number}", **line["body"]}
    headers: list[tuple[str, bytes]] = []
    key: bytes | None = b"odd"
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.random()
        if kind < 0.70:
            _change_line(draw, line)
        elif kind < 0.95:
            headers.append((draw.choice(HEADER_NAMES), draw.choice(HEADER_VALUES)))
        else:
            key = draw.choice((None, b"", b"\xff" * 40, b"k" * 4000))
    value: bytes | None = _encoded(draw, line)
    if draw.random() < 0.2:
        value = _change_bytes(draw, value or b"")
    if draw.random() < 0.01:
        value, key = None, key or b""  # aiokafka sends no record without either
    return OddRecord(key=key, value=value, headers=tuple(headers))


def _change_line(draw: Random, line: dict[str, Any]) -> None:
    body = line["body"] if isinstance(line.get("body"), dict) else line
    kind = draw.randrange(6)
    if kind == 0:
        line[draw.choice(LINE_FIELDS)] = _drawn(draw, *ODD, *URLS)
    elif kind == 1 and line:
        del line[draw.choice(sorted(line))]
    elif kind == 2 and body:
        del body[draw.choice(sorted(body))]
    elif kind == 3 and isinstance(body.get("messages"), list) and body["messages"]:
        _change_message(draw, body["messages"])
    else:
        body[draw.choice(FIELDS)] = _drawn(draw, *ODD)


def _change_message(draw: Random, messages: list[Any]) -> None:
    message = messages[0]
    if not isinstance(message, dict) or draw.random() < 0.2:
        messages.append(_drawn(draw, *ODD))
        return
    field = draw.choice(("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "x"))
    parts = ([{"type": "text", "text": "a"}], [{"type": "image_url", "image_url": {"url": "a"}}], [{"type": "text"}])
    message[field] = _drawn(draw, *ODD, *parts, "system", "assistant", "developer", "tool")


def _drawn(draw: Random, *values: Any) -> Any:
    """One of them, as a copy: the next change may change it."""
    return copy.deepcopy(draw.choice(values))


def _encoded(draw: Random, line: dict[str, Any]) -> bytes:
    text = json.dumps(line)
    if draw.random() < 0.02:  # what json.dumps would not write
        text = text.replace("4", draw.choice(("NaN", "Infinity", "-Infinity", "1" * 5000, "1e999", "04", "4.")), 1)
    if draw.random() < 0.01:
        depth = draw.choice((50, 5_000, 100_000))
        text = text[:-1] + ', "metadata": ' + "[" * depth + "]" * depth + "}"
    if draw.random() < 0.02:
        text = text[:-1] + ', "id": "again", "id": "twice"}'
    return text.encode(draw.choice(("utf-8",) * 60 + ("utf-16", "utf-8-sig", "utf-32")))


def _change_bytes(draw: Random, value: bytes) -> bytes:
    at = draw.randrange(len(value) + 1)
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: value[:at],
        lambda: value[:at] + draw.randbytes(draw.randrange(1, 9)) + value[at:],
        lambda: value[:at] + draw.randbytes(1) + value[at + 1 :],
        lambda: value[:at] + value[at : at + 40] * 3 + value[at:],
        lambda: b"\x00\x00\x00\x00\x07" + value,
        lambda: value * 2,
        lambda: draw.randbytes(draw.randrange(64)),
    )
    return draw.choice(changes)()


# ---- gRPC ------------------------------------------------------------------------------------------------------------

MODELS = (*("ensemble", "tensorrt_llm") * 2, "preprocessing", "postprocessing", "no-such", "", "\x00")
TENSORS = (
    *"text_input max_tokens stop_words bad_words end_id pad_id top_k top_p temperature seed stream beam_width".split(),
    *"num_return_sequences min_tokens input_ids input_lengths request_output_len streaming nonsense".split(),
    *"stop_words_list runtime_top_k runtime_top_p return_log_probs embedding_bias lora_task_id".split(),
    *"exclude_input_in_output return_perf_metrics guided_decoding_guide retention_token_range_starts".split(),
)
DATATYPES = ("INT32", "INT64", "UINT64", "FP32", "BOOL", "BYTES", "FP16", "UINT8", "", "STRING", "BF16")
SHAPES = ((), (1,), (1, 1), (1, 3), (1, 2, 2), (0,), (1, 0), (-1,), (1, -1), (2, 1), (2**31,), (2**62, 4), (1, 200_000))
PARAMETERS: tuple[tuple[str, Any], ...] = (
    *(("x-lane", "offline"), ("x-lane", "nowhere"), ("x-tenant", "b"), ("x-tenant", "t" * 300), ("x-tenant", "")),
    *(("ttft_objective_ms", "nan"), ("ttft_objective_ms", -1), ("ttft_objective_ms", 1e308), ("priority", 7)),
    *(("timeout", 1), ("timeout", -1), ("sequence_id", 5), ("sequence_start", True), ("binary_data_output", True)),
    *(("triton_enable_empty_final_response", True), ("triton_enable_empty_final_response", "yes"), ("custom", 2**62)),
)


def good_message(request_id: str, prompt: str, *, lane: str = "") -> Any:
    """A request of four greedy tokens for `ensemble`."""
    request = wire.InferRequest(model_name="ensemble", id=request_id)
    wire.add_tensor(request, "text_input", "BYTES", (prompt.encode(),), (1, 1))
    wire.add_tensor(request, "max_tokens", "INT32", (4,), (1, 1))
    if lane:
        request.parameters["x-lane"].string_param = lane
    return request


def odd_message(draw: Random, number: int) -> bytes:
    """A serialised ModelInferRequest that begins as a good one and is changed in one to three places."""
    request = _good_ids(number) if draw.random() < 0.5 else good_message(f"odd-{number}", "how far is the sea")
    for _ in range(draw.choice((1, 1, 2, 3))):
        _change_request(draw, request)
    raw = bytes(request.SerializeToString())
    if draw.random() < 0.1:
        raw = _change_bytes(draw, raw)
    return raw


def _good_ids(number: int) -> Any:
    request = wire.InferRequest(model_name="tensorrt_llm", id=f"odd-{number}")
    wire.add_tensor(request, "input_ids", "INT32", (5, 6, 1), (1, 3))
    wire.add_tensor(request, "input_lengths", "INT32", (3,), (1, 1))
    wire.add_tensor(request, "request_output_len", "INT32", (3,), (1, 1))
    return request


def _change_request(draw: Random, request: Any) -> None:
    tensor = draw.choice(request.inputs) if request.inputs else request.inputs.add()
    match draw.randrange(12):
        case 0:
            request.model_name = draw.choice(MODELS)
        case 1:
            request.model_version = draw.choice(("1", "7", "-1", "x", "\n"))
        case 2:
            request.id = draw.choice(("", f"{request.id}-é", "i" * 5000, "\x00"))
        case 3:
            _set_parameter(request.parameters, *draw.choice(PARAMETERS))
        case 4:
            tensor.name = draw.choice(TENSORS)
        case 5:
            tensor.datatype = draw.choice(DATATYPES)
        case 6:
            del tensor.shape[:]
            tensor.shape.extend(draw.choice(SHAPES))
        case 7:
            _change_raw(draw, request)
        case 8:
            _change_contents(draw, request, tensor)
        case 9:
            _set_parameter(tensor.parameters, "shared_memory_region", draw.choice(("nowhere", "")))
            _set_parameter(tensor.parameters, "shared_memory_byte_size", draw.choice((0, 4, -1, 2**40)))
        case 10:
            output = request.outputs.add(
                name=draw.choice(("text_output", "output_ids", "sequence_length", "nonsense", ""))
            )
            if draw.random() < 0.3:
                _set_parameter(output.parameters, *draw.choice((("classification", 2), ("shared_memory_region", "a"))))
        case _:
            values = draw.choice(((0,), (-1,), (2**31 - 1,), (2**31 - 1,) * 3, (4,)))
            wire.add_tensor(request, draw.choice(TENSORS), "INT32", values, (1, len(values)))


def _change_raw(draw: Random, request: Any) -> None:
    if not request.raw_input_contents or draw.random() < 0.2:
        request.raw_input_contents.append(draw.randbytes(draw.randrange(9)))
        return
    at = draw.randrange(len(request.raw_input_contents))
    if draw.random() < 0.3:
        del request.raw_input_contents[at]
    else:
        request.raw_input_contents[at] = draw.choice(
            (
                b"",
                b"\x00" * 4,
                b"\xff" * 4,
                b"\xff" * 8,
                b"\xff\xff\xff\x7f",
                draw.randbytes(12),
                b"\x03\x00\x00\x00\xff\xfe\xfd",
            )
        )


def _change_contents(draw: Random, request: Any, tensor: Any) -> None:
    """Typed contents instead of the raw ones, or beside them."""
    if draw.random() < 0.5:
        del request.raw_input_contents[:]
    match draw.randrange(4):
        case 0:
            tensor.contents.int_contents.extend(draw.choice(((4,), (), (5,) * 1000, (-1, 2))))
        case 1:
            tensor.contents.bytes_contents.extend(draw.choice(((b"how far",), (b"\xff\xfe",), (b"",), (b"a", b"b"))))
        case 2:
            tensor.contents.fp32_contents.extend((float("nan"), float("inf")))
        case _:
            tensor.contents.int64_contents.append(2**62)


def _set_parameter(parameters: Any, name: str, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(parameters[name], kinds[type(value)], value)
