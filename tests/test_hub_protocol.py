"""The fake Hub, proved right by the real client: what it serves is what `huggingface_hub` accepts as the Hub."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.support.hub import FakeHub

FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": bytes(range(256)) * 40,
    "1_Pooling/config.json": b"{}",
    "empty.txt": b"",
    ".gitattributes": b"*.safetensors filter=lfs\n",
}

REAL_CLIENT = """
import json, os, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

def outcome(call):
    try:
        return call()
    except Exception as exc:
        return type(exc).__name__

folder = snapshot_download("org/open")
files = {}
for parent, _, names in os.walk(folder):
    for name in names:
        path = os.path.join(parent, name)
        files[os.path.relpath(path, folder)] = open(path, "rb").read().hex()
print(json.dumps({
    "commit": os.path.basename(folder),
    "files": files,
    "tree": sorted(entry.path for entry in HfApi().list_repo_tree("org/open", recursive=True)),
    "no file": outcome(lambda: hf_hub_download("org/open", "absent.json")),
    "no revision": outcome(lambda: hf_hub_download("org/open", "config.json", revision="absent")),
    "no repo": outcome(lambda: HfApi().model_info("org/absent")),
    "gated": outcome(lambda: hf_hub_download("org/gated", "config.json")),
    "private": outcome(lambda: hf_hub_download("org/private", "config.json", token=False)),
    "private with token": outcome(lambda: open(hf_hub_download("org/private", "config.json")).read()),
    "wrong token": outcome(lambda: HfApi().model_info("org/open", token="hf_wrong")),
}))
"""


async def test_the_real_client_takes_it_for_the_hub(tmp_path: Path) -> None:
    async with FakeHub(tokens=["hf_reader"]) as hub:
        sha = hub.repo("org/open", FILES).refs["main"]
        hub.repo("org/gated", FILES, gated=True)
        hub.repo("org/private", FILES, readers=frozenset({"hf_reader"}))
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            REAL_CLIENT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "HF_HOME": str(tmp_path / "hf"),
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": "hf_reader",
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await client.communicate()
        assert client.returncode == 0, err.decode()
        said = json.loads(out)
    assert said.pop("files") == {path: content.hex() for path, content in FILES.items()}
    assert said == {
        "commit": sha,
        "tree": sorted([*FILES, "1_Pooling"]),
        "no file": "RemoteEntryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "no repo": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "private": "RepositoryNotFoundError",
        "private with token": '{"a": 1}',
        "wrong token": "HfHubHTTPError",
    }
    assert all(request.authorization is None for request in hub.asked("cdn"))
    assert not hub.asked("other")
