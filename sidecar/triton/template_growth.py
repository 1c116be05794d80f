"""Bounds what a chat template makes in memory. Twelve doublings of a long text would fill any machine within its time.

Each operation that can make a text or a list longer states beforehand how long the outcome may be, and takes that from
the budget of its rendering. Loops without such operations are bounded by time alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import SecurityError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

COMPILED_MAX = 1 << 20  # characters that constants of a template may become when it is compiled
BYTES_EACH = 8  # of a list
WIDTH_MAX = 10_000  # of a field that a text is padded to
_WIDE = re.compile(r"\d{5}|[%:][^a-zA-Z}]*\*")  # a width in a format that is too large, or not written there
_left: ContextVar[int | None] = ContextVar("characters left", default=None)


def allow(characters: int) -> None:
    """Begin a rendering that may make so many characters."""
    _left.set(characters)


def spend(characters: int) -> None:
    """Take so many characters from the budget. Raises SecurityError if it has fewer."""
    left = _left.get()
    if left is None:  # Jinja computes constants when it compiles
        if characters > COMPILED_MAX:
            raise SecurityError("a constant of the template is too long")
        return
    if characters > left:
        raise SecurityError("the template makes more text than its prompt may have")
    _left.set(left - characters)


def joined(values: Iterable[Any]) -> str:
    """The values as one text, within the budget."""
    texts = [value if isinstance(value, str) else str(value) for value in values]
    spend(sum(map(len, texts)))
    return "".join(texts)


def spend_on_operator(operator: str, left: Any, right: Any) -> None:
    """Take what `left + right`, or the text `left % right`, makes; numbers make nothing."""
    spend(_most("format", [left, right]) if operator == "%" else _length(left) + _length(right))


def spend_on_call(function: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Take what a method of a text may make."""
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps `format`
    owner = getattr(function, "__self__", None)
    if isinstance(owner, str):
        spend(_most(function.__name__, [owner, *arguments, *named.values()]))


def bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `name` of Jinja, within the budget."""

    @wraps(filter_)  # keeps what Jinja notes about its first argument
    def within_budget(*arguments: Any, **named: Any) -> Any:
        given = [each for each in arguments if not isinstance(each, Environment | Context | EvalContext)]
        spend(_most("filter " + name if name == "join" else name, [*given, *named.values()]))
        found = filter_(*arguments, **named)
        spend(len(found) if isinstance(found, str) else 0)
        return found

    return within_budget


def _most(method: str, given: Sequence[Any]) -> int:
    """How long the outcome of a text's method or of a filter is at most, by what it is `given`, the text first."""
    text = given[0] if given else ""
    numbers = [each for each in given[1:] if isinstance(each, int | float)]
    longest = max((_length(each) for each in given[1:]), default=0)
    if method == "replace":
        old = given[1] if len(given) > 1 else ""
        return (str(text).count(str(old)) + 1) * (longest + 1) + _length(text)
    if method == "join" and len(given) > 1:
        values = given[1] if isinstance(given[1], list | tuple | str) else ()
        return sum(_length(each) + _length(text) for each in values)
    if method == "filter join":
        values = text if isinstance(text, list | tuple | str) else ()
        return sum(_length(each) + longest for each in values)
    if any(abs(each) > WIDTH_MAX for each in numbers):
        raise SecurityError(f"a template may pad to {WIDTH_MAX} characters at most")
    if method in ("format", "format_map"):
        if _WIDE.search(str(text)):
            raise SecurityError(f"a template may pad to {WIDTH_MAX} characters at most")
        fields = sum(str(text).count(each) for each in "{%")
        return _length(text) + fields * (longest + WIDTH_MAX)
    if method in ("indent", "expandtabs", "tojson"):
        lines = 1 + sum(str(text).count(each) for each in "\n\t")
        return _length(text) + lines * int(max(map(abs, numbers), default=8))
    return WIDTH_MAX if method in ("center", "ljust", "rjust", "zfill") else 0


def _length(value: Any) -> int:
    if isinstance(value, list | tuple | dict):
        return BYTES_EACH * len(value)
    return len(value) if isinstance(value, str) else 0
