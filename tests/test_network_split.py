"""A network that splits, for real: three nodes in network namespaces on one bridge, a link that goes down in the middle
of a question and comes back. Needs root and `ip`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.benchmarks.shelf import RecordShelf
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.records.key import NodeKey
from tests.support.node import NodeProcess
from tests.support.results import sealed

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

PORT = 8090
NAMES = ("a", "b", "c")
ADDRESS = {name: f"10.77.22.{number}" for number, name in enumerate(NAMES, 1)}
PEER = {name: f"http://{address}:{PORT}" for name, address in ADDRESS.items()}
NOW = int(time.time())
ESTABLISHED = "01"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@dataclass(slots=True)
class Network:
    """tag: of the namespaces' names, so that two runs do not meet."""

    tag: str

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def make(self) -> None:
        for name in ("hub", *NAMES):
            ip("netns", "add", self.space(name))
        ip("-n", self.space("hub"), "link", "add", "name", "bridge", "type", "bridge")
        ip("-n", self.space("hub"), "link", "set", "dev", "bridge", "up")
        for name in NAMES:
            inside, outside = self.space(name), self.space("hub")
            ip(
                "-n",
                outside,
                "link",
                "add",
                "name",
                f"to-{name}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                inside,
            )
            ip("-n", outside, "link", "set", "dev", f"to-{name}", "master", "bridge", "up")
            ip("-n", inside, "address", "add", f"{ADDRESS[name]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", inside, "link", "set", "dev", device, "up")

    def link(self, name: str, state: str) -> None:
        ip("-n", self.space("hub"), "link", "set", "dev", f"to-{name}", state)

    def remove(self) -> None:
        for name in ("hub", *NAMES):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", self.space(name))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network(f"ian{os.getpid()}")
    try:
        made.make()
        yield made
    finally:
        made.remove()


@dataclass(slots=True)
class Three:
    """Every node has the model, and asks the other two."""

    network: Network
    nodes: dict[str, NodeProcess]
    keys: dict[str, NodeKey]
    root: str

    def publish(self, name: str, ns: int, seq: int) -> None:
        """As `bench --publish` leaves it."""
        shelf = RecordShelf(self.nodes[name].cache)
        made = sealed(self.keys[name], created=NOW, ns=ns, seq=seq, model=Cid.parse(self.root))
        shelf.keep(made)
        shelf.note_published(made.envelope_cid)

    def results(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.nodes[name].json("results", self.root)
        return found

    def pid(self, name: str) -> int:
        process = self.nodes[name].process
        assert process is not None
        return process.pid

    def is_connected(self, name: str, to: str) -> bool:
        """Whether this node has a connection to that one's port, as its kernel lists them."""
        far = bytes(map(int, ADDRESS[to].split(".")))[::-1].hex().upper() + f":{PORT:04X}"
        lines = Path(f"/proc/{self.pid(name)}/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[2:4] == [far, ESTABLISHED] for line in lines)


@pytest.fixture(scope="module")
def three(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    folder = tmp_path_factory.mktemp("split")
    (model := folder / "model").mkdir()
    (model / "config.json").write_text("{}")
    nodes, keys = {}, {}
    with ExitStack() as stack:
        for name in NAMES:
            (cache := folder / name).mkdir(mode=0o700)
            KeyRing.open(cache / "keys.json").create(("peer",), name="for the bind")
            others = [flag for other in NAMES if other != name for flag in ("--peer", PEER[other])]
            where = ("--host", ADDRESS[name], "--port", str(PORT), "--share", *others)
            within = ("ip", "netns", "exec", network.space(name))
            nodes[name] = stack.enter_context(NodeProcess(cache, *where, within=within))
            keys[name] = NodeKey.load_or_create(cache / "node.key")
        roots = {node.json("add", str(model))["root"] for node in nodes.values()}
        yield Three(network, nodes, keys, roots.pop())


def test_a_link_that_goes_down_in_the_middle_of_a_question_and_comes_back(three: Three) -> None:
    for name, ns in (("b", 2_000_000), ("c", 3_000_000)):
        three.publish(name, ns, 1)
    found = three.results("a")
    assert {answer["peer"] for answer in found["inquiry"]["answers"]} == {PEER["b"], PEER["c"]}
    assert (found["keys"], found["inquiry"]["failures"]) == (2, [])

    # b has something new, is asked, and its link goes down before it can answer; c answers as ever
    three.publish("b", 4_000_000, 2)
    three.publish("c", 5_000_000, 2)
    os.kill(three.pid("b"), signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            asking = pool.submit(three.results, "a")
            deadline = time.monotonic() + 30
            while not three.is_connected("a", "b"):
                assert time.monotonic() < deadline, "b was not asked"
            three.network.link("b", "down")
            os.kill(three.pid("b"), signal.SIGCONT)  # it answers, into nothing
            found = asking.result(60)
    finally:
        os.kill(three.pid("b"), signal.SIGCONT)
    (failure,) = found["inquiry"]["failures"]
    assert (failure["peer"], failure["code"]) == (PEER["b"], "stalled")
    (answer,) = found["inquiry"]["answers"]
    assert (answer["peer"], answer["accepted"]) == (PEER["c"], 1)
    print(f"\nF22: c answered in {answer['seconds']} s, b named after {failure['seconds']} s")
    assert answer["seconds"] < 1.5 < failure["seconds"]
    assert found["inquiry"]["seconds"] <= 2.5
    assert (found["keys"], found["results"][0]["median_ns"]) == (2, 7_000_000)  # of 4 ms, which b said before, and 10

    # the other side of the split: b is alone, says so of both, and keeps what it has
    alone = three.results("b")
    assert {failure["peer"] for failure in alone["inquiry"]["failures"]} == {PEER["a"], PEER["c"]}
    assert alone["inquiry"]["seconds"] <= 2.5
    assert [result["own_ns"] for result in alone["results"]] == [8_000_000]

    # the link is back: both sides have everything
    three.network.link("b", "up")
    deadline = time.monotonic() + 30
    while (found := three.results("a"))["inquiry"]["failures"]:
        assert time.monotonic() < deadline, json.dumps(found["inquiry"])
    newest = {answer["peer"]: answer["accepted"] for answer in found["inquiry"]["answers"]}
    assert newest[PEER["b"]] == 1
    assert (found["keys"], found["results"][0]["median_ns"]) == (2, 9_000_000)  # of 8 and 10 ms
    merged = three.results("b")
    assert merged["inquiry"]["failures"] == []
    assert three.keys["c"].peer_id in merged["results"][0]["signers"]
