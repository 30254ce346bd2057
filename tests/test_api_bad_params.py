"""The rest of table H on every route that a model answers: limits and timeouts, keys, where a request comes from, what
is no proper HTTP, keys of idempotency, and a form."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.idempotency import KEPT_S, MAX_KEYS, KnownKeys
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.errors import Conflict
from tests.support.inference_cases import CASES, TINY, Case, bring_tiny, refused, route_of
from tests.support.running import Reply, Running, running
from tests.support.workers import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
NO_NUMBERS: list[Any] = [0, -1, 1e308, "5", True, [], {}, 0.5, 1 << 70]
# By dialect and route: where limits stand, and what they are called there.
LIMITS: dict[str, list[tuple[str, ...]]] = {
    "embeddings": [("dimensions",)],
    "embeddings too": [("dimensions",)],
    "completions": [("max_tokens",), ("n",), ("top_k",)],
    "chat": [("max_tokens",), ("max_completion_tokens",), ("n",)],
    "chat of a model": [("max_tokens",)],
    "rerank": [("top_n",)],
    "rerank 3": [("top_n",)],
    "embed": [("dimensions",)],
    "model": [("parameters", "top_k")],
    "tensors": [("parameters", "dimensions"), ("parameters", "top_k"), ("parameters", "max_tokens")],
    "tensors of a version": [("parameters", "dimensions")],
    "native": [("options", "dimensions"), ("options", "top_k"), ("options", "max_new_tokens")],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("params")
    async with running(folder / "cache", threads=1) as node:
        await bring_tiny(node, folder)
        yield node


def with_value(body: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**body, path[0]: value}
    return {**body, path[0]: with_value(body.get(path[0], {}), path[1:], value)}


def wrong_values(case: Case) -> int:
    """Status for a well-formed body whose values cannot be used."""
    return 400 if route_of(case).dialect in (Dialect.OPENAI, Dialect.KSERVE) else 422


@pytest.mark.parametrize("name", LIMITS)
async def test_h6_limits_that_are_none(here: Running, name: str) -> None:
    case = CASES[name]
    for path in LIMITS[name]:
        for value in NO_NUMBERS:
            reply = await here.ask("POST", case.path, json=with_value(case.body, path, value))
            refused(case, reply, wrong_values(case))


@pytest.mark.parametrize("name", ["completions", "chat", "native", "tensors"])
async def test_h6_shares_and_temperatures_that_are_none(here: Running, name: str) -> None:
    case, inner = CASES[name], {"native": ("options",), "tensors": ("parameters",)}.get(name, ())
    for field, values in {"temperature": [-1, 1e308, "1", True, []], "top_p": [0, -1, 1.5, 1e308, "1", True]}.items():
        for value in values:
            reply = await here.ask("POST", case.path, json=with_value(case.body, (*inner, field), value))
            refused(case, reply, wrong_values(case))


@each
async def test_h6_timeouts_that_are_none(here: Running, case: Case) -> None:
    for value in ("0", "-1", "1e308", "nan", "true", "", "soon"):
        reply = await here.ask("POST", case.path, json=case.body, headers={"x-request-timeout": value})
        refused(case, reply, wrong_values(case))
    reply = await here.ask("POST", case.path, json=case.body, headers={"x-request-timeout": "5"})
    assert reply.status == 200, reply.body


def raw(here: Running, case: Case, *headers: str, body: bytes | None = None, target: str | None = None) -> bytes:
    sent = json.dumps(case.body).encode() if body is None else body
    lines = [f"POST {target or case.path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append(f"Host: 127.0.0.1:{here.served.port}")
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(sent)}")
    return "\r\n".join([*lines, "Content-Type: application/json", "Connection: close", "", ""]).encode() + sent


@each
async def test_h8_a_whole_url_in_the_request_line(here: Running, case: Case) -> None:
    for host in (f"127.0.0.1:{here.served.port}", "evil.example"):
        answer = await here.served.raw(raw(here, case, target=f"http://{host}{case.path}"))
        assert answer.status == 403, host


@each
async def test_h9_what_two_readers_would_read_differently(here: Running, case: Case) -> None:
    good = json.dumps(case.body).encode()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(good), good)
    smuggled: list[tuple[tuple[str, ...], bytes]] = [
        (("Content-Length: 5", "Transfer-Encoding: chunked"), chunked),
        (("Content-Length: 5", f"Content-Length: {len(good)}"), good),
        ((f"Content-Length: +{len(good)}",), good),
        (("Content-Length: -1",), good),
        (("Transfer-Encoding: xchunked",), chunked),
        (("Transfer-Encoding: chunked, identity",), chunked),
        (("Transfer-Encoding : chunked",), chunked),
        (("X: " + "a" * 9000,), good),
        (tuple(f"X-{number}: a" for number in range(129)), good),
    ]
    for headers, body in smuggled:
        answer = await here.served.raw(raw(here, case, *headers, body=body))
        assert answer.status == 400, headers[0][:60]
        assert answer.headers.get("connection", "close") == "close"


@each
async def test_h10_one_key_two_bodies(here: Running, case: Case) -> None:
    key = {"Idempotency-Key": f"retry-{case.path}"}
    for _ in range(2):
        reply = await here.ask("POST", case.path, json=case.body, headers=key)
        assert reply.status == 200, reply.body
    reply = await here.ask("POST", case.path, json={**case.body, "user": "another"}, headers=key)
    refused(case, reply, 409)
    assert reply.json["code"] == "idempotency_conflict"
    assert (await here.ask("POST", case.path, json=case.body, headers=key)).status == 200
    for wrong in ("", "x" * 256):
        refused(
            case,
            await here.ask("POST", case.path, json=case.body, headers={"Idempotency-Key": wrong}),
            wrong_values(case),
        )


async def test_h10_a_key_is_its_callers_and_its_routes_own(here: Running) -> None:
    key = {"Idempotency-Key": "mine"}
    for asked, caller in (("/v1/embeddings", "sk-one"), ("/v1/embeddings", "sk-two"), ("/embeddings", "sk-one")):
        body = {"model": "mock:embedding", "input": f"{asked} {caller}"}
        assert (await here.ask("POST", asked, json=body, key=caller, headers=key)).status == 200


async def test_h10_keys_are_forgotten_after_a_day_and_when_there_are_too_many() -> None:
    now = [0.0]
    keys = KnownKeys(lambda: now[0])

    class Request:
        method, raw_path = "POST", "/embed"
        headers: dict[str, str] = {}  # noqa: RUF012

    request: Any = Request()
    keys.check(request, "a", b"one")
    keys.check(request, "a", b"one")
    with pytest.raises(Conflict):
        keys.check(request, "a", b"two")
    now[0] = KEPT_S
    keys.check(request, "a", b"two")
    for number in range(MAX_KEYS):
        keys.check(request, f"key {number}", b"one")
    keys.check(request, "a", b"three")
    assert len(keys._known) == MAX_KEYS


@each
async def test_h11_clients_that_vanish_in_the_middle_of_their_body(here: Running, case: Case) -> None:
    traffic = here.served.app[TRAFFIC]
    whole = raw(here, case)
    for upto in (len(whole) - 1, whole.index(b"\r\n\r\n") + 4):
        _, writer = await asyncio.open_connection("127.0.0.1", here.served.port)
        writer.write(whole[:upto])
        await until(lambda: traffic.in_flight == 1)
        writer.transport.abort()
        await until(lambda: traffic.in_flight == 0)
    assert traffic.held_bytes == 0


async def test_h7_two_keys_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", host="0.0.0.0", threads=1) as node:
        await bring_tiny(node, tmp_path)
        key = node.keys.create(["infer"])[1]
        for case in CASES.values():
            for second in (key, "wrong"):
                headers = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {second}")]
                async with node.session.post(node.url + case.path, json=case.body, headers=headers) as reply:
                    found = Reply(reply.status, reply.headers, await reply.read())
                refused(case, found, 401)


# -- the one form


def form(*fields: tuple[str, Any]) -> aiohttp.FormData:
    made = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields:
        if isinstance(value, bytes):
            made.add_field(name, io.BytesIO(value), filename="a.wav")
        else:
            made.add_field(name, value)
    return made


SPEECH = "mock:automatic-speech-recognition"
FORMS: dict[str, tuple[list[tuple[str, Any]], int]] = {
    "no file": ([("model", SPEECH)], 400),
    "no model": ([("file", b"sound")], 400),
    "two files": ([("file", b"a"), ("file", b"b"), ("model", SPEECH)], 400),
    "model twice": ([("file", b"a"), ("model", SPEECH), ("model", SPEECH)], 400),
    "unknown format": ([("file", b"a"), ("model", SPEECH), ("response_format", "yaml")], 400),
    "no temperature": ([("file", b"a"), ("model", SPEECH), ("temperature", "warm")], 400),
    "too hot": ([("file", b"a"), ("model", SPEECH), ("temperature", "1e308")], 400),
    "unknown model": ([("file", b"a"), ("model", "nobody/nothing")], 404),
    "a model of texts": ([("file", b"a"), ("model", TINY)], 422),
    "too large": ([("file", b"a" * (26 << 20)), ("model", SPEECH)], 413),
    "a long field": ([("file", b"a"), ("model", "m" * (1 << 20))], 413),
    "too many parts": ([("file", b"a"), ("model", SPEECH), *((f"x{n}", "y") for n in range(100))], 400),
    "not UTF-8": ([("file", b"a"), ("model", b"\xff\xfe")], 400),
}


@pytest.mark.parametrize("name", FORMS)
async def test_forms_that_are_none(here: Running, name: str) -> None:
    fields, status = FORMS[name]
    reply = await here.ask("POST", "/v1/audio/transcriptions", data=form(*fields))
    assert reply.status == status, reply.body
    assert reply.json["error"]["message"] == reply.json["message"]
    assert b"Traceback" not in reply.body


async def test_forms_that_are_no_forms(here: Running) -> None:
    path = "/v1/audio/transcriptions"
    good = await here.ask("POST", path, data=form(("file", b"a"), ("model", SPEECH)))
    assert good.status == 200, good.body
    for kind, body, status in (
        ("application/json", b"{}", 415),
        ("text/plain", b"a", 415),
        ("multipart/form-data", b"a", 400),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\na', 400),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400),
    ):
        reply = await here.ask("POST", path, data=body, headers={"Content-Type": kind})
        assert reply.status == status, (kind, body, reply.body)
    for headers in ({"Host": "evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = await here.ask("POST", path, data=form(("file", b"a"), ("model", SPEECH)), headers=headers)
        assert reply.status == 403
