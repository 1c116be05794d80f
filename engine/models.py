"""The models that the CPU engine can run: a toy in three sizes, whose sums are exact, and a real one that talks."""

from __future__ import annotations

from pathlib import Path

from engine.chat_model import ChatModel
from engine.language import Language
from engine.transformer import PRESETS, Transformer
from sidecar.inflight.batch import BatcherSettings

CHAT = "smollm2"  # the preset of the model directory that dev/chat_model.py writes


def model_of(
    folder: Path, preset: str, seed: int, batcher: BatcherSettings
) -> tuple[Language, Transformer | ChatModel]:
    """The chat model with its whole vocabulary, or the toy with its grammar."""
    if preset == CHAT:
        chat = ChatModel(
            folder,
            rows_max=batcher.max_batch_size,
            tokens_max=batcher.max_seq_len,
            blocks=batcher.blocks_max,
            tokens_per_block=batcher.tokens_per_block,
        )
        return Language.free(chat.vocab_size), chat
    language = Language.load(folder)
    toy = Transformer(
        PRESETS[preset],
        language,
        tokens_max=batcher.max_seq_len,
        blocks=batcher.blocks_max,
        tokens_per_block=batcher.tokens_per_block,
        seed=seed,
    )
    return language, toy
