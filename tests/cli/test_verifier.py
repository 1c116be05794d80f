"""The independent check of a job: what was lost, doubled or changed is named by its offset."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.cli import verifier
from sidecar.cli.verifier import Asked, Findings, VerifyError, verify
from sidecar.offline.dead_letters import DeadItemError, DeadReason
from sidecar.offline.item import Record, dead_headers, result_headers
from sidecar.offline.job_progress import JobTally, Outlook, encoded
from sidecar.offline.receipts import outcome_digest, value_hash

ASKED = Asked(
    client={},
    tenant="lab",
    job="nightly",
    group="g",
    requests="req",
    results="res",
    dead_letters="dlq",
    progress="prog",
)
JOB = (("x-tenant", b"lab"), ("x-job", b"nightly"))


class Told:
    """A message as confluent-kafka gives it."""

    def __init__(
        self, topic: str, offset: int, value: bytes | None, headers: Any = (), key: bytes | None = None
    ) -> None:
        self._told = {"topic": topic, "partition": 1, "offset": offset, "value": value, "headers": headers, "key": key}

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: self._told[name]


class Topics:
    """A job of ten items: eight results, two dead letters, and the receipt that goes with them."""

    def __init__(self) -> None:
        self.items = [self.item(offset) for offset in range(10)]
        self.outcomes: list[Told] = []
        digest = 0
        for each in self.items:
            ok = each.offset not in (3, 4)
            value = b"result %d" % each.offset if ok else each.value
            self.outcomes.append(self.result(each, value or b"") if ok else self.dead(each))
            digest += outcome_digest(1, each.offset, value)
        key, value = encoded(("lab", "nightly"), 1, JobTally(done=8, dead=2, digest=digest % (1 << 128)), 0, Outlook())
        self.progress = [
            Told("prog", 0, b"torn", key=key),
            Told("prog", 1, value, key=key),
            Told("prog", 2, b"", key=b"x"),
        ]

    @staticmethod
    def item(offset: int) -> Record:
        fields: dict[str, Any] = {"topic": "req", "partition": 1, "timestamp_ms": 0, "key": None}
        return Record(offset=offset, value=b"item %d" % offset, headers=JOB, **fields)

    @staticmethod
    def result(item: Record, value: bytes, group: str = "g", hashed: bytes | None = None) -> Told:
        own = (*result_headers(item, group), ("x-result-hash", value_hash(value) if hashed is None else hashed))
        return Told("res", 100 + item.offset, value, own)

    @staticmethod
    def dead(item: Record, value: bytes | None = None, *more: tuple[str, bytes]) -> Told:
        headers = dead_headers(item, "g", DeadItemError(DeadReason.FAILED, "broke"), "run", 0)
        return Told("dlq", 100 + item.offset, item.value if value is None else value, (*headers, *more))

    def records(self, _: Asked, topic: str) -> Iterator[Told]:
        """In the place of the consumer."""
        if topic == "req":
            return iter([Told("req", each.offset, each.value, each.headers) for each in self.items])
        return iter(self.progress if topic == "prog" else [each for each in self.outcomes if each.topic() == topic])


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    found = Topics()
    monkeypatch.setattr(verifier, "_records", found.records)
    return found


def faults(found: Findings) -> list[tuple[int | None, str]]:
    return [(None if source is None else source[1], fault) for source, fault in found.faults]


def test_a_job_that_is_as_it_was_written_is_sound(topics: Topics) -> None:
    topics.outcomes.append(topics.result(topics.items[0], b"of another group", "h"))
    found = verify(ASKED)
    assert faults(found) == []
    assert (found.items, found.results, found.dead, found.open, found.sound) == (10, 8, 2, 0, True)


def test_a_result_that_is_gone_is_named(topics: Topics) -> None:
    del topics.outcomes[6]
    told = faults(verify(ASKED))
    assert (6, "no result and no dead letter") in told
    assert (None, "done: the topics hold 7, the receipt says 8") in told


def test_a_result_that_is_there_twice_is_named(topics: Topics) -> None:
    topics.outcomes.append(topics.outcomes[5])
    told = faults(verify(ASKED))
    assert (5, "2 outcomes") in told
    assert any(text.startswith("digest: the topics hold") for _, text in told)


def test_an_item_with_a_result_and_a_dead_letter_is_named(topics: Topics) -> None:
    topics.outcomes.append(topics.dead(topics.items[5]))
    assert (5, "2 outcomes") in faults(verify(ASKED))


def test_a_changed_result_is_named(topics: Topics) -> None:
    topics.outcomes[2] = topics.result(topics.items[2], b"changed", hashed=value_hash(b"result 2"))
    told = faults(verify(ASKED))
    assert [offset for offset, text in told if "hash" in text] == [2]
    assert any(text.startswith("digest: ") for _, text in told)


def test_who_changes_the_hash_too_is_found_by_the_digest(topics: Topics) -> None:
    topics.outcomes[2] = topics.result(topics.items[2], b"changed")
    [(offset, text)] = faults(verify(ASKED))
    assert offset is None
    assert text.startswith("digest: ")


def test_a_dead_letter_that_is_not_its_item_is_named(topics: Topics) -> None:
    topics.outcomes[4] = topics.dead(topics.items[4], b"item 5")
    assert (4, "the dead letter is not the item") in faults(verify(ASKED))


def test_a_dead_letter_that_was_cut_is_no_fault_of_its_own(topics: Topics) -> None:
    topics.outcomes[4] = topics.dead(topics.items[4], b"it", ("dlq.truncated", b"6"))
    assert [offset for offset, _ in faults(verify(ASKED))] == [None]  # the planted digest alone


def test_an_outcome_of_an_item_that_is_not_there_is_named(topics: Topics) -> None:
    topics.outcomes.append(topics.result(topics.item(77), b"x"))
    topics.outcomes.append(Told("res", 999, b"x", (*JOB, ("x-source-group", b"g"))))
    told = faults(verify(ASKED))
    assert (77, "an outcome, and no item of the job stands there") in told
    assert (None, "res/1/999 names no item") in told


def test_of_a_job_that_runs_only_what_is_there_is_judged(topics: Topics) -> None:
    topics.outcomes = topics.outcomes[:4]
    found = verify(ASKED, over=False)
    assert (faults(found), found.open) == ([], 6)


def test_without_a_progress_topic_there_is_no_receipt_to_compare(topics: Topics) -> None:
    del topics.outcomes[6]
    asked = Asked(**{name: getattr(ASKED, name) for name in Asked.__slots__} | {"progress": ""})
    assert faults(verify(asked)) == [(6, "no result and no dead letter")]


def test_a_receipt_of_an_older_sidecar_has_counts_alone(topics: Topics) -> None:
    last = topics.progress[1]
    value = json.loads(last.value())
    del value["digest"]
    topics.progress[1] = Told("prog", 1, json.dumps(value).encode(), key=last.key())
    topics.outcomes[2] = topics.result(topics.items[2], b"changed")
    assert faults(verify(ASKED)) == []
    del topics.outcomes[2]
    assert (None, "done: the topics hold 7, the receipt says 8") in faults(verify(ASKED))


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    tree = ast.parse(Path(verifier.__file__).read_text())
    modules = {
        name
        for node in ast.walk(tree)
        for name in (
            [each.name for each in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        )
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not any(str(name).startswith(("sidecar", "aiokafka")) for name in modules)


def test_the_digest_is_written_out_once_more() -> None:
    assert hashlib.blake2b(b"1/2/x", digest_size=16).digest() == outcome_digest(1, 2, b"x").to_bytes(16, "big")


class FakeConsumer:
    """Gives batches of messages, then nothing."""

    def __init__(self, *batches: list[Any]) -> None:
        self.batches = list(batches)

    def consume(self, count: int, timeout: float) -> list[Any]:
        assert (count, timeout) == (verifier.AT_ONCE, 0.1)
        return self.batches.pop(0) if self.batches else []


def message(partition: int, code: int | None = None, *, retriable: bool = False) -> Any:
    error = None if code is None else SimpleNamespace(code=lambda: code, retriable=lambda: retriable)
    return SimpleNamespace(error=lambda: error, partition=lambda: partition)


def test_each_partition_is_read_to_its_end() -> None:
    eof = -191
    consumer = FakeConsumer(
        [message(0), message(1, eof)], [message(0, -195, retriable=True), message(0), message(0, eof)]
    )
    assert len([*verifier._read(consumer, "res", {0, 1})]) == 2


def test_what_cannot_be_read_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifyError, match="res: "):
        [*verifier._read(FakeConsumer([message(0, 29)]), "res", {0})]
    monkeypatch.setattr(verifier, "TIMEOUT_S", -1.0)
    with pytest.raises(VerifyError, match=r"partitions \[0\] are not read"):
        [*verifier._read(FakeConsumer(), "res", {0})]


def test_json_of_others_is_no_receipt() -> None:
    assert verifier._json(b"torn") is None
    assert verifier._json(json.dumps([1]).encode()) == [1]
