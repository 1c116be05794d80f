"""`sidecar submit` and `sidecar offsets` from the command line, without a broker."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.cli import items, main, offsets
from sidecar.cli.items import register_offsets, register_submit
from sidecar.cli.offsets import PartitionPlace
from sidecar.offline import submit
from sidecar.offline.offsets import Committed
from sidecar.settings.offline import OfflineSettings
from tests.offline.test_submit import FakeProducer

TOKENIZER = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"


def call(*arguments: str) -> int:
    return main.main(arguments, {}, [register_submit, register_offsets])


def test_decode_shows_the_gaps_that_kafkas_tools_hide(capsys: pytest.CaptureFixture[str]) -> None:
    state = Committed(watermark=100, high=120, gaps=(100, 104, 119), restarts=2, suspect=104)
    assert call("offsets", "decode", "100", state.encode()) == 0
    assert json.loads(capsys.readouterr().out) == {
        "watermark": 100,
        "high": 120,
        "gaps": [100, 104, 119],
        "restarts": 2,
        "suspect": 104,
    }


def test_metadata_of_another_program_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "decode", "100", "bitset:00") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reset_to_nowhere_is_an_error_of_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "reset", "--to", "yesterday") == 2
    assert "--to must be earliest, latest or an offset, not 'yesterday'" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}", "-1", "1.0", ""])
def test_a_reset_to_what_only_looks_like_a_number_is_one_too(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "reset", f"--to={to}") == 2
    assert "--to must be earliest, latest or an offset" in capsys.readouterr().err


def test_a_negative_offset_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("offsets", "decode", "--", "-5", "") == 2
    assert capsys.readouterr().err == "sidecar: an offset must be >= 0, not -5\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--to", "99"), "--to 99: partition 0 holds 5 to 50"),
        (("--to", "4", "--partition", "1"), "--to 4: partition 1 holds 5 to 51"),
        (("--to", "51"), "--to 51: partition 0 holds 5 to 50"),
        (("--to", "earliest", "--partition", "2"), "--partition 2: inference.requests has 0..1"),
        (("--to", "earliest", "--partition", "-1"), "--partition -1: inference.requests has 0..1"),
    ],
)
def test_a_reset_to_where_no_sidecar_could_work_writes_nothing(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def show(_: OfflineSettings) -> list[PartitionPlace]:
        return [PartitionPlace(partition=n, committed=None, begin=5, end=50 + n, problem="none") for n in (0, 1)]

    async def write(*_: Any) -> None:
        raise AssertionError("nothing may be written")

    monkeypatch.setattr(offsets, "show", show)
    monkeypatch.setattr(offsets, "_write", write)
    assert call("offsets", "reset", *arguments) == 2
    assert capsys.readouterr().err == f"sidecar: {said}\n"


def test_a_broker_that_does_not_answer_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text('{"id": "1", "prompt": "p"}\n')
    assert call("submit", str(file), "--bootstrap-servers", "127.0.0.1:1") == 1
    told = capsys.readouterr().err
    assert "sidecar: Kafka: no broker answers: ConnectionRefusedError" in told
    assert "Unable to bootstrap" not in told


GOOD = '{"custom_id": "%d", "url": "/v1/completions", "body": {"prompt": "p", "max_tokens": 5}}'
OPENAI = '{"custom_id": "%d", "url": "/v1/completions", "body": {"model": "gpt-4o-mini", "prompt": "p"}}'
CASES = [
    ('{"custom_id": "x\\ud83d", "url": "/v1/completions", "body": {"prompt": "a"}}', "custom_id holds half"),
    ('{"custom_id": "bad", "url": "/v1/completions", "body": null}', "body must be an object, not null"),
    ('{"custom_id": "bad", "url": "/v1/completions", "body": {"prompt": "a", "seed": -1}}', "seed must be"),
    (
        '{"custom_id": "bad", "url": "/v1/completions", "body": {"prompt": "a", "logprobs": 5}}',
        "logprobs is not served",
    ),
    (
        '{"custom_id": "bad", "url": "/v1/completions", "body": {"prompt": "%s"}}' % ("a" * 3_000_000),
        "more than item_bytes",
    ),
    ("[" * 100_000, "nested too deeply"),
    ("[1]", "the value must be a JSON object, not a list"),
    ("null", "the value must be a JSON object, not null"),
    ('{"custom_id": "1", "url": "/v1/completions", "body": {"prompt": "p"}}', "the id of line 1 again"),
]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What reached Kafka."""
    fake = FakeProducer()
    monkeypatch.setattr(submit, "AIOKafkaProducer", lambda **_: fake)
    return fake.sent  # type: ignore[return-value]


