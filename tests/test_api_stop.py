"""The second signal ends the process, whatever its threads are at (P13)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import urllib.request
from pathlib import Path

from tests.support.node import NodeProcess

IN_FLIGHT = re.compile(rb"^ipfs_accelerate_node_in_flight (\d+)", re.MULTILINE)


def in_flight(node: NodeProcess) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{node.url}/metrics", timeout=10) as page:
        found = IN_FLIGHT.search(page.read())
    assert found is not None
    return int(found[1])


def test_the_second_signal_does_not_wait_for_threads(cache: Path, tmp_path: Path) -> None:
    (big := tmp_path / "big").mkdir()
    with (big / "weights.bin").open("wb") as file:
        os.truncate(file.fileno(), 8 << 30)  # sparse; hashing it takes far longer than this test may
    node = NodeProcess(cache).start()
    assert node.process is not None
    done: list[subprocess.CompletedProcess[str]] = []
    adding = threading.Thread(target=lambda: done.append(node.cli("add", str(big), check=False)))
    try:
        adding.start()
        while in_flight(node) < 2:  # the add, and this look at it
            assert not done, done
        node.process.send_signal(signal.SIGTERM)
        while "serve.signal" not in node.log.read_text():
            pass
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(6) == 0
    finally:
        node.kill()
        adding.join(10)
    assert done[0].returncode == 5
    assert not (cache / "daemon.json").exists()
    with node:  # nothing is torn, and no manual step is needed
        assert node.json("ls")["models"] == []
        assert node.json("verify")["corrupt"] == []
