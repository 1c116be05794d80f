"""What the files beside a model's tokenizer.json say: the ids that end an answer, and how a chat is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.core.errors import SettingsError

GENERATION, CONFIG, TEMPLATE = "generation_config.json", "tokenizer_config.json", "chat_template.jinja"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of one model directory, read. Nothing here knows the vocabulary."""

    end_ids: tuple[int, ...]  # of generation_config.json; () = it states none
    special: dict[str, str]  # bos_token, eos_token and the like, as tokenizer_config.json names them
    template: str | None  # the chat template, as Jinja; None = the model has none


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that `path` names: itself, or the one in the directory."""
    return path / "tokenizer.json" if path.is_dir() else path


def read_model_files(directory: Path) -> ModelFiles:
    """Read what is there. Raises SettingsError for a file that is not what its name says."""
    config = _json(directory / CONFIG)
    ids = _json(directory / GENERATION).get("eos_token_id")
    ids = [ids] if isinstance(ids, int) else ids or []
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise SettingsError(f"{directory / GENERATION}: eos_token_id must be an id, or a list of ids")
    special = {name: text for name, each in config.items() if name.endswith("_token") and (text := _token(each))}
    return ModelFiles(end_ids=tuple(dict.fromkeys(ids)), special=special, template=_template(directory, config))


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    """The template's own file wins over tokenizer_config.json, as in transformers; of named ones `default` is meant."""
    file = directory / TEMPLATE
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read {file}: {error}") from None
    found = config.get("chat_template") or None
    if isinstance(found, list):
        objects = [each for each in found if isinstance(each, dict) and isinstance(each.get("name"), str | None)]
        named = {each.get("name"): each.get("template") for each in objects}
        found = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
        if not isinstance(found, str):
            raise SettingsError(f"{directory / CONFIG}: chat_template names no `default` among several")
    if not isinstance(found, str | None):
        raise SettingsError(f"{directory / CONFIG}: chat_template must be text, or a list of named texts")
    return found or None


def _token(stated: Any) -> str | None:
    text = stated.get("content") if isinstance(stated, dict) else stated
    return text if isinstance(text, str) else None


def _json(file: Path) -> dict[str, Any]:
    """The object in `file`; {} if there is no such file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SettingsError(f"{file} is no JSON") from None
    if not isinstance(found, dict):
        raise SettingsError(f"{file} must hold a JSON object")
    return found
