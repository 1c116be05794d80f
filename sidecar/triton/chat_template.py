"""Messages become the text that the model was trained on, by its own template, and stay text themselves.

A user who writes `<|im_end|>` must not end the turn. So the messages are rendered twice. First with plain words in the
place of the contents: that shows which markers the template itself writes, and that each content comes out once. Then
with the contents, in which the first character of each marker is replaced by a private one. The markers found then are
the template's; they must be the same ones in the same order. `ChatEncoder` gives them their ids and the rest is text.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from sidecar.core.errors import SidecarError
from sidecar.triton import template_growth

RENDER_S = 2.0  # of one rendering; a template that asks for more is at fault
PRIVATE = range(0xE000, 0xF8FF)  # characters that mean nothing, so that texts hardly hold them
PROBE = "probe"
PRODUCT_MAX = 1e9
GROWTH_MAX, GROWTH_LEAST = 16, 1 << 20  # times the longest prompt, and characters, that one rendering may make
_TIMED = "while there is time"  # a filter that no template can name
_JOINED = "joined within the budget"  # another one
_UNTIL: ContextVar[float] = ContextVar("until")
Messages = Sequence[tuple[str, str]]  # role and content


class ChatTemplateError(SidecarError):
    """The template does not take these messages, or the model has none. The text holds no content."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text between the template's own markers: text, marker, text, …, text."""

    parts: tuple[str, ...]
    plain: bool  # no content holds a marker: the joined parts may be encoded as they are

    @property
    def markers(self) -> tuple[str, ...]:
        """The template's own, in their order."""
        return self.parts[1::2]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)


class ChatTemplate:
    """One compiled template with the markers of its tokenizer. Raises ChatTemplateError if it is none."""

    def __init__(self, source: str, special: Mapping[str, str], added: Mapping[str, bool]) -> None:
        """`added`: the tokenizer's added tokens, and whether each is special, or an end id."""
        try:
            environment = _environment()
            self._template = environment.from_string(_timed(environment.parse(source)))
        except (TemplateError, RecursionError, ValueError) as error:
            raise ChatTemplateError(f"the chat template does not compile: {type(error).__name__}") from None
        self._special = dict(special)
        self._renames = "developer" not in source  # to the models it is the system's role under a newer name
        self._as_parts = False
        self.markers = frozenset(name for name, control in added.items() if control and name)
        plain = self._shape([("user", PROBE)])
        # What a plain prompt is made of counts as a marker, whatever the tokenizer calls it.
        self.markers |= {name for name in added if name and name.strip() and name in plain}
        self._any = _alternatives(self.markers)
        self._overlapping = re.compile(f"(?=({self._any.pattern}))") if self.markers else None

    def render(self, messages: Messages, characters_max: int) -> Rendered:
        """The prompt up to where the assistant speaks. Raises ChatTemplateError."""
        if self._renames:
            messages = [("system" if role == "developer" else role, content) for role, content in messages]
        expected = self._markers_in(self._shape(messages, characters_max))
        given, back = self._hidden(messages)
        try:
            text = self._run(given, characters_max)
        except ChatTemplateError:  # its text may hold what the template was given
            raise ChatTemplateError("the chat template fails at these contents") from None
        pieces = self._any.split(text) if self.markers else [text]
        if self._markers_in(text) != expected:
            raise ChatTemplateError("the chat template writes other markers for these contents than for plain words")
        return Rendered(tuple(piece.translate(back) for piece in pieces), plain=not back)

    def _markers_in(self, text: str) -> list[str]:
        return self._any.findall(text) if self.markers else []

    def _shape(self, messages: Messages, characters_max: int = 1 << 20) -> str:
        """The prompt with a word in place of each content. Raises ChatTemplateError unless each comes out once."""
        mark = f"q{secrets.token_hex(6)}q"
        plain = [(role, f"{mark}{at}z" if content.strip() else "") for at, (role, content) in enumerate(messages)]
        longest = characters_max + 32 * len(plain)
        wanted = sorted(each for _, each in plain if each)
        found = re.compile(f"{mark}\\d+z")
        for as_parts in (self._as_parts, not self._as_parts):  # templates of models that see want a list of parts
            text = self._run(plain, longest, as_parts=as_parts)
            shown = sorted(found.findall(text))
            if shown == wanted:
                self._as_parts = as_parts
                return found.sub("", text)
        lost = next((at for at, (_, each) in enumerate(plain) if each and shown.count(each) != 1), 0)
        raise ChatTemplateError(
            f"the chat template does not show messages[{lost}] (role {messages[lost][0]}) exactly once"
        )

    def _hidden(self, messages: Messages) -> tuple[Messages, dict[int, str]]:
        """The messages without any marker in a content, and the characters to put back."""
        starts = {content[at.start()] for _, content in messages for at in self._found(content)}
        if not starts:
            return messages, {}
        used = set().union(*(content for _, content in messages))
        free = [number for number in PRIVATE if chr(number) not in used][: len(starts)]
        if len(free) < len(starts):
            raise ChatTemplateError("the contents hold every private character and markers of the model")
        back = dict(zip(free, sorted(starts), strict=True))
        away = {first: chr(number) for number, first in back.items()}
        return [(role, self._without(content, away)) for role, content in messages], back

    def _found(self, content: str) -> Iterable[re.Match[str]]:
        return self._overlapping.finditer(content) if self._overlapping else ()

    def _without(self, content: str, away: Mapping[str, str]) -> str:
        letters = list(content)
        for each in self._found(content):
            letters[each.start()] = away[letters[each.start()]]
        return "".join(letters)

    def _run(self, messages: Messages, characters_max: int, *, as_parts: bool | None = None) -> str:
        as_parts = self._as_parts if as_parts is None else as_parts
        given = [{"role": role, "content": [{"type": "text", "text": text}] if as_parts else text}
                 for role, text in messages]  # fmt: skip
        return _bounded(self._template, {**self._special, "messages": given}, characters_max)


