"""Changes in the text of a model's config.pbtxt, which keep its comments: a file that is served is a file that is read.

Our templates state each parameter on lines of its own; `tests/cli/test_fill.py` parses what comes out with Triton's
own protobuf.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sidecar.core.errors import SettingsError

_PARAMETER = r'key:\s*"{key}"\s*,?\s*value:?\s*\{{\s*string_value:\s*'


def with_parameters(config: str, parameters: Mapping[str, str | None]) -> str:
    """Return the config with these values of parameters that it already names; one whose value is None is left out.

    Raises SettingsError for a parameter that it does not name.
    """
    for key, value in parameters.items():
        begin = _PARAMETER.format(key=re.escape(key))
        if value is None:
            config, found = re.subn(rf'^parameters:?\s*\{{\s*{begin}"[^"]*".*\n', "", config, flags=re.MULTILINE)
        else:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            config, found = re.subn(rf'({begin})"[^"]*"', lambda match, to=escaped: f'{match[1]}"{to}"', config)  # type: ignore[misc]
        if not found:
            raise SettingsError(f"the model has no parameter {key!r}")
    return config


def with_batch_size(config: str, sequences: int) -> str:
    """Return the config of a model that takes `sequences` at a time. Raises SettingsError if it has no such line."""
    config, found = re.subn(r"^max_batch_size:\s*\d+", f"max_batch_size: {sequences}", config, flags=re.MULTILINE)
    if not found:
        raise SettingsError("the model's config.pbtxt has no line max_batch_size")
    return re.sub(r"preferred_batch_size: \[ \d+ \]", f"preferred_batch_size: [ {sequences} ]", config)


def with_instances(config: str, count: int) -> str:
    """Return the config of a model that runs as `count` processes."""
    return re.sub(r"(instance_group \[ \{ count: )\d+", rf"\g<1>{count}", config)


def unfilled(config: str) -> list[str]:
    """Return the placeholders that are left."""
    return re.findall(r"\$\{[^}]*\}?", config)
