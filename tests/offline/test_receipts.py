"""The sum over what became of a job's items."""

from __future__ import annotations

import hashlib

from sidecar.offline.receipts import MODULUS, outcome_digest, value_hash


def test_the_digest_is_the_one_that_the_docs_give_a_formula_for() -> None:
    expected = hashlib.blake2b(b"3/41/{}", digest_size=16).hexdigest()
    assert f"{outcome_digest(3, 41, b'{}'):032x}" == expected


def test_no_value_is_as_an_empty_one() -> None:
    assert outcome_digest(0, 0, None) == outcome_digest(0, 0, b"")


def test_another_place_or_another_value_is_another_digest() -> None:
    found = {outcome_digest(*each) for each in [(0, 1, b"a"), (1, 0, b"a"), (0, 1, b"b"), (0, 11, b"a")]}
    assert len(found) == 4
    assert all(0 <= each < MODULUS for each in found)


def test_the_header_tells_of_the_value_alone() -> None:
    assert value_hash(b"{}") == hashlib.blake2b(b"{}", digest_size=16).hexdigest().encode()
