"""`sidecar keys`: a key that is shown once, and a line that opens the door for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.cli.keys import register_keys
from sidecar.cli.main import main
from sidecar.keys import hash_of, load_keys


def ran(*arguments: str) -> int:
    return main(("keys", *arguments), {}, (register_keys,))


def test_a_new_keys_line_grants_what_was_asked_for_and_the_key_is_shown_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weight", "2", "--lanes", "offline", "--expires", "2027-01-31T00:00:00Z", "--slots-max", "3"]
    assert ran("new", "--tenant", "it's: {odd}", *options, "--operator") == 0
    out, err = capsys.readouterr()
    key = err.split()[-1]
    path = tmp_path / "keys.yaml"
    path.write_text(out)
    (made,) = load_keys(path)
    assert key not in out
    assert len(out.splitlines()) == 1
    assert (made.key, made.tenant, made.lanes, made.weight, made.slots_max, made.operator) == (
        hash_of(key), "it's: {odd}", ("offline",), 2, 3, True
    )  # fmt: skip
    assert ran("check", str(path)) == 0
    assert "offline, 2 weight, 3 slots max, operator, until 2027-01-31" in capsys.readouterr().out


def test_a_line_for_a_certificate_holds_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("new", "--tenant", "billing", "--certificate", "billing.example") == 0
    out, err = capsys.readouterr()
    assert out == "- {tenant: billing, certificate: billing.example, lanes: [online, offline]}\n"
    assert err == ""


def test_a_mistake_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("new", "--tenant", "t", "--lanes", "fast") == 2
    assert "--lanes must be online, offline or both" in capsys.readouterr().err
    (tmp_path / "keys.yaml").write_text("- {tenant: t}\n")
    assert ran("check", str(tmp_path / "keys.yaml")) == 2
    assert "it needs either key or certificate" in capsys.readouterr().err
