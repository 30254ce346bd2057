"""The whole way: one node adds, another finds it over a real IPFS network, pins, serves, agrees with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess, disk_bytes
from tests.support.sample import SAMPLE

pytestmark = [pytest.mark.kubo, pytest.mark.model, pytest.mark.timeout(180)]

TEXTS = ["A man is eating food.", "The girl is carrying a baby.", "weights", "x " * 400]


@pytest.fixture(scope="module")
def reference() -> np.ndarray[Any, Any]:
    """transformers on the original files, pooled and normalised as the model's own settings say (f32, CPU)."""
    script = f"""
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
path = {str(SAMPLE)!r}
tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
rows = []
for text in json.load(sys.stdin):
    batch = tokenizer([text], truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    rows.append(torch.nn.functional.normalize(pooled, dim=1)[0].tolist())
print(json.dumps(rows))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(TEXTS), capture_output=True, text=True, timeout=120, check=True
    )
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboDaemon]:
    """A third daemon that both nodes know from their bootstrap list: they can find each other only through it."""
    with KuboDaemon(tmp_path_factory.mktemp("router") / "repo") as router:
        yield router


def node(folder: Path, name: str, router: KuboDaemon) -> NodeProcess:
    cache = folder / name
    cache.mkdir(mode=0o700)
    return NodeProcess(cache, "--kubo", "managed", "--bootstrap", router.addr)


def vectors(url: str, model: str) -> np.ndarray[Any, Any]:
    from openai import OpenAI

    with OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        reply = client.embeddings.create(model=model, input=TEXTS)
    return np.array([row.embedding for row in reply.data])


class DiskWatch(threading.Thread):
    """The most that a folder took on disk while the block ran."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._over = folder, threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, disk_bytes(self._folder))

    def __enter__(self) -> DiskWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def test_b_pins_by_cid_alone_and_serves_the_same_vectors(
    tmp_path: Path, network: KuboDaemon, reference: np.ndarray[Any, Any], figure: Callable[[str], None]
) -> None:
    with node(tmp_path, "a", network) as a, node(tmp_path, "b", network) as b:
        a.wait_for_kubo()
        b.wait_for_kubo()
        added = a.json("add", str(SAMPLE), "--name", "minilm", "--announce")
        assert added["seeded"], added["seed_note"]
        assert added["announced"]
        root = added["root"]

        with DiskWatch(b.cache) as watch:
            pinned = b.json("pin", root)
        assert {s["kind"] for s in pinned["sources"] if s["bytes"]} <= {"kubo", "peer"}
        assert pinned["seeded"], pinned["seed_note"]
        size = pinned["bytes_total"]
        after = disk_bytes(b.cache)
        figure(
            f"{size / 1e6:.1f} MB pinned: {after / size:.4f} x on disk after, {watch.peak_bytes / size:.3f} x at most"
        )
        assert after <= 1.02 * size

        assert float(np.abs(vectors(b.url, root) - reference).max()) <= 1e-5

        assert a.stop() == 0  # and the same with the first node gone
        assert float(np.abs(vectors(b.url, root) - reference).max()) <= 1e-5
        assert b.json("verify")["corrupt"] == []


def test_what_is_added_without_announce_is_found_by_nobody(tmp_path: Path, network: KuboDaemon) -> None:
    (model := tmp_path / "private").mkdir()
    (model / "notes.txt").write_text("nobody asked for this")
    with node(tmp_path, "a", network) as a:
        a.wait_for_kubo()
        added = a.json("add", str(model))
        assert added["seeded"]
        assert not added["announced"]
        found = network.cli("routing", "findprovs", "--num-providers=1", added["root"], timeout_s=30)
        assert found.strip() == ""
        # while one who is connected and asks by CID is answered
        assert "notes.txt" in network.cli("ls", added["root"], timeout_s=30)
