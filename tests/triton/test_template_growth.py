"""A chat template makes no more text than a few times the longest prompt, in whichever way it tries."""

from __future__ import annotations

import tracemalloc

import pytest

from sidecar.triton.chat_template import ChatTemplate, ChatTemplateError

SIMPLE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
GROW = "{% set n = namespace(x='abcdefgh', l=['abcdefgh']) %}{% for i in range(40) %}BODY{% endfor %}"


@pytest.mark.parametrize(
    "body",
    [
        "{% set n.x = n.x ~ n.x %}",
        "{% set n.x = n.x + n.x %}",
        "{% set n.l = n.l + n.l %}",
        "{% set n.x = [n.x, n.x]|join %}",
        "{% set n.x = ''.join([n.x, n.x]) %}",
        "{% set n.x = n.x.replace('a', 'aa' + n.x) %}",
        "{% set n.x = n.x|replace('a', n.x) %}",
        "{% set n.x = '{0}{0}'.format(n.x) %}",
        "{% set n.x = '%s%s'|format(n.x, n.x) %}",
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
        "{% macro m() %}{{ n.x }}{{ n.x }}{% endmacro %}{% set n.x = m() %}",
        "{% set n.l = n.l + [n.x] %}{% set n.x = n.x ~ n.l|join %}",
        "{% set n.x = n.x.center(1000000000) %}",
        "{% set n.x = n.x|center(1000000000) %}",
        "{% set n.x = '{:1000000000}'.format(n.x) %}",
        "{% set n.x = '{:{}}'.format(n.x, 1000000000) %}",
        "{% set n.x = '%1000000000s'|format(n.x) %}",
        "{% set n.x = '%*s'|format(1000000000, n.x) %}",
        "{% set n.x = '%1000000000s' % n.x %}",
        "{% set n.x = (n.x ~ '\n')|indent(1000000000, true) %}",
        "{% set n.x = messages|tojson(indent=1000000000) %}",
        "{% set n.x = lipsum(n=100000) %}",
    ],
)
def test_no_way_of_growing_text_gets_far(body: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError, match=r"sandbox forbids|fails: UndefinedError|refuses"):
            ChatTemplate(SIMPLE + GROW.replace("BODY", body), {}, {})
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


def test_what_templates_do_with_contents_is_within_the_budget() -> None:
    source = (
        "{% for m in messages %}{% set text %}{{ m.content|trim }}{% endset %}{{ '<' ~ m.role + '>' }}"
        "{{ text.replace('\r', '') ~ '\n' }}{{ '%02d. ' % loop.index ~ '{}'.format(loop.length)|indent(2) }}"
        "{{ [m.role, 'x']|join(', ')|upper }}{{ m.role|tojson(indent=2) }}{{ 7 % 4 + 1 }}{% endfor %}"
    )
    content = "word " * 20_000
    rendered = ChatTemplate(source, {}, {}).render([("user", content)], 200_000)
    assert rendered.text == f'<user>{content.strip()}\n01. 1USER, X"user"4'
