"""The response that ends a request, where no engine's own response does: after slices, or stopped while it waited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sidecar.triton import wire

OF_TEXT = frozenset({"text_output"})
OF_IDS = frozenset({"output_ids", "sequence_length"})


def final_answer(request: Any, caller_id: str, version: str, output: str | Sequence[int]) -> Any:
    """A ModelStreamInferResponse with the tensors that the engine gives for this output, and the final flag."""
    answer = wire.empty_final(request.model_name, caller_id)
    answer.infer_response.model_version = version
    if isinstance(output, str):
        _add(answer, request, "text_output", "BYTES", (output.encode(),), (1,))
    else:
        _add(answer, request, "output_ids", "INT32", output, (1, 1, len(output)))
        _add(answer, request, "sequence_length", "INT32", (len(output),), (1, 1))
    return answer


def wants_only(request: Any, outputs: Collection[str]) -> bool:
    """True if the caller asks for none but these outputs, each as it is; a caller who names none takes what comes."""
    return all(each.name in outputs and not each.parameters for each in request.outputs)


def _add(answer: Any, request: Any, name: str, datatype: str, values: Sequence[Any], shape: Sequence[int]) -> None:
    if not request.outputs or any(each.name == name for each in request.outputs):
        wire.add_output(answer, name, datatype, values, shape)
