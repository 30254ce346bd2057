"""The page in a real browser: nothing it complains of, nothing asked of another place, a pin watched to its end, and
no side-scrolling on a phone."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.benchmarks.cells import Cell, Report
from ipfs_accelerate_node.benchmarks.last_report import keep_report
from tests.support.browser import Tab, browsing
from tests.support.gateway import FakeGateway, small_model
from tests.support.results import claim, key
from tests.support.running import Running, model, running

pytestmark = [pytest.mark.full, pytest.mark.needs("chromium"), pytest.mark.timeout(180)]

LIVE = "document.getElementById('live').textContent === 'Live'"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


@asynccontextmanager
async def looking(tmp_path: Path, *, gateways: Sequence[str] = ()) -> AsyncIterator[tuple[Running, Tab]]:
    """A node with something to show, and a browser that was let in and is told what changes."""
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    now = int(time.time())
    async with running(cache, gateways=tuple(gateways), peers=("http://127.0.1.1:9",)) as here:
        stored = await here.node.add(model(tmp_path / "m", "x"), name="an-organisation/a-model-with-quite-a-long-name")
        root = here.node.find(stored.root).root
        made = [
            claim(
                key(1 + number), created=now, seq=batch, model=root,
                device=device, device_name=HOSTILE, ns=batch * (number + 1) * 1_000_000,
                workload={"name": f"encode-{batch}x128", "batch": batch, "length": 128, "repeats": 3},
            )
            for number, device in enumerate(("cpu", "cuda:0", "openvino:CPU", HOSTILE))
            for batch in (1, 8, 32)
        ]  # fmt: skip
        assert set(here.node.exchange.store.take(made)) == {"accepted"}
        cell = Cell(model=HOSTILE, root="r", task="t", device="cuda:0", engine="torch", precision="f32",
                    status="UNAVAILABLE", reason="no such device here " * 8)  # fmt: skip
        keep_report(cache, Report({"cpu": "A Processor"}, (cell,)))
        path = (await here.admin("POST", "/api/dashboard")).json["path"]
        async with browsing(tmp_path / "profile") as tab:
            await tab.open(here.url + path)
            await tab.until(LIVE)
            yield here, tab


def calm(here: Running, tab: Tab) -> None:
    """Nothing to complain of, and every request went to the node."""
    assert tab.complaints == []
    assert {urlsplit(url).netloc for url in tab.asked if not url.startswith("data:")} == {
        f"127.0.0.1:{here.served.port}"
    }


async def test_a_pin_is_watched_to_its_end(tmp_path: Path) -> None:
    made = small_model({"config.json": b"{}", "weights.safetensors": bytes(range(256)) * 2000})
    async with FakeGateway(made.blocks) as gateway, looking(tmp_path, gateways=(gateway.url,)) as (here, tab):
        gateway.gate.clear()
        await tab.run(
            "window.heights = []; window.values = []; new MutationObserver(() => {"
            " const pin = document.querySelector('.pins li'); if (!pin) return;"
            " window.heights.push(pin.getBoundingClientRect().height);"
            " const bar = pin.querySelector('progress');"
            " if (bar && bar.position >= 0) window.values.push(bar.position);"
            "}).observe(document.getElementById('pins'), {subtree: true, childList: true, attributes: true}); 1"
        )
        await here.admin("POST", "/api/pins", json={"ref": str(made.root), "name": "watched"})
        await tab.until("document.querySelector('.pins .chip') && document.querySelector('.pins .chip').textContent"
                        " === 'fetching'")  # fmt: skip
        gateway.gate.set()
        await tab.until("document.querySelector('.pins .chip').textContent === 'pinned'")
        await tab.until("document.getElementById('news').textContent === 'watched is pinned'")
        await tab.until("document.querySelector('#models').textContent.includes('watched')")
        values = await tab.run("window.values")
        assert values == sorted(values)
        assert values[-1] == 1
        assert len(set(await tab.run("window.heights"))) == 1  # nothing below it moved
        calm(here, tab)


async def test_on_a_phone_nothing_scrolls_sideways(tmp_path: Path) -> None:
    async with looking(tmp_path) as (here, tab):
        await tab.until("document.querySelectorAll('#devices table').length > 0")
        for width, height, dark in ((360, 800, False), (320, 640, True), (768, 1024, False), (1280, 900, True)):
            await tab.size(width, height, dark=dark)
            for opened in ("false", "true"):
                await tab.run(f"document.querySelectorAll('details').forEach((one) => {{ one.open = {opened}; }})")
                assert await tab.run("document.documentElement.scrollWidth") <= width
                wide = await tab.run(
                    "[...document.querySelectorAll('main *')].filter((one) => !one.closest('thead') &&"
                    " one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 200))"
                )
                assert wide == []
        await tab.size(360, 800, dark=True)
        light = await tab.run("getComputedStyle(document.body).backgroundColor")
        await tab.size(360, 800)
        assert light != await tab.run("getComputedStyle(document.body).backgroundColor")
        calm(here, tab)


async def test_what_was_folded_open_and_focused_stays_so(tmp_path: Path) -> None:
    async with looking(tmp_path) as (here, tab):
        await tab.until("document.querySelectorAll('#devices table').length > 0")
        await tab.run("const all = document.querySelector('#results details'); all.open = true;"
                      " all.querySelector('summary').focus(); window.kept = all; 1")  # fmt: skip
        made = claim(key(40), created=int(time.time()), seq=1, device="cuda:7", model=here.node.models()[0].root)
        here.node.exchange.store.take([made])
        await tab.until("document.querySelector('#results').textContent.includes('cuda:7')")
        assert await tab.run("window.kept.isConnected && window.kept.open")
        assert await tab.run("document.activeElement === window.kept.querySelector('summary')")
        calm(here, tab)


async def test_it_can_be_read_without_script_and_times_are_relative_with_it(tmp_path: Path) -> None:
    async with looking(tmp_path) as (here, tab):
        assert await tab.run("document.querySelector('#node time').textContent") == "just now"
        assert await tab.run("document.querySelector('#node time').title.length") > 8
        await tab.call("Emulation.setScriptExecutionDisabled", value=True)
        await tab.open(f"{here.url}/dashboard")
        text = (await tab.call("Runtime.evaluate", expression="document.body.innerText"))["result"].get("value")
        assert text is None or "UTC" in text
        tree = json.dumps(await tab.call("Accessibility.getFullAXTree"))
        for words in ("reload it", "UTC", "Latency by device", "an-organisation/a-model-with-quite-a-long-name"):
            assert words in tree
        for role in ("banner", "navigation", "main", "region", "table", "columnheader", "rowheader"):
            assert f'"value": "{role}"' in tree
        calm(here, tab)


async def test_a_page_of_another_port_can_neither_frame_nor_read_it(tmp_path: Path) -> None:
    """To a browser both are one site, so the session's cookie goes along."""

    async def other(request: web.Request) -> web.Response:
        return web.Response(text=f"<iframe src='{request.query['of']}'></iframe>", content_type="text/html")

    async with looking(tmp_path) as (here, tab), serving(other) as url:
        page = f"{here.url}/dashboard"
        await tab.open(f"{url}/?of={page}")
        for mode in ("no-cors", "cors"):
            asked = f"fetch('{page}', {{credentials: 'include', mode: '{mode}'}}).then(() => 'read', () => 'refused')"
            assert await tab.run(asked) == "refused"
        script = f"(() => {{ const one = document.createElement('script'); one.src = '{page}'; "
        script += "return new Promise((d) => { one.onload = () => d('ran'); one.onerror = () => d('refused');"
        assert await tab.run(script + " document.head.append(one); }); })()") == "refused"
        frame = "document.querySelector('iframe')"
        assert await tab.run(f"{frame}.contentDocument === null")  # an error page of the browser, of no origin
        assert any("frame" in complaint.lower() for complaint in tab.complaints)


async def test_a_stopped_daemon_is_said_and_not_shown_as_live(tmp_path: Path) -> None:
    async with looking(tmp_path) as (here, tab):
        here.served.app[TRAFFIC].drain()
        await tab.until("document.getElementById('live').classList.contains('lost')")
        assert await tab.run("document.getElementById('live').textContent") == "The daemon is stopping."
        calm(here, tab)


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
