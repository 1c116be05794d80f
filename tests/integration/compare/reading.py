"""What a transcript says, as plain data, without what differs between any two runs against the same server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from sidecar.triton.wire import unpack
from tests.integration.compare.player import Played, Transcript
from tests.integration.compare.scenario import RUN, Scenario

VALUES_MAX = 64  # of a tensor that are shown; of a longer one the digest is compared
# Tensors that tell time, or what the cache held: their datatype and shape are compared.
VARYING = frozenset(
    "arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns kv_cache_alloc_new_blocks "
    "kv_cache_reused_blocks kv_cache_alloc_total_blocks".split()
)
_ADDRESS = re.compile(r"(ipv4:)?127\.0\.0\.1:\d+")
_DEADLINE = re.compile(
    r"Stream removed \(Deadline Exceeded\)|context deadline exceeded"
)  # a client\'s own words, by chance
_COUNTS = ("ModelStatistics",)  # methods whose numbers grow with each call: their keys are compared


def read(played: Played, run: str, scenario: Scenario) -> dict[str, Any]:
    """What a scenario brought, by call: equal for two runs if their caller cannot tell them apart."""
    found: dict[str, Any] = {name: _call(each, run, scenario) for name, each in played.calls.items()}
    for number, content in enumerate(played.looks):
        found[f"region {number}"] = {"content": content.hex()}
    found.update({name: {"seen": seen} for name, seen in played.programs.items()})
    told: dict[str, Any] = _untold(found, run)
    return told


def _call(transcript: Transcript, run: str, scenario: Scenario) -> dict[str, Any]:
    messages = transcript.messages if transcript.awaited is None else transcript.messages[: transcript.awaited]
    found: dict[str, Any] = {
        "status": transcript.status,
        "details": _DEADLINE.sub("Deadline Exceeded", _ADDRESS.sub("ADDRESS", transcript.details)),
        "initial": sorted(transcript.initial),
        "trailing": sorted(transcript.trailing),
    }
    if transcript.method == "ModelStreamInfer":
        found["responses"] = _by_id(messages, run, scenario)
    elif transcript.method == "ModelInfer":
        read = [_response(service_pb2.ModelInferResponse.FromString(each)) for each in messages]
        found["responses"] = {each["id"]: [each] for each in read}
    else:
        found["answer"] = [_answer(transcript.method, each) for each in messages]
    return found


def _by_id(messages: Sequence[bytes], run: str, scenario: Scenario) -> dict[str, list[Any]]:
    """The responses of each request in their order; how those of different requests interleave depends on time."""
    found: dict[str, list[Any]] = {}
    for raw in messages:
        message = service_pb2.ModelStreamInferResponse.FromString(raw)
        response = _response(message.infer_response)
        if message.error_message:
            response["error_message"] = message.error_message
        found.setdefault(message.infer_response.id, []).append(response)
    shortened = [each.replace(RUN, run) for each in scenario.shortened]
    found = {key: _shortened(each) if key in shortened else each for key, each in found.items()}
    return {key: sorted(each, key=repr) for key, each in found.items()} if scenario.twins else found


def _shortened(responses: list[Any]) -> list[Any]:
    """Of a request that was stopped: its first response, and those without output or with the final flag.

    How many tokens lie between, and whether the stop's own answer or the request's end comes first, depends on time.
    """
    ends = [each for each in responses if not each["outputs"] or "error_message" in each or _final(each)]
    for each in ends:
        for output in each["outputs"]:
            output["shape"], output["values"] = output["shape"][:-1], "what there was"
    return [*responses[: not _final(responses[0])], *sorted(ends, key=repr)]


def _final(response: dict[str, Any]) -> bool:
    return bool(response["parameters"].get("triton_final_response") == ["bool_param", True])


def _response(message: Any) -> dict[str, Any]:
    raw = list(message.raw_output_contents)
    return {
        "id": message.id,
        "model": message.model_name,
        "version": message.model_version,
        "parameters": {key: _value(message.parameters[key]) for key in sorted(message.parameters)},
        "outputs": [_output(each, raw[at] if at < len(raw) else None) for at, each in enumerate(message.outputs)],
        "raw contents": len(raw),
    }


def _output(tensor: Any, raw: bytes | None) -> dict[str, Any]:
    found = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {key: _value(tensor.parameters[key]) for key in sorted(tensor.parameters)},
        "typed": json_format.MessageToDict(tensor.contents),
    }
    if tensor.name not in VARYING:
        found["values"] = None if raw is None else _values(tensor.datatype, raw)
    return found


def _values(datatype: str, raw: bytes) -> Any:
    try:
        values = [
            each.hex() if isinstance(each, bytes) and not _text(each) else _shown(each)
            for each in unpack(datatype, raw)
        ]
    except (KeyError, ValueError):
        return raw.hex()
    if len(raw) <= VALUES_MAX * 8:
        return values
    return {"count": len(values), "digest": blake2b(raw, digest_size=8).hexdigest()}


def _text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shown(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _value(parameter: Any) -> Any:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else [kind, getattr(parameter, kind)]


def _answer(method: str, raw: bytes) -> Any:
    answer: type[Message] | None = getattr(service_pb2, f"{method}Response", None)
    if method.startswith("/grpc.health"):
        answer = health_pb2.HealthCheckResponse
    if answer is None:
        return raw.hex()
    try:
        message = answer.FromString(raw)
    except DecodeError:
        return raw.hex()
    found = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return _without_numbers(found) if method in _COUNTS else found


def _without_numbers(value: Any) -> Any:
    """Counts and times become the kind of them; int64 stands in JSON as text."""
    if isinstance(value, dict):
        return {key: _without_numbers(each) for key, each in value.items()}
    if isinstance(value, list):  # of batch sizes there are as many as have occurred: one is enough
        by_size = bool(value) and isinstance(value[0], dict) and "batch_size" in value[0]
        return [_without_numbers(each) for each in (value[:1] if by_size else value)]
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
        return "a number"
    return value


def _untold(value: Any, run: str) -> Any:
    """The word that tells the two runs apart is gone."""
    if isinstance(value, dict):
        return {_untold(key, run): _untold(each, run) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_untold(each, run) for each in value]
    return value.replace(run, RUN) if isinstance(value, str) else value
