"""Text to token ids: the prompt with its end-of-prompt marker, stop words and bad words as the engine wants them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer


class TritonPythonModel:
    """One tokenizer. Tensor names and meanings are those of NVIDIA's preprocessing model."""

    def initialize(self, args):
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(f"the model needs numpy < 2 in the server, not {np.__version__}")
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / parameters["tokenizer_dir"]["string_value"]
        self._tokenizer = Tokenizer.from_file(str(folder.resolve() / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._end_ids = end_ids(parameters, folder.resolve(), self._tokenizer)
        self._add_special_tokens = parameters["add_special_tokens"]["string_value"].lower() == "true"

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        try:
            outputs = self._outputs(request)
        except ValueError as error:
            message = f"{error} [INVALID_ARGUMENT]"  # on a stream Triton sends the text alone
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _outputs(self, request):
        texts = strings(request, "QUERY")
        if len(texts) != 1:
            raise ValueError(f"tensor 'QUERY' (text_input) must hold one prompt, not {len(texts)}")
        ids = self._tokenizer.encode(texts[0], add_special_tokens=self._add_special_tokens).ids
        end_id = pb_utils.get_input_tensor_by_name(request, "END_ID")
        pad_id = pb_utils.get_input_tensor_by_name(request, "PAD_ID")
        end = np.array([self._end_ids[:1]], np.int32) if end_id is None else end_id.as_numpy()
        further = self._end_ids[1:] if end_id is None else []  # the engine takes one end id, and stop words
        return {
            "INPUT_ID": np.array([ids], np.int32),
            "REQUEST_INPUT_LEN": np.array([[len(ids)]], np.int32),
            "REQUEST_OUTPUT_LEN": pb_utils.get_input_tensor_by_name(request, "REQUEST_OUTPUT_LEN").as_numpy(),
            "STOP_WORDS_IDS": self._words(strings(request, "STOP_WORDS_DICT"), [[each] for each in further]),
            "BAD_WORDS_IDS": self._words(strings(request, "BAD_WORDS_DICT")),
            "OUT_END_ID": end,
            "OUT_PAD_ID": end if pad_id is None else pad_id.as_numpy(),
        }

    def _words(self, texts, more=()):
        """Row 0: the ids of all words; row 1: where each ends, padded with -1. Shape [1, 2, n], n >= 1."""
        words = [*(self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts), *more]
        flat = [id_ for word in words for id_ in word]
        ends = np.cumsum([len(word) for word in words if word]).astype(np.int32).tolist()
        rows = np.full((1, 2, max(1, len(flat))), -1, np.int32)
        rows[0, 0, : len(flat)] = flat
        rows[0, 1, : len(ends)] = ends
        return rows


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


def strings(request, name):
    """The texts of a STRING tensor. Raises ValueError if one is not UTF-8."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return []
    try:
        return [value.decode("utf-8") for value in tensor.as_numpy().ravel().tolist() if value]
    except UnicodeDecodeError as error:
        raise ValueError(f"tensor '{name}' is not UTF-8: {error}") from error
