"""A store used by a process of its own, which a test lets die at a failpoint or kills.

``python -m tests.support.crash ACTION CACHE FAILPOINTS [SOURCE]``. Prints ``open`` once the store is open and ``done``
at the end, so that what was promised can be told from what was under way.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ipfs_accelerate_node.store import Provenance, Store, commit_all, ingest
from tests.support.small_model import bring, foreign_model, random_model, small_model, whole_part

FETCHED = random_model(11)
FOREIGN = foreign_model(12)
SMALL = small_model({f"folder/{number}.json": b"%d" % number * 99 for number in range(7)})
LOCAL = Provenance("local", "test", "2026-01-02T03:04:05Z", profile="unixfs-v1-2025")
CHECKOUT = Path(__file__).parents[2]


def start(action: str, cache: Path, failpoints: str = "", source: Path | None = None) -> subprocess.Popen[str]:
    """The process, with its output to be read."""
    command = [sys.executable, "-m", "tests.support.crash", action, str(cache), failpoints, str(source or "")]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(action: str, cache: Path, failpoints: str = "", source: Path | None = None) -> tuple[int, str, str]:
    """(exit status, output, errors) of the process."""
    process = start(action, cache, failpoints, source)
    out, err = process.communicate(timeout=15)
    return process.returncode, out, err


def main(action: str, cache: str, failpoints: str, source: str) -> None:
    store = Store.open(Path(cache), failpoints=failpoints)
    print("open", flush=True)
    if action in ("add", "move"):
        ingest(store, Path(source), name="added", move=action == "move", provenance=LOCAL)
    elif action == "fetch":
        bring(store, FETCHED, name="fetched")
        bring(store, FOREIGN)
    elif action == "small":
        with store.reserve(SMALL.plan.size_bytes):
            commit_all([(whole_part(store, SMALL, file), file) for file in SMALL.plan.files])
            store.commit(SMALL.plan, SMALL.nodes, name="small", provenance=LOCAL)
    elif action == "extend":
        bring(store, FETCHED, paths={"sub/config.json"})
        print("incomplete", flush=True)
        bring(store, FETCHED, name="fetched")
    elif action == "remove":
        for model in store.models():
            store.remove(model.root, force=True)
    elif action == "label":
        for model in store.models():
            store.unpin(model.root)
            store.set_name(model.root, f"new-{model.root}")
    elif action == "churn":  # adds and removes until it is killed
        while True:
            ingested = ingest(store, Path(source), name="added", provenance=LOCAL)
            bring(store, FETCHED)
            store.remove(ingested.model.root, force=True)
            store.remove(FETCHED.root, force=True)
    store.close()
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:5])
