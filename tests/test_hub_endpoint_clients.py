"""The real clients against a real node: `huggingface_hub`, the `hf` command and transformers, with HF_ENDPOINT set.

HF_ENDPOINT is read at import, so every client is a process of its own; so is every node. The Hub is ours, on loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import FakeHub
from tests.support.node import NodeProcess
from tests.support.sample import SAMPLE, T5

pytestmark = pytest.mark.timeout(180)

TOKEN = "hf_canaryCanaryCanary"
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "1_Pooling/config.json": b"{}",
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "model.safetensors": bytes(range(256)) * 20_000,
}

READ = """
import json, os, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

def outcome(call):
    try:
        return call()
    except Exception as exc:
        return type(exc).__name__

def contents(folder):
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            found[os.path.relpath(path, folder)] = open(path, "rb").read().hex()
    return found
"""
EVERYTHING = (
    READ
    + """
folder = snapshot_download("org/open")
api = HfApi()
weights = api.get_paths_info("org/open", ["model.safetensors", "absent"])
print(json.dumps({
    "commit": os.path.basename(folder),
    "files": contents(folder),
    "about": [api.model_info("org/open").sha, [s.rfilename for s in api.model_info("org/open").siblings]],
    "tree": [entry.path for entry in api.list_repo_tree("org/open", recursive=True)],
    "paths": [[w.path, w.lfs.sha256, w.xet_hash] for w in weights],
    "refs": [ref.name for ref in api.list_repo_refs("org/open").branches],
    "rows": open(hf_hub_download("org/rows", "data/train.txt", repo_type="dataset")).read(),
    "rows snapshot": sorted(contents(snapshot_download("org/rows", repo_type="dataset"))),
    "no file": outcome(lambda: hf_hub_download("org/open", "absent.json")),
    "no revision": outcome(lambda: hf_hub_download("org/open", "config.json", revision="absent")),
    "no repo": outcome(lambda: api.model_info("org/absent")),
    "gated": outcome(lambda: hf_hub_download("org/gated", "config.json")),
    "gated for nobody": outcome(lambda: hf_hub_download("org/gated", "config.json", token=False)),
    "private": outcome(lambda: hf_hub_download("org/private", "config.json", token=False)),
    "private with token": outcome(lambda: open(hf_hub_download("org/private", "config.json")).read()),
    "wrong token": outcome(lambda: hf_hub_download("org/private", "model.safetensors", token="hf_wrong")),
    "who": api.whoami()["name"],
}))
"""
)
SNAPSHOT = (
    READ
    + """
folder = snapshot_download(sys.argv[1])
print(json.dumps({"commit": os.path.basename(folder), "files": contents(folder)}))
"""
)
EMBED = """
import json, sys, time
from transformers import AutoModel, AutoTokenizer
import torch
began = time.perf_counter()
model, tokenizer = AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - began
with torch.no_grad():
    vector = model(**tokenizer("a sentence", return_tensors="pt")).last_hidden_state.mean(1)[0]
