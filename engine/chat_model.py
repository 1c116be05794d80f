"""A real chat model in ONNX Runtime, behind the same `logits` as the toy transformer.

The graph (dev/chat_model.py writes it) computes decoding rows together, one token each, and every prompt chunk by
itself. Each row in the batch has a buffer of its own, where the graph appends keys and values in place. The paged
store beside it holds a copy of every token under the batcher's blocks: from there a new row takes the blocks that it
reuses. A row's sums do not depend on its neighbours (measured: 1 row, and 2, 3, 4 and 8, have the same bits), but a
token computed in a prompt and the same token decoded may differ in their last bits.

Tried: keys and values as 8-bit integers (GroupQueryAttention takes them, with a scale per channel). An iteration of
8 rows with 500 tokens of context takes 65 ms of CPU time instead of 91, on a busy host, and 97.1 % of the greedy tokens
on 50 prompts are those of float32 instead of 97.7 %. But it depends on the texts that the scales are taken from whether
the capital of France is told in English, or something else in French.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engine.transformer import FlatBatch, FlatChunk, Floats, Ints

THREADS = 2


class ChatModel:
    """Weights, row buffers and paged store of one model."""

    def __init__(self, folder: Path, *, rows_max: int, tokens_max: int, blocks: int, tokens_per_block: int) -> None:
        self._runtime, self._session = _load(folder / "model.onnx")
        caches = [each for each in self._session.get_inputs() if each.name.startswith("past.")]
        layers, (_, kv_heads, _, head_dim) = len(caches) // 2, caches[0].shape
        self.vocab_size = int(self._session.get_outputs()[0].shape[1])
        self.weight_bytes = (folder / "model.weights").stat().st_size
        self._size = tokens_per_block
        self._tokens_max = tokens_max
        # Zeros are pages that the system only gives when written to.
        self._buffers = np.zeros((layers, 2, rows_max, kv_heads, tokens_max, head_dim), np.float32)
        self._store = np.zeros((blocks * tokens_per_block, layers, 2, kv_heads, head_dim), np.float32)
        self._places: dict[str, int] = {}  # row → its buffer
        self._lengths = np.zeros(rows_max, np.int64)  # valid tokens of each buffer
        self._bindings: dict[tuple[int, int], Any] = {}

    def copy_block(self, source: int, target: int) -> None:
        """Make block `target` hold what `source` holds."""
        size = self._size
        self._store[target * size : (target + 1) * size] = self._store[source * size : (source + 1) * size]

    def forget(self, row: str) -> None:
        """The row has left the batch: its buffer is free."""
        place = self._places.pop(row, None)
        if place is not None:
            self._lengths[place] = 0

    def logits(self, batch: FlatBatch) -> Floats:
        """Compute the new tokens of `batch` into the caches; the logits of its wanted places over all ids."""
        found = [self._decode(batch)] if batch.rows else []
        found += [self._prompt(batch, chunk) for chunk in batch.chunks]
        return np.concatenate(found) if found else np.zeros((0, self.vocab_size), np.float32)

    def _decode(self, batch: FlatBatch) -> Floats:
        """Compute one token for each decoding row; buffers between them that do not decode are computed and ignored."""
        self._move_together(batch.rows)
        places = np.array([self._places[row] for row in batch.rows])
        count, tokens = int(places.max()) + 1, len(batch.rows)
        ids = np.zeros((count, 1), np.int64)
        ids[places, 0] = batch.ids[:tokens]
        at = np.minimum(self._lengths[:count], self._tokens_max - 1)  # an idle buffer is written behind its end
        at[places] = batch.positions[:tokens]
        logits = self._run(ids, at, 0, places)
        self._lengths[places] = at[places] + 1
        self._store[batch.slots[:tokens]] = self._buffers[:, :, places, :, at[places]]
        return logits

    def _prompt(self, batch: FlatBatch, chunk: FlatChunk) -> Floats:
        """Compute one prompt chunk. Return the logits of its wanted tokens."""
        span = slice(chunk.begin, chunk.begin + chunk.tokens)
        wanted = batch.wanted[(batch.wanted >= span.start) & (batch.wanted < span.stop)] - span.start
        begin = int(batch.positions[span][0])
        place = self._place(chunk, begin)
        logits = self._run(batch.ids[None, span], np.array([begin]), place, wanted)
        self._lengths[place] = begin + chunk.tokens
        self._store[batch.slots[span]] = self._buffers[:, :, place, :, begin : begin + chunk.tokens].transpose(
            3, 0, 1, 2, 4
        )
        return logits

    def _place(self, chunk: FlatChunk, begin: int) -> int:
        """The row's buffer, filled up to token `begin` from the store."""
        if chunk.row not in self._places:
            self._places[chunk.row] = min(set(range(len(self._lengths))) - set(self._places.values()))
        place = self._places[chunk.row]
        if self._lengths[place] < begin:
            at = np.arange(begin)
            slots = chunk.table[at // self._size] * self._size + at % self._size
            self._buffers[:, :, place, :, :begin] = self._store[slots].transpose(1, 2, 3, 0, 4)
        return place

    def _move_together(self, rows: tuple[str, ...]) -> None:
        """Move the decoding rows to the lowest free buffers: the graph computes all buffers up to the last one."""
        free = sorted(set(range(len(self._lengths))) - set(self._places.values()))
        for row in sorted(rows, key=lambda each: self._places[each], reverse=True):
            place = self._places[row]
            if not free or free[0] > place:
                return
            target, length = free.pop(0), self._lengths[place]
            self._buffers[:, :, target, :, :length] = self._buffers[:, :, place, :, :length]
            self._places[row], self._lengths[target], self._lengths[place] = target, length, 0

    def _run(self, ids: Ints, begins: Ints, first: int, wanted: Ints) -> Floats:
        """Run the graph over the buffers from `first` on, one for each row of `ids`."""
        rows, tokens = ids.shape
        binding = self._binding(first, rows)
        binding.bind_cpu_input("ids", np.ascontiguousarray(ids, np.int64))
        binding.bind_cpu_input("last_places", (begins + tokens - 1).astype(np.int32))
        binding.bind_cpu_input("length_max", np.array(begins.max() + tokens, np.int32))
        binding.bind_cpu_input("wanted", wanted.astype(np.int64))
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        logits: Floats = binding.get_outputs()[-1].numpy()  # outputs come in the order in which they were bound
        return logits

    def _binding(self, first: int, rows: int) -> Any:
        """The buffers `first` … bound as what goes in and comes out; made once for each such span."""
        if (first, rows) not in self._bindings:
            binding = self._session.io_binding()
            for layer in range(len(self._buffers)):
                for kind, name in enumerate(("keys", "values")):
                    buffer = self._buffers[layer, kind, first : first + rows]
                    value = self._runtime.OrtValue.ortvalue_from_numpy(buffer)
                    binding.bind_ortvalue_input(f"past.{name}.{layer}", value)
                    binding.bind_ortvalue_output(f"present.{name}.{layer}", value)
            self._bindings[first, rows] = binding
        return self._bindings[first, rows]


def _load(file: Path) -> tuple[Any, Any]:
    """The runtime and a session. Raises ValueError if either is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("parameter 'preset' is smollm2, but the server has no package onnxruntime") from error
    if not file.exists():
        raise ValueError(f"parameter 'preset' is smollm2, but there is no {file}; run scripts/setup")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared
    return onnxruntime, onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
