"""Chat templates: the model author's Jinja, rendered in a sandbox, with what transformers offers and within limits.

A template is a stranger's program. It gets plain texts, cannot reach Python's insides (Jinja's immutable sandbox), and
is stopped after a number of steps, a time, or an amount of text.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported
from ipfs_accelerate_node.inference.model import Message
from ipfs_accelerate_node.inference.strict_json import JsonObject, read_bytes, read_object

MAX_TEMPLATE_BYTES = 256 << 10
MAX_RENDERED_CHARS = 8 << 20
MAX_STEPS = 2_000_000
MAX_SECONDS = 2.0
_MAX_PIECE = 1 << 20  # characters or elements that one operation of a template may make
_MAX_DIGITS = 4096

# Of the arguments that methods and filters take as a width: none makes more than this many characters.
_FORMAT_WIDTH = re.compile(r"\d{5,}|\*")


class TemplateStopped(Exception):
    """A template went over a limit; str() says which."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` … ``{% endgeneration %}``, which marks what the assistant said; here its content only."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """``dict`` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name[:40]!r}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Operations and calls that would make something huge in one step, where no step counter helps, are refused."""

    intercepted_binops = frozenset({"*", "**", "+", "%", "//", "/", "-"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(__obj, args, kwargs)
        return _bounded(super().call(__context, __obj, *args, **kwargs))


def _stop(what: str) -> NoReturn:
    raise TemplateStopped(what)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _bounded(value: Any) -> Any:
    if _length(value) > _MAX_PIECE:
        _stop("made a text or list that is too long")
    if isinstance(value, int) and value.bit_length() > _MAX_DIGITS:
        _stop("made a number that is too long")
    return value


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if _length(value) and isinstance(times, int) and _length(value) * times > _MAX_PIECE:
                _stop("multiplied a text or list too often")
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_DIGITS:
            _stop("raised a number too high")
    elif operator == "+" and _length(left) + _length(right) > _MAX_PIECE:
        _stop("made a text or list that is too long")
    elif operator == "%" and isinstance(left, str) and _FORMAT_WIDTH.search(left):
        _stop("formats with a width")


def _check_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    owner = getattr(function, "__self__", None)
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1_000_000:
            _stop("called a function with a huge number")
    if not isinstance(owner, str | bytes):
        return
    texts = sum(_length(value) for value in args)
    name = getattr(function, "__name__", "")
    if name == "join" and args:
        args = (list(args[0]), *args[1:]) if not _length(args[0]) else args
        texts = len(owner) * _length(args[0])
    if name == "replace":
        texts = (len(owner) + 1) * max(1, _length(args[1] if len(args) > 1 else ""))
    if name in ("format", "format_map") and _FORMAT_WIDTH.search(str(owner)):
        _stop("formats with a width")
    if texts > 64 * _MAX_PIECE:
        _stop("made a text that is too long")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:500])


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without HTML escapes, which Jinja's own would write."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _limited(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja whose arguments say how long its result is."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10_000:
                _stop(f"used filter {name} with a huge number")
        if name == "format" and _FORMAT_WIDTH.search(str(args[0])):
            _stop("formats with a width")
        if name == "replace" and (len(str(args[0])) + 1) * max(1, _length(args[2])) > 64 * _MAX_PIECE:
            _stop("made a text that is too long")
        return _bounded(filter_(*args, **kwargs))

    for mark in ("jinja_pass_arg",):  # whether Jinja gives it the environment or context first
        if hasattr(filter_, mark):
            setattr(checked, mark, getattr(filter_, mark))
    return checked


def _environment() -> _Sandbox:
    # not optimised: constants would be computed while compiling, before any limit counts
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    for name in ("center", "indent", "batch", "slice", "truncate", "wordwrap", "round"):
        environment.filters[name] = _limited(name, environment.filters[name])
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum")
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class ChatTemplate:
    """One model's template, compiled. special: ``bos_token``, ``eos_token``, … as the template may write them."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Raises ModelUnsupported(bad_config): too long, or not Jinja."""
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise ModelUnsupported(f"the chat template is longer than {MAX_TEMPLATE_BYTES:,} bytes", code="bad_config")
        self._special = dict(special)
        try:
            with _Limits():
                self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError, TemplateStopped) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc

    def render(self, messages: Sequence[Message], *, index: int = 0) -> str:
        """The prompt whose continuation is the assistant's answer. index: of the chat, for errors.

        Raises InvalidInput: the template refuses these messages. ModelUnsupported(bad_config): it fails, tries what the
        sandbox forbids, or goes over a limit.
        """
        plain = [{"role": message.role, "content": message.content} for message in messages]
        pieces: list[str] = []
        length = 0
        try:
            with _Limits():
                for piece in self._template.generate(
                    messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._special
                ):
                    length += len(piece)
                    if length > MAX_RENDERED_CHARS:
                        _stop("wrote too much text")
                    pieces.append(piece)
        except (SecurityError, jinja2.UndefinedError, TemplateStopped, RecursionError, MemoryError) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc
        except jinja2.TemplateError as exc:
            raise InvalidInput(f"the model's chat template says: {_said(exc)}", param="input", index=index) from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc
        return "".join(pieces)


def _said(exc: BaseException) -> str:
    return f"{str(exc)[:300] or type(exc).__name__}"


class _Limits:
    """Counts the lines that this thread runs, and stops them: a template's loops are lines of Python once compiled."""

    def __init__(self) -> None:
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *failure: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self._steps += 1
        if self._steps > MAX_STEPS:
            _stop("takes too many steps")
        if self._steps % 256 == 0 and time.monotonic() > self._deadline:
            _stop(f"takes longer than {MAX_SECONDS:g} seconds")
        return self._trace


def read_chat_template(
    directory: Path, tokenizer_config: JsonObject, special: Mapping[str, str]
) -> ChatTemplate | None:
    """chat_template.jinja, else chat_template.json, else what tokenizer_config.json holds; None where there is none.

    Of several named ones, ``default``. Raises ModelUnsupported(bad_config).
    """
    if (directory / "chat_template.jinja").exists():
        data = read_bytes(directory / "chat_template.jinja", max_bytes=MAX_TEMPLATE_BYTES, code="bad_config")
        return ChatTemplate(data.decode("utf-8", "replace"), special)
    value = tokenizer_config.get("chat_template")
    if (directory / "chat_template.json").exists():
        value = read_object(directory / "chat_template.json").get("chat_template", value)
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return ChatTemplate(value, special) if isinstance(value, str) else None