print(json.dumps({"vector": vector[:8].tolist(), "seconds": seconds}))
"""
GENERATE = """
import json, sys
from transformers import AutoModelForSeq2SeqLM
model = AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1])
print(json.dumps({"class": type(model).__name__, "weights": sum(p.numel() for p in model.parameters())}))
"""


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub([TOKEN], one_origin=True) as fake:
        fake.repo("org/open", FILES)
        fake.repo("org/private", FILES, readers=frozenset([TOKEN]))
        fake.repo("org/gated", FILES, gated=True)
        fake.repo("datasets/org/rows", {"data/train.txt": b"a row\n", "README.md": b"# rows"})
        yield fake


Started = Callable[..., AbstractAsyncContextManager[NodeProcess]]


@pytest.fixture
def node(tmp_path: Path) -> Started:
    @asynccontextmanager
    async def started(name: str, hub: FakeHub, *arguments: str) -> AsyncIterator[NodeProcess]:
        cache = tmp_path / name
        cache.mkdir(mode=0o700, exist_ok=True)
        process = NodeProcess(cache, "--hf-upstream", hub.url, *arguments)
        try:
            await asyncio.to_thread(process.start)
            yield process
        finally:
            await asyncio.to_thread(process.stop)

    return started


def client_environment(home: Path, endpoint: str, **more: str) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


async def run(*command: str, env: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-4000:]
    return out.decode()


async def client(script: str, *arguments: str, env: Mapping[str, str]) -> Any:
    return json.loads((await run(sys.executable, "-c", script, *arguments, env=env)).splitlines()[-1])


def hexed(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: content.hex() for path, content in files.items()}


def folder(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def transfers(hub: FakeHub) -> int:
    """GETs of files that the Hub itself was asked for."""
    return len([seen for seen in hub.seen if seen.method == "GET" and "/resolve/" in seen.path])


async def test_the_hubs_own_library_takes_the_node_for_the_hub(tmp_path: Path, hub: FakeHub, node: Started) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with node("cache", hub) as up:
        said = await client(EVERYTHING, env=client_environment(tmp_path / "client", up.url, HF_TOKEN=TOKEN))
    assert said.pop("files") == hexed(FILES)
    assert sorted(said["about"].pop()) == sorted(FILES)
    weights = said.pop("paths")
    assert said == {
        "commit": sha,
        "about": [sha],
        "tree": sorted([*FILES, "1_Pooling"]),
        "refs": ["main"],
        "rows": "a row\n",
        "rows snapshot": ["README.md", "data/train.txt"],
        "no file": "RemoteEntryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "no repo": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "gated for nobody": "GatedRepoError",
        "private": "RepositoryNotFoundError",
        "private with token": '{"a": 1}',
        "wrong token": "HfHubHTTPError",
        "who": "someone",
    }
    assert [(path, xet) for path, _, xet in weights] == [("model.safetensors", None)]


async def test_the_hf_command(tmp_path: Path, hub: FakeHub, node: Started) -> None:
    async with node("cache", hub) as up:
        env = client_environment(tmp_path / "client", up.url)
        command = str(Path(sys.executable).with_name("hf"))
        await run(command, "download", "org/open", "--local-dir", str(tmp_path / "got"), env=env)
        got = {path: content for path, content in folder(tmp_path / "got").items() if not path.startswith(".cache/")}
        assert got == FILES
        root = (await asyncio.to_thread(up.json, "info", "org/open"))["model"]["root"]
        await run(command, "download", f"ipfs/{root}", "--local-dir", str(tmp_path / "plain"), env=env)
        plain = {path: content for path, content in folder(tmp_path / "plain").items() if not path.startswith(".")}
        assert plain == {path: content for path, content in FILES.items() if not path.startswith(".")}


async def test_a_second_node_loads_it_from_the_first_and_the_hub_is_asked_nothing(
    tmp_path: Path, hub: FakeHub, node: Started
) -> None:
    sha = hub.repos["org/open"].refs["main"]
    async with node("a", hub) as first:
        root = (await asyncio.to_thread(first.json, "pin", "hf:org/open"))["root"]
        hub.seen.clear()
        arguments = ("--peer", first.url, "--hf-offline")
        async with node("b", hub, *arguments) as second:
            said = await client(SNAPSHOT, "org/open", env=client_environment(tmp_path / "client", second.url))
            info = await asyncio.to_thread(second.json, "info", root)
    assert said["commit"] == sha
    assert said["files"] == hexed({path: content for path, content in FILES.items() if not path.startswith(".")})
    assert [source["kind"] for source in info["model"]["provenance"]["sources"]] == ["peer"]
    assert hub.seen == []


async def test_bytes_come_from_the_peer_and_only_answers_from_the_hub(
    tmp_path: Path, hub: FakeHub, node: Started
) -> None:
    """The Hub is there, so it says what main is and which oids count; a peer has the bytes."""
    async with node("a", hub) as first:
        await asyncio.to_thread(first.json, "pin", "hf:org/open")
        hub.seen.clear()
        async with node("b", hub, "--peer", first.url) as second:
            said = await client(SNAPSHOT, "org/open", env=client_environment(tmp_path / "client", second.url))
    assert said["files"] == hexed(FILES)
    assert [seen.path.rpartition("/")[2] for seen in hub.seen if "/resolve/" in seen.path] == [".gitattributes"]


async def test_twenty_clients_at_once_are_one_transfer(tmp_path: Path, hub: FakeHub, node: Started) -> None:
    async with node("cache", hub) as up:
        command = ("curl", "-sf", f"{up.url}/org/open/resolve/main/model.safetensors", "-o")
        every = [run(*command, str(tmp_path / str(number)), env=os.environ) for number in range(20)]
        await asyncio.gather(*every)
    assert {(tmp_path / str(number)).read_bytes() for number in range(20)} == {FILES["model.safetensors"]}
    assert transfers(hub) == 1


@pytest.mark.model
async def test_transformers_loads_through_the_node_and_offline_again(
    tmp_path: Path, hub: FakeHub, node: Started, figure: Callable[[str], None]
) -> None:
    hub.repo("org/minilm", folder(SAMPLE))
    hub.repo("org/t5", folder(T5))
    env = client_environment(tmp_path / "client", "http://127.0.0.1:9")
    plain = await client(EMBED, str(SAMPLE), env=env)
    async with node("cache", hub) as up:
        first = await client(EMBED, "org/minilm", env={**env, "HF_ENDPOINT": up.url})
        warm = await client(EMBED, "org/minilm", env={**env, "HF_ENDPOINT": up.url})
        said = await client(GENERATE, "org/t5", env={**env, "HF_ENDPOINT": up.url})
    assert first["vector"] == warm["vector"] == plain["vector"]
    assert said["class"] == "T5ForConditionalGeneration"
    figure(
        f"from_pretrained {warm['seconds']:.2f} s warm, {first['seconds']:.2f} s first, local {plain['seconds']:.2f} s"
    )
    before = len(hub.seen)
    async with node("cache", hub, "--hf-offline") as up:
        again = client_environment(tmp_path / "another", up.url)
        assert (await client(EMBED, "org/minilm", env=again))["vector"] == plain["vector"]
    assert len(hub.seen) == before
