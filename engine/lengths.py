"""How many tokens the CPU engine says before its end id.

Nobody outside can know it: the length is drawn from the model's seed and the prompt, up to and including its last
end-of-prompt marker, and counted from that marker. A resumed call (prompt and generated ids sent again) therefore ends
at the same token as the call it resumes.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from math import exp, log
from statistics import NormalDist

from engine.language import Language

# Lognormal (median, sigma). Offline: p50 120 and p99 890 output tokens, as reported for batch enrichment.
OFFLINE = (120.0, 0.861)
ONLINE = (16.0, log(3) / 2.326)  # p99 = three times the median: short answers to people who wait


def output_length(ids: tuple[int, ...], language: Language, seed: int) -> int:
    """Output tokens of the sequence that begins with `ids`, end id included, counted from the end of `ids`; ≥ 1.

    What was generated before (ids behind the marker) counts as said. Without a marker the whole of `ids` is the prompt.
    """
    begin = _after_marker(ids, language.end_of_prompt_id)
    digest = blake2b(array("q", (seed, *ids[:begin])).tobytes(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2**64
    median, sigma = OFFLINE if ids[0] == language.offline_id else ONLINE
    total = round(median * exp(sigma * NormalDist().inv_cdf(uniform)))
    return max(1, total - (len(ids) - begin))


def _after_marker(ids: tuple[int, ...], marker: int) -> int:
    for place in range(len(ids) - 1, -1, -1):
        if ids[place] == marker:
            return place + 1
    return len(ids)
