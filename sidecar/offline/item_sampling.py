"""How an item's tokens are drawn: the OpenAI format with the defaults of that API, the short form with the engine's.

The engine (TensorRT-LLM behind Triton) is greedy unless top_k or top_p says otherwise, whatever the temperature, and
its seed is 0 for every request. So for the OpenAI format temperature, top_p and seed are always stated to it.
"""

from __future__ import annotations

import hashlib

from sidecar.offline.item_format import ItemParameters
from sidecar.token_call import Sampling

# Below these the most likely token is always drawn, but for ties; and a float32 of the engine may make 0 of them, which
# means "no limit" for top_p. (vLLM takes temperatures below 1e-5 for 0, too; a vocabulary has fewer than 1e6 tokens.)
TEMPERATURE_MIN = 1e-5
TOP_P_MIN = 1e-6
ENGINE_SEED = 0  # TensorRT-LLM's, for a request that states none
SEED_BYTES = 6  # of a seed of ours: below 2**53, so that every JSON reader of the result keeps it exactly


def sampling_of(asked: ItemParameters, source: str, *, openai: bool) -> tuple[Sampling, bool]:
    """(how to draw, may it be resumed). `source` is the item's topic/partition/offset: a run anew draws the same.

    A resume begins the engine's random numbers anew. Whoever states a seed wants the same text twice, and penalties and
    min_tokens look at the output so far: these run whole. Sampled items that state no seed may be resumed.
    """
    temperature, top_k, top_p, seed = asked.temperature, asked.top_k, asked.top_p, asked.seed
    if _is_greedy(asked, openai):
        temperature, top_k, top_p, random = None, 1, None, False
    elif openai:
        temperature, top_p, random = _or_one(temperature), _or_one(top_p), True
    else:
        random = bool(top_k or top_p)
    if random and seed is None:
        seed = _seed_of(source) if openai else ENGINE_SEED
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        repetition_penalty=asked.repetition_penalty,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        min_tokens=asked.min_tokens,
    )
    penalised = asked.presence_penalty or asked.frequency_penalty or asked.repetition_penalty not in (None, 1)
    return sampling, not (penalised or asked.min_tokens or (random and asked.seed is not None))


def _is_greedy(asked: ItemParameters, openai: bool) -> bool:
    """True if the item asks for the most likely token, each time. To the engine a top_p of 0 is "no limit"."""
    if asked.top_k == 1 or (asked.temperature is not None and asked.temperature < TEMPERATURE_MIN):
        return True
    return asked.top_p is not None and asked.top_p < TOP_P_MIN and (openai or asked.top_p > 0)


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value


def _seed_of(source: str) -> int:
    return int.from_bytes(hashlib.blake2b(source.encode(), digest_size=SEED_BYTES).digest(), "little")
