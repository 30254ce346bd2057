"""Giving while inferring: latency of /v1/embeddings alone, and while another process pulls a model from the same node.

A real daemon with the real sample model (MiniLM, REAL on this machine's processor); the puller is a process of its own
with several connections that read ranges over and over and drop them; embeddings are asked for one after another, on
one connection. Idle and pulled phases alternate. Nothing is asserted about times.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from tests.support.node import NodeProcess  # noqa: E402

MIB = 1 << 20
RANGE_BYTES = 64 * MIB
TARGET_RATIO, TARGET_MB_S = 2.0, 100.0
TEXTS = (
    "Weights are fetched once and then fed to the neighbours.",
    "How long does a sentence of common length take on this machine, with a peer at the other door?",
    "short",
    "The quick brown fox jumps over the lazy dog while the band plays on, and nobody minds the rain.",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench share", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file that is pulled")
    parser.add_argument("--rounds", type=int, default=3, help="of an idle and a pulled phase each")
    parser.add_argument("--requests", type=int, default=2000, help="in each phase")
    parser.add_argument("--connections", type=int, default=4, help="of the puller")
    parser.add_argument("--rate", default=None, help="the node's share_rate (its default)")
    parser.add_argument("--model", type=Path, default=CHECKOUT / ".sample" / "minilm-l6")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--puller", nargs=3, metavar=("URL", "SIZE", "CONNECTIONS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.puller:
        url, size, connections = options.puller
        return pull(url, int(size), int(connections))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders end with us
    with tempfile.TemporaryDirectory(prefix="bench-share-", dir=options.dir) as folder:
        result = measure(Path(folder), options)
    print(json.dumps(result) if options.json else report(result))
    return 0


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every phase. Raises SystemExit if the model that answers is not REAL."""
    weights = folder / "big"
    weights.mkdir()
    with (weights / "model.bin").open("wb") as file:
        for _ in range(options.mib):
            file.write(os.urandom(MIB))
    (folder / "cache").mkdir(mode=0o700)
    rate = [] if options.rate is None else ["--share-rate", options.rate]
    with NodeProcess(folder / "cache", *rate) as node:
        big = node.request("POST", "/api/add", {"path": str(weights)})["root"]
        node.request("POST", "/api/add", {"path": str(options.model), "name": "sample"})
        url, size = f"{node.url}/ipfs/{big}/model.bin", options.mib * MIB
        caller = Caller(node.url)
        caller.phase(options.requests // 10 + 20)  # loads and warms
        rounds: list[dict[str, Any]] = []
        for _ in range(options.rounds):
            idle = caller.phase(options.requests)
            with Puller(url, size, options.connections) as puller:
                pulled = caller.phase(options.requests)
            rounds.append({"idle": idle, "pulled": pulled, "pull_mb_s": puller.mb_s, "pulled_bytes": puller.bytes})
    for figures in rounds:
        figures["ratio"] = figures["pulled"]["p99_ms"] / figures["idle"]["p99_ms"]
    return {
        "benchmark": "share",
        "mib": options.mib,
        "requests": options.requests,
        "connections": options.connections,
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "implementation": caller.implementation,
        "device": caller.device,
        "rounds": rounds,
        "pull_mb_s": statistics.median(r["pull_mb_s"] for r in rounds),
        "ratio": statistics.median(r["ratio"] for r in rounds),
    }


class Caller:
    """Embeddings on one connection, one after another."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)
        self.implementation = self.device = ""
        self._asked = 0

    def phase(self, requests: int) -> dict[str, float]:
        taken = [self._ask() for _ in range(requests)]
        cuts = statistics.quantiles(taken, n=100, method="inclusive")
        return {
            "requests": requests,
            "p50_ms": cuts[49],
            "p95_ms": cuts[94],
            "p99_ms": cuts[98],
            "max_ms": max(taken),
            "per_s": 1000 * requests / sum(taken),
        }

    def _ask(self) -> float:
        """Milliseconds from the request to the last byte of its answer."""
        self._asked += 1
        body = json.dumps({"model": "sample", "input": TEXTS[self._asked % len(TEXTS)]})
        while True:
            began = time.perf_counter()
            self.connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
            reply = self.connection.getresponse()
            answer = reply.read()
            taken = 1000 * (time.perf_counter() - began)
            if reply.status == 503 and self._asked < 2:  # the model is being loaded
                time.sleep(float(reply.headers["Retry-After"]))
                continue
            if reply.status != 200 or reply.headers["X-Implementation"] != "REAL":
                raise SystemExit(f"not a measurement: {reply.status} {answer[:300]!r}")
            self.implementation, self.device = reply.headers["X-Implementation"], reply.headers["X-Device"]
            return taken


class Puller:
    """The process that pulls, while this is entered. bytes, mb_s: what it got, from its first byte to the end."""

    def __init__(self, url: str, size: int, connections: int) -> None:
        self._command = [sys.executable, __file__, "--puller", url, str(size), str(connections)]
        self.bytes = 0
        self.mb_s = 0.0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "pulling\n":
            raise SystemExit("the puller got nothing")
        return self

    def __exit__(self, *_: object) -> None:
        out, _err = self._process.communicate()  # closes its standard input: that ends it
        told = json.loads(out)
        self.bytes, self.mb_s = told["bytes"], told["bytes"] / told["seconds"] / 1e6


@dataclass
class Pulled:
    """What one connection got so far."""

    bytes: int = 0


def pull(url: str, size: int, connections: int) -> int:
    """The puller: reads until its standard input ends, then tells how much it got and how long that took."""
    os.nice(5)  # stands for another machine: its work is not the node's
    counts = [Pulled() for _ in range(connections)]
    started = threading.Event()
    for number, count in enumerate(counts):
        offset = size // connections * number
        threading.Thread(target=_pull, args=(url, size, offset, count, started), daemon=True).start()
    started.wait(60)
    began, before = time.perf_counter(), sum(count.bytes for count in counts)
    print("pulling", flush=True)
    sys.stdin.read()
    got = sum(count.bytes for count in counts) - before
    print(json.dumps({"bytes": got, "seconds": time.perf_counter() - began}), flush=True)
    os._exit(0)  # threads in the middle of a read


def _pull(url: str, size: int, offset: int, count: Pulled, started: threading.Event) -> None:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    buffer = memoryview(bytearray(MIB // 8))
    while True:
        stop = min(offset + RANGE_BYTES, size)
        connection.request("GET", where.path, headers={"Range": f"bytes={offset}-{stop - 1}"})
        reply = connection.getresponse()
        if reply.status != 206:
            raise SystemExit(f"{reply.status}: {reply.read(300)!r}")
        while got := reply.readinto(buffer):
            count.bytes += got
            started.set()
        offset = stop % size


def report(result: dict[str, Any]) -> str:
    lines = [
        f"share {result['mib']} MiB over {result['connections']} connections, {result['requests']} embeddings a phase "
        f"({result['implementation']} on {result['device']}), {result['cpus']} CPUs, load {result['load_average']:.1f}"
    ]
    for number, figures in enumerate(result["rounds"], 1):
        for name in ("idle", "pulled"):
            phase = figures[name]
            pulled = (
                f"  pull {figures['pull_mb_s']:6.1f} MB/s  ratio {figures['ratio']:.2f}" if name == "pulled" else ""
            )
            lines.append(
                f"  {number} {name:<7} p50 {phase['p50_ms']:7.2f} ms  p95 {phase['p95_ms']:7.2f} ms  "
                f"p99 {phase['p99_ms']:7.2f} ms  max {phase['max_ms']:7.1f} ms  {phase['per_s']:5.0f}/s{pulled}"
            )
    lines.append(f"  pull       {result['pull_mb_s']:6.1f} MB/s, median  (target {TARGET_MB_S:.0f})")
    lines.append(f"  ratio      {result['ratio']:6.2f} of p99 under pull to idle, median  (target {TARGET_RATIO})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
