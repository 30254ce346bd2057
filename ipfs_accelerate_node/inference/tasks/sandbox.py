"""Jinja for templates of strangers: no way to Python's insides, and no step that makes something huge.

Jinja's immutable sandbox keeps attributes and calls harmless. Time is kept by counting the lines of Python that a
compiled template runs, which stops loops, but not a single operation: so whatever makes texts, lists or numbers out of
others is looked at first, and filters are those on a list. A template that finds a way around costs its own worker
process, whose memory is limited and whose silence is noticed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import FrameType
from typing import Any, NoReturn

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 2_000_000
MAX_SECONDS = 2.0
MAX_PIECE = 1 << 20  # characters or elements that one operation may make
_MAX_BITS = 4096  # of a number
_MAX_WIDTH = 10_000
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{5,})")
_WIDE_FORMAT = re.compile(r"\{[^{}]*:[^{}]*(\{|\d{5,})")


class TemplateStopped(Exception):
    """A template went over a limit; str() says which."""


def _stop(what: str) -> NoReturn:
    raise TemplateStopped(what)


class Limits:
    """Within it this thread runs MAX_STEPS lines at most, for MAX_SECONDS."""

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
        if self._steps % 64 == 0 and time.monotonic() > self._deadline:
            _stop(f"takes longer than {MAX_SECONDS:g} seconds")
        return self._trace


def weigh(*values: Any) -> int:
    """Characters that values take when written out, roughly. Stops where that is too long for one piece."""
    total, pending = 0, list(values)
    while pending:
        value = pending.pop()
        if isinstance(value, str | bytes):
            total += len(value) + 2
        elif isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())
            total += 2
        elif isinstance(value, list | tuple | set | frozenset):
            pending.extend(value)
            total += 2
        elif isinstance(value, int):
            total += value.bit_length() // 3
        total += 2
        if total > 4 * MAX_PIECE or len(pending) > MAX_PIECE:
            _stop("writes too much at once")
    return total


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _bounded(value: Any) -> Any:
    if _length(value) > MAX_PIECE:
        _stop("makes a text or list that is too long")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        _stop("makes a number that is too long")
    return value


def _joined(pieces: Iterable[Any]) -> str:
    """Every text that is put together of pieces: blocks that are set, macros, ``~``."""
    listed = list(pieces)
    weigh(listed)
    return str(_bounded("".join(map(str, listed))))


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "*":
        for value, times in ((left, right), (right, left)):
            if _length(value) and isinstance(times, int) and _length(value) * times > MAX_PIECE:
                _stop("multiplies a text or list too often")
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_BITS:
            _stop("raises a number too high")
    elif operator == "+" and _length(left) + _length(right) > MAX_PIECE:
        _stop("makes a text or list that is too long")
    elif operator == "%" and isinstance(left, str):
        _check_percent(left, right)


def _check_percent(text: str, values: Any) -> None:
    if _WIDE_PERCENT.search(text):
        _stop("formats with a width")
    if text.count("%") * weigh(values) > 4 * MAX_PIECE:
        _stop("writes too much at once")


def _check_replaced(text: str, old: str, new: str) -> None:
    if len(text) + text.count(old) * len(new) > MAX_PIECE:
        _stop("makes a text or list that is too long")


def _check_joined(between: str, values: list[Any]) -> None:
    if weigh(values) + len(between) * len(values) > 4 * MAX_PIECE:
        _stop("makes a text or list that is too long")


def _check_width(*values: Any) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        _stop("uses a huge width")


class _Generator(jinja2.compiler.CodeGenerator):
    """``a ~ b`` goes through ``concat``, as all other texts that are put together do."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "+", "-", "%", "/", "//"})
    concat = staticmethod(_joined)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str | bytes):
            args = _checked_method(owner, name, args, kwargs)
        elif isinstance(owner, int):
            _check_width(*args, *kwargs.values())
        return _bounded(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            text = str(value.__self__)
            if _WIDE_FORMAT.search(text):
                _stop("formats with a width")
            if text.count("{") * weigh(args, kwargs) > 4 * MAX_PIECE:
                _stop("writes too much at once")
            return str(wrapped(*args, **kwargs))

        return checked


def _checked_method(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a text's method; an iterator among them is read once, to be looked at."""
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _check_width(*args, *kwargs.values())
        if name == "expandtabs" and owner.count("\t") * _MAX_WIDTH > MAX_PIECE * 64:
            _stop("makes a text or list that is too long")
    elif name == "translate":
        _stop("translates")
    elif name == "replace" and len(args) > 1:
        _check_replaced(str(owner), str(args[0]), str(args[1]))
    elif name == "join" and args:
        args = (list(args[0]), *args[1:])
        _check_joined(str(owner), args[0])
    return args


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message)[:500])


def _strftime_now(form: str) -> str:
    if len(form) > 200 or re.search(r"\d{3}", form):
        _stop("formats the date with a width")
    return datetime.now().strftime(form)


class _Dict:
    """``dict`` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """Without attributes that Python has a meaning for. (Jinja's own hides its methods from itself.)"""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name[:40]!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without HTML escapes, which Jinja's own would write."""
    size = weigh(value)
    if indent is not None and (not isinstance(indent, int) or not 0 <= indent <= 16 or size * (indent + 1) > MAX_PIECE):
        _stop("indents too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    weigh(text)
    _check_replaced(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


def _format(text: Any, *args: Any, **kwargs: Any) -> str:
    values = kwargs or args
    _check_percent(str(text), values)
    return str(text) % values


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _check_width(width)
    by = width if isinstance(width, str) else " " * width
    weigh(text)
    _check_replaced(str(text) + "\n", "\n", "\n" + by)
    plain: Callable[..., Any] = jinja2.filters.FILTERS["indent"]
    return str(plain(str(text), by, first, blank))


_join_plainly: Callable[..., Any] = jinja2.filters.FILTERS["join"]


@jinja2.pass_eval_context
def _join(context: jinja2.nodes.EvalContext, values: Any, between: Any = "", attribute: Any = None) -> str:
    listed = list(values)
    _check_joined(str(between), listed)
    return str(_join_plainly(context, listed, str(between), attribute))


_OWN: Mapping[str, Callable[..., Any]] = {
    "tojson": _tojson,
    "replace": _replace,
    "format": _format,
    "indent": _indent,
    "join": _join,
}
_KEPT = (
    "abs capitalize count d default dictsort e escape first float groupby int items last length list lower map max min "
    "reject rejectattr reverse round safe select selectattr sort string title trim truncate unique upper wordcount"
)


def _limited(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja, its arguments and its result looked at."""
    marked = hasattr(filter_, "jinja_pass_arg")  # Jinja gives it the environment or context before the value

    def checked(*args: Any, **kwargs: Any) -> Any:
        weigh(args[1:2] if marked else args[:1])
        _check_width(*args[2 if marked else 1 :], *kwargs.values())
        return _bounded(filter_(*args, **kwargs))

    if marked:
        checked.jinja_pass_arg = filter_.jinja_pass_arg  # type: ignore[attr-defined]
    return checked


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` … ``{% endgeneration %}``, which marks what the assistant said; here its content only."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _written(value: Any) -> Any:
    weigh(value)
    return value


def environment() -> jinja2.Environment:
    """With what transformers offers to chat templates: its settings, filters, functions and tags."""
    # not optimised: constants would be computed while compiling, before any limit counts
    made = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_written,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    made.filters = {name: _limited(made.filters[name]) for name in _KEPT.split()} | dict(_OWN)
    made.globals.pop("lipsum")
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made
