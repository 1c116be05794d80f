"""One step of the scheduler: when its event came, what is to be done, and where more may be dispatched after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.core.events import Action
from sidecar.core.served_model import ServedModel


@dataclass(slots=True, eq=False)
class Step:
    """What the parts of one scheduler share while it handles an event."""

    now_s: float = 0.0
    actions: list[Action] = field(default_factory=list)  # in the order in which they are to be done
    changed: list[ServedModel] = field(default_factory=list)  # models in which more may be dispatched after the event

    def begin(self, now_s: float) -> None:
        """Another event came at `now_s`, and nothing is to be done yet."""
        self.now_s, self.actions = now_s, []
