"""What can be had runs; what cannot is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dev.observe import programs
from dev.observe.pipeline import Pipeline, observed


async def test_where_nothing_can_be_had_the_block_runs_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "CACHE", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    async with observed(tmp_path / "observe", build=False) as pipeline:
        assert (pipeline.prometheus, pipeline.otlp_grpc, pipeline.jaeger) == ("", "", "")
        assert [each.split()[0] for each in pipeline.missing] == ["prometheus", "jaeger", "collector"]
        assert pipeline.addresses() == ""


def test_what_is_scraped_is_added_to_the_pipelines_own(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(yaml.safe_dump({"collector": ["127.0.0.1:1"]}))
    addresses = {"prometheus": "http://p", "otlp_grpc": "http://g", "otlp_http": "", "jaeger": ""}
    pipeline = Pipeline(directory=tmp_path, missing=(), **addresses)
    pipeline.scrape(sidecar=["127.0.0.1:2"])
    jobs = {each["labels"]["job"] for each in yaml.safe_load((tmp_path / "targets.yml").read_text())}
    assert jobs == {"collector", "sidecar"}
    assert "http://p" in pipeline.addresses()
