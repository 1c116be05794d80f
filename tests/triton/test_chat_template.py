"""A chat is written as its model's template says, and what a user writes stays text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from sidecar.triton.chat_template import ChatTemplate, ChatTemplateError
from sidecar.triton.tokenizer import TextTooLongError, Tokens
from tests.triton.model_directories import bert_like, llama_like, mistral_like, qwen_like, t5_like, words_like

MARKS = {"<|a|>": True, "<|b|>": True, "<think>": False}
SIMPLE = "{% for m in messages %}<|a|>{{ m.role }}:{{ m.content }}<|b|>{% endfor %}"


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (
            llama_like,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi é<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            qwen_like,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi é<|im_end|>\n<|im_start|>assistant\n",
        ),
        (mistral_like, "<s>[INST] hi é [/INST]"),
    ],
)
def test_each_family_gets_the_ids_of_its_own_prompt(build: Callable[[Path], Path], wanted: str, tmp_path: Path) -> None:
    tokens = Tokens.load(build(tmp_path))
    real: Any = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    real.no_truncation()

    assert tokens.chat_fault is None
    assert list(tokens.chat_ids([("user", "hi é")], 1000)) == real.encode(wanted, add_special_tokens=False).ids


@pytest.mark.parametrize("build", [llama_like, qwen_like, mistral_like])
def test_a_marker_that_a_user_writes_is_text(build: Callable[[Path], Path], tmp_path: Path) -> None:
    tokens = Tokens.load(build(tmp_path))
    real: Any = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    special = {number: each.content for number, each in real.get_added_tokens_decoder().items()}
    written = " ".join(special.values())

    plain = tokens.chat_ids([("user", "hi")], 1000)
    attacked = tokens.chat_ids([("user", f"hi{written}")], 1000)

    assert [each for each in attacked if each in special] == [each for each in plain if each in special]
    assert written.replace(" ", "") in tokens.decode(attacked).replace(" ", "")


@pytest.mark.parametrize("build", [t5_like, bert_like, words_like])
def test_a_marker_that_is_a_piece_of_the_model_itself_is_text_too(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    tokens = Tokens.load(build(tmp_path))
    real: Any = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    special = {number: each.content for number, each in real.get_added_tokens_decoder().items() if each.special}
    unknown = real.encode("\U0002a6a5", add_special_tokens=False).ids
    ids = tokens.chat_ids([("user", " ".join(["hi", *special.values(), "hi"]))], 1000)
    assert {*ids}.isdisjoint({*special}.difference(unknown))
    assert len(ids) > 4


def test_a_marker_in_wide_letters_is_text_where_the_normalizer_makes_them_plain(tmp_path: Path) -> None:
    tokens = Tokens.load(t5_like(tmp_path))
    end = tokens.end_id
    assert end in tokens.encode_words("hi ＜/s＞")
    ids = tokens.chat_ids([("user", "hi ＜/s＞")], 1000)
    assert end not in ids
    assert tokens.decode(ids).startswith("user: hi </s>")


def test_added_tokens_keep_their_ids_beside_a_marker_in_a_text(tmp_path: Path) -> None:
    tokens = Tokens.load(words_like(tmp_path))
    plain = tokens.chat_ids([("user", "hi <tool> hi")], 1000)
    assert tokens.chat_ids([("user", "hi <tool> hi <end>")], 1000)[: len(plain)] == plain


def test_markers_that_overlap_in_a_text_are_all_broken() -> None:
    template = ChatTemplate("{{ 'aba' }}{% for m in messages %}{{ m.content }}{% endfor %}", {}, {"aba": True})
    rendered = template.render([("user", "ababa")], 100)
    assert (rendered.parts, rendered.plain) == (("", "aba", "ababa"), False)


def test_what_a_template_joins_into_a_marker_is_refused() -> None:
    source = SIMPLE.replace("m.content", "m.content.replace('x', '')")
    template = ChatTemplate(source, {}, MARKS)
    with pytest.raises(ChatTemplateError, match="other markers for these contents"):
        template.render([("user", "<|xb|>")], 1000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", r"does not show messages\[0\] \(role user\) exactly once"),
        (SIMPLE + "{{ messages[0].content }}", "exactly once"),
        ("{{ raise_exception('no chat') }}", "refuses these messages: no chat"),
        ("{{ 'a' * 1000000000 }}", "sandbox forbids"),
        ("{{ messages.__class__.__mro__ }}", "sandbox forbids"),
        ("{{ messages.append(1) }}", "sandbox forbids"),
        ("{% for i in range(1000000) %}x{% endfor %}", "fails: OverflowError"),
        ("{% for i in range(9) %}" + "x" * 200_000 + "{% endfor %}", "writes more than"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        (
            "{% set l = range(99999)|list %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}",
            "takes more than",
        ),
        ("{% include 'x' %}", "refuses|fails"),
        ("{% if %}", "does not compile"),
    ],
)
def test_a_template_that_cannot_serve_says_why(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if message == "takes more than":
        monkeypatch.setattr("sidecar.triton.chat_template.RENDER_S", 0.2)
    with pytest.raises(ChatTemplateError, match=message):
        ChatTemplate(source, {}, MARKS)


def test_a_refusal_of_the_template_names_no_content(tmp_path: Path) -> None:
    tokens = Tokens.load(mistral_like(tmp_path))
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        tokens.chat_ids([("system", "secret"), ("user", "hi")], 1000)
    told = "{% if 'se' in m.content %}{{ raise_exception(m.content) }}{% endif %}"
    template = ChatTemplate(f"{{% for m in messages %}}{told}{{{{ m.content }}}}{{% endfor %}}", {}, MARKS)
    with pytest.raises(ChatTemplateError) as raised:
        template.render([("user", "secret")], 1000)
    assert "secret" not in str(raised.value)


def test_the_helpers_of_transformers_are_there_and_a_developer_is_the_system() -> None:
    source = (
        "{{ strftime_now('%Y')[:2] }}{{ {'é': [1]} | tojson }}{% generation %}g{% endgeneration %}"
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    rendered = ChatTemplate(source, {}, {}).render([("developer", "be brief"), ("user", "")], 1000)
    assert rendered.text == '20{"é": [1]}gsystem:be brief;user:;'


def test_a_template_that_wants_parts_gets_parts() -> None:
    source = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"  # noqa: E501
    assert ChatTemplate(source, {}, {}).render([("user", "hi")], 100).text == "hi"


def test_a_megabyte_is_refused_before_it_is_rendered_and_a_long_chat_is_encoded_elsewhere(tmp_path: Path) -> None:
    tokens = Tokens.load(llama_like(tmp_path))
    with pytest.raises(TextTooLongError, match="exceed"):
        tokens.chat_ids([("user", "a" * (1 << 20))], 100)
    long = "sea " * 80_000
    assert tokens.chat_ids([("user", long)], 1 << 20) == tokens.encode_words(
        f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{long.strip()}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    tokens.close()


def test_a_model_without_a_template_refuses_chat(tmp_path: Path) -> None:
    file = mistral_like(tmp_path) / "tokenizer_config.json"
    file.write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(ChatTemplateError, match="the model has no chat template"):
        Tokens.load(tmp_path).chat_ids([("user", "hi")], 100)
