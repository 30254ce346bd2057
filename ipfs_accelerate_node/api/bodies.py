"""Request bodies, read under limits: size, progress, encoding, and what JSON leaves open.

JSON here is stricter than most parsers: UTF-8 without a BOM, no NaN or infinity, no number beyond a double, no
duplicate key (two readers would see two requests), no half of a surrogate pair, nesting as deep as the parser's stack.
One parse: the standard library's, whose hooks see every object, then `msgspec.convert` to the route's type.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ipfs_accelerate_node.api.browser import from_browser
from ipfs_accelerate_node.api.idempotency import KNOWN_KEYS, key_of
from ipfs_accelerate_node.api.traffic import HELD
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import BadRequest, InvalidInput, PayloadTooLarge, UnsupportedMediaType

JSON_LIMIT_BYTES = 4 << 20
BODY_STALL_S = 15.0  # a body that sends no byte for so long is given up
JSON_DEADLINE_S = 120.0  # a JSON body is here by then: one byte every 14 s would else hold its connection for months
_INLINE_BYTES = 128 << 10  # a larger body is parsed in a thread: at about 100 MB/s it would hold up the loop
_ENCODINGS = frozenset({"identity", "deflate", "gzip"})
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AT = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`$", re.DOTALL)

T = TypeVar("T")


async def read_json(
    request: web.Request, kind: type[T], *, limit_bytes: int = JSON_LIMIT_BYTES, empty: T | None = None
) -> T:
    """The body as that type. empty: what no body means; None makes it an error.

    Raises UnsupportedMediaType, PayloadTooLarge, BadRequest (code invalid_json; timeout for a stalled body) and
    InvalidInput with ``param`` (a field's path) for a value of the wrong type or out of its range.
    """
    if empty is not None and not request.can_read_body:
        return empty
    check_content_type(request, "application/json")
    try:
        async with asyncio.timeout(JSON_DEADLINE_S):
            body = b"".join([chunk async for chunk in chunks(request, limit_bytes=limit_bytes)])
    except TimeoutError as exc:
        raise BadRequest(f"the body took over {JSON_DEADLINE_S:.0f} s", code="timeout") from exc
    if not body and empty is not None:
        return empty
    if len(body) <= _INLINE_BYTES:
        return parse_json(body, kind)
    return await asyncio.to_thread(parse_json, body, kind)


def check_content_type(request: web.BaseRequest, wanted: str) -> None:
    """A missing type passes only where no browser speaks: a form post of a web page always has one.

    Raises UnsupportedMediaType.
    """
    stated = request.headers.getall("Content-Type", [])
    if not stated and not from_browser(request):
        return
    if len(stated) != 1 or request.content_type != wanted:
        raise UnsupportedMediaType(f"the body must be {wanted}, not {shown(', '.join(stated) or 'untyped')}")


async def chunks(request: web.BaseRequest, *, limit_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes, decompressed, at most limit_bytes in all.

    Raises PayloadTooLarge, UnsupportedMediaType for an unknown Content-Encoding, BadRequest (code timeout or bad_body),
    Overloaded: there is no room for it beside the bodies of others; Conflict (idempotency_conflict).
    """
    held, key, digest = request.get(HELD), key_of(request), hashlib.sha256()
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in _ENCODINGS:
        raise UnsupportedMediaType(f"Content-Encoding {shown(coding)} is not spoken here")
    taken = 0
    while True:
        try:
            async with asyncio.timeout(BODY_STALL_S):
                chunk = await request.content.readany()
        except TimeoutError as exc:
            raise BadRequest(f"the body stalled for {BODY_STALL_S:.0f} s", code="timeout") from exc
        except (web.RequestPayloadError, HttpProcessingError) as exc:
            raise BadRequest("the body is not what its headers say", code="bad_body") from exc
        if not chunk:
            break
        taken += len(chunk)
        if taken > limit_bytes:
            raise _too_large(limit_bytes)
        if held is not None:
            held.take(len(chunk))
        if key is not None:
            digest.update(chunk)
        yield chunk
    if key is not None and isinstance(request, web.Request) and (known := request.app.get(KNOWN_KEYS)) is not None:
        known.check(request, key, digest.digest())


def parse_json(body: bytes, kind: type[T]) -> T:
    """Pure half of `read_json`."""
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_float=_finite
        )
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not UTF-8 at byte {exc.start}", code="invalid_json") from exc
    except RecursionError as exc:
        raise BadRequest("the JSON is nested too deeply", code="invalid_json") from exc
    except json.JSONDecodeError as exc:
        raise BadRequest(f"the body is not JSON: {exc.msg} at letter {exc.pos}", code="invalid_json") from exc
    except ValueError as exc:  # an integer of more digits than Python converts
        raise BadRequest("the JSON holds a number that is too long", code="invalid_json") from exc
    if not isinstance(value, dict):
        raise BadRequest("the JSON must be an object", code="invalid_json")
    if _SURROGATE.search(body):
        _check_text(value)
    return converted(value, kind)


def converted(value: object, kind: type[T]) -> T:
    """A parsed value as that type. Raises InvalidInput with ``param``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise _invalid(str(exc)) from exc


def query_flag(request: web.BaseRequest, name: str) -> bool:
    """A yes or no from the query string; a bare name is yes. Raises InvalidInput."""
    value = request.query.get(name)
    if value is None:
        return False
    known = {"": True, "1": True, "true": True, "0": False, "false": False}
    if value not in known or len(request.query.getall(name)) > 1:
        raise InvalidInput(f"{name} must be true or false, not {shown(value)}", param=name)
    return known[value]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRequest(f"the JSON has the key {shown(twice)} twice", code="invalid_json")
    return made


def _constant(name: str) -> NoReturn:
    raise BadRequest(f"{name} is not JSON", code="invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadRequest(f"the number {shown(text)} is too large", code="invalid_json")
    return value


def _check_text(value: dict[str, object]) -> None:
    """Raises InvalidInput for half of a surrogate pair, with the field (and index) that holds it."""
    for name, field in value.items():
        for index, text in _texts(field):
            try:
                (name + text).encode()
            except UnicodeEncodeError as exc:
                raise InvalidInput(
                    f"{shown(name)} holds half of a surrogate pair", param=ascii(name)[1:-1][:80], index=index
                ) from exc


def _texts(field: object) -> Iterator[tuple[int | None, str]]:
    """Every text in the field, with its index where the field is a list; without recursion."""
    yield None, ""
    stack: list[tuple[int | None, object]] = [(None, field)]
    if isinstance(field, list):
        stack = list(enumerate(field))
    while stack:
        index, value = stack.pop()
        match value:
            case str():
                yield index, value
            case list():
                stack += [(index, item) for item in value]
            case dict():
                stack += [(index, part) for pair in value.items() for part in pair]


def _invalid(reason: str) -> InvalidInput:
    """msgspec says "Expected `int`, got `str` - at `$.dimensions`"; the path becomes ``param``."""
    found = _AT.match(reason)
    what, path = (found["what"], found["path"]) if found else (reason, "")
    if not path and (missing := re.search(r"missing required field `([^`]+)`", what)):
        path = missing[1]
    name, _, index = path.partition("[")
    index = index.partition("]")[0]
    return InvalidInput(
        f"{path}: {what}" if path else what, param=name or None, index=int(index) if index.isdigit() else None
    )


def _too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the body is over the limit of {limit_bytes} bytes", limit_bytes=limit_bytes)
