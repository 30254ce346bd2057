"""The folder, the node, the load and the rivals' processes of one run; all end with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.texts import Words

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT))

from tests.support.node import NodeProcess  # noqa: E402

PROGRAMS = Path(__file__).parent / "programs"
LOAD_TIMEOUT_S = 900.0  # of a model: int8 is calibrated first
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "TOKENIZERS_PARALLELISM": "true",
}


@dataclass(frozen=True)
class Sizes:
    """rounds: that count; one before them warms up. requests: of one round of TS1. texts: of a round of TS2 and TS3.
    seconds: of overload. shapes: of TS4. tokens: that are written in one go in TS5b."""

    rounds: int
    requests: int
    texts: int
    seconds: float
    shapes: int
    tokens: int


class Child:
    """A program that answers each line of JSON with one."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        self._name = " ".join(command[:2])[-100:]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**clean_environment(), **QUIET},
            )

    def heard(self) -> dict[str, Any]:
        """Raises ChildEnded."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildEnded(f"{self._name} ended: {self._log.read_text()[-1500:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self.heard()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(20)


class ChildEnded(Exception):
    """Its last words are the message."""


class Bed(ExitStack):
    """device: where ours runs. sample: an embedding model. writer: a causal language model, None: there is none."""

    def __init__(self, folder: Path, sizes: Sizes, *, device: str, sample: Path, writer: Path | None) -> None:
        super().__init__()
        self.folder, self.sizes, self.device, self.sample, self.writer = folder, sizes, device, sample, writer
        self.words = Words(sample)
        self.threads = len(os.sched_getaffinity(0))
        self.absent: dict[str, str] = {}
        self._names = 0
        self._roots: dict[Path, str] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        env = {"IPFS_ACCELERATE_NODE_HF_UPSTREAM": "http://127.0.0.1:9"}
        self.node = self.enter_context(NodeProcess(self.new("cache"), env=env))
        self.node.request("GET", "/api/accelerators")  # it has started all that it starts
        self.load = self.child([sys.executable, str(Path(__file__).parent / "load.py")])
        return self

    def new(self, name: str) -> Path:
        """An empty folder of its own."""
        self._names += 1
        path = self.folder / f"{self._names}-{name}"
        path.mkdir(mode=0o700)
        return path

    def child(self, command: list[str]) -> Child:
        self._names += 1
        child = Child(command, self.folder / f"{self._names}.log")
        self.callback(child.close)
        return child

    def program(self, name: str, *arguments: str, python: Path = Path(sys.executable)) -> Child:
        """Ready. Raises ChildEnded."""
        child = self.child([str(python), str(PROGRAMS / f"{name}.py"), *arguments])
        child.heard()
        return child

    def written(self, name: str, content: object) -> Path:
        path = self.new(name) / f"{name}.json"
        path.write_text(json.dumps(content))
        return path

    # -- the node

    def root(self, model: Path) -> str:
        if model not in self._roots:
            self._roots[model] = self.node.json("add", str(model))["root"]
        return self._roots[model]

    def loaded(
        self, model: Path, *, precision: str | None, alias: str | None = None, task: str | None = None
    ) -> dict[str, Any]:
        """What the node says of the model that it has loaded. Raises Refused."""
        body = {"ref": self.root(model), "device": self.device, "as": alias, "keep_alive": -1}
        if precision is not None:
            body["precision"] = precision
        if task is not None:
            body["task"] = task
        said: dict[str, Any] = self.request("POST", "/api/loads", body)
        return said

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Raises Refused."""
        call = urllib.request.Request(
            self.node.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.node.key}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(call, timeout=LOAD_TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as exc:
            raise Refused(f"{exc.code} {exc.read().decode(errors='replace')[:300]}") from exc

    def counters(self, model: str) -> dict[str, float]:
        """What ``/metrics`` counts of a model, where it does."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.node.url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            name, _, rest = line.partition("{")
            if f'model="{model}"' in rest and name.endswith("_total"):
                found[name.removeprefix("ipfs_accelerate_node_").removesuffix("_total")] = float(rest.split()[-1])
        return found


class Refused(Exception):
    """The node does not do it; the message says why."""


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}


def cpu_seconds(pids: list[int]) -> float:
    """That those processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def wait_for(answers: Any, process: subprocess.Popen[Any], timeout_s: float) -> bool:
    """Until it answers; False when it ended or never does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        if answers():
            return True
        time.sleep(0.2)
    return False
