"""The response that ends a request, where no engine's own response does: after slices, or stopped while it waited."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sidecar.frontend.caller_request import CallerRequest
from sidecar.triton import wire

OF_TEXT = frozenset({"text_output"})
OF_IDS = frozenset({"output_ids", "sequence_length"})


def final_answer(asked: CallerRequest, model: str, version: str, output: str | Sequence[int]) -> Any:
    """A ModelStreamInferResponse of this model with the tensors that the engine gives for this output, and final."""
    answer = wire.empty_final(model, asked.id)
    answer.infer_response.model_version = version
    if isinstance(output, str):
        _add(answer, asked, "text_output", "BYTES", (output.encode(),), (1,))
    else:
        _add(answer, asked, "output_ids", "INT32", output, (1, 1, len(output)))
        _add(answer, asked, "sequence_length", "INT32", (len(output),), (1, 1))
    return answer


def wants_only(asked: CallerRequest, outputs: Collection[str]) -> bool:
    """True if the caller asks for none but these outputs, each as it is; a caller who names none takes what comes."""
    return all(each.name in outputs and each.plain for each in asked.outputs)


def _add(
    answer: Any, asked: CallerRequest, name: str, datatype: str, values: Sequence[Any], shape: Sequence[int]
) -> None:
    if asked.wants(name):
        wire.add_output(answer, name, datatype, values, shape)
