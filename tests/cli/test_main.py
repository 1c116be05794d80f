"""Every command ends in one line and an exit code, whatever it is given; none in a traceback."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.__main__ import COMMANDS
from sidecar.app import started
from sidecar.cli.main import EXAMPLES, main
from sidecar.core.errors import SettingsError, SidecarError
from sidecar.settings.file import EngineEndpoint, ServeSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.settings.recorder import RecorderSettings

ROOT = Path(__file__).parents[2]


def raising(error: BaseException) -> Callable[[Any], None]:
    """A command `fail` that raises `error`."""

    def run(*_: Any) -> int:
        raise error

    def register(subparsers: Any) -> None:
        subparsers.add_parser("fail").set_defaults(run=run)

    return register


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (SettingsError("a: bad\nb: worse"), 2, "sidecar: a: bad\nsidecar: b: worse\n"),
        (SidecarError("no sidecar answers"), 1, "sidecar: no sidecar answers\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.json"),
            1,
            "sidecar: x.json: No such file or directory\n",
        ),
        (MemoryError(), 1, "sidecar: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, "sidecar: interrupted\n"),
        (
            ExceptionGroup("", [SettingsError("a"), ExceptionGroup("", [SidecarError("b")])]),
            2,
            "sidecar: a\nsidecar: b\n",
        ),
    ],
)
def test_each_kind_of_failure_has_its_line_and_its_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    assert main(["fail"], {}, [raising(error)]) == code
    assert capsys.readouterr().err == told


def test_a_defect_is_one_line_and_a_traceback_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail"], {}, [raising(RuntimeError("odd"))]) == 70
    told = capsys.readouterr().err
    assert told.endswith("CRITICAL sidecar.cli.main: a defect of the sidecar: RuntimeError: odd\n")
    assert told.count("\n") == 1
    assert main(["--verbose", "fail"], {}, [raising(RuntimeError("odd"))]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_every_command_has_examples_that_it_would_take(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(dest="command")
    for register in COMMANDS:
        register(subparsers)
    for name in subparsers.choices:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"], {}, COMMANDS)
        shown = capsys.readouterr().out
        assert (ended.value.code, "examples:" in shown) == (0, True), name
        for example in EXAMPLES.get(name, ()):
            assert example in shown
            words = shlex.split(example.split("sidecar ", 1)[1].replace(" --log-format json", ""))
            assert parser.parse_args(words).command == name


def test_the_log_options_stand_before_or_behind_the_command() -> None:
    seen: list[Any] = []

    def note(options: argparse.Namespace, _: Any) -> int:
        seen.append(options)
        return 0

    def register(subparsers: Any) -> None:
        subparsers.add_parser("note").set_defaults(run=note)

    main(["--log-format", "json", "note"], {}, [register])
    main(["note", "--log-format", "json", "--verbose"], {}, [register])
    main(["note"], {}, [register])
    assert [(each.log_format, each.verbose) for each in seen] == [("json", False), ("json", True), (None, False)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("serve", "--config", "{missing}"), 2),
        (("serve", "--config", "{directory}"), 2),
        (("serve", "--config", "{binary}"), 2),
        (("serve", "--config", "{settings}"), 2),  # its recorder cannot write there
        (("doctor", "--config", "{missing}"), 2),
        (("status", "--http", "127.0.0.1:1"), 1),
        (("status", "--http", "nonsense"), 2),
        (("status", "--http", "http://127.0.0.1:1"), 2),
        (("profile", "http://127.0.0.1:1"), 1),
        (("profile", "nonsense"), 2),
        (("profile", "127.0.0.1:1", "-o", "{directory}"), 2),
        (("simulate", "--arrivals", "{missing}"), 2),
        (("simulate", "--workload", "none"), 2),
        (("simulate", "--policies", "none"), 2),
        (("simulate", "--hours", "nan"), 2),
        (("simulate", "--hours", "inf"), 2),
        (("simulate", "--write-arrivals", "{directory}", "--hours", "0.01"), 1),
        (("replay", "{missing}"), 1),
        (("replay", "{directory}"), 1),
        (("replay", "{binary}"), 1),
    ],
)
def test_bad_input_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int
) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    settings = {"engines": [{"name": "a"}], "recorder": {"directory": str(tmp_path / "binary")}}
    settings |= {"listen": "127.0.0.1:0", "http": "127.0.0.1:0"}
    (tmp_path / "settings").write_text(yaml.safe_dump(settings))
    places = {name: str(tmp_path / name) for name in ("missing", "directory", "binary", "settings")}

    found = main([each.format(**places) for each in arguments], {}, COMMANDS)

    told = capsys.readouterr()
    assert (found, told.out) == (code, "")
    assert told.err.startswith("sidecar: ")
    assert len(told.err.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ("offsets", "decode", "100", "")
    done = subprocess.run(
        (sys.executable, "-m", "sidecar", *arguments),
        env={**os.environ, "PYTHONWARNINGS": "ignore"}, cwd=ROOT, text=True, check=False,
        stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 141
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_the_first_line_of_a_server_says_what_serves_where_and_over_what(tmp_path: Path) -> None:
    engine = EngineEndpoint(name="a100", target="triton:8001")
    tokenizer = ROOT / "model_repository/tokenizer/tokenizer.json"
    assert started(ServeSettings(engines=(engine,))) == (
        "127.0.0.1:8101; callers anybody; http 127.0.0.1:8102; "
        "engines a100 at triton:8001 (tensorrt_llm, 8 slots); offline none"
    )
    full = ServeSettings(
        engines=(engine,),
        tokenizer=tokenizer,
        offline=OfflineSettings(bootstrap_servers="kafka:9092"),
        recorder=RecorderSettings(directory=tmp_path),
    )
    assert started(full).endswith(f"; offline inference.requests at kafka:9092, group sidecar; decisions in {tmp_path}")


def test_the_exit_codes_are_written_down() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for code in (0, 1, 2, 70, 130, 141):
        assert f"| {code} |" in text
    for register in COMMANDS:
        assert f"sidecar {register.__name__.removeprefix('register_').replace('_', '-')}" in text
