"""Long texts become token ids in another process: there they cost the event loop neither the GIL nor memory.

This file is both sides. A process (`python -m sidecar.triton.encoder TOKENIZER`) reads a length and a text, writes a
length and ids, and ends when its standard input does: whoever is killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from array import array
from pathlib import Path
from typing import IO, Any

from tokenizers import Tokenizer

from sidecar.core.errors import SidecarError

PROCESSES = 2  # the offline lane reads one long item at a time, so that one of them is always left to callers
ATTEMPTS = 2  # a process that was killed from outside is replaced once; a text that ends two is at fault itself
SIZE_BYTES = 8


class EncoderError(SidecarError):
    """No process could encode this text."""


class Encoder:
    """At most PROCESSES of them, each started when a text first needs it. Callable from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._room = threading.BoundedSemaphore(PROCESSES)
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def encode(self, text: str, *, special: bool = True) -> array[int]:
        """The ids of a whole prompt, `special` with what the tokenizer adds. Blocks, without the GIL.

        Raises EncoderError.
        """
        for _ in range(ATTEMPTS):
            with self._room:
                if (ids := self._answer((b"+" if special else b"-") + text.encode())) is not None:
                    return ids
        why = "is closed" if self._closed else f"ended {ATTEMPTS} times at a text of {len(text)} characters"
        raise EncoderError(f"the tokenizer's process {why}")

    @property
    def pids(self) -> set[int]:
        """Of the processes that wait for a text."""
        return {process.pid for process in self._idle}

    def close(self) -> None:
        """No process is left, and none is started again. Whoever waits for an answer gets an EncoderError."""
        self._closed = True
        for process in (*self._idle, *self._busy):
            process.kill()
        while self._idle:
            _end(self._idle.pop())

    def _answer(self, text: bytes) -> array[int] | None:
        """The ids; None if the process ended before it gave them."""
        if self._closed:
            return None
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._start()
        self._busy.add(process)
        try:
            _write(process.stdin, text)
            ids = array("i", _read(process.stdout))
        except (OSError, EOFError):
            _end(process)
            return None
        finally:
            self._busy.discard(process)
        if self._closed:
            _end(process)
        else:
            self._idle.append(process)
        return ids

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__, str(self._path)]
        try:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise EncoderError(f"the tokenizer's process cannot be started: {error.strerror}") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(OSError), process:  # its end closes the pipes, and bytes that were not read are an error
        pass


def _write(to: IO[bytes] | None, content: bytes) -> None:
    assert to is not None
    to.write(len(content).to_bytes(SIZE_BYTES, "little"))
    to.write(content)
    to.flush()


def _read(source: IO[bytes] | None) -> bytes:
    """One message. Raises EOFError if the other side has gone."""
    assert source is not None
    size = int.from_bytes(_exactly(source, SIZE_BYTES), "little")
    return _exactly(source, size)


def _exactly(source: IO[bytes], size: int) -> bytes:
    found = source.read(size)
    if len(found) < size:
        raise EOFError
    return found


def whole(tokenizer: Tokenizer) -> Tokenizer:
    """The same one, without a training set-up's habit to cut what is long and to pad what is short."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def main(tokenizer: Any, source: IO[bytes], to: IO[bytes]) -> None:
    """Answer until the other side has gone."""
    while True:
        try:
            text = _read(source).decode()
        except EOFError:
            return
        [encoding] = tokenizer.encode_batch_fast([text[1:]], add_special_tokens=text[0] == "+")
        _write(to, array("i", encoding.ids).tobytes())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the sidecar; it ends this process when it is done
    main(whole(Tokenizer.from_file(sys.argv[1])), sys.stdin.buffer, sys.stdout.buffer)
