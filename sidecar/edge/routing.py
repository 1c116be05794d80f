"""A model alias: one name for callers and producers, and rules that say which model serves each request.

    aliases:
      chat:
        - {model: llama_8b, prompt_tokens_max: 2048, max_tokens_max: 256}   # short ones, for the small model
        - {model: llama_8b, tenants: [labels]}
        - {model: llama_70b}                                                # all others

The first rule that holds decides, once, when the request arrives: it never moves to another model later. Each model has
its engines, slots, queues and turns of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sidecar.core.settings import FORBID_UNKNOWN, require
from sidecar.edge.booking import Lengths, ScheduledModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A model, and what a request must be to go there. What is not set holds for every request."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    model: str  # an engine's
    prompt_tokens_max: int | None = None
    max_tokens_max: int | None = None
    tenants: tuple[str, ...] = ()
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
            and all(header(name) == value for name, value in self.headers.items())
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


class Models:
    """The models whose requests are scheduled, by every name that callers may use."""

    def __init__(self, models: Iterable[ScheduledModel], aliases: Aliases) -> None:
        self._models = {model.name: model for model in models}
        self._texts = {model.engine_model: model for model in self._models.values() if model.takes_text}
        self._aliases = aliases

    def __contains__(self, name: str) -> bool:
        return name in self._models or name in self._aliases

    def probable(self, request: Any) -> ScheduledModel:
        """The model of that name; for an alias the one of its last rule. All models of an alias have the same tensors,
        so lengths and tensors may be read with it. A text goes to the text model over the engine's."""
        if (model := self._models.get(request.model_name)) is not None:
            return model
        return self._over(self._aliases[request.model_name][-1].model, request)

    def final(
        self, request: Any, probable: ScheduledModel, lengths: Lengths, tenant: str, header: Callable[[str], str | None]
    ) -> ScheduledModel:
        """The model that serves `request`, which names it from here on."""
        rules = self._aliases.get(request.model_name)
        if rules is None:
            return probable
        name = routed(rules, lengths.prompt_tokens, lengths.output_tokens_max, tenant, header)
        model = self._over(name, request)
        request.model_name = model.name
        return model

    def engine_models(self, name: str) -> list[str]:
        """The engines' models that may run requests of that name."""
        if name in self._aliases:
            return [rule.model for rule in self._aliases[name]]
        return [self._models[name].engine_model]

    def named(self, name: str) -> str:
        """Whose metadata, configuration and state are told under `name`: an alias' last model's, text before ids."""
        if name not in self._aliases:
            return name
        engine_model = self._aliases[name][-1].model
        return self._texts.get(engine_model, self._models[engine_model]).name

    def _over(self, engine_model: str, request: Any) -> ScheduledModel:
        takes_text = any(tensor.name == "text_input" for tensor in request.inputs)
        text_model = self._texts.get(engine_model) if takes_text else None
        return text_model or self._models[engine_model]
