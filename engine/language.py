"""What the CPU engine knows of its tokenizer: the ids, the words it may say, and which kind of word follows which.

It reads the tokenizer's own JSON and words.txt beside it, so that the engine needs no tokenizer library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SPACE = "Ġ"  # how byte-level BPE writes a leading space
END, END_OF_PROMPT, OFFLINE = "</s>", "<|end_of_prompt|>", "<|offline|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Ids and grammar. `readable` are the ids that can be generated; the markers are never among them."""

    vocab_size: int
    end_id: int
    end_of_prompt_id: int
    offline_id: int
    readable: tuple[int, ...]
    classes: tuple[tuple[int, ...], ...]  # per word class its ids
    followers: tuple[tuple[int, ...], ...]  # per word class the classes that may follow; repeated = likelier

    @classmethod
    def free(cls, vocab_size: int) -> Language:
        """No grammar and no markers: every id may be said, and the model itself says when it ends."""
        return cls(
            vocab_size=vocab_size,
            end_id=-1,
            end_of_prompt_id=-1,
            offline_id=-1,
            readable=tuple(range(vocab_size)),
            classes=(),
            followers=(),
        )

    @classmethod
    def load(cls, folder: Path) -> Language:
        """The language of `folder`/tokenizer.json and words.txt. Raises ValueError if a word or marker has no id."""
        vocab: dict[str, int] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        names: list[str] = []
        follow: list[list[str]] = []
        ids: list[tuple[int, ...]] = []
        for line in (folder / "words.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                continue
            if ">" in line:
                name, _, followers = line.partition(" >")
                names.append(name)
                follow.append(followers.split())
            elif follow[-1]:
                ids.append(tuple(_id(vocab, SPACE + word if word[0].isalpha() else word) for word in line.split()))
        spoken = len(ids)  # classes that nothing follows are only read; they come last in words.txt
        return cls(
            vocab_size=len(vocab),
            end_id=_id(vocab, END),
            end_of_prompt_id=_id(vocab, END_OF_PROMPT),
            offline_id=_id(vocab, OFFLINE),
            readable=tuple(sorted({each for words in ids for each in words})),
            classes=tuple(ids),
            followers=tuple(tuple(names.index(name) for name in names_) for names_ in follow[:spoken]),
        )


def _id(vocab: dict[str, int], token: str) -> int:
    if token not in vocab:
        raise ValueError(f"the tokenizer has no token {token!r}; make it anew with model_repository/tokenizer/make.py")
    return vocab[token]
