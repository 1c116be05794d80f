"""Which offsets of one partition are done, and how that is written beside the committed offset. Pure.

Items finish out of order, a committed offset is one number. So what is committed is the watermark (the lowest offset
that is not committed) and, in the metadata string that Kafka keeps beside it, the gaps: the offsets between the
watermark and the highest done one that are not done. Nothing is stored elsewhere, and one slow item holds nobody back.

The metadata string is "T1." + unpadded base64url of
    flags byte | restarts, suspect − watermark + 1 (if flag 1) | high − watermark | distance to each gap
all but the first as varints; the first gap counts from the watermark, each further one from the gap before. "" means
no gaps: that is what `kafka-consumer-groups --reset-offsets` writes, and so it is the documented way to replay.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from sidecar.core.errors import SidecarError

PREFIX = "T1."
HAS_RESTARTS = 1  # a bit of the first byte
BY_HAND = 2  # likewise: see `Committed.by_hand`


class OffsetsError(SidecarError):
    """The committed metadata is not ours, or damaged: an operator has to decide (`sidecar offsets`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What is committed: everything below `watermark`, and of [watermark, high) everything but `gaps`."""

    watermark: int
    high: int
    gaps: tuple[int, ...] = ()  # ascending; the first is the watermark itself, unless high == watermark
    restarts: int = 0  # unclean ends of an owner since the watermark last moved
    suspect: int | None = None  # the offset that ran alone when that was committed
    by_hand: bool = False  # a person set the watermark, and no outcome was committed since: what is done may run again

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.gaps, self.gaps[1:], strict=False))
        inside = not self.gaps or (self.gaps[0] == self.watermark and self.gaps[-1] < self.high)
        if not (
            0 <= self.watermark <= self.high
            and ascending
            and inside
            and bool(self.gaps) == (self.high > self.watermark)
        ):
            raise ValueError(f"gaps must ascend from the watermark and stay below high: {self}")

    def is_done(self, offset: int) -> bool:
        """True if the result (or dead letter) of `offset` is committed."""
        if offset >= self.high or offset < self.watermark:
            return offset < self.watermark
        at = bisect_left(self.gaps, offset)
        return at == len(self.gaps) or self.gaps[at] != offset

    def with_done(self, offsets: Collection[int]) -> Committed:
        """Return this with the items of these offsets done as well."""
        high = max(self.high, *(offset + 1 for offset in offsets))
        undone = [each for each in range(self.watermark, high) if not self.is_done(each) and each not in offsets]
        return Committed(watermark=undone[0] if undone else high, high=high, gaps=tuple(undone))

    def encode(self) -> str:
        """The metadata string; `decode(watermark, encode())` gives this back.

        Empty only where a person set the offset: Kafka's own tools write none.
        """
        if self.by_hand and self.high == self.watermark and not self.restarts and self.suspect is None:
            return ""
        restarts = [self.restarts, 0 if self.suspect is None else self.suspect - self.watermark + 1]
        tracked = self.restarts > 0 or self.suspect is not None
        gaps = [gap - before for before, gap in zip((self.watermark, *self.gaps), self.gaps, strict=False)]
        fields = [*(restarts if tracked else []), self.high - self.watermark, *gaps]
        packed = bytes([HAS_RESTARTS * tracked | BY_HAND * self.by_hand]) + b"".join(map(_varint, fields))
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def decode(cls, watermark: int, metadata: str | None) -> Committed:
        """Return what was committed with this offset and metadata. Raises OffsetsError if the string is not ours."""
        if not metadata:
            return cls(watermark=watermark, high=watermark, by_hand=True)
        try:
            if not metadata.startswith(PREFIX):
                raise ValueError("unknown prefix")
            packed = base64.b64decode(
                metadata[len(PREFIX) :] + "=" * (-len(metadata[len(PREFIX) :]) % 4), b"-_", validate=True
            )
            return cls._from_fields(watermark, packed[0], list(_varints(packed[1:])))
        except (ValueError, IndexError, binascii.Error) as error:
            raise OffsetsError(
                f"the metadata committed at offset {watermark} is not this project's ({error}): {metadata[:40]!r}; "
                f"another program commits to this group, or reset it with `sidecar offsets reset`"
            ) from error

    @classmethod
    def _from_fields(cls, watermark: int, flags: int, fields: list[int]) -> Committed:
        if flags & ~(HAS_RESTARTS | BY_HAND):
            raise ValueError(f"unknown flags {flags}")
        restarts, suspect = (fields.pop(0), fields.pop(0)) if flags & HAS_RESTARTS else (0, 0)
        high = watermark + fields.pop(0)
        gaps, at = [], watermark
        for gap in fields:
            at += gap
            gaps.append(at)
        return cls(
            watermark=watermark,
            high=high,
            gaps=tuple(gaps),
            restarts=restarts,
            suspect=watermark + suspect - 1 if suspect else None,
            by_hand=bool(flags & BY_HAND),
        )


@dataclass(slots=True)
class PartitionOffsets:
    """The offsets of one partition while we own it: what is committed, what was delivered, what is still to be done.

    Begins anew (`Progress(committed)`) with each opening: only what was delivered since then may be committed.
    """

    committed: Committed
    expected: int = field(init=False)  # everything below was delivered since the opening, or skipped by the broker
    pending: set[int] = field(init=False, default_factory=set)  # delivered and not committed

    def __post_init__(self) -> None:
        self.expected = self.committed.watermark

    def deliver(self, offset: int) -> bool:
        """Note a delivered record; True if it has to be done, False if it was done or delivered before.

        Offsets the broker passed over (control records, aborted or compacted ones) will never come: they count as done.
        """
        if offset < self.expected:
            return False
        self.expected = offset + 1
        if self.committed.is_done(offset):
            return False
        self.pending.add(offset)
        return True

    def skip_to(self, position: int) -> None:
        """Everything below the consumer's position was delivered or will never come."""
        self.expected = max(self.expected, position)

    def after(self, finished: Iterable[int]) -> Committed:
        """Return what would be committed once these delivered offsets were done as well. Changes nothing."""
        done = self.pending.intersection(finished)
        ahead = (gap for gap in self.committed.gaps if gap >= self.expected)
        undone = sorted((*(self.pending - done), *ahead))
        high = max((self.committed.high, *(offset + 1 for offset in done)))
        watermark = undone[0] if undone else max(self.expected, high)
        high = max(high, watermark)
        moved = watermark > self.committed.watermark
        return Committed(
            watermark=watermark,
            high=high,
            gaps=tuple(offset for offset in undone if offset < high),
            restarts=0 if moved else self.committed.restarts,
            suspect=None if moved else self.committed.suspect,
            by_hand=self.committed.by_hand and not done,
        )

    def install(self, committed: Committed) -> None:
        """This is committed now."""
        self.committed = committed
        self.pending = {offset for offset in self.pending if not committed.is_done(offset)}

    def room(self, pending_max: int, span_max: int) -> int:
        """Return how many more records may be taken: bounds memory, and the gaps by which the metadata grow."""
        ahead = sum(gap >= self.expected for gap in self.committed.gaps)
        return min(pending_max - len(self.pending) - ahead, span_max - (self.expected - self.committed.watermark))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varints(packed: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in packed:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
    if shift:
        raise ValueError("cut in the middle of a number")
