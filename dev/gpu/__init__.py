"""`scripts/gpu_check`: what a GPU does under both lanes, without TensorRT-LLM and without a network."""

from pathlib import Path

_ROOT = Path(__file__).parents[2]
TOKENIZER = (_ROOT / "model_repository/tokenizer", _ROOT / ".cache/smollm2")  # of the toy's vocabulary, and SmolLM2's
