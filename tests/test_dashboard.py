"""The page of the daemon: what a browser may do with it, that nothing of it is markup by accident, how it is renewed,
and that it stays small whatever there is."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ipfs_accelerate_node.api.dashboard.routes import MAX_WATCHERS, WATCHERS
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.benchmarks.cells import Cell, Report
from ipfs_accelerate_node.benchmarks.last_report import FILE, keep_report, last_report
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from tests.support.daemon import Daemon, run_cli
from tests.support.dashboard import Elements, page, session
from tests.support.gateway import FakeGateway, small_model
from tests.support.results import claim, key
from tests.support.running import model, running
from tests.support.small_model import bring, random_model

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}"
STEERING = "abc\u202egnp.exe\x1b[2J\u200b"


# -- what a browser may do with it


async def test_the_policy_allows_this_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        await here.node.add(model(tmp_path / "m", "x"), name="one")
        inside = await here.admin("GET", "/dashboard")
        outside = await here.ask("GET", "/dashboard")
        for reply in (inside, outside):
            found = Elements(inside.body.decode())
            script, style = (
                base64.b64encode(hashlib.sha256(found.inside[tag].encode()).digest()).decode()
                for tag in ("script", "style")
            )
            assert reply.headers["Content-Security-Policy"] == (
                f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src data:; "
                "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            )
            assert reply.headers["X-Content-Type-Options"] == "nosniff"
            assert reply.headers["Referrer-Policy"] == "no-referrer"
            assert reply.headers["X-Frame-Options"] == "DENY"
            assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert reply.headers["Cache-Control"] == "no-store"
            assert reply.headers["Content-Type"] == "text/html; charset=utf-8"


async def test_the_page_has_no_handler_no_form_and_no_asset_of_another_place(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        await here.node.add(model(tmp_path / "m", "x"), name="one")
        found = Elements(await page(here))
    assert len(found.named("script")) == len(found.named("style")) == 1
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "form", "base", "img", "button")
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")]
        for name in ("href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/svg+xml,"))
    assert not re.search(r"url\(|@import", found.inside["style"])


async def test_the_page_can_be_read_by_parts_and_tables_have_heads(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        await here.node.add(model(tmp_path / "m", "x"), name="one")
        found = Elements(await page(here))
    ids = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    (news,) = [attributes for _, attributes in found.tags if attributes.get("aria-live")]
    assert (news["aria-live"], news["role"]) == ("polite", "status")
    assert len(found.named("main")) == len(found.named("h1")) == len(found.named("nav")) == 1
    for section in found.named("section"):
        assert section["aria-labelledby"] in ids
    for anchor in found.named("a"):
        assert str(anchor["href"])[1:] in ids
    assert all(head.get("scope") in ("col", "row") for head in found.named("th"))
    assert found.named("th")


# -- hostile texts


async def test_nothing_that_others_wrote_becomes_markup_or_steers_the_reader(tmp_path: Path) -> None:
    """E9: texts of a record, a model's name, what was asked to be pinned, a device of a report."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    now = int(time.time())
    async with running(cache) as here:
        await here.node.add(model(tmp_path / "m", "x"), name="one")
        hostile = {"device": HOSTILE, "device_name": HOSTILE, "task": HOSTILE, "engine": HOSTILE, "unit": HOSTILE}
        texts = {"cpu": HOSTILE, "cores": 8, "arch": HOSTILE}
        made = claim(key(1), created=now, machine=texts, workload={"name": HOSTILE, "repeats": 3}, **hostile)
        assert here.node.exchange.store.take([made]) == ["accepted"]
        here.node.exchange.store.note_confirmed(made.model, now)
        for ref in (f"hf:{HOSTILE}", STEERING):
            await here.admin("POST", "/api/pins", json={"ref": ref})
        cell = Cell(model=HOSTILE, root="x", task="t", device=STEERING, engine="e", precision="f32", status="ERROR",
                    reason=HOSTILE, p50_ms=1e15)  # fmt: skip
        keep_report(cache, Report({"cpu": HOSTILE, "memory_bytes": "many"}, (cell,)))
        text = await page(here)
    found = Elements(text)
    files = resources.files("ipfs_accelerate_node.api.dashboard") / "templates"
    assert found.inside["script"] == (files / "script.js").read_text()
    assert found.inside["style"] == (files / "style.css").read_text()
    assert len(found.named("script")) == 1
    assert not found.named("img")
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert "{{7*7}}" in text
    assert "&lt;script&gt;alert(1)" in text
    assert not [letter for letter in text if not letter.isprintable() and letter != "\n"]
    assert "\\u202e" in text


# -- events


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any]]:
    name = ""
    async for line in reply.content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield name, json.loads(text.removeprefix("data: "))


