"""Long texts become ids in processes of their own: few, replaced once, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from array import array
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sidecar.triton.encoder import ATTEMPTS, PROCESSES, SIZE_BYTES, Encoder, EncoderError, main, whole

FILE = Path(__file__).parents[2] / "model_repository/tokenizer/tokenizer.json"


@pytest.fixture
def encoder() -> Iterator[Encoder]:
    encoder = Encoder(FILE)
    yield encoder
    encoder.close()


def test_a_process_that_was_killed_is_replaced(encoder: Encoder) -> None:
    ids = encoder.encode("how far")
    [killed] = encoder.pids
    os.kill(killed, signal.SIGKILL)
    assert encoder.encode("how far") == ids
    assert encoder.pids.isdisjoint({killed})


def test_a_tokenizer_that_its_process_cannot_load_is_an_error_and_no_hang(tmp_path: Path, capfd: Any) -> None:
    encoder = Encoder(tmp_path / "nowhere.json")
    with pytest.raises(EncoderError, match="ended 2 times at a text of 7 characters"):
        encoder.encode("how far")
    encoder.close()
    assert "Traceback" in capfd.readouterr().err


def test_nothing_is_left_and_nothing_starts_after_closing(encoder: Encoder) -> None:
    encoder.encode("how far")
    [pid] = encoder.pids
    encoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(EncoderError, match="is closed"):
        encoder.encode("how far")


# ---- the side of the process -----------------------------------------------------------------------------------------


def message(content: bytes) -> bytes:
    return len(content).to_bytes(SIZE_BYTES, "little") + content


def answers(*contents: bytes) -> list[list[int]]:
    """What the process writes to these messages until its input ends."""
    to = BytesIO()
    main(TOKENIZER, BytesIO(b"".join(map(message, contents))), to)
    to.seek(0)
    found = []
    while size := to.read(SIZE_BYTES):
        found.append(array("i", to.read(int.from_bytes(size, "little"))).tolist())
    return found


TOKENIZER: Any = Tokenizer.from_file(str(FILE))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.text(max_size=30), st.booleans()), max_size=4))
def test_each_text_is_answered_in_its_order_by_the_tokenizers_own_ids(texts: list[tuple[str, bool]]) -> None:
    contents = [(b"+" if special else b"-") + text.encode() for text, special in texts]
    wanted = [TOKENIZER.encode(text, add_special_tokens=special).ids for text, special in texts]
    assert answers(*contents) == wanted


@pytest.mark.parametrize("rest", [b"", b"\x05", message(b"+how far")[:-1]])
def test_a_process_whose_sidecar_has_gone_ends_also_in_the_middle_of_a_message(rest: bytes) -> None:
    to = BytesIO()
    main(TOKENIZER, BytesIO(message(b"+how far") + rest), to)
    assert len(to.getvalue()) > SIZE_BYTES  # the first one was answered


def test_a_training_set_ups_habit_to_cut_and_to_pad_is_dropped() -> None:
    trained: Any = Tokenizer.from_file(str(FILE))
    trained.enable_truncation(2)
    trained.enable_padding(length=9)
    assert whole(trained).encode("how far is the sea").ids == TOKENIZER.encode("how far is the sea").ids


# ---- the side of the sidecar, over a process that gives back what it gets --------------------------------------------


class Echo(Encoder):
    """Its processes answer with the bytes of the text, four of which are one id; `commands` are those of the first."""

    def __init__(self, *commands: tuple[str, ...]) -> None:
        super().__init__(Path("nowhere"))
        self.commands = [*commands]
        self.started: list[int] = []

    def _start(self) -> subprocess.Popen[bytes]:
        command = self.commands.pop(0) if self.commands else ("cat",)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.started.append(process.pid)
        return process


@pytest.fixture
def echo() -> Iterator[Echo]:
    encoder = Echo()
    yield encoder
    encoder.close()


def test_a_process_serves_one_text_after_the_other(echo: Echo) -> None:
    assert echo.encode("abc").tobytes() == b"+abc"
    assert echo.encode("efg", special=False).tobytes() == b"-efg"
    assert echo.encode("x" * 99_999).tobytes() == b"+" + b"x" * 99_999  # more than a pipe holds at once
    assert {*echo.started} == echo.pids
    assert len(echo.started) == 1


def test_a_process_that_ends_without_an_answer_is_replaced_once() -> None:
    once, twice = Echo(("true",)), Echo(("true",), ("true",))
    assert once.encode("abc").tobytes() == b"+abc"
    with pytest.raises(EncoderError, match=f"ended {ATTEMPTS} times at a text of 3 characters"):
        twice.encode("abc")
    assert twice.encode("abc").tobytes() == b"+abc"  # the next text has a process of its own again
    for each in (once, twice):
        each.close()


def test_an_answer_that_is_cut_is_none() -> None:
    encoder = Echo(("head", "-c", "10"))
    assert encoder.encode("abcdefg").tobytes() == b"+abcdefg"
    assert len(encoder.started) == 2
    encoder.close()


def test_no_more_processes_run_than_are_allowed_however_many_wait(echo: Echo) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda text=text: found.append(echo.encode(text).tobytes()), name=text)
        for text in ("abc", "def", "ghi", "jkl", "mno", "pqr")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(found) == [b"+abc", b"+def", b"+ghi", b"+jkl", b"+mno", b"+pqr"]
    assert 1 <= len(echo.started) <= PROCESSES


def test_whoever_waits_for_an_answer_when_it_closes_gets_an_error() -> None:
    encoder = Echo(("sleep", "1000"))
    failed: list[str] = []

    def ask() -> None:
        try:
            encoder.encode("abc")
        except EncoderError as error:
            failed.append(str(error))

    thread = threading.Thread(target=ask, name="ask")
    thread.start()
    while not encoder._busy:
        pass
    encoder.close()
    thread.join(10)
    assert failed == ["the tokenizer's process is closed"]
    assert (len(encoder.started), encoder.pids) == (1, set())


def test_half_of_a_surrogate_pair_is_an_error_of_the_caller_and_costs_no_process(echo: Echo) -> None:
    for _ in range(PROCESSES + 1):  # its place is free again each time
        with pytest.raises(UnicodeEncodeError):
            echo.encode("\ud83d")
    assert echo.started == []
    assert echo.encode("abc").tobytes() == b"+abc"


def test_a_process_that_cannot_be_started_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", full)
    encoder = Encoder(FILE)
    for _ in range(PROCESSES + 1):
        with pytest.raises(EncoderError, match="the tokenizer's process cannot be started: Cannot allocate memory"):
            encoder.encode("how far")
