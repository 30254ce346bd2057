"""The whole way at once, as users go it: real clients in processes of their own, nodes as they run them."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.sample import SAMPLE
from tests.test_hub_endpoint_clients import EMBED, SNAPSHOT, client, client_environment, folder, hexed, run

pytestmark = pytest.mark.timeout(300)

HF = str(Path(sys.executable).with_name("hf"))


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/minilm", {**folder(SAMPLE), ".gitattributes": b"*.safetensors filter=lfs\n"})
        yield fake


@pytest.mark.model
async def test_node_b_has_it_from_node_a_and_the_upstream_is_asked_nothing(tmp_path: Path, hub: FakeHub) -> None:
    """transformers, snapshot_download and hf at node B, whose only source is node A; offline again from the cache that
    B hydrated, and the Hub's own client finds that cache right."""
    shown = {path: content for path, content in folder(SAMPLE).items() if not f"/{path}".count("/.")}
    sha = hub.repos["org/minilm"].refs["main"]
    plain = await client(EMBED, str(SAMPLE), env=client_environment(tmp_path / "plain", "http://127.0.0.1:9"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
    first = NodeProcess(tmp_path / "a", "--hf-upstream", hub.url)
    try:
        await asyncio.to_thread(first.start)
        root = (await asyncio.to_thread(first.json, "pin", "hf:org/minilm"))["root"]
        hub.seen.clear()
        second = NodeProcess(tmp_path / "b", "--hf-upstream", hub.url, "--hf-offline", "--peer", first.url)
        try:
            await asyncio.to_thread(second.start)
            env = client_environment(tmp_path / "client", second.url, HF_HUB_CACHE=str(tmp_path / "first"))
            assert (await client(EMBED, "org/minilm", env=env))["vector"] == plain["vector"]
            env = client_environment(tmp_path / "client", second.url, HF_HUB_CACHE=str(tmp_path / "second"))
            assert await client(SNAPSHOT, "org/minilm", env=env) == {"commit": sha, "files": hexed(shown)}
            await run(HF, "download", "org/minilm", "--local-dir", str(tmp_path / "got"), env=env)
            got = {path: content for path, content in folder(tmp_path / "got").items() if not path.startswith(".")}
            assert got == shown
            info = await asyncio.to_thread(second.json, "info", root)
            assert [source["kind"] for source in info["model"]["provenance"]["sources"]] == ["peer"]

            hydrated = tmp_path / "hydrated"
            await asyncio.to_thread(second.cli, "hydrate", "hf:org/minilm", "--cache-dir", str(hydrated))
            offline = client_environment(
                tmp_path / "client", "http://127.0.0.1:9", HF_HUB_CACHE=str(hydrated), HF_HUB_OFFLINE="1"
            )
            assert (await client(EMBED, "org/minilm", env=offline))["vector"] == plain["vector"]
            online = client_environment(tmp_path / "client", second.url, HF_HUB_CACHE=str(hydrated))
            said = await run(HF, "cache", "verify", "org/minilm", "--revision", sha, env=online)
            assert "All checksums match" in said
        finally:
            await asyncio.to_thread(second.stop)
    finally:
        await asyncio.to_thread(first.stop)
    assert hub.seen == []


def test_without_network_and_token_only_a_mock_that_says_so_answers_and_only_if_allowed(cache: Path) -> None:
    """As the user reads it: header, body, command line and report; without the flag every step and why it failed."""
    with NodeProcess(cache, env={"HF_HUB_OFFLINE": "1"}) as node:
        refused = node.cli("load", "hf:org/none", "--task", "embedding", check=False)
        assert (refused.returncode, refused.stdout.strip()) == (5, "")
        for said in ("offline mode is on", "here: absent", "map: absent", "mock: skipped: not allowed (--allow-mock)"):
            assert said in refused.stderr
        unasked = node.cli("infer", "hf:org/none", "a text", "--task", "embedding", check=False)
        assert (unasked.returncode, unasked.stdout.strip()) == (3, "")
        assert "mock: skipped: not allowed" in unasked.stderr
        assert node.cli("report", "hf:org/none", check=False).returncode == 3

        loaded = node.cli("load", "hf:org/none", "--task", "embedding", "--allow-mock")
        assert "status  MOCK" in loaded.stdout
        assert "stands in for a model that cannot be had" in loaded.stdout
        answered = node.cli("infer", "hf:org/none", "a text", "--task", "embedding", "--allow-mock")
        assert "MOCK: no model computed this" in answered.stderr
        shown = node.json("infer", "hf:org/none", "a text", "--task", "embedding", "--allow-mock")
        assert shown["implementation"] == "MOCK"

        body = {"ref": "hf:org/none", "items": ["a text"], "task": "embedding", "allow_mock": True}
        call = urllib.request.Request(
            f"{node.url}/api/infer",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {node.key}"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=60) as reply:
            assert reply.headers["X-Implementation"] == "MOCK"
            assert json.load(reply)["implementation"] == "MOCK"

        cells = node.json("report", "mock:embedding", "--device", "cpu")["cells"]
        assert {(cell["status"], cell["engine"]) for cell in cells} == {("MOCK", "mock")}
        table = node.cli("report", "mock:embedding", "--device", "cpu").stdout
        assert "MOCK" in table
        assert "never measured" in table
        assert "REAL" not in table
        assert node.json("ls")["models"] == []  # nothing of it was stored
