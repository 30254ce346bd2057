"""What the Hub source refuses before it asks anyone (table F9h, G10, P9), and an upstream that is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ipfs_accelerate_node.errors import BadRequest, InvalidConfig, SourceUnavailable
from ipfs_accelerate_node.sources.hub import HubSource
from tests.support.hub import FakeHub

TOKEN = "hf_canaryCanaryCanary"


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub() as fake:
        yield fake


@pytest.mark.parametrize(
    "repo",
    ["../x", "a/b/c", "x" * 300, "org/naïve", "", "org/", "/name", "org/..", "a b/c", "org/name\n", "org/x.git", "-rf"],
)
async def test_what_is_no_repository_is_never_asked_for(hub: FakeHub, repo: str) -> None:
    async with HubSource(hub.url) as hub_source:
        with pytest.raises(BadRequest) as caught:
            await hub_source.snapshot(repo)
    assert caught.value.code == "invalid_reference"
    assert not hub.seen


@pytest.mark.parametrize("revision", ["", "../x", "a\nb", "x" * 256, "é"])
async def test_what_is_no_revision_is_never_asked_for(hub: FakeHub, revision: str) -> None:
    async with HubSource(hub.url) as hub_source:
        with pytest.raises(BadRequest):
            await hub_source.snapshot("org/open", revision)
    assert not hub.seen


@pytest.mark.parametrize(
    "endpoint", ["http://hub.example", "http://10.0.0.1", "ftp://127.0.0.1", "http://u:p@127.0.0.1", "127.0.0.1"]
)
def test_an_upstream_that_would_leak_the_token_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidConfig):
        HubSource(endpoint, token=TOKEN)


@pytest.mark.parametrize("token", ["", " ", "hf_a\nX-Other: header", "hf_é"])
def test_a_token_that_is_none_is_refused_without_showing_it(token: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        HubSource("https://hub.example", token=token)
    assert "X-Other" not in str(caught.value)


async def test_offline_asks_nobody(hub: FakeHub) -> None:
    async with HubSource(hub.url, offline=True) as hub_source:
        with pytest.raises(SourceUnavailable) as caught:
            await hub_source.snapshot("org/open")
    assert caught.value.code == "offline"
    assert not hub.seen


async def test_an_upstream_that_is_down(hub: FakeHub) -> None:
    async with HubSource("http://127.0.0.1:9", backoff_s=0) as hub_source:
        with pytest.raises(SourceUnavailable, match="cannot be reached"):
            await hub_source.snapshot("org/open")
