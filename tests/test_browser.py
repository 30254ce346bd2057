"""An HTML file inside a model is content, not a page: opened in a real browser it runs no script."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.node import NodeProcess

pytestmark = [pytest.mark.full, pytest.mark.needs("chromium"), pytest.mark.timeout(180)]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def listener() -> Iterator[tuple[str, list[str]]]:
    """A server that notes every path it is asked for: where a script would call home."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def browse(url: str, profile: Path, *, timeout_s: float) -> None:
    """Opens it in a new browser. One that turns it into a download shows no page and is ended at the timeout."""
    with subprocess.Popen(
        ["chromium", *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        try:
            browser.wait(timeout_s)
        except subprocess.TimeoutExpired:
            browser.terminate()


def page(home: str, mark: str) -> str:
    return f"<html><body><img src='{home}/image-{mark}'><script>fetch('{home}/script-{mark}')</script></body></html>"


def test_html_in_a_model_runs_no_script(tmp_path: Path) -> None:
    (model := tmp_path / "model").mkdir()
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    with listener() as (home, asked), NodeProcess(cache) as node:
        (model / "index.html").write_text(page(home, "model"))
        (model / "image.svg").write_text(
            f"<svg xmlns='http://www.w3.org/2000/svg'><script>fetch('{home}/script-svg')</script></svg>"
        )
        root = node.json("add", str(model))["root"]
        served = [f"{node.url}/ipfs/{root}/{name}" for name in ("index.html", "image.svg")]
        frames = "".join(f"<iframe src='{url}'></iframe><object data='{url}'></object>" for url in served)
        (tmp_path / "plain.html").write_text(frames + page(home, "plain"))
        browse((tmp_path / "plain.html").as_uri(), tmp_path / "profile", timeout_s=60)
        assert "/script-plain" in asked  # the browser does run scripts, where it is allowed to
        for number, url in enumerate(served):
            browse(url, tmp_path / f"profile-{number}", timeout_s=10)
        assert [path for path in asked if "plain" not in path] == []
