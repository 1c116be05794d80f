"""Token ids to text, response by response.

A streamed response holds only the new tokens, and this model keeps nothing between them: a character whose bytes are
spread over several tokens comes out as replacement characters if a response ends within it, as with NVIDIA's ensemble.
A tokenizer like SentencePiece drops the space before the first word of a text, and would drop it before each word of a
stream. So every response is decoded behind a letter, and an answer begins with its space, streamed or not.
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
        self._tokenizer = Tokenizer.from_file(str(folder.resolve() / "tokenizer.json"))
        # Where they are no special tokens, they are no text either.
        self._end_ids = frozenset(end_ids(parameters, folder.resolve(), self._tokenizer))
        self._skip_special_tokens = parameters["skip_special_tokens"]["string_value"].lower() == "true"
        self._before = self._tokenizer.encode("a", add_special_tokens=False).ids
        self._begin = self._tokenizer.decode(self._before)

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
        text = self._tokenizer.decode([*self._before, *shown], skip_special_tokens=skip)
        return text.removeprefix(self._begin).encode()


def end_ids(parameters, folder, tokenizer):
    """What ends an answer: the parameter, else generation_config.json's eos_token_id, else tokenizer_config.json's
    eos_token. Pre- and postprocessing have this function alike, and the sidecar has the same rule."""
    found = [int(each) for each in parameters.get("end_ids", {}).get("string_value", "").split()]
    if not found:
        stated = read(folder / "generation_config.json").get("eos_token_id")
        found = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not found:
        eos = read(folder / "tokenizer_config.json").get("eos_token")
        name = eos.get("content") if isinstance(eos, dict) else eos
        found = [] if name is None else [tokenizer.token_to_id(name)]
    if not found or not all(type(each) is int and tokenizer.id_to_token(each) is not None for each in found):
        message = (
            f"neither the files in {folder} nor the parameter end_ids name ids of the vocabulary that end an answer"
        )
        raise pb_utils.TritonModelException(message)
    return list(dict.fromkeys(found))


def read(file):
    """The object in a JSON file; {} if there is no such file."""
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise pb_utils.TritonModelException(f"{file} is no JSON: {error}") from None
