"""KServe messages as bytes, for scenarios: a right request in one call, and a wrong one by changing one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from sidecar.triton.wire import pack

ENGINE, TEXT, BEFORE, AFTER = "tensorrt_llm", "ensemble", "preprocessing", "postprocessing"
END_OF_PROMPT = 1
PROMPT = (7, 8, 9, END_OF_PROMPT)
LONG = 1200  # tokens: twelve seconds of the paced engine, so that whatever ends sooner was ended
EMPTY_FINAL = "triton_enable_empty_final_response"
_TYPED = {
    "INT32": "int_contents",
    "UINT32": "uint_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input. Its contents are the raw bytes, or the typed values, or they lie in a shared memory region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None = None
    typed: tuple[Any, ...] | None = None
    region: tuple[str, int, int] | None = None  # name, offset, bytes


def tensor(name: str, datatype: str, values: Sequence[Any], shape: Sequence[int] | None = None) -> Tensor:
    """An input with raw contents, [1, n] unless another shape is given."""
    packed = b"".join(int(value).to_bytes(4, "little") for value in values) if datatype == "UINT32" else None
    raw = pack(datatype, values) if packed is None else packed
    return Tensor(name=name, datatype=datatype, shape=tuple(shape or (1, len(values))), raw=raw)


def typed(name: str, datatype: str, values: Sequence[Any], shape: Sequence[int] | None = None) -> Tensor:
    """The same with typed contents."""
    return Tensor(name=name, datatype=datatype, shape=tuple(shape or (1, len(values))), typed=tuple(values))


def infer(
    model: str,
    *tensors: Tensor,
    id: str = "",
    version: str = "",
    outputs: Sequence[str] = (),
    output_region: tuple[str, str, int] | None = None,  # output, region, bytes
    parameters: dict[str, Any] | None = None,
    trailing_raw: Sequence[bytes] = (),
) -> bytes:
    """A ModelInferRequest. `trailing_raw`: further raw contents that no input stands for."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=id)
    for each in tensors:
        added = request.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        if each.region is not None:
            _in_region(added, *each.region)
        elif each.typed is not None:
            getattr(added.contents, _TYPED[each.datatype]).extend(each.typed)
        elif each.raw is not None:
            request.raw_input_contents.append(each.raw)
    request.raw_input_contents.extend(trailing_raw)
    for name in outputs:
        request.outputs.add(name=name)
    if output_region is not None:
        name, region, size = output_region
        _in_region(request.outputs.add(name=name), region, 0, size)
    for key, value in (parameters or {}).items():
        set_parameter(request.parameters[key], value)
    message: bytes = request.SerializeToString()
    return message


def set_parameter(parameter: Any, value: Any) -> None:
    """An InferParameter holds this value; `(kind, value)` chooses the kind."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    kind, value = value if isinstance(value, tuple) else (kinds[type(value)], value)
    setattr(parameter, kind, value)


def _in_region(added: Any, region: str, offset: int, size: int) -> None:
    added.parameters["shared_memory_region"].string_param = region
    added.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        added.parameters["shared_memory_offset"].int64_param = offset


def ids_inputs(
    prompt: Sequence[int] = PROMPT, tokens: int = 6, *, streaming: bool | None = True, more: Sequence[Tensor] = ()
) -> list[Tensor]:
    """The inputs of the engine model for a generation."""
    found = [
        tensor("input_ids", "INT32", prompt),
        tensor("input_lengths", "INT32", [len(prompt)]),
        tensor("request_output_len", "INT32", [tokens]),
    ]
    if streaming is not None:
        found.append(tensor("streaming", "BOOL", [streaming]))
    return [*found, *more]


def text_inputs(
    text: str | bytes = "the train to the coast",
    tokens: int = 6,
    *,
    stream: bool | None = True,
    more: Sequence[Tensor] = (),
) -> list[Tensor]:
    """The inputs of the text model for a generation."""
    raw = text.encode() if isinstance(text, str) else text
    found = [tensor("text_input", "BYTES", [raw]), tensor("max_tokens", "INT32", [tokens])]
    if stream is not None:
        found.append(tensor("stream", "BOOL", [stream]))
    return [*found, *more]


def ids(*arguments: Any, **options: Any) -> bytes:
    """A generation of the engine model: arguments of `ids_inputs`, and those of `infer`."""
    inputs, rest = _split(options, ("prompt", "tokens", "streaming", "more"))
    return infer(ENGINE, *ids_inputs(*arguments, **inputs), **rest)


def text(*arguments: Any, **options: Any) -> bytes:
    """A generation of the text model: arguments of `text_inputs`, and those of `infer`."""
    inputs, rest = _split(options, ("text", "tokens", "stream", "more"))
    return infer(TEXT, *text_inputs(*arguments, **inputs), **rest)


def long_ids(id: str, **options: Any) -> bytes:
    """A generation that is still running when it is stopped or cancelled."""
    return ids(tokens=LONG, more=[tensor("min_tokens", "INT32", [LONG])], id=id, **options)


def long_text(id: str, **options: Any) -> bytes:
    """The same by text."""
    return text(tokens=LONG, more=[tensor("min_tokens", "INT32", [LONG])], id=id, **options)


def stop(id: str, **options: Any) -> bytes:
    """A request to stop the one of this id, as NVIDIA's client builds it."""
    return ids(prompt=[0], tokens=1, streaming=None, more=[tensor("stop", "BOOL", [True])], id=id, **options)


def query(prompt: str | bytes = "hello there", **options: Any) -> bytes:
    """A request of the preprocessing model, which is not scheduled."""
    raw = prompt.encode() if isinstance(prompt, str) else prompt
    return infer(BEFORE, tensor("QUERY", "BYTES", [raw]), tensor("REQUEST_OUTPUT_LEN", "INT32", [5]), **options)


def tokens(values: Sequence[int] = (100, 101, 102), **options: Any) -> bytes:
    """A request of the postprocessing model, which is not scheduled."""
    return infer(
        AFTER,
        tensor("TOKENS_BATCH", "INT32", values, (1, 1, len(values))),
        tensor("SEQUENCE_LENGTH", "INT32", [len(values)]),
        **options,
    )


def _split(options: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs = {key: value for key, value in options.items() if key in names}
    return inputs, {key: value for key, value in options.items() if key not in names}
