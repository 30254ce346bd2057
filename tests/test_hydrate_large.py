"""`hydrate` of files that the Hub's own client refuses to fetch by plain HTTP: over 50 GB."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfs_accelerate_node.fetch.hf_cache.hydrate import Content, write
from ipfs_accelerate_node.fetch.hf_cache.placing import Blob, Way
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo
from tests.support.hf_cache import client
from tests.support.hub import FakeHub
from tests.support.running import running
from tests.test_hydrate import hydrated, pinned

pytestmark = pytest.mark.timeout(120)

FILES = {"config.json": b'{"a": 1}', "model.safetensors": bytes(range(256)) * 20_000}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/open", FILES)
        yield fake


@pytest.mark.parametrize("way", ["hard", "copy"])
def test_files_over_50_gb(tmp_path: Path, way: Way) -> None:
    """A hole of 51 GB: what the client refuses to fetch by plain HTTP. A copy keeps the hole."""
    size = 51 * 10**9
    (source := tmp_path / "big").touch()
    os.truncate(source, size)
    source.chmod(0o400)
    (folder := tmp_path / "hf").mkdir()
    etag = "b" * 64
    tree = (TreeEntry("model.safetensors", size, "c" * 40),)
    big = Content(HubRepo("org/m"), "a" * 40, tree, {"model.safetensors": Blob(etag, size, source)}, {"main": 1.0})
    done = write(big, folder, (way,))
    assert [(file.path, file.how) for file in done.files] == [("model.safetensors", way)]
    found = os.stat(done.snapshot / "model.safetensors")
    assert (found.st_size, found.st_blocks < 1000) == (size, True)


async def test_the_client_finds_a_hydrated_file_over_50_gb_at_once(tmp_path: Path) -> None:
    size = 51 * 10**9
    (source := tmp_path / "big").touch()
    os.truncate(source, size)
    source.chmod(0o400)
    (folder := tmp_path / "hf").mkdir()
    tree = (TreeEntry("model.safetensors", size, "c" * 40),)
    blob = Blob("b" * 64, size, source)
    write(Content(HubRepo("org/m"), "a" * 40, tree, {"model.safetensors": blob}, {"main": 1.0}), folder)
    script = """
import json, os
from huggingface_hub import hf_hub_download
print(json.dumps(os.stat(hf_hub_download("org/m", "model.safetensors")).st_size))
"""
    assert await client(script, cache=folder, home=tmp_path / "home") == size


async def test_a_hydrated_file_over_the_clients_limit_needs_no_get(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    """The limit is lowered to 1 MB. Online the client refuses the file; once hydrated it asks for its head, and no
    byte."""
    script = """
import json, os
from huggingface_hub import constants, hf_hub_download
constants.MAX_HTTP_DOWNLOAD_SIZE = 1_000_000
try:
    print(json.dumps(os.stat(hf_hub_download("org/open", "model.safetensors")).st_size))
except ValueError as exc:
    print(json.dumps(str(exc)))
"""
    async with running(cache, hf_upstream=hub.url) as node:
        await pinned(node, "hf:org/open")
        refused = await client(script, cache=tmp_path / "plain", home=tmp_path / "home", HF_ENDPOINT=node.url)
        assert "too large" in refused
        await hydrated(node, "hf:org/open", tmp_path / "hf")
        metrics = "/metrics"
        before = (await node.ask("GET", metrics)).body.decode()
        assert await client(script, cache=tmp_path / "hf", home=tmp_path / "home", HF_ENDPOINT=node.url) == len(
            FILES["model.safetensors"]
        )
        after = (await node.ask("GET", metrics)).body.decode()

    def gets(page: str) -> list[str]:
        return [line for line in page.splitlines() if 'method="GET"' in line and "resolve" in line]

    def heads(page: str) -> list[str]:
        return [line for line in page.splitlines() if 'method="HEAD"' in line and "resolve" in line]

    assert gets(after) == gets(before)
    assert heads(after) != heads(before)
