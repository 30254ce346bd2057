"""Table H on every route that a model answers: no bad body is a 500, every dialect refuses in its own shape."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.problems import Dialect
from tests.support.inference_cases import CASES, ELSEWHERE, TEXT, TINY, Case, bring_tiny, refused, route_of
from tests.support.running import Reply, Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

LIMIT_BYTES = 64 << 20  # the largest of them
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("bad")
    async with running(folder / "cache", threads=1) as node:
        await bring_tiny(node, folder)
        yield node


async def test_every_route_of_inference_is_here() -> None:
    routes = {route.path for route in ROUTES if route.surface is Surface.INFER and route.method == "POST"}
    others = {path for path in routes if path.startswith("/api/") and path != "/api/infer"}
    assert routes - others == {case.route for case in CASES.values()} | ELSEWHERE


@each
async def test_a_good_body_is_answered(here: Running, case: Case) -> None:
    reply = await here.ask("POST", case.path, json=case.body)
    assert reply.status == 200, reply.body
    assert reply.headers["X-Implementation"] == ("REAL" if TINY in case.path else "MOCK")


NOT_JSON = {
    "cut": b'{"a": ',
    "deep": b'{"a":' * 100_000,
    "deep lists": b"[" * 100_000,
    "twice": b'{"a": 1, "a": 2}',
    "not UTF-8": b'{"a": "\xff"}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "beyond a double": b'{"a": 1e999}',
    "BOM": b"\xef\xbb\xbf{}",
    "empty": b"",
    "array": b"[]",
    "text": b'"a"',
    "null": b"null",
    "long number": b'{"a": ' + b"1" * 5000 + b"}",
}


@each
@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
async def test_h1_what_is_no_json_object(here: Running, case: Case, body: bytes) -> None:
    reply = await here.ask("POST", case.path, data=body, headers={"Content-Type": "application/json"})
    refused(case, reply, 400)


@each
async def test_h2_types_that_a_web_page_may_send(here: Running, case: Case) -> None:
    body = json.dumps(case.body).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/html"):
        refused(case, await here.ask("POST", case.path, data=body, headers={"Content-Type": kind}), 415)
    for header in ("Sec-Fetch-Site: same-origin", f"Origin: {here.url}"):
        raw = _raw(here, case, body, header)
        assert (await here.served.raw(raw)).status == 415, header
    assert (await here.served.raw(_raw(here, case, body))).status == 200


def _raw(here: Running, case: Case, body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST {case.path} HTTP/1.1",
        f"Host: 127.0.0.1:{here.served.port}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@each
async def test_h3_bodies_over_the_limit(here: Running, case: Case) -> None:
    stated = [f"Content-Length: {LIMIT_BYTES + 1}", "Content-Type: application/json"]
    head = "\r\n".join([f"POST {case.path} HTTP/1.1", f"Host: 127.0.0.1:{here.served.port}", *stated, "", ""])
    assert (await here.served.raw(head.encode())).status == 413
    zeros = b" " * (LIMIT_BYTES + 1)
    for coding, packed in (("gzip", gzip.compress(zeros, 1)), ("deflate", zlib.compress(zeros, 1))):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        refused(case, await here.ask("POST", case.path, data=packed, headers=headers), 413)
    headers = {"Content-Type": "application/json", "Content-Encoding": "br"}
    refused(case, await here.ask("POST", case.path, data=b"x", headers=headers), 415, 400)


async def test_h3_a_body_in_chunks_is_counted(here: Running) -> None:
    case = CASES["embed"]
    reply = await here.ask(
        "POST", case.path, data=io.BytesIO(b" " * (5 << 20)), headers={"Content-Type": "application/json"}
    )
    refused(case, reply, 413)


@each
async def test_h4_methods_and_slashes(here: Running, case: Case) -> None:
    path, _, query = case.path.partition("?")
    reply = await here.ask("DELETE", case.path)
    assert reply.status == 405
    if path != "/":
        reply = await here.ask("POST", f"{path}/?{query}", json=case.body)
        assert reply.status in (400, 404, 405), path


@each
async def test_h4_models_that_are_not_here(here: Running, case: Case) -> None:
    body = {**case.body, **({"model": "nobody/nothing"} if "model" in case.body else {})}
    body |= {"ref": "nobody/nothing"} if "ref" in case.body else {}
    path = case.path
    for known in (
        "mock:embedding",
        "mock:text-classification",
        "mock:rerank",
        "mock:fill-mask",
        "mock:text-generation",
        TINY,
    ):
        path = path.replace(known, "nobody/nothing")
    refused(case, await here.ask("POST", path, json=body), 404)


VALUES: dict[str, Any] = {
    "empty": "",
    "empty list": [],
    "empty item": ["a", ""],
    "null": None,
    "number": 5,
    "truth": True,
    "object": {"text": "a"} | {"x": 1},
    "mixed": ["a", 5],
    "ragged": [[1], 2],
    "NUL": ["a\0b"],
    "too many": ["a"] * 100_000,
    "too long": "x" * 10_000_000,
}


@each
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_h5_values_that_are_no_texts(here: Running, case: Case, value: Any) -> None:
    if not case.texts:
        return
    body = io.BytesIO(json.dumps({**case.body, case.texts: value}).encode())
    reply = await here.ask("POST", case.path, data=body, headers={"Content-Type": "application/json"})
    refused(case, reply, 400, 413, 422)
    if reply.status != 413 and route_of(case).dialect is Dialect.OPENAI:
        assert reply.json["error"]["param"] == case.texts


@each
async def test_h5_half_a_surrogate_pair(here: Running, case: Case) -> None:
    if case.route == "/decode":
        return  # it reads no text
    body = json.dumps(case.body).replace('"a"', '"\\ud800"').replace('"[MASK]"', '"\\udfff"').encode()
    assert b"\\ud" in body
    reply = await here.ask("POST", case.path, data=body, headers={"Content-Type": "application/json"})
    refused(case, reply, 422 if route_of(case).dialect in (Dialect.TEI, Dialect.NATIVE) else 400)


@each
async def test_h8_pages_and_foreign_names(here: Running, case: Case) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        refused(case, await here.ask("POST", case.path, json=case.body, headers=headers), 403)


@pytest.mark.parametrize("name", ["%2e%2e%2fetc", "%00", "a//b", "..%2f..%2fetc%2fpasswd", "%ff", "a" * 3000])
@pytest.mark.parametrize(
    "path", ["/models/{}", "/models/{}/pipeline/fill-mask", "/v2/models/{}/infer", "/v1/models/{}"]
)
async def test_h12_names_in_paths(here: Running, path: str, name: str) -> None:
    method = "GET" if path.startswith("/v1") else "POST"
    body = {"inputs": [TEXT]} if path.startswith("/v2") else {"inputs": "a"}
    sent: dict[str, Any] = {} if method == "GET" else {"json": body}
    reply = await here.ask(method, path.format(name), **sent)
    assert reply.status in (400, 404), reply.body


async def test_h7_keys_of_every_route_on_an_open_address(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", host="0.0.0.0", threads=1) as node:
        await bring_tiny(node, tmp_path)
        infer, peer = node.keys.create(["infer"])[1], node.keys.create(["peer"])[1]
        for case in CASES.values():

            async def ask(case: Case = case, **more: Any) -> Reply:
                return await node.ask("POST", case.path, json=case.body, **more)

            assert (await ask(key=infer)).status == 200, case.path
            assert (await ask(key=node.key)).status == 200, case.path
            refused(case, await ask(), 401)
            refused(case, await ask(key="wrong"), 401)
            refused(case, await ask(key=infer[:-1]), 401)
            refused(case, await ask(key=peer), 403)
            joint = "&" if "?" in case.path else "?"
            reply = await node.ask("POST", f"{case.path}{joint}api_key={infer}", json=case.body, key=infer)
            refused(case, reply, 401)
        for route in ROUTES:
            if route.surface is Surface.INFER and route.method == "GET" and "{" not in route.path:
                assert (await node.ask("GET", route.path)).status == 401, route.path
        for path in ("/health", "/ping", "/", "/healthz"):
            assert (await node.ask("GET", path)).status == 200, path


async def test_loading_needs_the_admin_key_also_here(here: Running) -> None:
    for action in ("load", "unload"):
        path = f"/v2/repository/models/mock:embedding/{action}"
        infer = here.keys.create(["infer"])[1]
        assert (await here.ask("POST", path, json={})).status == 401
        assert (await here.ask("POST", path, json={}, key=infer)).status == 403
        assert (await here.admin("POST", path, json={})).status == 200
