"""What each tenant was served and has waiting, under a bounded number of labels.

The tenants served most have a label, the others share one. A tenant that rises counts under its own name from then on,
and one that falls leaves its tokens behind, so that no counter ever goes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sidecar.core.snapshot import OTHERS, LaneSnapshot, Snapshot, TenantSnapshot
from sidecar.telemetry.metric_row import Labelled
from sidecar.telemetry.metric_table import tenant_label

Tokens = tuple[int, int]  # input, output


@dataclass(slots=True)
class _Labels:
    """Who has a label in one lane of one model."""

    before: dict[str, Tokens] = field(default_factory=dict)  # per label: served before it was given
    shown: dict[str, Tokens] = field(default_factory=dict)  # per label: as last exported
    left: Tokens = (0, 0)  # exported by labels that are gone

    def show(self, rows: Iterable[TenantSnapshot], hidden: Tokens) -> dict[str, Tokens]:
        """The counters of each label and of all others, given the tenants served most and what others were served."""
        served = {row.tenant: (row.input_tokens, row.output_tokens) for row in rows}
        for gone in self.before.keys() - served.keys():
            self.left = _plus(self.left, self.shown.pop(gone))
            del self.before[gone]
        for tenant, tokens in served.items():
            if tenant not in self.before:  # with nobody hidden it cannot have been among the others
                self.before[tenant] = tokens if any(hidden) else (0, 0)
            self.shown[tenant] = _minus(tokens, self.before[tenant])
        total = hidden
        for tokens in served.values():
            total = _plus(total, tokens)
        rest = _minus(total, self.left)
        for tokens in self.shown.values():
            rest = _minus(rest, tokens)
        return {**self.shown, OTHERS: rest}


class TenantMetrics:
    """The tokens per tenant; keeps who has a label from scrape to scrape."""

    def __init__(self) -> None:
        self._labels: dict[tuple[str, str], _Labels] = {}

    def tokens(self, snapshot: Snapshot) -> list[Labelled]:
        """Return the tokens served, by model, lane, tenant and kind of token."""
        return [
            ((lane.model, lane.lane, tenant_label(tenant), kind), count)
            for lane in snapshot.lanes
            for tenant, served in self._counters(lane).items()
            for kind, count in zip(("input", "output"), served, strict=True)
        ]

    def _counters(self, lane: LaneSnapshot) -> dict[str, Tokens]:
        known = self._labels.setdefault((lane.model, lane.lane), _Labels())
        *named, others = lane.tenants
        return known.show(named, (others.input_tokens, others.output_tokens))


def _plus(one: Tokens, other: Tokens) -> Tokens:
    return one[0] + other[0], one[1] + other[1]


def _minus(one: Tokens, other: Tokens) -> Tokens:
    return one[0] - other[0], one[1] - other[1]