def written(directory: Path, *lines: str) -> str:
    path = directory / "items.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def settings_file(directory: Path) -> str:
    path = directory / "sidecar.yaml"
    document = {
        "tokenizer": str(TOKENIZER),
        "engines": [{"name": "e", "tokens_max": 64}],
        "aliases": {"gpt-4o-mini": [{"model": "tensorrt_llm"}]},
        "offline": {},
    }
    path.write_text(json.dumps(document))
    return str(path)


@pytest.mark.parametrize(("line", "message"), CASES, ids=range(len(CASES)))
def test_nothing_is_sent_of_a_file_with_a_bad_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[bytes], line: str, message: str
) -> None:
    assert call("submit", written(tmp_path, GOOD % 1, "", line, GOOD % 2)) == 2
    told = capsys.readouterr()
    assert "items.jsonl:3: " in told.err
    assert message in told.err
    assert "1 of 3 lines is at fault; nothing was sent" in told.err
    assert (told.out, sent) == ("", [])


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("custom_id,prompt", "1,hello"), ":2: not_json: no JSON object: Extra data at character 2"),
        (("{", '  "id": "a", "prompt": "x"', "}"), ":3: not_json: no JSON object: Expecting value at character 1"),
        (("{'id': 'a'}",), ":1: not_json: no JSON object: Expecting property name enclosed in double quotes at"),
        (('{"id": "a", "prompt": "x"},',), ":1: not_json: no JSON object: Extra data at character 27"),
    ],
)
def test_a_file_of_another_layout_is_told_what_a_line_has_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: tuple[str, ...], told: str
) -> None:
    assert call("submit", written(tmp_path, *lines), "--check") == 2
    told_lines = capsys.readouterr().err
    assert told in told_lines
    assert "each line has to be one whole JSON object: jq -c . FILE" in told_lines


def test_a_file_that_names_a_model_of_the_api_is_refused_and_says_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[Any]
) -> None:
    file = written(tmp_path, *(OPENAI % number for number in range(50)))
    assert (call("submit", file), sent) == (2, [])
    told = capsys.readouterr().err
    assert "50 of 50 lines are at fault; nothing was sent" in told
    assert "give --model NAME (tensorrt_llm) to override what the lines name" in told
    assert call("submit", file, "--model", "tensorrt_llm") == 0
    assert [dict(headers)["x-model"] for _, _, headers in sent] == [b"tensorrt_llm"] * 50


def test_an_alias_of_the_settings_maps_the_name(tmp_path: Path, sent: list[Any]) -> None:
    assert call("submit", written(tmp_path, OPENAI % 1, GOOD % 2), "--config", settings_file(tmp_path)) == 2
    short = OPENAI.replace('"p"', '"p", "max_tokens": 5')
    assert call("submit", written(tmp_path, short % 1, GOOD % 2), "--config", settings_file(tmp_path)) == 0
    assert len(sent) == 2


def test_lengths_are_checked_with_the_settings_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = json.dumps({"id": "1", "prompt": "how far is the sea " * 20, "max_tokens": 5})
    assert call("submit", written(tmp_path, long), "--config", settings_file(tmp_path), "--check") == 2
    assert "items.jsonl:1: too_long: prompt of" in capsys.readouterr().err
    assert call("submit", written(tmp_path, long), "--check") == 0
    assert "lengths are not checked without --config" in capsys.readouterr().err


