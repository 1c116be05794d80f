"""What a model takes, from its ModelConfig: so that a wrong tensor is refused here, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tritonclient.grpc import model_config_pb2

from sidecar.edge.errors import BadRequestError

_BYTES_PER_ELEMENT = {
    **dict.fromkeys(("BOOL", "UINT8", "INT8"), 1),
    **dict.fromkeys(("UINT16", "INT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("UINT32", "INT32", "FP32"), 4),
    **dict.fromkeys(("UINT64", "INT64", "FP64"), 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """One input. `dims` are those on the wire, the batch dimension included; -1 = any."""

    datatype: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSchema:
    """The inputs and outputs of one model."""

    model: str
    inputs: Mapping[str, InputRule]
    outputs: frozenset[str]

    @classmethod
    def of(cls, config: Any) -> ModelSchema:
        """From the `config` of a ModelConfigResponse."""
        batch = (-1,) if config.max_batch_size > 0 else ()
        return cls(
            model=config.name,
            inputs={
                each.name: InputRule(
                    datatype=_datatype(each.data_type), dims=(*batch, *each.dims), optional=each.optional
                )
                for each in config.input
            },
            outputs=frozenset(each.name for each in config.output),
        )

    def check(self, request: Any) -> None:
        """Raise BadRequestError, naming the tensor, unless the inputs and outputs of `request` fit this model."""
        raw = iter(request.raw_input_contents)
        for tensor in request.inputs:
            rule = self.inputs.get(tensor.name)
            if rule is None:
                raise BadRequestError(f"unexpected inference input '{tensor.name}' for model '{self.model}'")
            in_shared_memory = "shared_memory_region" in tensor.parameters
            self._check_input(tensor, rule, None if in_shared_memory else next(raw, None))
        given = {tensor.name for tensor in request.inputs}
        for name, rule in self.inputs.items():
            if not rule.optional and name not in given:
                raise BadRequestError(f"input '{name}' is missing; model '{self.model}' requires it")
        for output in request.outputs:
            if output.name not in self.outputs:
                raise BadRequestError(f"unexpected inference output '{output.name}' for model '{self.model}'")

    def _check_input(self, tensor: Any, rule: InputRule, raw: bytes | None) -> None:
        if tensor.datatype != rule.datatype:
            raise BadRequestError(
                f"input '{tensor.name}' has datatype {tensor.datatype}; model '{self.model}' expects {rule.datatype}"
            )
        shape = tuple(tensor.shape)
        if len(shape) != len(rule.dims) or any(
            got < 0 or want not in (-1, got) for got, want in zip(shape, rule.dims, strict=True)
        ):
            raise BadRequestError(
                f"input '{tensor.name}' has shape {list(shape)}; model '{self.model}' expects {list(rule.dims)}"
            )
        size = _BYTES_PER_ELEMENT.get(tensor.datatype)
        if raw is not None and size is not None and len(raw) != size * prod(shape):
            raise BadRequestError(
                f"input '{tensor.name}' has {len(raw)} bytes; shape {list(shape)} needs {size * prod(shape)}"
            )


def _datatype(value: int) -> str:
    name = model_config_pb2.DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
