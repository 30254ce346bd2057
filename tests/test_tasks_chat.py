"""Chat templates: rendered as transformers renders them, and unable to do harm."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Message
from ipfs_accelerate_node.inference.tasks.chat import MAX_TEMPLATE_BYTES, ChatTemplate, read_chat_template
from ipfs_accelerate_node.inference.tasks.sandbox import MAX_SECONDS
from tests.support.models import write_json

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    Message("system", "Be brief."),
    Message("user", 'What is 2 + 2?\n  <b>"quoted"</b> {{ not a template }}'),
    Message("assistant", "4"),
    Message("user", "  And 3 + 3? é🙂  "),
]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system_message != false %}
        {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}
{% endfor %}"""
EVERYTHING = """{%- set ns = namespace(count=0, names=[]) -%}
{%- set table = dict(a=1, b=[1, 2]) -%}
{%- macro say(text) -%}[{{ text | upper | replace('A', 'o') }}]{%- endmacro -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
  {%- set ns.count = ns.count + 1 -%}
  {%- if ns.count > 2 -%}{%- break -%}{%- endif -%}
  {% generation %}{{ say(message.content) }}{% endgeneration %}
  {{- message | tojson }} {{ table | tojson(indent=2) }} {{ message.content.split(' ')[-1].strip() }}
  {{- '%s and %d' % (message.role, ns.count) }} {{ 'x' * 3 }} {{ 7 // 2 }} {{ 2 ** 5 }}
  {{- tools is none }} {{ documents is defined }} {{ message.tool_calls is defined }} {{ range(3) | list }}
  {{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}
  {{- message.items() | list | length }} {{ [3, 1, 2] | sort | first }} {{ 'abc'[::-1] }} {{ '%.2f' | format(0.5) }}
{%- endfor -%}
{{- strftime_now('%Y')[:2] }}{{ eos_token }}{{ 'yes' if add_generation_prompt else 'no' }}
    {%- if true %} kept
    {% endif %}
"""


