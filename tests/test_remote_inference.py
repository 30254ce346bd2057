"""Models run on another node: who may, what is asked and answered, whose turn it is, and what an asker believes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.peers_inference import DESK, Desk, Limits
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    Overloaded,
    PayloadTooLarge,
)
from ipfs_accelerate_node.peers.remote import EMBED, INFER, MAX_REQUEST_BYTES, Remote
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.request import DIGEST, SIGNATURE, content_digest
from ipfs_accelerate_node.store import Provenance
from ipfs_accelerate_node.store.ingest import ingest
from tests.support.models import tiny_model
from tests.support.peers import listener, post, signed_body
from tests.support.running import Reply, Running, model, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(90)]

FRIEND, STRANGER = NodeKey(b"friend" + bytes(26)), NodeKey(b"stranger" + bytes(24))
MOCK = {"ref": "mock:embedding", "items": ["a text"]}


@dataclass(frozen=True, slots=True)
class Two:
    """there: lets FRIEND and here run models; url: its peers' listener. root: of a model that only it has."""

    here: Running
    there: Running
    url: str
    root: str
    private: str

    async def ask(
        self,
        body: object,
        *,
        by: NodeKey = FRIEND,
        path: str = INFER,
        url: str = "",
        more: dict[str, str] | None = None,
    ) -> Reply:
        data = json.dumps(body).encode()
        headers = signed_body(by, path, data, to=self.there.node.key.peer_id) | (more or {})
        return await post(self.here, url or self.url, path, data, headers)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    folder = tmp_path_factory.mktemp("remote")
    async with (
        running(folder / "here") as here,
        running(folder / "there", serve_peers=True, allow_peers=(FRIEND.peer_id,), threads=1) as there,
        listener(there) as port,
    ):
        there.node.exchange.book.allow(here.node.key.peer_id)
        root = (await there.node.add(tiny_model(folder / "tiny"), name="org/tiny")).root
        secret = model(folder / "secret", "one's own ")
        provenance = Provenance(kind="hf", reference="org/gated", at="2026-01-01T00:00:00+00:00")
        private = await asyncio.to_thread(
            ingest, there.node.store, secret, name="gated", public=False, provenance=provenance
        )
        yield Two(here, there, f"http://127.0.0.1:{port}", root, str(private.model.root))


async def test_a_model_that_only_the_other_has(two: Two) -> None:
    asked = {"peer": two.there.url, "ref": two.root, "items": ["the cat", "the dog"], "device": "cpu"}
    reply = await two.here.admin("POST", "/api/peers/infer", json=asked)
    assert reply.status == 200, reply.body
    said = reply.json
    own = (await two.there.ask("POST", INFER, json={"ref": "org/tiny", "items": ["the cat", "the dog"]})).json
    assert [output["vector"] for output in said["outputs"]] == [output["vector"] for output in own["outputs"]]
    assert (said["claim"], said["way"], said["peer"]) == (True, "http", two.there.node.key.peer_id)
    assert (said["root"], said["implementation"]) == (two.root, "REAL")
    shown = {name: reply.headers[name] for name in ("X-Model-Root", "X-Device", "X-Implementation", "X-Peer")}
    assert shown == {
        "X-Model-Root": two.root, "X-Device": "cpu", "X-Implementation": "REAL", "X-Peer": two.there.node.key.peer_id,
    }  # fmt: skip
    assert reply.headers["X-Model-Source"] == "peer"
    # only with the admin key: it is sent with this node's signature
    assert (await two.here.ask("POST", "/api/peers/infer", json=asked)).status == 401


async def test_by_the_peers_listener_in_both_dialects(two: Two) -> None:
    reply = await two.ask({"ref": two.root, "items": ["the cat"]})
    assert reply.status == 200, reply.body
    assert reply.headers["X-Peer"] == two.there.node.key.peer_id
    assert reply.headers["X-Model-Root"] == two.root
    vector = reply.json["outputs"][0]["vector"]
    reply = await two.ask({"model": two.root, "input": "the cat"}, path=EMBED)
    assert reply.status == 200, reply.body
    assert reply.json["data"][0]["embedding"] == pytest.approx(vector)


