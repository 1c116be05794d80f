"""A config.pbtxt is changed where it is asked for, and its comments stay."""

from __future__ import annotations

import pytest

from sidecar.cli.model_config import unfilled, with_batch_size, with_instances, with_parameters
from sidecar.core.errors import SettingsError

CONFIG = """name: "tensorrt_llm"
max_batch_size: 256  # sequences
parameters: { key: "profile" value: { string_value: "" } }  # as fast as it goes
parameters: {
  key: "seed"
  value: { string_value: "8" }
}
"""


def test_parameters_are_set_where_the_model_names_them_and_nowhere_else() -> None:
    text = with_parameters(CONFIG, {"profile": "8b-a100", "seed": "16"})
    assert 'key: "profile" value: { string_value: "8b-a100" }' in text
    assert 'key: "seed"\n  value: { string_value: "16" }' in text
    assert text.replace("8b-a100", "").replace('"16"', '"8"') == CONFIG


def test_the_slots_are_the_engines_max_batch_size() -> None:
    assert "max_batch_size: 16  # sequences" in with_batch_size(CONFIG, 16)
    with pytest.raises(SettingsError, match="max_batch_size"):
        with_batch_size("name: 'x'", 16)


def test_a_parameter_that_the_model_does_not_have_is_an_error() -> None:
    with pytest.raises(SettingsError, match="no parameter 'profil'"):
        with_parameters(CONFIG, {"profil": "8b-a100"})


def test_a_parameter_without_a_value_goes_with_its_line() -> None:
    text = with_parameters(CONFIG, {"profile": None})
    assert text == "\n".join(line for line in CONFIG.split("\n") if "profile" not in line)


def test_a_value_may_hold_what_the_format_would_read_otherwise() -> None:
    text = with_parameters(CONFIG, {"profile": 'a"b\\1'})
    assert r'{ string_value: "a\"b\\1" }' in text


def test_the_preferred_batch_is_the_largest_and_instances_are_counted() -> None:
    config = "max_batch_size: 64\ndynamic_batching { preferred_batch_size: [ 64 ] }\ninstance_group [ { count: 1 } ]\n"
    assert "preferred_batch_size: [ 8 ]" in with_batch_size(config, 8)
    assert "[ { count: 4 } ]" in with_instances(config, 4)


def test_what_is_left_of_a_template_is_named_whole_or_broken() -> None:
    assert unfilled('a: "${engine_dir}" b: "${tok') == ["${engine_dir}", "${tok"]
