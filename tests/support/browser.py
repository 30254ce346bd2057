"""Headless Chromium, driven by its debugging protocol over one WebSocket; what it complains of and asks for is kept."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
START_S = 60.0


class Tab:
    """One page. complaints: console errors, uncaught exceptions and what the browser's log says (violations of the
    content policy among them). asked: every URL that the page asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._heard: list[tuple[str, asyncio.Future[Any]]] = []
        self.complaints: list[str] = []
        self.asked: list[str] = []

    async def listen(self) -> None:
        """Until the browser is gone."""
        async for message in self._socket:
            self._take(json.loads(message.data))

    def _take(self, told: dict[str, Any]) -> None:
        if (answer := self._answers.pop(told.get("id", 0), None)) is not None:
            if "error" in told:
                answer.set_exception(AssertionError(told["error"]))
            else:
                answer.set_result(told["result"])
            return
        name, about = told.get("method", ""), told.get("params", {})
        match name:
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "assert", "warning"):
                self.complaints.append(json.dumps(about["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(about["exceptionDetails"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.complaints.append(about["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(about["request"]["url"])
        for wanted, heard in self._heard:
            if wanted == name and not heard.done():
                heard.set_result(about)

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[self._number] = answer
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await answer

    async def open(self, url: str) -> None:
        """Returns once the page has loaded."""
        loaded: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._heard.append(("Page.loadEventFired", loaded))
        await self.call("Page.navigate", url=url)
        await loaded

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise what it becomes."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, condition: str) -> Any:
        """The value of an expression as soon as it is true; looked at whenever the page changed or was drawn."""
        return await self.run(
            "new Promise((done) => { const look = () => { const found = (" + condition + ");"
            " if (found) { watch.disconnect(); done(found); } };"
            " const watch = new MutationObserver(look);"
            " watch.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});"
            " look(); })"
        )

    async def size(self, width: int, height: int, *, dark: bool = False, still: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path, *, whole: bool = False) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browsing(profile: Path, prepare: Callable[[Tab], None] = lambda _: None) -> AsyncIterator[Tab]:
    """An empty page of a browser with a profile of its own."""
    process = await asyncio.create_subprocess_exec(
        "chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            while b"DevTools listening on" not in (line := await process.stderr.readline()):
                assert line, "the browser ended"
        place = line.decode().split()[-1].partition("/devtools/")[0].replace("ws://", "http://")
        async with aiohttp.ClientSession(trust_env=False) as session, asyncio.TaskGroup() as group:
            drain = group.create_task(process.stderr.read())
            async with session.get(f"{place}/json/list") as reply:
                (page,) = [one for one in await reply.json() if one["type"] == "page"]
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                prepare(tab)
                listening = group.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()
            process.terminate()
            drain.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
