"""`sidecar verify` from the command line, without a broker."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sidecar.batch import board
from sidecar.batch.board import JobRow
from sidecar.cli import main, verify
from sidecar.cli.verifier import Asked, Findings, VerifyError
from sidecar.cli.verify import asked, client, register_verify
from sidecar.core.errors import SettingsError
from sidecar.settings.offline import KafkaSecuritySettings, OfflineSettings
from tests.batch.test_board import manifest, submitted
from tests.fakes.topics import JOBS_SETTINGS, FakeTopics


def call(monkeypatch: pytest.MonkeyPatch, found: Findings | Exception, *arguments: str) -> int:
    topics = FakeTopics()
    submitted(topics, manifest(3, starts={"inference.results": {0: 7}}))
    monkeypatch.setattr(board, "TopicReader", topics.reader)

    def check(asked: Asked, *, over: bool) -> Findings:
        assert (asked.tenant, asked.starts, over) == ("lab", {"inference.results": {0: 7}}, False)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(verify, "verify", check)
    return main.main(("verify", "--job", "nightly", *arguments), {}, [register_verify])


def test_a_sound_job_is_said_to_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, Findings(items=3, results=2, dead=0, open=1, digest=255)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job nightly: 3 items, 2 results, 0 dead letters, 1 not over yet",
        f"digest {255:032x}: as the receipt says",
    ]


def test_each_fault_is_named_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = Findings(faults=[((1, offset), "2 outcomes") for offset in range(60)] + [(None, "done: 1, 2")])
    assert call(monkeypatch, found) == 1
    told = capsys.readouterr().out
    assert "FAULT partition 1 offset 0: 2 outcomes\n" in told
    assert told.count("FAULT") == 50
    assert "and 11 more" in told
    assert call(monkeypatch, found, "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 61


def test_topics_that_cannot_be_read_are_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, VerifyError("res: nothing came")) == 1
    assert "sidecar: res: nothing came" in capsys.readouterr().err


def test_without_the_extra_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert call(monkeypatch, Findings()) == 2
    assert "pip install 'backfill-sidecar[verify]'" in capsys.readouterr().err


def test_the_other_client_is_told_how_to_reach_the_broker(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("geheim\n")
    stated: dict[str, Any] = {"protocol": "SASL_SSL", "username": "u", "password_file": secret, "ca_file": Path("/ca")}
    options = client(OfflineSettings(bootstrap_servers="k:1", security=KafkaSecuritySettings(**stated)))
    assert options == {
        "bootstrap.servers": "k:1",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "geheim",
    }
    oauth = KafkaSecuritySettings(protocol="SASL_SSL", mechanism="OAUTHBEARER", token_file=secret)
    with pytest.raises(SettingsError, match="does not speak OAUTHBEARER"):
        client(OfflineSettings(security=oauth))


def test_a_job_without_a_manifest_is_read_from_the_beginning() -> None:
    assert asked(JOBS_SETTINGS, JobRow(tenant="lab", job="j")).starts == {}