@pytest.mark.parametrize("template", [CHATML, LLAMA2, EVERYTHING, "", "plain {{ bos_token }}\n", "{{ messages }}"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_prompts_are_those_of_transformers(template: str, count: int) -> None:
    talk = TALK[-count:] if count < 4 else TALK
    if template is LLAMA2 and count == 2:
        talk = TALK[:2]
    plain: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in talk]
    rendered: Any = render_jinja_template(
        conversations=[plain], chat_template=template, add_generation_prompt=True, **SPECIAL
    )
    assert ChatTemplate(template, SPECIAL).render(talk) == rendered[0][0]


def test_what_the_template_refuses_is_the_callers_fault() -> None:
    with pytest.raises(InvalidInput, match="roles must alternate") as caught:
        ChatTemplate(LLAMA2, SPECIAL).render([TALK[1], TALK[3]], index=3)
    assert caught.value.detail["index"] == 3


ATTACKS = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attr filter": "{{ ''|attr('__class__') }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "globals of ours": "{{ raise_exception.__globals__ }}",
    "globals of the date": "{{ strftime_now.__globals__['sys'].exit() }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "dict's type": "{{ dict.__class__.__base__ }}",
    "a namespace's attribute": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "a namespace made with it": "{{ namespace(__class__=1) }}",
    "joiner": "{{ joiner.__init__.__builtins__ }}",
    "change a message": "{{ messages.append(1) }}",
    "change a mapping": "{{ messages[0].update({'role': 'x'}) }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "mapped attribute": "{{ [''] | map(attribute='__class__') | list | first | string | length / 0 }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "generator's frame": "{{ (messages | map('upper')).gi_frame.f_builtins }}",
}


@pytest.mark.parametrize("template", ATTACKS.values(), ids=ATTACKS.keys())
def test_nothing_of_python_is_reached(template: str) -> None:
    try:
        found = ChatTemplate(template, SPECIAL).render(TALK)
    except (ModelUnsupported, InvalidInput):
        return
    assert found == "", "an undefined value prints as nothing, which is as good as refused"


BOMBS = {
    "long loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "silent loop": "{% set ns = namespace(n=0) %}"
    "{% for i in range(99999) %}{% for j in range(9999) %}{% set ns.n = j %}"
    "{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "text times number": "{{ 'x' * 10**10 }}",
    "list times number": "{{ [0] * 10**10 }}",
    "number times text": "{{ 10**10 * 'x' }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "power of powers": "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubled text": "{% set ns = namespace(t='xxxxxxxx') %}"
    "{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "doubled with ~": "{% set ns = namespace(t='xxxxxxxx') %}"
    "{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
    "doubled list": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
    "width in %": "{{ '%9999999999d' % 1 }}",
    "star in %": "{{ '%*d' % (999999999, 1) }}",
    "width in format": "{{ '{:>9999999999}'.format(1) }}",
    "width in format filter": "{{ '%9999999999d' | format(1) }}",
    "nested width": "{{ '{:>{}}'.format(1, 999999999) }}",
    "center": "{{ 'x'.center(10**10) }}",
    "center filter": "{{ 'x' | center(10**10) }}",
    "indent filter": "{{ 'x\\ny' | indent(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "zfill": "{{ 'x'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t\\t'.expandtabs(10**9) }}",
    "replace": "{% set a = 'x' * 99999 %}{{ a.replace('x', a).replace('x', a) }}",
    "replace filter": "{% set a = 'x' * 99999 %}{{ a | replace('x', a) | replace('x', a) }}",
    "join": "{% set a = 'x' * 99999 %}{{ a.join(a) }}",
    "join filter": "{% set a = 'x' * 99999 %}{{ a | list | join(a) }}",
    "batch filter": "{{ [1] | batch(10**9, 0) | list }}",
    "slice filter": "{{ [1] | slice(10**9) | list }}",
    "tojson indent": "{{ [[1]] | tojson(indent=10**9) }}",
    "wordwrap": "{{ 'x y' | wordwrap(1, wrapstring='x' * 999999) | wordwrap(1, wrapstring='x' * 999999) }}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "doubled block": "{% set a = 'xxxxxxxx' %}{% for i in range(60) %}{% set b %}{{ a }}{{ a }}{% endset %}{% endfor %}"
    "{% set ns = namespace(t='xxxxxxxx') %}{% for i in range(60) %}{% set t %}{{ ns.t }}{{ ns.t }}{% endset %}"
    "{% set ns.t = t %}{% endfor %}",
    "nested lists": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}"
    "{{ ns.t }}",
    "nested lists as JSON": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% endfor %}{{ ns.t | tojson }}",
    "nested lists as text": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% endfor %}{{ ns.t | string | length }}",
    "nested lists in %": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% endfor %}{{ '%s' % ns.t }}",
    "nested lists with ~": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% endfor %}{{ ns.t ~ '' }}",
    "nested lists in upper": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% endfor %}{{ ns.t | upper }}",
    "bytes of a number": "{{ (5).to_bytes(10**9, 'big') }}",
    "round": "{{ 5.5 | round(10**9, 'ceil') }}",
    "many % signs": "{{ ('%s' * 9999) % (('x' * 999999,) * 9999) }}",
    "width of the date": "{{ strftime_now('%999999999Y') }}",
    "sum of lists": "{{ [[1] * 99999] * 999 | sum(start=[]) }}",
    "nested": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "too long": "x" * (MAX_TEMPLATE_BYTES + 1),
}


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS.keys())
def test_bombs_are_stopped_in_time_and_space(template: str) -> None:
    begun = time.process_time()
    with pytest.raises((ModelUnsupported, InvalidInput)):
        ChatTemplate(template, SPECIAL).render(TALK)
    assert time.process_time() - begun < 2 * MAX_SECONDS + 1


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ messages[", "{% for m in messages %}", "{% unknown %}", "{{ a | nofilter }}"]
)
def test_what_is_not_jinja_is_refused_when_the_model_is_loaded(template: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        ChatTemplate(template, SPECIAL)
    assert caught.value.code == "bad_config"


@pytest.mark.parametrize(
    "template", ["{{ messages[99].role }}", "{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ nothing.more }}"]
)
def test_what_fails_in_it_is_a_fault_of_the_model(template: str) -> None:
    with pytest.raises(ModelUnsupported):
        ChatTemplate(template, SPECIAL).render(TALK)


def test_a_talk_of_a_whole_library_is_too_large() -> None:
    with pytest.raises(PayloadTooLarge):
        ChatTemplate(CHATML, SPECIAL).render([Message("user", "x" * (1 << 20))])


def test_long_talks_are_rendered_in_time() -> None:
    talk = [Message("user", "word " * 2000), Message("assistant", "yes")] * 25
    assert len(ChatTemplate(CHATML, SPECIAL).render(talk)) > 250_000


def test_a_debugger_or_coverage_goes_on_afterwards() -> None:
    before = sys.gettrace()
    with pytest.raises(ModelUnsupported):
        ChatTemplate("{{ 1 / 0 }}", SPECIAL).render(TALK)
    assert sys.gettrace() is before


def test_where_templates_lie(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path, {}, SPECIAL) is None
    assert read_chat_template(tmp_path, {"chat_template": None}, SPECIAL) is None

    def said(config: dict[str, object]) -> str:
        template = read_chat_template(tmp_path, config, SPECIAL)
        assert template is not None
        return template.render(TALK)

    assert said({"chat_template": "one"}) == "one"
    named = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert said({"chat_template": named}) == "three"
    assert read_chat_template(tmp_path, {"chat_template": named[:1]}, SPECIAL) is None
    write_json(tmp_path / "chat_template.json", {"chat_template": "four"})
    assert said({"chat_template": "one"}) == "four"
    (tmp_path / "chat_template.jinja").write_text("five {{ bos_token }}")
    assert said({"chat_template": "one"}) == "five <s>"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").symlink_to("/etc/hostname")
    with pytest.raises(ModelUnsupported):
        said({})
