"""From the parameters of config.pbtxt to an engine."""

from __future__ import annotations

import re
from pathlib import Path

from engine.numpy_engine import NumpyEngine
from engine.parameters import EngineParameters
from engine.serving import build_engine, numpy_settings
from tests.engine.builders import FOLDER

MODEL = FOLDER.parent / "engine_python/tensorrt_llm"


def committed(**changed: str) -> EngineParameters:
    """The parameters of the committed config, some of them changed as a launcher would."""
    pairs = re.findall(r'key: "(\w+)" value: \{ string_value: "([^"]*)"', (MODEL / "config.pbtxt").read_text())
    return EngineParameters({**dict(pairs), "max_batch_size": "8", **changed})


def test_the_committed_config_builds_the_cpu_engine_from_a_clone() -> None:
    engine = build_engine(committed(preset="tiny"), MODEL)
    assert isinstance(engine, NumpyEngine)
    assert engine.settings.tokenizer_dir == FOLDER
    assert engine.settings.batcher.max_batch_size == 8
    assert engine.settings.profile is None


def test_a_launcher_can_set_pace_place_and_policy() -> None:
    parameters = committed(profile="8b-a100", tokenizer_dir="/elsewhere", batch_scheduler_policy="max_utilization")
    settings = numpy_settings(parameters, MODEL)
    assert settings.profile is not None
    assert (settings.profile.name, settings.tokenizer_dir) == ("8b-a100", Path("/elsewhere"))
    assert settings.batcher.policy == "max_utilization"
