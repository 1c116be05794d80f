"""`sidecar submit` and `sidecar offsets` from the command line, without a broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sidecar import cli
from sidecar.edge.offsets import Committed
from sidecar.edge.submit import SubmitError, prefix_key, read_lines
from sidecar.kafka_commands import register_offsets, register_submit


def call(*arguments: str) -> int:
    return cli.main(arguments, {}, [register_submit, register_offsets])


def test_decode_shows_the_holes_that_kafkas_tools_hide(capsys: pytest.CaptureFixture[str]) -> None:
    state = Committed(watermark=100, high=120, holes=(100, 104, 119), restarts=2, suspect=104)
    assert call("offsets", "decode", "100", state.encode()) == 0
    assert json.loads(capsys.readouterr().out) == {
        "watermark": 100,
        "high": 120,
        "holes": [100, 104, 119],
        "restarts": 2,
        "suspect": 104,
    }


def test_metadata_of_another_program_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "decode", "100", "bitset:00") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reset_to_nowhere_is_an_error_of_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "reset", "--to", "yesterday") == 2
    assert "--to must be earliest, latest or an offset, not 'yesterday'" in capsys.readouterr().err


def test_a_broker_that_does_not_answer_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"id": "1", "prompt": "p"}\n')
    assert call("submit", str(file), "--bootstrap-servers", "127.0.0.1:1") == 1
    assert "sidecar: Kafka: " in capsys.readouterr().err


def test_nothing_is_sent_of_a_file_with_a_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"id": "1", "prompt": "p"}\n\n[1]\n')
    with pytest.raises(SubmitError, match=r"items\.jsonl:3: not a JSON object"):
        read_lines(file)
    with pytest.raises(SubmitError, match=r"cannot read .*nowhere"):
        read_lines(tmp_path / "nowhere")


def test_prompts_that_begin_alike_have_one_key() -> None:
    def key(prompt: str) -> bytes:
        return prefix_key(json.dumps({"id": "1", "prompt": prompt}).encode())

    shared = "You are a careful reader. " * 20
    assert key(shared + "one") == key(shared + "two") != key("one")
