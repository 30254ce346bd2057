"""Request bodies that are not what they should be (H1, H2, H3, H6)."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.api import bodies
from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.bodies import parse_json, query_flag, read_json
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.errors import BadRequest, InvalidInput
from tests.support.http import Served, serving, small_app

LIMIT = 4096


class Note(msgspec.Struct):
    text: str
    count: int | None = None
    items: list[str] = []
    flag: bool = False


async def echo(request: web.Request) -> web.Response:
    note = await read_json(request, Note, limit_bytes=LIMIT)
    return json_reply({"text": note.text, "count": note.count, "flag": query_flag(request, "flag")})


ROUTES = (Route("POST", "/echo", echo, Surface.OPEN),)


async def post(served: Served, body: bytes, **headers: str) -> tuple[int, dict[str, object]]:
    named = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.post(served.url + "/echo", data=body, headers=named, skip_auto_headers=("Content-Type",)) as reply,
    ):
        return reply.status, await reply.json(content_type=None)


BROKEN = {
    "empty": b"",
    "word": b"hello",
    "half": b'{"text": "a"',
    "trailing": b'{"text": "a"} x',
    "two documents": b'{"text": "a"}{"text": "b"}',
    "array": b'[{"text": "a"}]',
    "text": b'"text"',
    "null": b"null",
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep below a field": b'{"text":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "duplicate key": b'{"text": "a", "text": "b"}',
    "duplicate key, escaped": b'{"text": "a", "te\\u0078t": "b"}',
    "duplicate key, deep": b'{"text": "a", "x": [{"y": 1, "y": 1}]}',
    "bad UTF-8": b'{"text": "\xff"}',
    "overlong UTF-8": b'{"text": "\xc0\xaf"}',
    "UTF-16": '{"text": "a"}'.encode("utf-16"),
    "BOM": b'\xef\xbb\xbf{"text": "a"}',
    "NaN": b'{"text": "a", "count": NaN}',
    "Infinity": b'{"text": "a", "x": [-Infinity]}',
    "too large a number": b'{"text": "a", "x": 1e400}',
    "too long a number": b'{"text": "a", "x": ' + b"9" * 5000 + b"}",
    "single quotes": b"{'text': 'a'}",
    "comment": b'{"text": "a" /* b */}',
    "raw newline": b'{"text": "a\nb"}',
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_json_that_is_none(body: bytes) -> None:
    """H1."""
    with pytest.raises(BadRequest) as caught:
        parse_json(body, Note)
    assert caught.value.code == "invalid_json"
    assert len(str(caught.value)) < 200


VALUES = {
    "missing": ({}, "text"),
    "null": ({"text": None}, "text"),
    "wrong type": ({"text": 5}, "text"),
    "text for a number": ({"text": "a", "count": "5"}, "count"),
    "true for a number": ({"text": "a", "count": True}, "count"),
    "fraction": ({"text": "a", "count": 1.5}, "count"),
    "huge": ({"text": "a", "count": 1e308}, "count"),
    "in a list": ({"text": "a", "items": ["b", 3]}, "items"),
    "number for a flag": ({"text": "a", "flag": 1}, "flag"),
}


@pytest.mark.parametrize(("body", "param"), VALUES.values(), ids=VALUES)
def test_values_that_cannot_be_used_name_their_field(body: object, param: str) -> None:
    """H6."""
    with pytest.raises(InvalidInput) as caught:
        parse_json(json.dumps(body).encode(), Note)
    assert caught.value.detail["param"] == param


@pytest.mark.parametrize(
    ("body", "param", "index"),
    [
        (b'{"text": "\\ud800"}', "text", None),
        (b'{"text": "a", "items": ["b", "c\\udfff"]}', "items", 1),
        (b'{"text": "a", "x": {"y": ["\\uDC00"]}}', "x", None),
        (b'{"text": "a", "\\ud834": 1}', "\\ud834", None),
    ],
)
def test_half_of_a_surrogate_pair(body: bytes, param: str, index: int | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_json(body, Note)
    assert (caught.value.detail["param"], caught.value.detail["index"]) == (param, index)


def test_a_whole_surrogate_pair_is_a_letter() -> None:
    assert parse_json(b'{"text": "\\ud83d\\ude00"}', Note).text == "\U0001f600"


def test_unknown_fields_are_ignored() -> None:
    assert parse_json(b'{"text": "a", "later": {"x": [1, 2.5, null]}}', Note).text == "a"


@pytest.mark.timeout(120)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
def test_what_json_says_is_what_is_read(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode(), dict) == value


@given(st.binary(max_size=64))
def test_no_bytes_crash_the_parser(body: bytes) -> None:
    try:
        parse_json(body, Note)
    except BadRequest:
        pass


async def test_only_json_is_read_as_json(tmp_path: Path) -> None:
    """H2: the types that a web form can send, and none at all from a browser."""
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        body = b'{"text": "a"}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json",
                     "text/plain; application/json", "application/jsonp", "application/json-patch+json"):  # fmt: skip
            assert (await post(served, body, Content_Type=kind))[0] == 415, kind
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
            assert (await post(served, body, Content_Type=kind))[0] == 200, kind
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Length: {len(body)}\r\n".encode()
        origin = f"Origin: http://127.0.0.1:{served.port}\r\n".encode()
        assert (await served.raw(head + b"\r\n" + body)).status == 200
        assert (await served.raw(head + origin + b"\r\n" + body)).status == 415
        assert (await served.raw(head + b"Sec-Fetch-Mode: cors\r\n\r\n" + body)).status == 415
        twice = b"Content-Type: application/json\r\nContent-Type: text/plain\r\n\r\n"
        assert (await served.raw(head + twice + body)).status in (400, 415)


async def test_over_the_limit_however_it_comes(tmp_path: Path) -> None:
    """H3: by length, in chunks, and as a bomb; each a 413, and memory stays small."""
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        just = json.dumps({"text": "x" * (LIMIT - 12)}).encode()
        assert len(just) == LIMIT
        assert (await post(served, just))[0] == 200
        status, body = await post(served, just + b" ")
        assert (status, body["code"], body["limit_bytes"]) == (413, "payload_too_large", LIMIT)
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n".encode()
        assert (await served.raw(head + b"Content-Length: 999999999999\r\n\r\n")).status == 413
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        assert (await served.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk)).status == 413
        bomb = b'{"text": "' + b"x" * (64 << 20) + b'"}'
        for name, packed in (("gzip", gzip.compress(bomb)), ("deflate", zlib.compress(bomb))):
            assert len(packed) < 100_000
            assert (await post(served, packed, Content_Encoding=name))[0] == 413, name


async def test_compressed_bodies(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        body = b'{"text": "a"}'
        assert (await post(served, gzip.compress(body), Content_Encoding="gzip"))[0] == 200
        assert (await post(served, b"not gzip at all", Content_Encoding="gzip"))[0] == 400
        assert (await post(served, gzip.compress(body)[:-14], Content_Encoding="gzip"))[0] == 400
        assert (await post(served, body, Content_Encoding="compress"))[0] == 415


async def test_a_body_that_stalls_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_STALL_S", 0.05)
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n".encode()
        answer = await served.raw(head + b'Content-Length: 100\r\n\r\n{"text"')
        assert answer.status == 400
        assert json.loads(answer.body)["code"] == "timeout"


async def test_a_json_body_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F30: a byte now and then is progress, but not for ever."""
    monkeypatch.setattr(bodies, "JSON_DEADLINE_S", 0.05)
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served:
        head = f"POST /echo HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n".encode()
        answer = await served.raw(head + b'Content-Length: 100\r\n\r\n{"text"')
        assert (answer.status, json.loads(answer.body)["code"]) == (400, "timeout")


async def test_flags_in_the_query(tmp_path: Path) -> None:
    async with serving(tmp_path, lambda port: small_app(port, ROUTES)) as served, aiohttp.ClientSession() as session:
        for query, wanted in (
            ("", False),
            ("?flag", True),
            ("?flag=1", True),
            ("?flag=true", True),
            ("?flag=0", False),
        ):
            async with session.post(served.url + "/echo" + query, json={"text": "a"}) as reply:
                assert (await reply.json())["flag"] == wanted
        for query in ("?flag=yes", "?flag=1&flag=0", "?flag=%00"):
            async with session.post(served.url + "/echo" + query, json={"text": "a"}) as reply:
                assert reply.status == 422
