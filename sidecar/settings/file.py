"""The settings file: one YAML document, environment overrides, and every mistake named before anything starts.

An override is named by its path: `SIDECAR__SCHEDULER__WINDOW_MS=5`, `SIDECAR__ENGINES__0__TARGET=triton:8001`; its
value is read as YAML.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from sidecar.core.errors import SettingsError
from sidecar.core.settings import FORBID_UNKNOWN, EngineSettings, SchedulerSettings, require
from sidecar.settings.aliases import Rule, check_aliases
from sidecar.settings.keys import KeysSettings
from sidecar.settings.limits import LimitSettings
from sidecar.settings.offline import OfflineSettings
from sidecar.settings.openai import OpenAiSettings
from sidecar.settings.recorder import RecorderSettings
from sidecar.settings.tls import TlsSettings
from sidecar.settings.values import mistakes

_METADATA_NAME = re.compile(r"[0-9a-z_.-]+")  # gRPC's own rules, which it tells only when the call is made
_METADATA_VALUE = re.compile(r"[\x20-\x7e]+")
OVERRIDE_PREFIX = "SIDECAR__"
# An engine in service gives each stream a token per iteration, every some tens of ms, and a long prompt of somebody
# else in between takes seconds. A minute is a thousand iterations: longer than any stall after which one went on.
PROGRESS_TIMEOUT_S = 60.0
RENAMED = {"reservation_turns_max": "reserved_saved_max", "turn_tokens": "reserved_tokens"}  # old name → new name
PRICED = ("guard", "aimd", "slowdown_max", "prefill_adaptive", "yield_hold_ms")  # former names: the price decides now
_ABOUT_NAMES = ("unexpected_keyword_argument", "missing", "missing_argument", "missing_keyword_only_argument")
_ADDRESS = re.compile(r"([^\s:/\[\]@]+|\[[0-9a-fA-F:.%a-z]+\]):[0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEndpoint(EngineSettings):
    """One engine: what the scheduler has to know about it, and where it is."""

    target: str = "127.0.0.1:8001"  # host:port of Triton's gRPC; the default is Triton's own
    metrics_url: str | None = None  # Triton's metrics page; None = no gauges, the ledger alone
    text_model: str | None = "ensemble"  # text in, text out over this engine; None = only token ids
    usd_per_hour: float = 0.0  # rent of all its GPUs; 0 = unknown, and no cost is shown
    # What the sidecar sends with its own calls, e.g. the key of a restricted protocol: probes, stops, ModelConfig and
    # items. A caller's calls carry the caller's metadata instead. Out of the repr, so that no log shows a key.
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata_files: Mapping[str, Path] = field(default_factory=dict)  # the same, each value read from a file at start

    def __post_init__(self) -> None:
        EngineSettings.__post_init__(self)  # the slotted class is made anew, so a bare super() would miss it
        require(
            is_address(self.target) and port_of(self.target) > 0,
            f"engine {self.name}: target must be host:port of Triton's gRPC (usually port 8001), without http://,"
            f" not '{self.target}'",
        )
        require(
            self.metrics_url is None or re.match("https?://[^/]", self.metrics_url) is not None,
            f"engine {self.name}: metrics_url must be a URL such as http://triton:8002/metrics,"
            f" not '{self.metrics_url}'",
        )
        require(self.usd_per_hour >= 0, f"engine {self.name}: usd_per_hour must be >= 0, not {self.usd_per_hour}")
        twice = sorted(self.metadata.keys() & self.metadata_files.keys())
        require(not twice, f"engine {self.name}: in metadata and in metadata_files: {', '.join(twice)}")
        for name, value in self.own_metadata():
            where = f"engine {self.name}: metadata"
            named = _METADATA_NAME.fullmatch(name) is not None and not name.startswith("grpc-")
            require(
                named and not name.endswith("-bin"), f"{where}: '{name}' cannot be a name: use a-z, 0-9, _, - and ."
            )
            fits = _METADATA_VALUE.fullmatch(value) is not None
            require(fits, f"{where}: the value of {name} must be one line of printable ASCII")

    def own_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with the sidecar's own calls. Raises SettingsError for a file that cannot be read."""
        found = dict(self.metadata)
        for name, path in self.metadata_files.items():
            try:
                found[name] = path.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "not UTF-8"
                raise SettingsError(f"engine {self.name}: metadata_files: cannot read {path}: {reason}") from None
        return tuple(found.items())

    def for_scheduler(self) -> EngineSettings:
        """Return what the scheduler has to know, without where the engine is."""
        return EngineSettings(**{each.name: getattr(self, each.name) for each in fields(EngineSettings)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """Where spans go. Without an endpoint none are made."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    endpoint: str | None = None  # OTLP over gRPC, e.g. http://127.0.0.1:4317
    header_files: Mapping[str, Path] = field(default_factory=dict)  # sent with the spans, each value read at start
    online_ratio: float = 1.0  # of callers' requests without a trace of their own; tens per second cost 1 % of a core
    offline_ratio: float = 0.05  # of items; at a thousand per second all of them would cost a fifth of a core
    broker_ratio: float = 0.01  # of polls and commits: each is a trace of its own that says little

    def __post_init__(self) -> None:
        for name in ("online_ratio", "offline_ratio", "broker_ratio"):
            require(0 <= getattr(self, name) <= 1, f"tracing: {name} must be in 0..1, not {getattr(self, name)}")
        for name in self.header_files:
            require(_METADATA_NAME.fullmatch(name) is not None, f"tracing: '{name}' cannot be the name of a header")
        self.headers()

    def headers(self) -> dict[str, str]:
        """Return what is sent with the spans. Raises SettingsError for a file that cannot be read."""
        return {
            name: _read(path, "tracing: header_files").decode(errors="replace").strip()
            for name, path in self.header_files.items()
        }


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{what}: cannot read {path}: {error.strerror}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Everything that `sidecar serve` needs."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORBID_UNKNOWN

    engines: tuple[EngineEndpoint, ...]
    listen: str = "127.0.0.1:8101"  # host:port for callers
    http: str = "127.0.0.1:8102"  # host:port for metrics, health and status; loopback, because it asks for no password
    tokenizer: Path | None = None  # the model's tokenizer.json, or its directory; for items, and to count texts exactly
    end_ids: tuple[int, ...] = ()  # what ends an answer; () = as the files beside the tokenizer say
    aliases: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)  # see routing.py
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    offline: OfflineSettings | None = None  # None = no offline lane but for callers who ask for it
    tracing: TracingSettings = field(default_factory=TracingSettings)
    openai: OpenAiSettings | None = None  # None = the OpenAI API is not served
    limits: LimitSettings = field(default_factory=LimitSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    keys: KeysSettings | None = None  # None = whoever reaches the port may send requests, as any tenant
    recorder: RecorderSettings | None = None  # None = decisions are not recorded
    log_format: Literal["auto", "text", "json"] = "auto"  # for people on a terminal; JSON for a collector elsewhere
    stop_timeout_s: float = 2.0  # the engine confirms a stop within its call and two iterations
    progress_timeout_s: float = (
        PROGRESS_TIMEOUT_S  # a dispatch that gives no token for so long is given up; 0 = none is
    )
    drain_timeout_s: float = 20.0  # after SIGTERM; what runs longer is broken off (Kubernetes kills after 30 s)
    offline_drain_timeout_s: float = 5.0  # of these; an item that runs longer is left to the partition's next owner

    def __post_init__(self) -> None:
        require(bool(self.engines), "engines: at least one is needed")
        names = [engine.name for engine in self.engines]
        require(len(set(names)) == len(names), f"engines: each needs a name of its own: {names}")
        models = {engine.model for engine in self.engines}
        _check_models(self.engines, models)
        check_aliases(self.aliases, models, models | {engine.text_model or "" for engine in self.engines})
        require(self.stop_timeout_s > 0, f"stop_timeout_s must be > 0, not {self.stop_timeout_s}")
        require(self.progress_timeout_s >= 0, f"progress_timeout_s must be >= 0, not {self.progress_timeout_s}")
        require(
            0 <= self.offline_drain_timeout_s <= self.drain_timeout_s,
            f"offline_drain_timeout_s must be in 0..{self.drain_timeout_s}, not {self.offline_drain_timeout_s}",
        )
        require(self.offline is None or self.tokenizer is not None, "offline: items need a tokenizer")
        require(self.openai is None or self.tokenizer is not None, "openai: prompts need a tokenizer")
        if self.offline is not None:
            known = sorted(models | self.aliases.keys())
            fault = f"offline: no engine serves model_default {self.offline.model_default}; known: {known}"
            require(self.offline.model_default in known, fault)
        for name in ("listen", "http"):
            address = getattr(self, name)
            require(is_address(address), f"{name} must be host:port, without http://, not '{address}'")
        require(self.listen != self.http or not port_of(self.http), f"listen and http are the same: {self.http}")
        # Whether a directory holds a tokenizer is said where it is read, with what to do.
        found = self.tokenizer is None or self.tokenizer.exists()
        require(found, f"tokenizer: no such file: {self.tokenizer}")
        require(all(each >= 0 for each in self.end_ids), f"end_ids must be >= 0: {self.end_ids}")


def _check_models(engines: Sequence[EngineEndpoint], models: Collection[str]) -> None:
    """Raise SettingsError unless each text model leads to one model, and is none itself."""
    over: dict[str, str] = {}
    for engine in engines:
        require(bool(engine.name and engine.model), "engines: name and model must not be empty")
        if (text := engine.text_model) is None:
            continue
        where = f"engine {engine.name}: text_model"
        require(bool(text), f"{where} must not be empty; null = none")
        require(text not in models, f"{where} {text} is the model of an engine; it must be one over it, or null")
        first = over.setdefault(text, engine.model)
        fault = f"{where} {text} is over {engine.model} here and over {first} elsewhere; a name leads to one model"
        require(first == engine.model, fault)


def is_address(text: str) -> bool:
    """True for `host:port`; a host with colons stands in brackets."""
    return _ADDRESS.fullmatch(text) is not None and port_of(text) < 65_536


def is_loopback(address: str) -> bool:
    """True for the `host:port` that nobody else reaches."""
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def port_of(address: str) -> int:
    """The port of `host:port`."""
    return int(address.rpartition(":")[2])


class _OncePerKey(yaml.SafeLoader):
    """Plain YAML in which a key stands once: of two the first would be ignored without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """The mapping. Raises ConstructorError for a key that stands there twice."""
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The document in a file. Raises SettingsError, without a word of what the file holds."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_OncePerKey)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:  # without the line itself: a key may stand in it
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise SettingsError(f"{path} is not YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SettingsError(f"{path} is not YAML: it is nested too deeply") from None


def load_settings(path: Path, environment: Mapping[str, str]) -> ServeSettings:
    """The settings of `path`, overridden by `environment`. Raises SettingsError, one line per mistake."""
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise SettingsError(f"{path} must hold a mapping of settings")
    for name, value in sorted(environment.items()):
        if name.startswith(OVERRIDE_PREFIX):
            _override(document, name, value)
    try:
        settings = TypeAdapter(ServeSettings).validate_python(document)
    except ValidationError as error:
        raise SettingsError("\n".join(mistake(each) for each in error.errors())) from None
    if found := list(mistakes(document, settings)):
        raise SettingsError("\n".join(found))
    return settings


def _override(document: dict[str, Any], name: str, value: str) -> None:
    """The setting that `name` leads to has this value."""
    *parents, last = name.removeprefix(OVERRIDE_PREFIX).lower().split("__")
    at: Any = document
    try:
        for parent in parents:
            at = at[int(parent)] if isinstance(at, list) else at.setdefault(parent, {})
        # A password is taken as it is: as YAML `0123` would be a number, and another one.
        at[int(last) if isinstance(at, list) else last] = value if last == "password" else yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        raise SettingsError(f"{name} is not YAML") from None
    except (ValueError, IndexError, TypeError, AttributeError):
        raise SettingsError(f"{name} leads to no setting") from None


def mistake(error: Any) -> str:
    """One of pydantic's errors as a line that names the setting."""
    where = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    secret = {"metadata", "security", "key"} & set(error["loc"]) or isinstance(value, Mapping | list | tuple)
    if secret and error["type"] not in _ABOUT_NAMES:  # a key or a password may stand in it
        return f"{where}: {error['msg']}"
    match error["type"]:
        case "unexpected_keyword_argument":
            name = str(error["loc"][-1])
            hint = f"; its name is {RENAMED[name]} now" if name in RENAMED else ""
            if name in PRICED:
                hint = "; scheduler.ttft_added and scheduler.itl_added decide instead"
            return f"{where}: unknown setting{hint}"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            return f"{where}: missing"
        case _:
            return f"{where}: {error['msg']}, not {value!r}"
