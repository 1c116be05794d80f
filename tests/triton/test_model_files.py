"""The files beside a tokenizer: what they say, and what is no such file, by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.errors import SettingsError
from sidecar.triton.model_files import CONFIG, GENERATION, TEMPLATE, ModelFiles, read_model_files, tokenizer_file

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=3),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(["name", "template", "x"]), each),
    max_leaves=6,
)


def written(directory: Path, name: str, content: Any) -> Path:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


def test_a_path_names_its_file_or_the_one_in_its_directory(tmp_path: Path) -> None:
    assert tokenizer_file(tmp_path) == tmp_path / "tokenizer.json"
    assert tokenizer_file(tmp_path / "other.json") == tmp_path / "other.json"


def test_a_directory_without_any_file_states_nothing(tmp_path: Path) -> None:
    assert read_model_files(tmp_path) == ModelFiles(end_ids=(), special={}, template=None)


@pytest.mark.parametrize(
    ("stated", "ids"), [(7, (7,)), (0, (0,)), ([5, 7, 5], (5, 7)), ([], ()), (None, ()), ([0], (0,))]
)
def test_the_end_ids_are_one_or_several_each_once_in_their_order(
    tmp_path: Path, stated: Any, ids: tuple[int, ...]
) -> None:
    assert read_model_files(written(tmp_path, GENERATION, {"eos_token_id": stated})).end_ids == ids


@pytest.mark.parametrize("stated", [True, [True], -1, [-1], "7", ["7"], 1.0, [1.5], {"a": 1}, [[7]]])
def test_what_is_no_end_id_is_refused_with_its_file(tmp_path: Path, stated: Any) -> None:
    with pytest.raises(SettingsError, match=r"generation_config\.json: eos_token_id must be an id, or a list of ids"):
        read_model_files(written(tmp_path, GENERATION, {"eos_token_id": stated}))


def test_special_tokens_are_texts_or_objects_with_a_content(tmp_path: Path) -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": None,
        "unk_token": {"content": 5},
        "sep_token": "",
        "add_bos_token": True,
        "model_max_length": 2048,
    }
    assert read_model_files(written(tmp_path, CONFIG, config)).special == {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("stated", "template"),
    [
        (None, None),
        ("", None),
        ("{{ x }}", "{{ x }}"),
        ([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}], "a"),
        ([{"name": "rag", "template": "only"}], "only"),
        ([{"name": "default", "template": "a"}, "no object"], "a"),
    ],
)
def test_of_several_templates_the_default_is_meant_or_the_only_one(
    tmp_path: Path, stated: Any, template: str | None
) -> None:
    assert read_model_files(written(tmp_path, CONFIG, {"chat_template": stated})).template == template


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ([{"name": "a", "template": "1"}, {"name": "b", "template": "2"}], "names no `default` among several"),
        ([{"name": "default", "template": 5}], "names no `default` among several"),
        ([{"name": ["default"], "template": "a"}], "names no `default` among several"),
        ({"default": "a"}, "must be text, or a list of named texts"),
        (5, "must be text, or a list of named texts"),
        (True, "must be text, or a list of named texts"),
    ],
)
def test_a_template_that_cannot_be_chosen_is_refused_with_its_file(tmp_path: Path, stated: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=f"tokenizer_config.json: chat_template {told}"):
        read_model_files(written(tmp_path, CONFIG, {"chat_template": stated}))


def test_a_template_in_a_file_of_its_own_wins(tmp_path: Path) -> None:
    written(tmp_path, CONFIG, {"chat_template": "of the config"})
    assert read_model_files(written(tmp_path, TEMPLATE, "of the file é")).template == "of the file é"
    (tmp_path / TEMPLATE).write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"cannot read .*chat_template\.jinja"):
        read_model_files(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, GENERATION])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "must hold a JSON object"),
        ("null", "must hold a JSON object"),
        ('"text"', "must hold a JSON object"),
    ],
    ids=["empty", "cut", "nested", "list", "null", "text"],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_by_it(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=f"{name} {told}"):
        read_model_files(written(tmp_path, name, content))


@pytest.mark.parametrize("name", [CONFIG, GENERATION])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"a": "\xff"}')
    with pytest.raises(SettingsError, match=f"{name} is no JSON"):
        read_model_files(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(SettingsError, match=f"cannot read .*{name}: Is a directory"):
        read_model_files(tmp_path)


@settings(max_examples=60)
@given(template=JSON, eos=JSON, token=JSON)
def test_whatever_the_files_hold_they_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, template: Any, eos: Any, token: Any
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    directory.mkdir(exist_ok=True)
    written(directory, CONFIG, {"chat_template": template, "eos_token": token})
    written(directory, GENERATION, {"eos_token_id": eos})
    try:
        found = read_model_files(directory)
    except SettingsError:
        return
    assert all(type(each) is int for each in found.end_ids)
    assert all(isinstance(each, str) and each for each in found.special.values())
    assert found.template is None or found.template
