"""The lab's workloads as real requests: prompts of the same lengths, sent at the same times, to the paced CPU engine.

The engine draws the output lengths itself, from the ids of each prompt (`engine/lengths.py`). Nobody outside may know
them, except a simulator that is to predict the run: it gets the very same draws.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from dev.backlog import OFFLINE_LIKE
from dev.load import PROMPT_WORDS, Arrival
from engine.language import Language
from engine.lengths import output_length
from sidecar.sim.workloads import SimulatedRequest, by_name, offline_job
from sidecar.triton.tokenizer import Tokens

TIME_SCALE = {"origin": 8.0}  # the origin sends a request every three seconds: its time runs so much faster here
ENGINE_SEED = 0  # of the engine's lengths: the default of its config.pbtxt


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLoad:
    """The requests of one run, as they are sent and as the simulator takes them."""

    arrivals: list[Arrival]
    jobs: list[SimulatedRequest]


@dataclass(slots=True, eq=False)
class Prompts:
    """Texts of a wanted length, with the ids that the engine will see and the output it will give to them."""

    tokens: Tokens
    language: Language
    word_tokens: dict[str, int]

    @classmethod
    def load(cls, tokenizer_dir: Path) -> Prompts:
        """With the tokenizer that Triton's models load."""
        tokens = Tokens.load(tokenizer_dir / "tokenizer.json")
        word_tokens = {word: len(tokens.encode_words(f" {word}")) for word in PROMPT_WORDS}
        return cls(tokens, Language.load(tokenizer_dir), word_tokens)

    def text(self, draw: random.Random, tokens: int, prefix: str = "") -> tuple[str, int, int]:
        """(text, prompt tokens, output tokens) of random words; the prompt is `tokens` long to within a word or two."""
        words, left = [], tokens - 1 - bool(prefix)  # the end-of-prompt marker
        while left > 0:
            words.append(draw.choice(PROMPT_WORDS))
            left -= self.word_tokens[words[-1]]
        text = prefix + " ".join(words[: max(1, len(words) - (left < 0))])
        ids = self.tokens.encode_prompt(text)
        return text, len(ids), output_length(ids, self.language, ENGINE_SEED)

    def online(self, workload: str, seed: int, seconds: float) -> OnlineLoad:
        """Return what arrives in `seconds` real seconds."""
        scale = TIME_SCALE.get(workload, 1.0)
        draw, found = random.Random(seed), OnlineLoad(arrivals=[], jobs=[])
        for job in by_name(workload).online(seed, scale * seconds / 3600):
            text, prompt, output = self.text(draw, job.request.prompt_tokens)
            due_s, most = job.request.arrived_s / scale, job.request.output_tokens_max
            found.arrivals.append(Arrival(due_s=due_s, prompt=text, output_tokens_max=most))
            request = replace(job.request, arrived_s=due_s, prompt_tokens=prompt)
            found.jobs.append(SimulatedRequest(request=request, output_tokens=min(output, most)))
        return found

    def offline(self, workload: str, count: int) -> Iterator[tuple[bytes, SimulatedRequest]]:
        """(value of a record, the item as the simulator takes it) of the first items of the backlog."""
        draw, chosen = random.Random(0), by_name(workload)
        most = chosen.mix.offline_output.at_most
        for number, (length, _) in enumerate(islice(chosen.offline(seed=0), count)):
            text, prompt, output = self.text(draw, length, OFFLINE_LIKE)
            value = {"id": f"item-{number}", "prompt": text, "max_tokens": most, "temperature": 1.0, "seed": number}
            job = offline_job(number, prompt, min(output, most), arrived_s=0.0, output_max=most, resumable=True)
            yield json.dumps(value).encode(), job
