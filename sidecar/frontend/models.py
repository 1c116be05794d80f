"""The models that callers may ask for: each has its engine, and an alias leads to one of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sidecar.frontend.caller_request import Lengths, ScheduledModel
from sidecar.settings.aliases import Aliases, routed
from sidecar.settings.file import EngineEndpoint
from sidecar.triton.tokenizer import Tokens


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


def serving(engines: Sequence[EngineEndpoint]) -> dict[str, list[str]]:
    """The engines that serve each model, by its name."""
    names: dict[str, list[str]] = {}
    for engine in engines:
        for model in filter(None, (engine.model, engine.text_model)):
            names.setdefault(model, []).append(engine.name)
    return names


def scheduled_models(engines: Sequence[EngineEndpoint], tokens: Tokens | None) -> list[ScheduledModel]:
    """The models whose requests are granted slots: the engines' own, and the text models over them."""
    tokens_max: dict[tuple[str, str], int] = {}
    for engine in engines:
        for name in (engine.model, engine.text_model):
            if name is not None:
                key = (name, engine.model)
                tokens_max[key] = max(tokens_max.get(key, 0), engine.tokens_max)
    return [
        ScheduledModel(name=name, engine_model=model, tokens_max=most, tokens=tokens)
        for (name, model), most in sorted(tokens_max.items())
    ]
