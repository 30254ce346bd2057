"""What others fetch a model with: curl, Kubo and huggingface_hub. A rival that is not here is absent, never beaten."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fetching.bed import Bed, Model
from tests.support.kubo import KuboDaemon, find_kubo

TIMEOUT_S = 900.0
ADD = "add -r -Q --cid-version=1 --raw-leaves --chunker=size-1048576 --max-file-links=1024".split()

Rival = Callable[[], float]


def curl(bed: Bed, model: Model, url: str) -> Rival | None:
    """`curl -o FILE` for each file over one connection, then `sync FILE`. Seconds of both; nothing is verified."""
    if shutil.which("curl") is None:
        return None
    out = bed.new("curl")
    out.mkdir()
    command = ["curl", "--silent", "--fail"]
    for path, cid in model.files.items():
        command += ["-o", str(out / path), f"{url}/ipfs/{cid}"]

    def once() -> float:
        os.sync()
        began = time.perf_counter()
        subprocess.run(command, check=True, timeout=TIMEOUT_S)
        subprocess.run(["sync", *(str(out / path) for path in model.files)], check=True, timeout=TIMEOUT_S)
        seconds = time.perf_counter() - began
        for path in model.files:
            if (out / path).stat().st_size != (model.folder / path).stat().st_size:
                raise SystemExit(f"curl brought another {path}: not the same work")
            (out / path).unlink()
        return seconds

    return once


def ipfs_get(bed: Bed, model: Model) -> Rival | None:
    """`ipfs get` at one daemon of what another one on loopback has. Kubo syncs the blocks that it stores on the way;
    the files that it writes in the end are not synced, which is in its favour."""
    if find_kubo() is None:
        return None
    giver = bed.enter_context(KuboDaemon(bed.new("kubo-giver")))
    taker = bed.enter_context(KuboDaemon(bed.new("kubo-taker")))
    root = giver.cli(*ADD, model.folder, timeout_s=TIMEOUT_S).strip()
    if root != model.root:
        raise SystemExit(f"not the same work: our root is {model.root}, Kubo's {root}")
    taker.cli("swarm", "connect", giver.addr)

    def once() -> float:
        out = bed.new("ipfs-get")
        os.sync()
        began = time.perf_counter()
        taker.cli("get", root, "-o", out, timeout_s=TIMEOUT_S)
        seconds = time.perf_counter() - began
        bed.drop(out)
        taker.cli("repo", "gc", "-q", timeout_s=TIMEOUT_S)
        return seconds

    return once


def hf_hub_download(bed: Bed, model: Model, url: str) -> Rival | None:
    """huggingface_hub's own client against a local server that speaks its protocol, then `sync FILE`; nothing is
    verified. Its import is not counted."""
    home = bed.new("hf")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", _HF, *model.files]

    def once() -> float:
        home.mkdir()
        os.sync()
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        if ran.returncode:
            raise SystemExit(f"hf_hub_download failed: {ran.stderr[-2000:]}")
        bed.drop(home)
        return float(ran.stdout.split()[-1])

    return once


_HF = """
import subprocess, sys, time
from huggingface_hub import hf_hub_download
began = time.perf_counter()
paths = [hf_hub_download("bench/model", name) for name in sys.argv[1:]]
subprocess.run(["sync", *paths], check=True)
print(time.perf_counter() - began)
"""


def versions() -> dict[str, str | None]:
    """Of each rival; None where it is absent."""
    kubo, found = find_kubo(), shutil.which("curl")
    return {
        "kubo": _said([str(kubo), "version", "-n"]) if kubo else None,
        "curl": _said([found, "--version"]).split()[1] if found else None,
        "huggingface_hub": _said([sys.executable, "-c", "import huggingface_hub as h; print(h.__version__)"]),
    }


def _said(command: list[str | Path]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
