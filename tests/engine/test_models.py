"""Which model a preset names: the toy with its grammar, or the one that talks with its whole vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.chat_model import ChatModel
from engine.models import CHAT, model_of
from engine.transformer import PRESETS, Transformer
from sidecar.inflight.batch import BatcherSettings
from tests.engine.builders import FOLDER, LANGUAGE
from tests.engine.test_chat_model import VOCABULARY
from tests.engine.test_chat_model import folder as folder

BATCHER = BatcherSettings(max_batch_size=2, max_seq_len=64, max_num_tokens=64, kv_tokens_max=256, tokens_per_block=8)


def test_a_toy_speaks_the_language_of_its_folder() -> None:
    language, model = model_of(FOLDER, "tiny", 0, BATCHER)
    assert isinstance(model, Transformer)
    assert language == LANGUAGE


def test_the_chat_model_says_what_it_wants_and_its_end_is_its_own(folder: Path) -> None:
    language, model = model_of(folder, CHAT, 0, BATCHER)
    assert isinstance(model, ChatModel)
    assert language.vocab_size == len(language.readable) == VOCABULARY
    assert language.end_id == -1


def test_an_unknown_preset_is_no_model() -> None:
    assert CHAT not in PRESETS
    with pytest.raises(KeyError):
        model_of(FOLDER, "huge", 0, BATCHER)


def test_a_folder_without_the_chat_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=str(tmp_path)):
        model_of(tmp_path, CHAT, 0, BATCHER)