async def test_a_pin_is_followed_to_its_end_and_parts_come_only_when_they_changed(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    made = small_model({"config.json": b"{}", "weights.safetensors": bytes(range(256)) * 400})
    async with FakeGateway(made.blocks) as gateway, running(cache, gateways=(gateway.url,)) as here:
        shown = Elements(await page(here))
        have = ",".join(f"{s['id']}.{s['data-digest']}" for s in shown.named("section"))
        gateway.gate.clear()
        url = f"{here.url}/dashboard/events?have={have}"
        seen: list[tuple[str, Any]] = []
        async with here.session.get(url, headers=await session(here)) as reply:
            assert reply.headers["Content-Type"] == "text/event-stream"
            assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
            job = (await here.admin("POST", "/api/pins", json={"ref": str(made.root), "name": "pinned-one"})).json
            async for name, value in events(reply):
                seen.append((name, value))
                if name == "part" and value["id"] == "pins" and "fetching" in value["html"]:
                    gateway.gate.set()
                if name == "news" and value["text"] == "pinned-one is pinned":
                    break
        parts = [value for name, value in seen if name == "part"]
        assert f'id="pin-{job["id"]}"' in [one["html"] for one in parts if one["id"] == "pins"][-1]
        assert "pinned" in [one["html"] for one in parts if one["id"] == "pins"][-1]
        assert {one["id"] for one in parts} <= {"pins", "node", "models", "devices"}
        assert ("news", {"text": "pinned-one is being fetched"}) in seen
        for name, value in seen:
            if name == "row":
                assert value["id"] == f"pin-{job['id']}"


async def test_who_watches_is_told_when_the_node_stops_and_when_the_session_ends(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        stored, secret = here.keys.create(["admin"])
        path = (await here.ask("POST", "/api/dashboard", key=secret)).json["path"]
        entered = {"Cookie": (await here.ask("GET", path)).headers["Set-Cookie"].partition(";")[0]}
        async with here.session.get(f"{here.url}/dashboard/events", headers=entered) as reply:
            here.keys.remove(stored.id)
            last = [one async for one in events(reply)][-1]
        assert last[0] == "end"
        assert "ian dashboard" in last[1]["text"]
        async with here.session.get(f"{here.url}/dashboard/events", headers=await session(here)) as reply:
            here.served.app[TRAFFIC].drain()
            assert [one async for one in events(reply)][-1] == ("end", {"text": "The daemon is stopping."})


async def test_only_so_many_watch_at_a_time(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        watchers = here.served.app[WATCHERS]
        for _ in range(MAX_WATCHERS):
            await watchers.acquire()
        refused = await here.admin("GET", "/dashboard/events")
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 0


# -- a lot of everything


@pytest.mark.timeout(90)  # models are made durable one by one
@pytest.mark.parametrize("models", [30, pytest.param(200, marks=pytest.mark.full)])
async def test_a_lot_of_everything_stays_small_and_quick(
    tmp_path: Path, models: int, figure: Callable[[str], None]
) -> None:
    """100 pins, 100 peers, 1,000 results."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    peers = tuple(f"http://127.0.1.{index + 1}:9" for index in range(100))
    now = int(time.time())
    async with running(cache, peers=peers) as here:
        for index in range(models):
            bring(here.node.store, random_model(index, size=10))
        for index in range(100):
            await here.admin("POST", "/api/pins", json={"ref": str(Cid.of(b"%d" % index, DAG_PB)), "source": peers[0]})
        claims = [
            claim(key(1 + index % 20), created=now, seq=index + 1, device=f"cuda:{index % 7}",
                  model=Cid.of(b"model %d" % (index % 30), DAG_PB), workload={"name": f"w-{index}", "repeats": 3})
            for index in range(1000)
        ]  # fmt: skip
        assert set(here.node.exchange.store.take(claims)) == {"accepted"}
        for root in {one.model for one in claims}:
            here.node.exchange.store.note_confirmed(root, now)
        began_s = time.process_time()
        text = await page(here)
        first_s = time.process_time() - began_s
        began_s = time.process_time()
        for _ in range(10):
            await page(here)
        later_s = (time.process_time() - began_s) / 10
    figure(f"first {first_s * 1000:.0f} ms, later {later_s * 1000:.1f} ms of processor time, {len(text) / 1000:.0f} kB")
    found = Elements(text)
    assert len([one for one in found.named("tr") if str(one.get("id", "")).startswith("model-")]) == models
    assert len(found.named("progress")) + text.count(">failed<") >= 100
    assert text.count("http://127.0.1.") >= 100
    assert "18 models more with results" in text
    assert len(text) < 1_500_000
    assert first_s < 3.0
    assert later_s < 0.3
    assert all("open" not in one for one in found.named("details"))


# -- the last report, and the command


def test_the_last_report_is_kept_and_what_is_none_is_not_shown(tmp_path: Path) -> None:
    assert last_report(tmp_path) is None
    made = Report({"cpu": "A"}, (Cell(model="m", root="r", task="t", device="cpu", engine="torch", precision="f32",
                                      status="REAL", p50_ms=1.5),))  # fmt: skip
    keep_report(tmp_path, made)
    kept = last_report(tmp_path)
    assert kept is not None
    assert kept.report == made
    assert abs(kept.at - time.time()) < 60
    (tmp_path / FILE).chmod(0o600)
    (tmp_path / FILE).write_text("{")
    assert last_report(tmp_path) is None


async def test_a_report_that_was_made_is_shown(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    async with running(cache) as here:
        assert "ian report" in await page(here)
        reply = await here.admin("POST", "/api/report", json={"refs": ["mock:embedding"], "devices": ["cpu"]})
        assert reply.status == 200
        (cell,) = reply.json["cells"]
        kept = last_report(cache)
        assert kept is not None
        assert kept.report.cells[0].status == cell["status"] == "MOCK"
        async with here.session.get(f"{here.url}/dashboard/events", headers=await session(here)) as watched:
            async for name, value in events(watched):
                if name == "part" and value["id"] == "report" and "1 MOCK" in value["html"]:
                    break


async def test_the_command_prints_a_link(tmp_path: Path) -> None:
    async with Daemon(tmp_path / "cache") as daemon:
        daemon.answers["POST", "/api/dashboard"] = (201, {"path": "/dashboard/login/abc", "expires_s": 60})
        done = await run_cli(tmp_path, "dashboard")
        assert (done.code, done.out) == (0, f"{daemon.url}/dashboard/login/abc\n")
        assert "once" in done.err
        assert (await run_cli(tmp_path, "dashboard", "--json")).json["url"] == f"{daemon.url}/dashboard/login/abc"
