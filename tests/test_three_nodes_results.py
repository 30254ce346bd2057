"""Three nodes with three private Kubo daemons, connected through that of b only: results found by the model's root
alone, and still found when their author is gone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.records.rendezvous import rendezvous
from tests.support.kubo import KuboDaemon
from tests.support.node import NodeProcess
from tests.support.results import sealed, until
from tests.support.tunnels import STREAMS

pytestmark = [pytest.mark.kubo, pytest.mark.timeout(240)]

NOW = int(time.time())


def keep(node: NodeProcess, root: Cid, ns: int) -> Cid:
    """A record of that node's own key on its shelf, as `bench` leaves it; its envelope."""
    made = sealed(NodeKey.load_or_create(node.cache / "node.key"), created=NOW, ns=ns, model=root)
    RecordShelf(node.cache).keep(made)
    return made.envelope_cid


def address_of(node: NodeProcess) -> str:
    """Of its Kubo, which keeps its port."""
    config = json.loads((node.cache / "kubo" / "config").read_text())
    (swarm,) = config["Addresses"]["Swarm"]
    return f"{swarm}/p2p/{config['Identity']['PeerID']}"


def has_index(node: NodeProcess) -> bool:
    return bool(node.request("GET", "/api/peers")["index"]["standing"])


@dataclass(slots=True)
class Three:
    """a and b published one record each; c asks. a and c were told of b's daemon and of nobody else. watcher: a daemon
    of the test, likewise, which reads what any Kubo can read. hub: b's daemon, to dial."""

    a: NodeProcess
    b: NodeProcess
    c: NodeProcess
    watcher: KuboDaemon
    hub: str
    ids: dict[str, str]
    root: Cid


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    folder = tmp_path_factory.mktemp("three")
    with ExitStack() as stack:
        (model := folder / "model").mkdir()
        (model / "config.json").write_text("{}")
        for name in ("a", "b", "c"):
            (folder / name).mkdir(mode=0o700)
        nodes = {"b": stack.enter_context(NodeProcess(folder / "b", "--kubo", "managed", "--bootstrap", "none"))}
        nodes["b"].wait_for_kubo()
        hub = address_of(nodes["b"])
        for name in ("a", "c"):
            nodes[name] = stack.enter_context(NodeProcess(folder / name, "--kubo", "managed", "--bootstrap", hub))
            nodes[name].wait_for_kubo()
        watcher = stack.enter_context(KuboDaemon(folder / "watcher", config=STREAMS, bootstrap=[hub]))
        for name, ns in (("a", 1_000_000), ("b", 2_000_000)):
            node = nodes[name]
            root = node.json("add", str(model))["root"]
            envelope = keep(node, Cid.parse(root), ns)
            done = node.request("POST", "/api/benchmarks", {"record": str(envelope), "publish": True})
            assert done["published"], done
            until(partial(has_index, node))
        ids = {name: node.request("GET", "/api/peer")["peer_id"] for name, node in nodes.items()}
        yield Three(nodes["a"], nodes["b"], nodes["c"], watcher, hub, ids, Cid.parse(root))


def test_found_by_the_root_alone_and_outliving_their_author(three: Three) -> None:
    def asked(node: NodeProcess) -> dict[str, Any]:
        found: dict[str, Any] = node.request("GET", f"/api/results?model={three.root}")
        return found

    # b asks, and so has a's too
    found = until(lambda: (got := asked(three.b))["claims"] == 1 and got)
    (result,) = found["results"]
    assert (result["signers"], result["median_ns"], result["own_ns"]) == ([three.ids["a"]], 2_000_000, 4_000_000)
    until(lambda: three.b.request("GET", "/api/peers")["index"]["standing"]["entries"] == 2)

    # c, which is configured with nobody, finds both
    found = until(lambda: (got := asked(three.c))["claims"] == 2 and got)
    (result,) = found["results"]
    assert set(result["signers"]) == {three.ids["a"], three.ids["b"]}
    assert (result["keys"], result["median_ns"]) == (2, 3_000_000)
    assert {answer["peer"] for answer in found["inquiry"]["answers"]} == {three.ids["a"], three.ids["b"]}

    # the index, as any Kubo reads it
    path = three.watcher.cli("name", "resolve", f"/ipns/{three.ids['b']}")
    envelope = json.loads(three.watcher.cli("dag", "get", path))
    index = json.loads(three.watcher.cli("dag", "get", envelope["record"]["/"]))
    assert (len(index["own"]), len(index["seen"])) == (1, 1)
    meeting, _ = rendezvous("results", three.root)
    assert three.ids["b"] in three.watcher.cli("routing", "findprovs", str(meeting))

    # a is stopped for good; a fresh asker still has its record, from b
    three.a.stop()
    fresh = three.c.cache.parent / "d"
    fresh.mkdir(mode=0o700)
    with NodeProcess(fresh, "--kubo", "managed", "--no-tunnels", "--bootstrap", three.hub) as d:
        d.wait_for_kubo()
        found = until(lambda: (got := asked(d))["claims"] == 2 and got)  # by b's index, and by CID from whoever has it
        assert {answer["way"] for answer in found["inquiry"]["answers"]} == {"index"}
        assert set(found["results"][0]["signers"]) == {three.ids["a"], three.ids["b"]}
        shown = d.cli("results", str(three.root), "--offline", "--markdown").stdout
        assert "| 2 | 0 | 0 | 3.000 |" in shown
        record = index["seen"][0]["/"]
        assert json.loads(d.cli("results", str(three.root), "--json").stdout)["keys"] == 2
        assert three.watcher.block(record)  # pinned by who accepted it
