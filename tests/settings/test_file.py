"""The settings file: every mistake is named, and nothing starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.core.errors import SettingsError
from sidecar.core.settings import TenantSettings
from sidecar.offline.kafka_options import client_options
from sidecar.settings.file import TracingSettings, load_settings
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings
from sidecar.triton.tokenizer import Tokens

ENGINE = {"name": "e0", "target": "triton:8001"}


def written(path: Path, **document: Any) -> Path:
    file = path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def mistake(path: Path, environment: dict[str, str] | None = None, **document: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        load_settings(written(path, **document), environment or {})
    return str(raised.value)


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, engines=[ENGINE]), {})
    assert (settings.engines[0].slots, settings.engines[0].target) == (8, "triton:8001")
    assert settings.scheduler.reservation_every == 10
    assert settings.offline is None


def test_a_tenant_has_what_is_written_for_it_and_a_misspelt_limit_is_named(tmp_path: Path) -> None:
    limits = {"labels": {"weight": 2, "slots_max": 32}}
    settings = load_settings(written(tmp_path, engines=[ENGINE], scheduler={"tenants": limits}), {})
    assert settings.scheduler.tenants["labels"] == TenantSettings(weight=2.0, slots_max=32)
    message = mistake(tmp_path, engines=[ENGINE], scheduler={"tenants": {"labels": {"slot_max": 3}}})
    assert "labels.slot_max: unknown setting" in message


def test_the_environment_overrides_by_path(tmp_path: Path) -> None:
    environment = {
        "SIDECAR__SCHEDULER__WINDOW_MS": "5",
        "SIDECAR__ENGINES__0__SLOTS": "64",
        "SIDECAR__OFFLINE": "null",
        "PATH": "/bin",
    }
    settings = load_settings(written(tmp_path, engines=[ENGINE]), environment)
    assert (settings.scheduler.window_ms, settings.engines[0].slots) == (5, 64)


def test_an_unknown_name_is_an_error_with_its_path(tmp_path: Path) -> None:
    assert mistake(tmp_path, engines=[{**ENGINE, "slot": 8}]) == "engines.0.slot: unknown setting"


@pytest.mark.parametrize(
    ("old", "new"), [("reservation_turns_max", "reserved_saved_max"), ("turn_tokens", "reserved_tokens")]
)
def test_a_setting_under_its_former_name_is_refused_with_its_name_of_today(tmp_path: Path, old: str, new: str) -> None:
    message = mistake(tmp_path, engines=[ENGINE], scheduler={old: 3})
    assert message == f"scheduler.{old}: unknown setting; its name is {new} now"
    load_settings(written(tmp_path, engines=[ENGINE], scheduler={new: 3}), {})


@pytest.mark.parametrize("old", ["guard", "aimd", "slowdown_max", "prefill_adaptive"])
def test_a_setting_that_the_price_replaced_is_refused_with_what_decides_now(tmp_path: Path, old: str) -> None:
    message = mistake(tmp_path, engines=[{**ENGINE, "yield_hold_ms": 200}], scheduler={old: 0})
    instead = "unknown setting; scheduler.ttft_added and scheduler.itl_added decide instead"
    assert sorted(message.splitlines()) == [f"engines.0.yield_hold_ms: {instead}", f"scheduler.{old}: {instead}"]
    load_settings(written(tmp_path, engines=[ENGINE], scheduler={"ttft_added": 0.2, "itl_added": 0.5}), {})


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    lines = mistake(tmp_path, engines=[{"slots": "many"}], scheduler={"window": 5}).splitlines()
    assert sorted(line.split(":")[0] for line in lines) == ["engines.0.name", "engines.0.slots", "scheduler.window"]


def test_a_value_out_of_range_is_named_with_its_range(tmp_path: Path) -> None:
    assert "slots must be >= 1, not 0" in mistake(tmp_path, engines=[{**ENGINE, "slots": 0}])


@pytest.mark.parametrize("target", ["triton", ":8001", "triton:grpc"])
def test_a_target_without_host_or_port_is_refused(tmp_path: Path, target: str) -> None:
    assert "target must be host:port" in mistake(tmp_path, engines=[{"name": "e0", "target": target}])


def test_two_engines_of_one_name_are_refused(tmp_path: Path) -> None:
    assert "a name of its own" in mistake(tmp_path, engines=[ENGINE, ENGINE])


def test_the_offline_lane_needs_a_tokenizer(tmp_path: Path) -> None:
    assert mistake(tmp_path, engines=[ENGINE], offline={}) == "offline: items need a tokenizer"


def test_a_file_that_is_no_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SettingsError, match="is no tokenizer"):
        Tokens.load(tmp_path / "tokenizer.json")


def test_an_override_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    message = mistake(tmp_path, {"SIDECAR__ENGINES__7__SLOTS": "1"}, engines=[ENGINE])
    assert message == "SIDECAR__ENGINES__7__SLOTS leads to no setting"


def test_a_file_that_is_not_yaml_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("engines: [")
    with pytest.raises(SettingsError, match="is not YAML"):
        load_settings(tmp_path / "bad.yaml", {})
    with pytest.raises(SettingsError, match=r"cannot read .*No such file"):
        load_settings(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("listen: 127.0.0.1:1\nengines: []\nlisten: 127.0.0.1:2\n", "is not YAML: listen stands there twice in line 3"),
        ("engines:\n  - {name: a, slots: 8, slots: 16}\n", "is not YAML: slots stands there twice in line 2"),
        ("[" * 5000, "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("- a\n", "must hold a mapping of settings"),
        ("engines: [{name: a}]\n1: 2\n", "1"),
        ("engines: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        ("engines: 5\n", "engines"),
        ("engines: [5]\n", "engines.0"),
        ("", "must hold a mapping of settings"),
    ],
)
def test_what_is_no_settings_file_is_said_in_a_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"listen": each} for each in ("http://127.0.0.1:1", "127.0.0.1", "127.0.0.1:65536", "a b:1", ":1", "::1:80")),
        {"listen": "127.0.0.1:5", "http": "127.0.0.1:5"},
        *({"engines": [{**ENGINE, "target": each}]} for each in ("http://triton:8001", "triton:0", "triton:8001/v2")),
        {"engines": [{**ENGINE, "metrics_url": "triton:8002"}]},
        {"log_format": "xml"},
    ],
)
def test_an_address_that_cannot_be_one_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    told = mistake(tmp_path, **{"engines": [ENGINE], **changes})
    assert "\n" not in told
    assert told.startswith(("listen", "http", "engine e0", "log_format"))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:8001", "triton-0.ns.svc:8001", "0.0.0.0:65535"])
def test_usual_addresses_are_taken(tmp_path: Path, address: str) -> None:
    assert load_settings(written(tmp_path, engines=[ENGINE], listen=address), {}).listen == address


def test_an_override_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    assert mistake(tmp_path, {"SIDECAR__LISTEN": "["}, engines=[ENGINE]) == "SIDECAR__LISTEN is not YAML"


@pytest.mark.slow
def test_the_program_ends_with_2_and_one_line_per_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, engines=[{**ENGINE, "slot": 8}], http=":1")
    run = subprocess.run(
        (sys.executable, "-m", "sidecar", "serve", "--config", str(file)),
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == ["sidecar: engines.0.slot: unknown setting"]


KEY = "triton-grpc-protocol-admin-key"


def test_the_sidecars_own_metadata_is_written_or_read_from_files_and_no_text_shows_it(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("s3cret\n")
    for engine in ({"metadata": {KEY: "s3cret"}}, {"metadata_files": {KEY: str(secret)}}):
        settings = load_settings(written(tmp_path, engines=[{**ENGINE, **engine}]), {})
        assert settings.engines[0].own_metadata() == ((KEY, "s3cret"),)
        assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({KEY: "s3cret\nx"}, f"the value of {KEY} must be one line of printable ASCII"),
        ({KEY: ""}, f"the value of {KEY} must be"),
        ({KEY: "s3crét"}, f"the value of {KEY} must be"),
        ({"Key": "s3cret"}, "'Key' cannot be a name"),
        ({"grpc-x": "s3cret"}, "'grpc-x' cannot be a name"),
        ({"x-bin": "s3cret"}, "'x-bin' cannot be a name"),
        ({KEY: ["s3cret"]}, f"engines.0.metadata.{KEY}: "),
        ("s3cret", "engines.0.metadata: "),
    ],
)
def test_metadata_that_grpc_would_not_take_is_refused_without_its_value(
    tmp_path: Path, metadata: Any, expected: str
) -> None:
    message = mistake(tmp_path, engines=[{**ENGINE, "metadata": metadata}])
    assert expected in message
    assert "s3cr" not in message


def test_a_metadata_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    message = mistake(tmp_path, engines=[{**ENGINE, "metadata_files": {KEY: "/nowhere"}}])
    assert "cannot read /nowhere: No such file or directory" in message
    assert "in metadata and in metadata_files" in mistake(
        tmp_path, engines=[{**ENGINE, "metadata": {KEY: "a"}, "metadata_files": {KEY: "/nowhere"}}]
    )


def test_a_file_that_is_not_yaml_is_refused_without_the_line(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(f"engines:\n  - metadata: {{{KEY}: s3cret: x]\n")
    with pytest.raises(SettingsError, match=r"is not YAML: .* in line 2") as raised:
        load_settings(file, {})
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"message_bytes_max": 0}, "limits: message_bytes_max must be > 0, not 0"),
        ({"message_bytes_max": 2**31, "held_bytes_max": 2**32}, "limits: message_bytes_max must be < 2\\^31"),
        ({"held_bytes_max": 1}, "limits: message_bytes_max must be <= held_bytes_max"),
        ({"connection_idle": 3}, "limits.connection_idle: unknown setting"),
    ],
)
def test_a_limit_that_cannot_hold_is_refused(tmp_path: Path, limits: dict[str, int], expected: str) -> None:
    assert re.search(expected, mistake(tmp_path, engines=[ENGINE], limits=limits))


SECRET = "sesame-777"


@pytest.mark.parametrize(
    "offline",
    [
        {"security": {"password": 777777}},
        {"security": {"password": [SECRET]}},
        [{"security": {"password": SECRET}}],
        {"security": [SECRET]},
        {"security": SECRET},
    ],
)
def test_a_mistake_beside_a_password_does_not_show_it(tmp_path: Path, offline: Any) -> None:
    message = mistake(tmp_path, engines=[ENGINE], offline=offline)
    assert message.startswith("offline")
    assert "777" not in message


def test_a_password_of_the_environment_is_taken_as_it_stands(tmp_path: Path) -> None:
    environment = {
        "SIDECAR__OFFLINE__SECURITY__PASSWORD": "0123",
        "SIDECAR__OFFLINE__SECURITY__PROTOCOL": "SASL_PLAINTEXT",
        "SIDECAR__OFFLINE__SECURITY__USERNAME": "u",
    }
    file = written(tmp_path, engines=[ENGINE], tokenizer=str(tmp_path / "sidecar.yaml"), offline={})
    settings = load_settings(file, environment)
    assert settings.offline is not None
    assert settings.offline.security.password == "0123"


@pytest.mark.parametrize(
    ("where", "document"),
    [
        ("engines.0.slots", {"engines": [{**ENGINE, "slots": True}]}),
        ("engines.0.yield_rows", {"engines": [{**ENGINE, "yield_rows": False}]}),
        ("engines.0.usd_per_hour", {"engines": [{**ENGINE, "usd_per_hour": float("inf")}]}),
        ("engines.0.tokens_max", {"engines": [{**ENGINE, "tokens_max": 10**30}]}),
        ("scheduler.window_ms", {"engines": [ENGINE], "scheduler": {"window_ms": True}}),
        ("scheduler.tenants.a.slots_max", {"engines": [ENGINE], "scheduler": {"tenants": {"a": {"slots_max": True}}}}),
        ("drain_timeout_s", {"engines": [ENGINE], "drain_timeout_s": float("inf")}),
        ("limits.ping_timeout_s", {"engines": [ENGINE], "limits": {"ping_timeout_s": 1e300}}),
    ],
)
def test_a_number_that_is_none_is_named(tmp_path: Path, where: str, document: dict[str, Any]) -> None:
    assert mistake(tmp_path, **document).startswith(f"{where}: must be a number")


def with_offline(tmp_path: Path, **offline: Any) -> str:
    return mistake(tmp_path, engines=[ENGINE], tokenizer=str(tmp_path / "sidecar.yaml"), offline=offline)


@pytest.mark.parametrize("topic", ["results_topic", "dead_letter_topic", "progress_topic"])
def test_a_topic_that_is_named_twice_is_refused_because_what_is_written_would_be_read_as_items(
    tmp_path: Path, topic: str
) -> None:
    message = with_offline(tmp_path, **{topic: "inference.requests"})
    assert message == "kafka: each topic needs a name of its own, but inference.requests is named twice"


def test_results_and_dead_letters_do_not_share_a_topic(tmp_path: Path) -> None:
    assert "but both is named twice" in with_offline(tmp_path, results_topic="both", dead_letter_topic="both")


@pytest.mark.parametrize("value", [0, -1, 1e9])
@pytest.mark.parametrize("name", ["heartbeat_s", "rebalance_timeout_s", "transaction_timeout_s", "request_timeout_s"])
def test_a_time_that_the_protocol_cannot_carry_is_named(tmp_path: Path, name: str, value: float) -> None:
    assert f"kafka: {name} " in with_offline(tmp_path, **{name: value, "session_timeout_s": 2e6})


@pytest.mark.parametrize("name", ["group", "model_default"])
def test_an_empty_name_is_refused(tmp_path: Path, name: str) -> None:
    assert f"kafka: {name} must name" in with_offline(tmp_path, **{name: ""})


def test_a_default_model_that_no_engine_serves_is_named_with_those_that_are(tmp_path: Path) -> None:
    assert with_offline(tmp_path, model_default="gpt") == (
        "offline: no engine serves model_default gpt; known: ['tensorrt_llm']"
    )


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        ([{"name": ""}], "engines: name and model must not be empty"),
        ([{"name": "e", "model": ""}], "engines: name and model must not be empty"),
        ([{"name": "e", "text_model": ""}], "engine e: text_model must not be empty; null = none"),
        (
            [{"name": "e", "model": "ensemble"}],
            "engine e: text_model ensemble is the model of an engine; it must be one over it, or null",
        ),
        (
            [{"name": "e", "model": "a"}, {"name": "f", "model": "b"}],
            "engine f: text_model ensemble is over b here and over a elsewhere; a name leads to one model",
        ),
    ],
)
def test_models_that_cannot_be_told_apart_are_named(tmp_path: Path, engines: list[Any], expected: str) -> None:
    assert mistake(tmp_path, engines=engines) == expected


@pytest.mark.parametrize(("content", "why"), [(b"\xff\xfe", "is not UTF-8"), (b"\n", "is empty"), (None, "Errno 2")])
def test_a_password_file_that_holds_none_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    security = KafkaSecuritySettings(protocol="SASL_PLAINTEXT", username="u", password_file=file)
    with pytest.raises(SettingsError, match=f"^kafka security: .*{why}"):
        client_options(OfflineSettings(security=security))


def test_the_files_of_tracing_are_read_at_start_and_their_mistakes_are_named(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("Bearer a\n")
    assert TracingSettings(header_files={"authorization": token}).headers() == {"authorization": "Bearer a"}
    gone = tmp_path / "gone"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"header_files": {"authorization": gone}}, f"tracing: header_files: cannot read {gone}"),
        ({"header_files": {"Not A Name": token}}, "'Not A Name' cannot be the name of a header"),
    )
    for wrong, said in cases:
        with pytest.raises(SettingsError, match=re.escape(said)):
            TracingSettings(**wrong)
