"""The pinning service by its own API: who may, what is kept and until when, filters, and every bad request told so."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ipfs_accelerate_node.content.cid import DAG_CBOR, Cid
from ipfs_accelerate_node.pinning.origins import dialled
from tests.support.running import Running, model, running

PEER = "12D3KooWGqEqznZYNAPP5wcb5ZM7X7aNzD3UiLwKHSgXskYu9D52"
NOBODY_HAS = str(Cid.of(b"what nobody has"))


def inline(text: str) -> str:
    """A file that its CID holds: nobody need be asked for it."""
    return str(Cid.of(text.encode(), hash_code=0))


def new_key(node: Running, *scopes: str) -> str:
    return node.keys.create(scopes or ("pin",))[1]


async def asked(node: Running, key: str, cid: str, **more: Any) -> dict[str, Any]:
    reply = await node.ask("POST", "/api/v1/pins", key=key, json={"cid": cid, **more})
    assert reply.status == 202, reply.body
    return dict(reply.json)


async def ended(node: Running, key: str, made: dict[str, Any]) -> dict[str, Any]:
    """The request once it is pinned or failed; each look is a request, so nothing spins."""
    async with asyncio.timeout(10):
        while made["status"] in ("queued", "pinning"):
            made = (await node.ask("GET", f"/api/v1/pins/{made['requestid']}", key=key)).json
    return made


async def listed(node: Running, key: str, query: str = "") -> tuple[int, list[str | None]]:
    reply = await node.ask("GET", f"/api/v1/pins{query}", key=key)
    assert reply.status == 200, reply.body
    return reply.json["count"], [pin["pin"].get("name") for pin in reply.json["results"]]


async def test_a_request_is_pinned_and_goes_with_the_last_of_its_cid(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key, cid = new_key(node), inline("hello")
        one, two = [await ended(node, key, await asked(node, key, cid, name=n, meta={"a": n})) for n in ("one", "two")]
        assert one["status"] == two["status"] == "pinned"
        assert one["requestid"] != two["requestid"]
        assert one["pin"] == {"cid": cid, "name": "one", "meta": {"a": "one"}}
        path = f"/api/v1/pins/{one['requestid']}"
        assert (await node.ask("DELETE", path, key=key)).status == 202
        assert (await node.ask("GET", path, key=key)).status == 404
        assert node.node.find(cid).pinned, "the second request holds it"
        assert (await node.ask("DELETE", f"/api/v1/pins/{two['requestid']}", key=key)).status == 202
        assert not node.node.find(cid).pinned


async def test_what_the_user_keeps_himself_outlives_requests(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        own = (await node.node.add(model(tmp_path / "m", "mine"))).root
        before = await ended(node, key, await asked(node, key, own))
        assert (await node.ask("DELETE", f"/api/v1/pins/{before['requestid']}", key=key)).status == 202
        assert node.node.find(own).pinned
        later = inline("later")
        request = await ended(node, key, await asked(node, key, later))
        job = (await node.admin("POST", "/api/pins", json={"ref": later})).json
        await node.ask("GET", f"/api/pins/{job['id']}/events", key=node.key)
        assert (await node.ask("DELETE", f"/api/v1/pins/{request['requestid']}", key=key)).status == 202
        assert node.node.find(later).pinned


async def test_a_request_says_so_when_it_is_not_kept_any_more(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key, cid = new_key(node), inline("let go")
        made = await ended(node, key, await asked(node, key, cid))
        await node.node.unpin(cid)
        now = (await node.ask("GET", f"/api/v1/pins/{made['requestid']}", key=key)).json
        assert (now["status"], now["info"]["code"]) == ("failed", "unpinned")


async def test_replacing_makes_a_new_request_and_lets_the_old_content_go(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key, old, new = new_key(node), inline("old"), inline("new")
        made = await ended(node, key, await asked(node, key, old))
        reply = await node.ask("POST", f"/api/v1/pins/{made['requestid']}", key=key, json={"cid": new})
        assert reply.status == 202
        assert reply.json["requestid"] != made["requestid"]
        assert (await ended(node, key, reply.json))["status"] == "pinned"
        assert (await node.ask("GET", f"/api/v1/pins/{made['requestid']}", key=key)).status == 404
        assert (node.node.find(old).pinned, node.node.find(new).pinned) == (False, True)


async def test_what_is_no_file_fails_in_words_and_what_nobody_has_waits_and_can_be_taken_back(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        failed = await ended(node, key, await asked(node, key, str(Cid.of(b"\xa0", DAG_CBOR, 0))))
        assert (failed["status"], failed["info"]["code"]) == ("failed", "unsupported_codec")
        waiting = await asked(node, key, NOBODY_HAS)
        async with asyncio.timeout(10):
            while "code" not in waiting["info"]:
                waiting = (await node.ask("GET", f"/api/v1/pins/{waiting['requestid']}", key=key)).json
        assert waiting["status"] == "queued"
        assert waiting["info"]["status_details"].startswith("asked again in 5 s: ")
        assert (await node.ask("DELETE", f"/api/v1/pins/{waiting['requestid']}", key=key)).status == 202
        assert await listed(node, key, "?status=queued,pinning") == (0, [])


async def test_filters(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        names = ["Alpha", "alpha", "Alphabet", "ÄRGER"]
        made = [await asked(node, key, inline(n), name=n, meta={"app": n[0], "v": "1"}) for n in names]
        for each in made:
            await ended(node, key, each)
        assert await listed(node, key) == (4, names[::-1]), "latest first"
        assert await listed(node, key, "?limit=1") == (4, ["ÄRGER"])
        assert await listed(node, key, f"?before={made[1]['created']}") == (1, ["Alpha"])
        assert await listed(node, key, f"?after={made[1]['created']}") == (2, ["ÄRGER", "Alphabet"])
        assert await listed(node, key, "?name=alpha") == (1, ["alpha"])
        assert await listed(node, key, "?name=ALPHA&match=iexact") == (2, ["alpha", "Alpha"])
        assert await listed(node, key, "?name=lphab&match=partial") == (1, ["Alphabet"])
        assert await listed(node, key, f"?name={quote('ärg')}&match=ipartial") == (1, ["ÄRGER"])
        assert await listed(node, key, f"?cid={inline('alpha')},{inline('Alpha')}") == (2, ["alpha", "Alpha"])
        assert await listed(node, key, "?meta=" + quote(json.dumps({"app": "A"}))) == (2, ["Alphabet", "Alpha"])
        assert await listed(node, key, "?status=failed,queued") == (0, [])


async def test_a_key_sees_its_own_requests_and_the_admin_all(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        mine, other = new_key(node), new_key(node)
        made = await ended(node, mine, await asked(node, mine, inline("mine"), name="mine"))
        path = f"/api/v1/pins/{made['requestid']}"
        assert await listed(node, other) == (0, [])
        assert {(await node.ask(m, path, key=other)).status for m in ("GET", "DELETE")} == {404}
        assert await listed(node, node.key) == (1, ["mine"])
        for key, status in ((None, 401), ("nobody's", 401), (new_key(node, "infer"), 403)):
            reply = await node.ask("GET", "/api/v1/pins", key=key)
            assert reply.status == status
            assert set(reply.json["error"]) == {"reason", "details"}


BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({}, "cid"), ({"cid": "nonsense"}, "nonsense"), ({"cid": 5}, "cid"), ({"cid": ""}, "cid"),
    ({"cid": PEER}, "PeerID"),
    ({"cid": NOBODY_HAS, "name": "x" * 256}, "name"), ({"cid": NOBODY_HAS, "meta": {"a": 1}}, "meta"),
    ({"cid": NOBODY_HAS, "origins": ["/ip4/127.0.0.1/tcp/1"] * 21}, "origins"),
    ({"cid": NOBODY_HAS, "origins": [1]}, "origins"),
]  # fmt: skip


async def test_bad_requests_change_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        for body, said in BAD_BODIES:
            reply = await node.ask("POST", "/api/v1/pins", key=key, json=body)
            assert (reply.status, reply.json["error"]["reason"]) == (400, "BAD_REQUEST"), body
            assert said in reply.json["error"]["details"]
        assert await listed(node, key, "?status=queued,pinning,pinned,failed") == (0, [])


async def test_bad_filters_and_other_failures_are_told_in_the_api_s_shape(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        queries = (
            "limit=0", "limit=1001", "limit=x", "status=gone", "match=regex", "cid=x",
            f"cid={','.join([NOBODY_HAS] * 11)}",
            "before=yesterday", "after=2020-01-01T00:00:00", "meta=1", "meta=%7B%22a%22:1%7D", f"name={'x' * 256}",
            "limit=1&limit=2",
        )  # fmt: skip
        for query in queries:
            reply = await node.ask("GET", f"/api/v1/pins?{query}", key=key)
            assert (reply.status, reply.json["error"]["reason"]) == (400, "BAD_REQUEST"), query
        for method, path, status in (
            ("GET", "/api/v1/pins/none", 404),
            ("PUT", "/api/v1/pins", 405),
            ("GET", "/api/v1/x", 404),
        ):
            reply = await node.ask(method, path, key=key)
            assert reply.status == status
            assert set(reply.json["error"]) == {"reason", "details"}
        reply = await node.ask("POST", "/api/v1/pins", key=key, data=b"{", headers={"Content-Type": "application/json"})
        assert (reply.status, reply.json["error"]["reason"]) == (400, "BAD_REQUEST")


async def test_a_full_node_says_insufficient_funds(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", quota_bytes=1) as node:
        key = new_key(node)
        node.node.store.reserve(1)
        reply = await node.ask("POST", "/api/v1/pins", key=key, json={"cid": inline("more")})
        assert (reply.status, reply.json["error"]["reason"]) == (409, "INSUFFICIENT_FUNDS")


@pytest.mark.parametrize(
    ("origin", "local", "others"),
    [
        (f"/ip4/1.1.1.1/tcp/4001/p2p/{PEER}", True, True), (f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}", True, False),
        (f"/ip4/192.168.1.1/tcp/80/p2p/{PEER}", True, False), (f"/ip6/::ffff:10.0.0.1/tcp/1/p2p/{PEER}", True, False),
        (f"/dns4/intranet/tcp/1/p2p/{PEER}", True, False), ("/ip4/1.1.1.1/tcp/4001", False, False), ("", False, False),
        (f"/ip4/1.1.1.1/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}", True, False),
    ],
)  # fmt: skip
def test_which_origins_are_dialled(origin: str, local: bool, others: bool) -> None:
    assert (dialled(origin, local=True), dialled(origin, local=False)) == (local, others)


async def test_a_request_that_had_not_ended_goes_on_at_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path / "cache") as node:
        key = new_key(node)
        made = await asked(node, key, NOBODY_HAS, name="patient")
    async with running(tmp_path / "cache") as node:
        path = f"/api/v1/pins/{made['requestid']}"
        again = (await node.ask("GET", path, key=key)).json
        assert (again["status"] in ("queued", "pinning"), again["pin"]["name"]) == (True, "patient")
        async with asyncio.timeout(10):
            while "code" not in again["info"]:
                again = (await node.ask("GET", path, key=key)).json
        assert again["info"]["code"] == "no_source", "it was tried in this run"
