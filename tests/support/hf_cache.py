"""A user's Hugging Face cache as the client leaves it, made by hand; and that client, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ipfs_accelerate_node.fetch.hf_cache.layout import encode_tree
from ipfs_accelerate_node.sources.hub_answers import TreeEntry
from ipfs_accelerate_node.sources.hub_plain import large_entry
from tests.support.hub import git_oid, oid


def entries(files: Mapping[str, bytes]) -> tuple[TreeEntry, ...]:
    """As `FakeHub` tells them, but for the length of a pointer."""
    found = []
    for path, content in files.items():
        etag = oid(path, content)
        lfs = large_entry(path, etag, len(content)).lfs if len(etag) == 64 else None
        found.append(TreeEntry(path, len(content), git_oid(b"a pointer") if lfs else etag, lfs))
    return tuple(found)


def client_cache(
    cache: Path, repo: str, commit: str, files: Mapping[str, bytes], *, tree: bool = True, ref: str | None = "main"
) -> Path:
    """One complete snapshot; its folder. tree: with what the client notes of the commit."""
    home = cache / f"models--{repo.replace('/', '--')}"
    for path, content in files.items():
        blob = home / "blobs" / oid(path, content)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        entry = home / "snapshots" / commit / path
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.symlink_to(os.path.relpath(blob, entry.parent))
    if tree:
        (home / "trees").mkdir(exist_ok=True)
        (home / "trees" / f"{commit}.json").write_bytes(encode_tree(entries(files)))
    if ref:
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
    return home / "snapshots" / commit


async def client(script: str, *arguments: str, cache: Path, home: Path, **more: str) -> Any:
    """The JSON that a script prints, run where HF_HUB_CACHE is that folder; offline unless HF_ENDPOINT is given."""
    home.mkdir(exist_ok=True)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({} if "HF_ENDPOINT" in more else {"HF_HUB_OFFLINE": "1"}),
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments, env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out.decode().splitlines()[-1])