def _bounded(template: Template, variables: Mapping[str, Any], characters_max: int) -> str:
    """The rendered text. Raises ChatTemplateError if that takes too long, or becomes too long."""
    pieces: list[str] = []
    size, until = 0, time.monotonic() + RENDER_S
    _UNTIL.set(until)
    template_growth.allow(GROWTH_MAX * characters_max + GROWTH_LEAST)
    try:
        for piece in template.generate(**variables, tools=None, documents=None, add_generation_prompt=True):
            size += len(piece)
            if size > characters_max:
                raise ChatTemplateError(f"the chat template writes more than {characters_max} characters")
            _check_time()
            pieces.append(piece)
    except ChatTemplateError:
        raise
    except SecurityError:
        raise ChatTemplateError("the chat template does what its sandbox forbids") from None
    except TemplateError as error:  # also what it raises itself, to say what it does not take
        raise ChatTemplateError(f"the chat template refuses these messages: {str(error)[:200]}") from None
    except Exception as error:
        raise ChatTemplateError(f"the chat template fails: {type(error).__name__}") from None
    return "".join(pieces)


def _check_time() -> None:
    if time.monotonic() > _UNTIL.get():
        raise ChatTemplateError(f"the chat template takes more than {RENDER_S:g} s")


def _timed(tree: nodes.Template) -> nodes.Template:
    """Make each loop end once the time is over, and each `~` cost what it makes: Jinja asks nobody about either."""
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, _TIMED, [], [], None, None, lineno=loop.lineno)
    bounded: nodes.Template = _Joins().visit(tree)
    return bounded


class _Joins(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 (Jinja looks for this name)
        """`a ~ b` becomes a filter over [a, b]."""
        values = nodes.List([self.visit(each) for each in node.nodes], lineno=node.lineno)
        return nodes.Filter(values, _JOINED, [], [], None, None, lineno=node.lineno)


def _while_there_is_time(values: Iterable[Any]) -> Iterator[Any]:
    for each in values:
        _check_time()
        yield each


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up. Each look-up, call, product and round ends once the time is over."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))
    concat = staticmethod(template_growth.joined)  # blocks that are set, and macros

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return the attribute, while there is time."""
        _check_time()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return the item, while there is time."""
        _check_time()
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, *args: Any, **named: Any) -> Any:
        """Call, while there is time, and within the budget of text."""
        _check_time()
        template_growth.spend_on_call(obj, args, named)
        return super().call(context, obj, *args, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers alone are multiplied: a text times a number needs any amount of memory. A sum costs its length."""
        _check_time()
        if operator == "+" or (isinstance(left, str) and operator == "%"):
            template_growth.spend_on_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)
        numbers = all(isinstance(each, int | float) and abs(each) < PRODUCT_MAX for each in (left, right))
        if not numbers or (operator == "**" and abs(right) > 16):
            raise SecurityError(f"{operator} is for small numbers")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` marks what training counts; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 (as the base class has it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Environment:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.filters |= {name: template_growth.bounded(name, each) for name, each in environment.filters.items()}
    environment.filters |= {_TIMED: _while_there_is_time, _JOINED: template_growth.joined}
    del environment.globals["lipsum"]  # text in any amount
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter writes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _alternatives(markers: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest marker where several begin, as `tokenizers` does."""
    return re.compile("(" + "|".join(re.escape(each) for each in sorted(markers, key=len, reverse=True)) + ")")
