"""A model alias: one name for callers and producers, and rules that say which model serves each request.

    aliases:
      chat:
        - {model: llama_8b, prompt_tokens_max: 2048, max_tokens_max: 256}   # short ones, for the small model
        - {model: llama_8b, tenants: [labels]}
        - {model: llama_70b}                                                # all others

The first rule that holds decides, once, when the request arrives: it never moves to another model later. Each model has
its engines, slots, queues and reserved dispatches of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A model, and what a request must be to go there. What is not set holds for every request."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    model: str  # an engine's
    prompt_tokens_max: int | None = None  # for prompts up to this length; None = of any
    max_tokens_max: int | None = None  # for outputs bounded by this; None = by any bound
    tenants: tuple[str, ...] = ()  # of these alone; () = of all
    headers: Mapping[str, str] = field(default_factory=dict)  # request parameter, gRPC metadata or record header

    def __post_init__(self) -> None:
        for name in ("prompt_tokens_max", "max_tokens_max"):
            bound = getattr(self, name)
            require(bound is None or bound >= 1, f"aliases: {name} must be >= 1, not {bound}")

    @property
    def holds_for_all(self) -> bool:
        """True if nothing is set but the model."""
        return self == Rule(model=self.model)

    def holds(self, prompt_tokens: int, max_tokens: int, tenant: str, header: Callable[[str], str | None]) -> bool:
        """True if such a request goes to this model."""
        return (
            (self.prompt_tokens_max is None or prompt_tokens <= self.prompt_tokens_max)
            and (self.max_tokens_max is None or max_tokens <= self.max_tokens_max)
            and (not self.tenants or tenant in self.tenants)
            # Names of gRPC metadata are in lower case, however the rule writes them.
            and all(value in (header(name), header(name.lower())) for name, value in self.headers.items())
        )


Aliases = Mapping[str, Sequence[Rule]]


def check_aliases(aliases: Aliases, models: Iterable[str], names: Iterable[str]) -> None:
    """Raise SettingsError unless each alias leads every request to one of `models`, under a name not among `names`."""
    known, taken = set(models), set(names)
    for alias, rules in aliases.items():
        require(alias not in taken, f"aliases: {alias} is the name of a model")
        for_all = bool(rules) and rules[-1].holds_for_all
        require(for_all, f"aliases: the last rule of {alias} must set nothing but model")
        for rule in rules:
            require(rule.model in known, f"aliases: {alias}: no engine serves {rule.model}; known: {sorted(known)}")


def routed(
    rules: Sequence[Rule], prompt_tokens: int, max_tokens: int, tenant: str, header: Callable[[str], str | None]
) -> str:
    """The engine's model that the first rule which holds names."""
    return next(rule.model for rule in rules if rule.holds(prompt_tokens, max_tokens, tenant, header))
