"""How the local server is laid out, before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dev.triton import TritonError, TritonSettings, lay_out


def test_without_a_server_environment_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(TritonError, match="run scripts/setup"):
        lay_out(tmp_path, TritonSettings(server_environment=tmp_path))


def test_the_layout_links_the_backend_and_copies_all_models_with_our_parameters(tmp_path: Path) -> None:
    server = tmp_path / "venv/lib/python3.11/site-packages/pytriton/tritonserver"
    for name in ("backends/python/libtriton_python.so", "python_backend_stubs/3.11/triton_python_backend_stub"):
        (server / name).parent.mkdir(parents=True, exist_ok=True)
        (server / name).touch()
    repository = tmp_path / "repository"
    shutil.copytree(TritonSettings().repository, repository)
    other = repository / "text/preprocessing_other"
    shutil.copytree(repository / "text/preprocessing", other)
    config = (other / "config.pbtxt").read_text().replace("../../tokenizer", "/models/other")
    (other / "config.pbtxt").write_text(config)
    settings = TritonSettings(
        slots=3, parameters={"preset": "tiny"}, server_environment=tmp_path / "venv", repository=repository
    )
    lay_out(tmp_path / "run", settings)
    backend = {each.name for each in (tmp_path / "run/backends/python").iterdir() if each.is_symlink()}
    assert backend == {"libtriton_python.so", "triton_python_backend_stub"}
    models = tmp_path / "run/models"
    names = {"ensemble", "postprocessing", "preprocessing", "preprocessing_other", "tensorrt_llm"}
    assert {each.name for each in models.iterdir()} == names
    assert all((each / "1").is_dir() for each in models.iterdir())
    config = (models / "tensorrt_llm/config.pbtxt").read_text()
    assert "max_batch_size: 3 " in config
    assert 'key: "preset" value: { string_value: "tiny" }' in config
    places = {name: (models / name / "config.pbtxt").read_text() for name in ("preprocessing", "preprocessing_other")}
    assert f'"{settings.tokenizer_dir}"' in places["preprocessing"]
    assert '"/models/other"' in places["preprocessing_other"]  # an absolute one stays
