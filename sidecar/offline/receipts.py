"""The sum over what became of a job's items: a result that is lost, doubled or changed afterwards changes it.

Each outcome has a digest: BLAKE2b over `partition/offset/` of its item and the bytes of its value. They are added
modulo 2^128, so the sum does not depend on their order and grows in the transaction that writes them. A checker that
shares no code with us adds them up from the topics (`sidecar verify`; docs/kafka.md has the formula).
"""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 16
MODULUS = 1 << (8 * DIGEST_BYTES)


def outcome_digest(partition: int, offset: int, value: bytes | None) -> int:
    """The digest of one result or dead letter."""
    text = b"%d/%d/" % (partition, offset) + (value or b"")
    return int.from_bytes(hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest(), "big")


def value_hash(value: bytes) -> bytes:
    """The header `x-result-hash`: of the value alone, so that a changed result is found by itself."""
    return hashlib.blake2b(value, digest_size=DIGEST_BYTES).hexdigest().encode()