def test_check_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[bytes]) -> None:
    assert call("submit", written(tmp_path, GOOD % 1, GOOD % 2), "--check") == 0
    assert capsys.readouterr().out == "2 items are valid; nothing was sent\n"
    assert sent == []


def test_the_same_items_are_one_job_whatever_the_file_is_called(tmp_path: Path, sent: list[Any]) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_text("\n".join([GOOD % 1, GOOD % 2]))
    second.write_bytes(gzip.compress(("\r\n".join([GOOD % 1, "", GOOD % 2]) + "\r\n").encode()))
    assert [call("submit", str(each)) for each in (first, second)] == [0, 0]
    jobs = {dict(headers)["x-job"] for _, _, headers in sent}
    assert len(jobs) == 1
    assert jobs.pop().startswith(b"file-")
    call("submit", str(first), "--job", "nightly", "--tenant", "acme")
    assert sent[-1][2] == [("x-job", b"nightly"), ("x-tenant", b"acme")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tenant", "é"), "--tenant must be 1 to 256 printable characters of ASCII"),
        (("--tenant", "a\udcff"), "--tenant must be 1 to 256 printable characters of ASCII"),
        (("--tenant", ""), "--tenant must be 1 to 256 printable characters of ASCII"),
        (("--job", "j" * 257), "--job must be 1 to 256 printable characters of ASCII"),
        (("--model", "a\nb"), "--model must be 1 to 256 printable characters of ASCII"),
        (("--topic", ""), "requests_topic must be 1 to 249"),
        (("--topic", "in ference"), "requests_topic must be 1 to 249"),
        (("--bootstrap-servers", ""), "bootstrap_servers must name a broker"),
        (("--bootstrap-servers", "kafka:x"), "bootstrap_servers must be host:port of a broker"),
        (("--deadline", ""), "--deadline must be a time by RFC 3339"),
        (("--deadline", "tomorrow"), "--deadline must be a time by RFC 3339"),
        (("--deadline", "2020-01-01T00:00:00Z"), "--deadline 2020-01-01T00:00:00Z has passed"),
        (("--from", "4"), "--from must be in 1..3, not 4"),
        (("--from", "0"), "--from must be in 1..3, not 0"),
    ],
)
def test_an_argument_that_the_lane_would_refuse_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sent: list[bytes], arguments: tuple[str, str], message: str
) -> None:
    assert call("submit", written(tmp_path, *(GOOD % number for number in range(3))), *arguments) == 2
    assert message in capsys.readouterr().err
    assert sent == []


def test_a_model_that_no_engine_serves_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--config", settings_file(tmp_path), "--model", "llama")
    assert call("submit", written(tmp_path, GOOD % 1), *arguments) == 2
    assert "--model llama: no engine serves it; known: gpt-4o-mini, tensorrt_llm" in capsys.readouterr().err


def test_an_empty_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("submit", written(tmp_path, "", "  ")) == 2
    assert "holds no item" in capsys.readouterr().err


def test_standard_input_is_a_file(monkeypatch: pytest.MonkeyPatch, sent: list[bytes]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((GOOD % 1).encode())))
    assert (call("submit", "-"), len(sent)) == (0, 1)


def test_an_interruption_says_where_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeProducer()
    fake.interrupts_at = 1
    monkeypatch.setattr(submit, "AIOKafkaProducer", lambda **_: fake)
    file = written(tmp_path, *(GOOD % number for number in range(submit.IN_FLIGHT_MAX + 1)))
    assert call("submit", file) == 130
    assert "interrupted; 2000 items are acknowledged; go on with --from 2001" in capsys.readouterr().err
    monkeypatch.setattr(items, "check", interrupt)
    assert call("submit", file) == 130
    assert "interrupted; no item is acknowledged" in capsys.readouterr().err


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_the_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("submit", "--help")
    told = capsys.readouterr().out
    assert "exit codes:" in told
    assert "--model tensorrt_llm" in told
