"""The outcomes of one job on disk: each place once, in any order of arrival, read back in the order of the input.

A SQLite file beside the output. Outcomes and how far the topics were read are one transaction there, so a reader that
is killed goes on where it was, and memory does not grow with the job.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.batch.outcome_lines import OutcomeLine
from sidecar.batch.topic_reader import Places
from sidecar.core.errors import SettingsError
from sidecar.offline.job_progress import JobKey

_TABLES = """
CREATE TABLE IF NOT EXISTS job (tenant TEXT, name TEXT);
CREATE TABLE IF NOT EXISTS place (topic TEXT, number INTEGER, at INTEGER, PRIMARY KEY (topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outcome (
    submitted INTEGER, number INTEGER, at INTEGER, retry INTEGER, ok INTEGER, line BLOB,
    PRIMARY KEY (submitted, number, at)
);
CREATE TABLE IF NOT EXISTS tally (ok INTEGER PRIMARY KEY, count INTEGER);
INSERT OR IGNORE INTO tally VALUES (0, 0), (1, 0);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON outcome BEGIN
    UPDATE tally SET count = count + 1 WHERE ok = new.ok;
END;
CREATE TRIGGER IF NOT EXISTS replaced AFTER UPDATE OF ok ON outcome WHEN old.ok <> new.ok BEGIN
    UPDATE tally SET count = count + iif(ok = new.ok, 1, -1);
END;
"""
_ADD = """
INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET retry = excluded.retry, ok = excluded.ok, line = excluded.line
WHERE excluded.retry > outcome.retry
"""


class ResultSpool:
    """What is known of one job's outcomes. Close it by leaving its `with`; raises SettingsError for another job's."""

    def __init__(self, path: Path, job: JobKey) -> None:
        self._path = path
        self._db = sqlite3.connect(path)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # after a power cut it may read some records again
            self._db.executescript(_TABLES)
            stored = self._db.execute("SELECT tenant, name FROM job").fetchone()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise SettingsError(f"{path} is not ours ({error}); name another output file") from None
        if stored is None:
            with self._db:
                self._db.execute("INSERT INTO job VALUES (?, ?)", job)
        elif stored != job:
            self._db.close()
            raise SettingsError(f"{path} holds results of job {stored[1]!r} of {stored[0]!r}; name another output file")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._db.close()

    def places(self) -> Places:
        """Up to where each topic was read; empty before the first outcomes."""
        found: Places = {}
        for topic, number, at in self._db.execute("SELECT topic, number, at FROM place"):
            found.setdefault(topic, {})[number] = at
        return found

    def add(self, outcomes: Iterable[OutcomeLine], places: Places) -> None:
        """Keep these outcomes, and that the topics were read up to `places`."""
        rows = (
            (each.place.submitted, each.place.number, each.place.offset, each.retry, each.ok, each.value)
            for each in outcomes
        )
        read = ((topic, number, at) for topic, numbers in places.items() for number, at in numbers.items())
        with self._db:
            self._db.executemany(_ADD, rows)
            self._db.executemany("INSERT OR REPLACE INTO place VALUES (?, ?, ?)", read)

    def count(self) -> tuple[int, int]:
        """How many results and how many errors there are."""
        counts = dict(self._db.execute("SELECT ok, count FROM tally").fetchall())
        return counts[1], counts[0]

    def lines(self, *, ok: bool) -> Iterator[bytes]:
        """The lines of results, or those of errors, in the order of the input."""
        query = "SELECT line FROM outcome WHERE ok = ? ORDER BY submitted DESC, number, at"
        for (line,) in self._db.execute(query, (ok,)):
            yield line

    def write(self, path: Path, *, ok: bool) -> None:
        """Write the results, or the errors, to `path`, which is replaced in one step."""
        new = path.with_name(f"{path.name}.new")
        with new.open("wb") as file:
            for line in self.lines(ok=ok):
                file.write(line)
                file.write(b"\n")
        os.replace(new, path)

    def remove(self) -> None:
        """Delete the file: what it knows is in the output."""
        self._db.close()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(f"{self._path.name}{suffix}").unlink(missing_ok=True)
