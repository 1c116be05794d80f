"""Write tokenizer.json, the one tokenizer file of preprocessing, postprocessing and the sidecar, from words.txt.

Byte-level BPE without training: every byte is a token, so any text encodes and comes back as it was; and each word of
words.txt is one token, built letter by letter, so that a prompt of known words is short and the output is readable.

    .venv/bin/python model_repository/tokenizer/make.py
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
SPECIAL = ("<pad>", "<|end_of_prompt|>", "</s>", "<|offline|>")  # their ids are their places
SPACE = "Ġ"  # how byte-level BPE writes a leading space


def spellings() -> list[str]:
    """The words of words.txt as the vocabulary spells them, those with a leading space first."""
    found: list[str] = []
    bare: list[str] = []
    kind = ""
    for line in (HERE / "words.txt").read_text(encoding="utf-8").splitlines():
        if ">" in line:
            kind = line.split(" >")[0]
        elif not line.startswith("#"):
            (bare if kind == "bare" else found).extend(
                word if kind == "bare" else SPACE + word for word in line.split()
            )
    return [word for word in found if word[1].isalpha()] + bare


def build() -> Tokenizer:
    """The tokenizer: a prompt ends in the end-of-prompt marker, by its own template."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges: list[tuple[str, str]] = []
    for word in spellings():
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    # Words with their leading space, and everything else byte by byte: merges never cross a word.
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]|\s"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIAL[1]}", special_tokens=[(SPECIAL[1], 1)]
    )
    return tokenizer


if __name__ == "__main__":
    build().save(str(HERE / "tokenizer.json"))