async def test_who_may(two: Two) -> None:
    for url in (two.url, two.there.url):
        assert (await two.ask(MOCK, url=url)).status == 200
        reply = await two.ask(MOCK, by=STRANGER, url=url)
        assert (reply.status, reply.json["code"]) == (403, "key_not_allowed")
    unsigned = {"Content-Type": "application/json"}
    reply = await post(two.here, two.url, INFER, MOCK, unsigned)
    assert (reply.status, reply.json["code"]) == (401, "signature_needed")
    admin = unsigned | {"Authorization": f"Bearer {two.there.key}"}
    assert (await post(two.here, two.url, INFER, MOCK, admin)).status == 401  # no API key means anything there
    two.there.node.exchange.book.allow(STRANGER.peer_id)
    assert (await two.ask(MOCK, by=STRANGER)).status == 200
    two.there.node.exchange.book.deny(STRANGER.peer_id)
    assert (await two.ask(MOCK, by=STRANGER)).status == 403


async def test_a_signed_request_is_a_peers_whatever_key_it_has_beside(two: Two) -> None:
    """On the user's own listener too: not private models, not names."""
    admin = {"Authorization": f"Bearer {two.there.key}"}
    for ref, status in ((two.private, 404), ("org/tiny", 400), ("hf:org/tiny", 400), (two.root, 200)):
        for url in (two.url, two.there.url):
            reply = await two.ask({"ref": ref, "items": ["x"]}, url=url, more=admin)
            assert reply.status == status, (ref, reply.body)
    absent = await two.ask({"ref": str(Cid.of(b"nowhere")), "items": ["x"]})
    assert absent.status == 404
    private = await two.ask({"ref": two.private, "items": ["x"]})
    assert private.json["code"] == "model_not_found"
    # a mock does not stand in for what is not here
    asked = {"ref": two.private, "items": ["x"], "task": "embedding", "allow_mock": True}
    assert (await two.ask(asked)).status == 404


async def test_a_signature_is_for_this_body_once_and_for_this_node(two: Two) -> None:
    data = json.dumps(MOCK).encode()
    own = two.there.node.key.peer_id

    async def sent(
        headers: dict[str, str], body: bytes = data, url: str = two.url, path: str = INFER
    ) -> tuple[int, str]:
        reply = await post(two.here, url, path, body, headers)
        said = reply.json
        return reply.status, said.get("code", "")

    good = signed_body(FRIEND, INFER, data, to=own)
    assert await sent(good) == (200, "")
    assert await sent(good) == (401, "request_replayed")
    assert await sent(good, url=two.there.url) == (401, "request_replayed")  # by the other door neither
    other = data.replace(b"a text", b"b text")
    fresh = signed_body(FRIEND, INFER, data, to=own)
    assert await sent(fresh, other) == (401, "bad_signature")
    assert await sent(fresh | {DIGEST: content_digest(other)}, other) == (401, "bad_signature")
    for skewed in (-400, 400):
        headers = signed_body(FRIEND, INFER, data, to=own, now=time.time() + skewed)
        assert await sent(headers) == (401, "request_stale")
    assert await sent(signed_body(FRIEND, INFER, data, to=STRANGER.peer_id)) == (401, "bad_signature")
    assert await sent(signed_body(FRIEND, EMBED, data, to=own)) == (401, "bad_signature")
    undigested = {k: v for k, v in signed_body(FRIEND, INFER, data, to=own).items() if k != DIGEST}
    assert await sent(undigested) == (401, "signature_incomplete")
    partly = {k: v for k, v in signed_body(FRIEND, INFER, data, to=own).items() if k != SIGNATURE}
    assert await sent(partly) == (401, "signature_incomplete")
    packed = signed_body(FRIEND, INFER, data, to=own) | {"Content-Encoding": "gzip"}
    assert (await sent(packed))[0] == 415
    html = signed_body(FRIEND, INFER, data, to=own) | {"Content-Type": "text/plain"}
    assert (await sent(html))[0] == 415


async def test_who_has_not_opted_in_has_no_such_path(two: Two) -> None:
    data = json.dumps(MOCK).encode()
    async with listener(two.here) as port:
        url = f"http://127.0.0.1:{port}"
        headers = signed_body(FRIEND, INFER, data, to=two.here.node.key.peer_id)
        for path, any_other in ((INFER, "/any/other"), (EMBED, "/v1/other")):
            other = await post(two.here, url, any_other, data, headers)
            reply = await post(two.here, url, path, data, headers)
            assert (reply.status, reply.json) == (other.status, other.json) == (404, reply.json)
    reply = await post(two.here, two.here.url, INFER, data, headers)
    assert (reply.status, reply.json["code"]) == (404, "not_found")
    reply = await post(two.here, two.here.url, INFER, data, {"Content-Type": "application/json"})
    assert reply.status == 200  # unsigned, it is the user's own program


