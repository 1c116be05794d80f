"""`sidecar profile`: what a sidecar has learnt, written to a file that simulate, a paced engine and doctor read."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.parameters import EngineParameters
from engine.serving import numpy_settings
from sidecar.__main__ import COMMANDS
from sidecar.cli.main import main
from sidecar.cli.profile import NotLearntError, learnt_profile
from sidecar.cli.profile_findings import profile_findings
from sidecar.settings.file import EngineEndpoint, ServeSettings
from tests.fakes.sidecar import Sidecar

LEARNT = {
    "iteration_ms": 20.0,
    "token_ms": 0.05,
    "context_1000_ms": 0.2,
    "tokens_seen": 512,
    "points": [[1, 20.0], [256, 24.0], [512, 60.0]],
    "error": 0.03,
    "trusted": True,
}


def engine_status(**attribution: Any) -> dict[str, Any]:
    return {"slots": 64, "kv_tokens_max": 200_000, "attribution": attribution}


@contextmanager
def answering(document: Any) -> Iterator[str]:
    """A sidecar that answers one question for its status."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


def test_a_written_file_is_read_by_simulate_by_a_paced_engine_and_by_doctor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, figures = tmp_path / "ours.json", tmp_path / "figures.json"
    with answering({"engines": {"a": engine_status(iteration=LEARNT)}}) as url:
        assert main(["profile", url, "-o", str(file), "--gpu", "an A100"], {}, COMMANDS) == 0
    few = ("--workload", "origin", "--policies", "online-only", "--hours", "0.005", "--seeds", "1")
    assert main(["simulate", "--profile", str(file), *few, "--json", str(figures)], {}, COMMANDS) == 0
    assert '"a-learnt"' in figures.read_text()
    paced = numpy_settings(EngineParameters({"preset": "tiny", "profile": "ours.json"}), tmp_path).profile
    assert paced is not None
    # 10 rows with 30,000 tokens of context between them and a chunk of 246 tokens
    assert paced.iteration_s(10, 246, 30_000) == pytest.approx((24 + 6) / 1000)
    assert paced.kv_tokens_max == 200_000
    settings = ServeSettings(engines=(EngineEndpoint(name="a", target="127.0.0.1:1", slots=64),))
    assert [verdict for verdict, _ in profile_findings(str(file), settings)] == ["ok"]
    assert "ours.json: try it with" in capsys.readouterr().err


def test_what_is_not_trusted_is_not_written() -> None:
    with pytest.raises(NotLearntError, match=r"engine a: .* not known well enough yet: it has seen too little"):
        learnt_profile("a", engine_status(iteration={**LEARNT, "trusted": False}), "here", "a GPU")


async def test_the_status_of_this_version_has_the_fields(sidecar: Sidecar) -> None:
    (engine,) = (dataclasses.asdict(each) for each in sidecar.driver.scheduler.snapshot().engines.values())
    with pytest.raises(NotLearntError):  # nothing has run on it
        learnt_profile("a", engine, "here", "a GPU")
    engine["attribution"]["iteration"] |= {"trusted": True, "points": LEARNT["points"]}
    assert learnt_profile("a", engine, "here", "a GPU")["points"] == LEARNT["points"]


@pytest.mark.parametrize(
    ("document", "arguments", "code", "told"),
    [
        ({}, (), 1, "gives no status of a sidecar of this version"),
        ([], (), 1, "gives no status of a sidecar of this version"),
        ({"engines": {}}, (), 1, "gives no status"),
        ({"engines": {"a": {}, "b": {}}}, (), 2, "--engine must be one of a, b"),
        ({"engines": {"a": {}}}, ("--engine", "c"), 2, "--engine must be one of a"),
        ({"engines": {"a": engine_status(iteration={**LEARNT, "points": [[1, -1.0]]})}}, (), 1, "gives no status"),
    ],
)
def test_what_is_no_profile_is_told_in_a_line(
    document: Any, arguments: tuple[str, ...], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(document) as url:
        assert main(["profile", url, *arguments], {}, COMMANDS) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert told in found.err
    assert found.err.count("\n") == 1
