"""How a program says what it saw, and the requests that all of them make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

TEXT = "the train to the coast"
PROMPT = (7, 8, 9, 1)
RELEASE = np.__version__[0]  # tells the two releases apart, which run at once: they need another numpy
LONG = 1200  # tokens: twelve seconds of the paced engine
VARYING = ("kv_cache_", "_time_ns")  # in names of outputs that tell time, or what the cache held
_DTYPES: dict[str, Any] = {"INT32": np.int32, "UINT32": np.uint32, "BOOL": np.bool_, "BYTES": np.object_}


def tensor(name: str, datatype: str, values: Sequence[Any], shape: Sequence[int] | None = None) -> Any:
    """An input as users make it."""
    array = np.array(values, dtype=_DTYPES[datatype]).reshape(shape or (1, len(values)))
    made = grpc.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def text_inputs(text: str = TEXT, tokens: int = 6, *, stream: bool = True) -> list[Any]:
    """The inputs of the text model."""
    return [
        tensor("text_input", "BYTES", [text.encode()]),
        tensor("max_tokens", "INT32", [tokens]),
        tensor("stream", "BOOL", [stream]),
    ]


def ids_inputs(prompt: Sequence[int] = PROMPT, tokens: int = 6, *, streaming: bool = True) -> list[Any]:
    """The inputs of the engine model."""
    return [
        tensor("input_ids", "INT32", prompt),
        tensor("input_lengths", "INT32", [len(prompt)]),
        tensor("request_output_len", "INT32", [tokens]),
        tensor("streaming", "BOOL", [streaming]),
    ]


def long_inputs() -> list[Any]:
    """A generation that is still running when the program has had enough."""
    return [*ids_inputs(tokens=LONG), tensor("min_tokens", "INT32", [LONG])]


def query_inputs(text: str = "hello there") -> list[Any]:
    """The inputs of the preprocessing model, which is not scheduled."""
    return [tensor("QUERY", "BYTES", [text.encode()]), tensor("REQUEST_OUTPUT_LEN", "INT32", [5])]


def plain(found: Any) -> Any:
    """An InferResult as plain data: the response without its bytes, and each output as its user reads it."""
    response = found.get_response()
    outputs = [each.name for each in response.outputs]
    return {
        "id": response.id,
        "model": [response.model_name, response.model_version],
        "parameters": {key: str(response.parameters[key]) for key in sorted(response.parameters)},
        "outputs": {name: _array(name, found.as_numpy(name)) for name in outputs},
    }


def _array(name: str, array: Any) -> Any:
    if any(word in name for word in VARYING):
        return [str(array.dtype), list(array.shape)]
    values = [each.decode(errors="replace") if isinstance(each, bytes) else each for each in array.ravel().tolist()]
    return [str(array.dtype), list(array.shape), values]


def fault(found: BaseException) -> Any:
    """An exception as its user sees it."""
    if isinstance(found, InferenceServerException):
        message = found.message().replace(
            "Stream removed (Deadline Exceeded)", "Deadline Exceeded"
        )  # gRPC's, by chance
        return {"status": found.status(), "message": message}
    return {"error": type(found).__name__, "message": str(found)}


def either(found: Any, failure: Any) -> Any:
    """What a callback was given."""
    return plain(found) if failure is None else fault(failure)


def by_id(found: Sequence[Any]) -> Any:
    """The answers of each request in their order; how requests interleave depends on time."""
    grouped: dict[str, list[Any]] = {}
    for each in found:
        grouped.setdefault(each.get("id", "no id"), []).append(each)
    return grouped
