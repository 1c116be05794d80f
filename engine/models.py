"""The models that the CPU engine can run: a toy in three sizes, whose sums are exact, and a real one that talks.

smollm2  the demo and chats: real answers, a real tokenizer and template, and iterations as long as the host makes them
tiny     unit tests, chaos and fuzz: cut and resumed anywhere it says the same ids, and an iteration takes a millisecond
small    the paced demo: sums as exact, and light enough to keep a profile's pace beside Kafka
large    the engine's bench: a step is bound by memory, as on a GPU

With a PyTorch device, engine/torch_models.py says which.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.chat_model import ChatModel
from engine.language import Language
from engine.transformer import PRESETS, Transformer
from sidecar.inflight.batch import BatcherSettings

if TYPE_CHECKING:
    from engine.torch_model import TorchTransformer

CHAT = "smollm2"  # the preset of the model directory that dev/chat_model.py writes


def model_of(
    folder: Path, preset: str, seed: int, batcher: BatcherSettings, device: str | None = None
) -> tuple[Language, Transformer | ChatModel | TorchTransformer]:
    """The chat model with its whole vocabulary, the toy with its grammar, or a model on a PyTorch device."""
    if device is not None:
        from engine.torch_models import torch_model_of  # torch is only there where somebody asks for it

        return torch_model_of(folder, preset, seed, batcher, device)
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
