"""Who sees the page of the daemon: who has the admin key, or a browser of this machine that a link let in."""

from __future__ import annotations

import re
from pathlib import Path

from ipfs_accelerate_node.api import peers_app
from ipfs_accelerate_node.api.app import ROUTES
from ipfs_accelerate_node.api.dashboard.sessions import CODE_S, MAX_CODES, MAX_SESSIONS, SESSION_S, Sessions
from ipfs_accelerate_node.api.keys import KeyRing
from tests.support.dashboard import link, page, session
from tests.support.running import model, running


async def test_who_has_neither_key_nor_session_sees_how_to_get_in_and_nothing_else(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        await here.node.add(model(tmp_path / "m", "x"), name="secret-model")
        _, infer = here.keys.create(["infer", "peer", "metrics", "pin"])
        cookie = f"ian_dashboard_{here.served.port}"
        for headers in (
            {},
            {"Authorization": "Bearer sk-anything"},
            {"Authorization": f"Bearer {infer}"},
            {"Cookie": f"{cookie}="},
            {"Cookie": f"{cookie}={'A' * 43}"},
            {"Cookie": f"{cookie}={here.key}"},
        ):
            reply = await here.ask("GET", "/dashboard", headers=headers)
            assert reply.status == 401, headers
            assert b"ian dashboard" in reply.body
            assert b"secret-model" not in reply.body
            assert here.node.key.peer_id.encode() not in reply.body
            assert (await here.ask("GET", "/dashboard/events", headers=headers)).status == 401
            assert (await here.ask("POST", "/api/dashboard", headers=headers)).status in (401, 403)
        assert "secret-model" in await page(here)
        assert b"secret-model" in (await here.ask("GET", "/dashboard", headers=await session(here))).body


async def test_a_link_opens_once_and_a_session_is_of_no_use_elsewhere(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        path = await link(here)
        first = await here.ask("GET", path)
        parts = [part.strip() for part in first.headers["Set-Cookie"].split(";")]
        assert re.fullmatch(rf"ian_dashboard_{here.served.port}=[\w-]{{43}}", parts[0])
        assert set(parts[1:]) == {"HttpOnly", "Path=/dashboard", "SameSite=Strict"}
        again = await here.ask("GET", path)
        assert again.status == 401
        assert "Set-Cookie" not in again.headers
        for changed in (path[:-1], path + "A", "/dashboard/login/x"):
            assert (await here.ask("GET", changed)).status == 401
        entered = {"Cookie": parts[0]}
        for route in ("/api/store", "/api/pins", "/api/peers", "/api/keys", "/api/results?model=x"):
            assert (await here.ask("GET", route, headers=entered)).status == 401
        assert (await here.ask("POST", "/api/dashboard", headers=entered)).status == 401


async def test_a_session_is_for_this_machine_and_for_the_page_itself(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache, allow_hosts=("node.lan",)) as here:
        entered, port = await session(here), here.served.port
        opened = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        framed = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        for headers, wanted in (
            ({"Host": f"localhost:{port}"}, 200),
            ({"Host": f"[::1]:{port}"}, 200),
            ({"Host": "node.lan"}, 401),  # allowed there, but no name of loopback
            ({"Host": "evil.example"}, 403),
            ({"Host": f"127.0.0.1.evil.example:{port}"}, 403),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Sec-Fetch-Site": "cross-site", **opened}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 401),  # a page of another port
            ({"Sec-Fetch-Site": "same-site", **framed}, 401),
            ({"Sec-Fetch-Site": "same-site", **opened}, 200),  # somebody follows a link
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({"Sec-Fetch-Site": "none", **opened}, 200),
        ):
            assert (await here.ask("GET", "/dashboard", headers={**entered, **headers})).status == wanted, headers
        refused = await here.ask("POST", "/api/dashboard", key=here.key, headers={"Host": "node.lan"})
        assert (refused.status, refused.json["code"]) == (403, "not_loopback")
        path = await link(here)
        assert (await here.ask("GET", path, headers={"Host": "node.lan"})).status == 401
        assert (await here.ask("GET", path)).status == 303  # it was not used up by that


async def test_elsewhere_than_on_loopback_the_admin_key_is_needed_all_the_same(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache, host="0.0.0.0", share=True) as here:
        assert (await here.ask("GET", "/dashboard")).status == 401
        assert (await here.admin("GET", "/dashboard")).status == 200


def test_codes_and_sessions_end(tmp_path: Path) -> None:
    keys, now = KeyRing(tmp_path / "keys.json"), [0.0]
    own = keys.identify(keys.session_key())
    stored, secret = keys.create(["admin"])
    other = keys.identify(secret)
    assert own is not None
    assert other is not None
    sessions = Sessions(keys, lambda: now[0])
    late, code = sessions.new_code(own), sessions.new_code(own)
    entered = sessions.open(code)
    assert entered is not None
    by_stored = sessions.open(sessions.new_code(other))
    assert by_stored is not None
    waiting = sessions.new_code(other)
    assert sessions.knows(by_stored)
    keys.remove(stored.id)
    assert not sessions.knows(by_stored)
    assert sessions.open(waiting) is None
    now[0] = CODE_S
    assert sessions.open(late) is None
    now[0] = SESSION_S - 1
    assert sessions.knows(entered)
    now[0] = SESSION_S
    assert not sessions.knows(entered)


def test_there_are_never_many_codes_or_sessions(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path / "keys.json")
    own = keys.identify(keys.session_key())
    assert own is not None
    sessions = Sessions(keys)
    first = sessions.new_code(own)
    codes = [sessions.new_code(own) for _ in range(MAX_CODES)]
    assert sessions.open(first) is None
    entered = [sessions.open(code) for code in codes]
    assert all(entered)
    for _ in range(MAX_SESSIONS):
        entered.append(sessions.open(sessions.new_code(own)))
    assert [sessions.knows(str(one)) for one in entered] == [False] * MAX_CODES + [True] * MAX_SESSIONS


def test_every_route_only_reads_and_none_is_the_peers() -> None:
    ours = [route for route in ROUTES if route.path.startswith("/dashboard")]
    assert {route.method for route in ours} == {"GET"}
    assert len(ours) == 3
    assert not [route for route in peers_app.ROUTES if "dashboard" in route.path]


async def test_other_methods_do_nothing(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        entered = await session(here)
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            for path in ("/dashboard", "/dashboard/events"):
                assert (await here.ask(method, path, headers=entered)).status == 405
