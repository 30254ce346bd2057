"""A reference to the Hub, followed step by step: what was tried stands in the answer, and a mock is the end only when
that was allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)

LOAD = {"ref": "hf:org/none", "task": "embedding"}


def steps(body: Any) -> list[tuple[str, str]]:
    return [(step["step"], step["outcome"]) for step in body["chain"]]


@pytest.fixture
async def alone(cache: Path) -> AsyncIterator[Running]:
    """No network, no token."""
    async with running(cache, hf_offline=True) as node:
        yield node


async def test_without_the_flag_the_error_names_every_step(alone: Running) -> None:
    refused = await alone.admin("POST", "/api/loads", json=LOAD)
    assert refused.status == 503
    assert steps(refused.json) == [("hub", "failed"), ("here", "absent"), ("map", "absent"), ("mock", "skipped")]
    assert all(step["reason"] for step in refused.json["chain"])
    request = {"ref": "hf:org/none", "items": ["a"], "task": "embedding"}
    inferred = await alone.ask("POST", "/api/infer", json=request)
    assert inferred.status == 404
    assert steps(inferred.json) == [("here", "absent"), ("map", "skipped"), ("hub", "skipped"), ("mock", "skipped")]


async def test_with_the_flag_a_mock_says_that_it_is_one(alone: Running) -> None:
    loaded = await alone.admin("POST", "/api/loads", json={**LOAD, "allow_mock": True})
    assert (loaded.status, loaded.json["implementation"]) == (200, "MOCK")
    assert any("stands in" in note for note in loaded.json["notes"])
    request = {"ref": "hf:org/none", "items": ["a"], "task": "embedding", "allow_mock": True}
    reply = await alone.ask("POST", "/api/infer", json=request)
    assert (reply.status, reply.json["implementation"]) == (200, "MOCK")
    assert "MOCK" in {value for name, value in reply.headers.items() if "implementation" in name.lower()}


async def test_the_command_line_says_so_too(tmp_path: Path) -> None:
    (cache := tmp_path / "cache").mkdir(mode=0o700)

    def asked() -> tuple[str, str, int]:
        with NodeProcess(cache, env={"HF_HUB_OFFLINE": "1"}) as up:
            refused = up.cli("load", "hf:org/none", "--task", "embedding", check=False)
            mocked = up.cli("load", "hf:org/none", "--task", "embedding", "--allow-mock")
            shown = up.cli("load", "hf:org/none", "--task", "embedding", "--allow-mock", "--json")
            assert json.loads(shown.stdout)["implementation"] == "MOCK"
            return mocked.stdout + mocked.stderr, refused.stderr, refused.returncode

    mocked, refused, code = await asyncio.to_thread(asked)
    assert "MOCK" in mocked
    assert code == 5
    for step in ("here: absent", "map: absent", "hub: failed", "mock: skipped"):
        assert step in refused


async def test_load_brings_what_the_hub_has(cache: Path) -> None:
    """And says what it is when that cannot be run."""
    async with FakeHub(one_origin=True) as hub:
        hub.repo("org/none", {"config.json": b"{}"})
        async with running(cache, hf_upstream=hub.url) as node:
            reply = await node.admin("POST", "/api/loads", json=LOAD)
            assert reply.json["code"] not in ("model_not_found", "offline")
            assert node.node.find("hf:org/none").file_count == 1


async def test_a_refusal_of_the_hub_is_told_in_its_words(cache: Path) -> None:
    async with FakeHub(["hf_known"], one_origin=True) as hub:
        hub.repo("org/gated", {"config.json": b"{}"}, gated=True)
        hub.repo("org/private", {"config.json": b"{}"}, readers=frozenset())
        for token, repo, said in (
            (None, "org/gated", "log in"),
            ("hf_known", "org/gated", f"accept the licence at {hub.url}/org/gated"),
            (None, "org/private", "or private: check the name, or set a token"),
            ("hf_known", "org/private", "or no access for this token"),
            ("hf_wrong", "org/private", "invalid or has expired"),
        ):
            async with running(cache, hf_upstream=hub.url, hf_token=token) as node:
                reply = await node.admin("POST", "/api/loads", json={"ref": f"hf:{repo}"})
                assert said in reply.json["detail"], (token, repo)
                assert steps(reply.json) == [("hub", "refused"), ("mock", "skipped")]
                assert "hf_known" not in reply.body.decode()
