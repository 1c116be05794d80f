"""Token ids to text, response by response.

A streamed response holds only the new tokens, and this model keeps nothing between them: a character whose bytes are
spread over several tokens comes out as replacement characters if a response ends within it, as with NVIDIA's ensemble.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """One tokenizer. Tensor names and meanings are those of NVIDIA's postprocessing model."""

    def initialize(self, args):
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(f"the model needs numpy < 2 in the server, not {np.__version__}")
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / parameters["tokenizer_dir"]["string_value"]
        ends = folder.resolve() / "generation_config.json"  # where they are no special tokens, they are no text either
        found = json.loads(ends.read_text(encoding="utf-8")).get("eos_token_id") if ends.is_file() else []
        self._end_ids = frozenset(found if isinstance(found, list) else [found])
        self._tokenizer = Tokenizer.from_file(str(folder.resolve() / "tokenizer.json"))
        self._skip_special_tokens = parameters["skip_special_tokens"]["string_value"].lower() == "true"

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        tokens = pb_utils.get_input_tensor_by_name(request, "TOKENS_BATCH").as_numpy()
        lengths = pb_utils.get_input_tensor_by_name(request, "SEQUENCE_LENGTH").as_numpy()
        texts = [
            self._text(ids[:length].tolist())
            for ids, length in zip(tokens.reshape(lengths.size, -1), lengths.ravel(), strict=True)
        ]
        output = np.array(texts, np.object_)  # [n] without a batch dimension: NVIDIA's clients read output[0] as a text
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", output)])

    def _text(self, ids):
        skip = self._skip_special_tokens
        shown = [each for each in ids if not (skip and each in self._end_ids)]
        return self._tokenizer.decode(shown, skip_special_tokens=skip).encode()