async def test_refusals_come_through_with_their_codes(two: Two) -> None:
    asked: dict[str, Any] = {"peer": two.there.url, "ref": two.root, "items": ["x"]}
    for change, status, code in (
        ({"device": "cuda:7"}, 422, "device_unavailable"),
        ({"ref": two.private}, 404, "model_not_found"),
        ({"task": "text-generation"}, 422, "task_unsupported"),
        ({"items": [{"ids": [1 << 30]}]}, 422, None),
        ({"peer": two.here.url}, 404, "not_served"),
        ({"peer": "http://127.0.0.1:9"}, 503, "source_unavailable"),
        ({"peer": STRANGER.peer_id}, 503, None),
        ({"peer": "nobody"}, 400, "bad_peer"),
        ({"ref": "no-such-name"}, 404, None),
    ):
        reply = await two.here.admin("POST", "/api/peers/infer", json={**asked, **change})
        assert reply.status == status, (change, reply.body)
        if code:
            assert reply.json["code"] == code, change


async def test_a_peer_is_bounded(two: Two) -> None:
    here = two.there.node.key.peer_id
    big = b'{"ref": "mock:embedding", "items": ["' + b"x" * MAX_REQUEST_BYTES + b'"]}'
    reply = await post(two.here, two.url, INFER, big, signed_body(FRIEND, INFER, big, to=here))
    assert (reply.status, reply.json["code"]) == (413, "payload_too_large")
    remote = Remote(FRIEND, None)
    with pytest.raises(PayloadTooLarge):
        await remote.infer(two.url, big, root="mock:embedding", outputs=1)


async def test_own_requests_go_first(two: Two) -> None:
    """While one of the user's own is under way a peer's waits; when that takes too long it is told to come back."""
    traffic = two.there.served.app[DESK]._traffic
    with traffic.inference():
        waiting = asyncio.create_task(two.ask(MOCK))
        await counted(traffic, 2)
        assert not waiting.done()
    assert (await waiting).status == 200


# -- whose turn it is


async def counted(traffic: Traffic, number: int) -> None:
    """Until so many are under way."""
    while traffic.inferring < number:  # noqa: ASYNC110  # nothing tells of a beginning
        await asyncio.sleep(0)


@asynccontextmanager
async def at_desk(desk: Desk, traffic: Traffic, key: str) -> AsyncIterator[None]:
    with traffic.inference():
        async with desk.enters(key), desk.turn():
            yield


async def test_the_desk() -> None:
    traffic = Traffic()
    desk = Desk(traffic, Limits(running=1, waiting=2, of_key=2, patience_s=0.01))
    async with at_desk(desk, traffic, "a"):
        with pytest.raises(Overloaded) as late:
            async with at_desk(desk, traffic, "b"):
                raise AssertionError("one at a time")
        assert late.value.code == "peer_busy"
        assert late.value.retry_after_s == 0.01
        async with desk.enters("a"):
            with pytest.raises(Overloaded, match="one key"):
                async with desk.enters("a"):
                    raise AssertionError("of one key")
            async with desk.enters("b"):
                with pytest.raises(Overloaded, match="of peers"):
                    async with desk.enters("c"):
                        raise AssertionError("of all")
    with traffic.inference(), pytest.raises(Overloaded, match="own"):  # one of the user's own
        async with at_desk(desk, traffic, "a"):
            raise AssertionError("own requests first")
    async with at_desk(desk, traffic, "a"):
        pass
    assert traffic.inferring == 0


async def test_who_waits_gets_a_turn_in_order_and_who_leaves_holds_none() -> None:
    traffic = Traffic()
    desk = Desk(traffic, Limits(running=1, of_key=9))
    order: list[int] = []

    async def one(number: int) -> None:
        async with at_desk(desk, traffic, "a"):
            order.append(number)
            await asyncio.sleep(0)

    async with at_desk(desk, traffic, "a"):
        tasks = [asyncio.create_task(one(number)) for number in range(4)]
        await counted(traffic, 5)
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        assert order == []
    await asyncio.wait(tasks)
    assert order == [0, 2, 3]
    assert traffic.inferring == 0
    async with at_desk(desk, traffic, "b"):
        pass
