"""The PyTorch engine on a CPU: it says what the numpy engine says; its kernel computes what plain attention does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from dev.chats import QUESTIONS
from engine.calls import EngineCall
from engine.models import CHAT
from engine.numpy_engine import NumpyEngine, NumpySettings
from engine.parameters import EngineParameters
from engine.serving import build_engine
from sidecar.inflight.batch import BatcherSettings
from tests.engine.builders import FOLDER, ids_of, run, tokens

torch: Any = pytest.importorskip("torch", reason="no PyTorch here: see scripts/setup --torch")

CHAT_FOLDER = Path(__file__).parents[2] / ".cache/smollm2"
BATCHER = BatcherSettings(max_batch_size=8, max_seq_len=512, max_num_tokens=64, kv_tokens_max=8192, tokens_per_block=8)
CALLS = [EngineCall(input_ids=ids_of(f"Describe the river {n} and the sea"), output_tokens_max=60) for n in range(8)]


def engine(device: str | None, preset: str = "tiny", folder: Path = FOLDER) -> NumpyEngine:
    return NumpyEngine(NumpySettings(tokenizer_dir=folder, preset=preset, device=device, batcher=BATCHER))


def said(built: NumpyEngine, calls: list[EngineCall]) -> list[tuple[int, ...]]:
    return [tokens(parts) for parts in run(built, *calls)]


def assert_the_same_next_tokens(calls: list[EngineCall], preset: str, folder: Path) -> None:
    """After the same ids both engines say the same next token in 95 % of the places of the numpy engine's answers."""
    answers = list(zip(calls, said(engine(None, preset, folder), calls), strict=True))
    # By place, so that each finds what came before it in the cache.
    places = [(call, ids, place) for place in range(64) for call, ids in answers if place < len(ids)]
    asked = [EngineCall(input_ids=call.input_ids + ids[:place], output_tokens_max=1) for call, ids, place in places]
    found = said(engine("cpu", preset, folder), asked)
    equal = sum(one == (ids[place],) for one, (_, ids, place) in zip(found, places, strict=True))
    assert equal >= 0.95 * len(places) > 0, f"{equal} of {len(places)}"


def test_the_toy_says_the_next_token_that_the_numpy_engine_says() -> None:
    assert_the_same_next_tokens(CALLS, "tiny", FOLDER)  # the toy's 8-bit steps decide the near-ties


def test_smollm2_says_the_next_token_that_the_numpy_engine_says() -> None:
    tokenizer = Tokenizer.from_file(str(CHAT_FOLDER / "tokenizer.json"))
    texts = [f"<|im_start|>user\n{each}<|im_end|>\n<|im_start|>assistant\n" for each in QUESTIONS[:8]]
    ids = [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    assert_the_same_next_tokens([EngineCall(input_ids=each, output_tokens_max=24) for each in ids], CHAT, CHAT_FOLDER)


def test_a_chat_model_that_was_not_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'preset' is smollm2, but there is no .*model.onnx; run scripts/setup"):
        engine("cpu", CHAT, tmp_path)


def test_chunks_blocks_and_company_change_no_answer_on_a_cpu() -> None:
    alone = [said(engine("cpu"), [call])[0] for call in CALLS[:3]]
    assert said(engine("cpu"), CALLS)[:3] == alone


def test_a_resumed_answer_goes_on_as_the_whole_one() -> None:
    built, call = engine("cpu"), CALLS[0]
    (whole,) = said(built, [call])
    (resumed,) = said(built, [EngineCall(input_ids=call.input_ids + whole[:30], output_tokens_max=30)])
    assert whole[:30] + resumed == whole


def test_a_large_model_on_a_device_is_a_matter_of_parameters_and_an_unknown_one_is_named() -> None:
    values = {"engine": "torch", "device": "cpu", "preset": "13b", "tokenizer_dir": str(FOLDER)}
    with pytest.raises(ValueError, match=r"'preset' must be one of smollm2, tiny, .*70b-tp4-shard, not '13b'"):
        build_engine(EngineParameters(values), FOLDER)
    built: Any = build_engine(EngineParameters({**values, "preset": "tiny"}), FOLDER)
    assert built.settings.device == "cpu"


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # the interpreter's own
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET is not 1")
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim", "blocks"), [(3, 8, 2, 16, 5), (40, 4, 2, 16, 2), (1, 16, 2, 128, 40)]
)
def test_the_kernel_attends_as_plain_attention_does(
    rows: int, heads: int, kv_heads: int, head_dim: int, blocks: int
) -> None:
    from engine.torch_model import plain_decode
    from engine.torch_models import kernel

    draw = torch.Generator().manual_seed(1)
    queries = torch.randn(rows, heads, head_dim, generator=draw)
    keys, values = (torch.randn(50 * 16, kv_heads, head_dim, generator=draw) for _ in range(2))
    tables = torch.randint(0, 50, (rows, blocks), generator=draw, dtype=torch.int32)
    lengths = torch.randint(1, blocks * 16 + 1, (rows,), generator=draw, dtype=torch.int32)
    arguments = (queries, keys, values, tables, lengths, 16)
    torch.testing.assert_close(kernel()(*arguments), plain_decode(*arguments), rtol=1e-4, atol=1e-5)
