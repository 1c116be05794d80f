"""Model directories in the manner of three families, built here: small vocabularies, templates of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LLAMA_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
QWEN_TEMPLATE = """\
{%- if messages[0].role != 'system' %}
{{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MISTRAL_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user and assistant') }}
{%- endif %}
{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}
"""

PLAIN_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}"


def llama_like(directory: Path) -> Path:
    """Byte-level BPE with a BOS and three end ids, none of them `</s>`."""
    names = "<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> <|eom_id|> <|eot_id|>".split()
    tokenizer = _byte_level(names)
    begin = tokenizer.token_to_id(names[0])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], begin)]
    )
    ends = [tokenizer.token_to_id(names[at]) for at in (1, 4, 5)]
    config = {"bos_token": names[0], "eos_token": {"content": names[5]}, "chat_template": LLAMA_TEMPLATE}
    return _written(directory, tokenizer, config, {"eos_token_id": ends})


def qwen_like(directory: Path) -> Path:
    """Byte-level BPE without a BOS; the template is in a file of its own, and the end id in tokenizer_config.json."""
    tokenizer = _byte_level("<|endoftext|> <|im_start|> <|im_end|>".split())
    directory = _written(directory, tokenizer, {"bos_token": None, "eos_token": "<|im_end|>"}, None)
    (directory / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    return directory


def mistral_like(directory: Path) -> Path:
    """SentencePiece as `tokenizers` has it: a metaspace, bytes for what is unknown, named templates."""
    vocabulary = {name: at for at, name in enumerate(["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    pieces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in vocabulary if vocabulary[name] < 5])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    templates = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": MISTRAL_TEMPLATE}]
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": templates}
    return _written(directory, tokenizer, config, {"eos_token_id": 2})


def t5_like(directory: Path) -> Path:
    """A Unigram model that holds its control tokens as pieces, and makes plain letters of wide ones."""
    pieces = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")] + [("▁", -2.0)]
    pieces += [(chr(letter), -3.0) for letter in range(33, 127)]
    tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name, _ in pieces[:3]])
    return _written(directory, tokenizer, {"eos_token": "</s>", "chat_template": PLAIN_TEMPLATE}, None)


def bert_like(directory: Path) -> Path:
    """WordPiece over lower case, with markers around each prompt, and the template in a list of one."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = [chr(letter) for letter in range(33, 127)]
    vocabulary = {name: at for at, name in enumerate([*names, *letters, *(f"##{letter}" for letter in letters)])}
    tokenizer: Any = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    templates = [{"name": "only", "template": PLAIN_TEMPLATE}]
    return _written(directory, tokenizer, {"eos_token": "[SEP]", "chat_template": templates}, None)


def words_like(directory: Path) -> Path:
    """Whole words, some of which only the tokenizer adds, and which a text may hold."""
    tokenizer: Any = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "hi": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>", "<begin>"])
    tokenizer.add_tokens(["<tool>"])
    return _written(directory, tokenizer, {"chat_template": PLAIN_TEMPLATE}, {"eos_token_id": [1]})


def _byte_level(names: list[str]) -> Any:
    vocabulary = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.enable_truncation(4)  # as a training set-up leaves it behind
    return tokenizer


def _written(directory: Path, tokenizer: Any, config: dict[str, Any], generation: dict[str, Any] | None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory
