"""Who is measured: ours and each rival, all with one interface, all loaded at once, so that rounds can take turns."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from serving.bed import PROGRAMS, QUIET, Bed, Child, ChildEnded, Refused, clean_environment, cpu_seconds, wait_for
from serving.environments import INFINITY, SENTENCE_TRANSFORMERS

Vectors = NDArray[np.float32]
TOLERANCE = {"f32": 0.9999, "bf16": 0.999, "f16": 0.999, "int8": 0.99}
START_S = 300.0
ST_SERVER, ST_OFFLINE, INFINITY_NAME, TEI = (
    "sentence-transformers server", "sentence-transformers offline", "infinity-emb", "text-embeddings-inference",
)  # fmt: skip


@dataclass(frozen=True)
class Taken:
    """One round. took: (request, status, seconds, seconds after its time). load_share, server_share: of one core."""

    wall_s: float
    took: list[tuple[int, int, float, float]]
    load_share: float
    server_share: float
    errors: list[str] = field(default_factory=list)

    def seconds(self, status: int = 200) -> list[float]:
        return [seconds for _, said, seconds, _ in self.took if said == status]

    @property
    def statuses(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for _, status, _, _ in self.took:
            found[status] = found.get(status, 0) + 1
        return found

    def whole(self) -> Taken:
        """Itself. Raises SystemExit when a request failed."""
        if set(self.statuses) != {200}:
            raise SystemExit(f"requests failed: {self.statuses} {self.errors}")
        return self


class Contestant(Protocol):
    """cosine: the least with torch f32, once it was checked."""

    name: str
    precision: str
    versions: dict[str, str]
    cosine: float | None

    def vectors(self, bed: Bed, texts: Sequence[str]) -> Vectors: ...


@dataclass
class Server:
    """Over HTTP. pids: whose processor time is the server's."""

    name: str
    precision: str
    origin: str
    model: str
    pids: list[int]
    path: str = "/v1/embeddings"
    versions: dict[str, str] = field(default_factory=dict)
    cosine: float | None = None

    def requests(self, bed: Bed, groups: Sequence[Sequence[str]]) -> Path:
        path = bed.new("requests") / "requests"
        bodies = [{"model": self.model, "input": list(group), "encoding_format": "base64"} for group in groups]
        path.write_text("\n".join(map(json.dumps, bodies)) + "\n")
        return path

    def run(self, bed: Bed, requests: Path, *, path: str = "", **order: Any) -> Taken:
        """order: see ``load.Order``."""
        where = urlsplit(self.origin)
        before = cpu_seconds(self.pids)
        said = bed.load.ask(
            {
                "host": where.hostname,
                "port": where.port,
                "path": path or self.path,
                "requests": str(requests),
                **order,
            }
        )
        if not set(said["precisions"]) <= {self.precision}:
            raise SystemExit(f"{self.name} was answered in {said['precisions']}, not in {self.precision}")
        share = (cpu_seconds(self.pids) - before) / said["wall_s"]
        return Taken(said["wall_s"], [tuple(one) for one in said["took"]], said["cpu_share"], share, said["errors"])

    def vectors(self, bed: Bed, texts: Sequence[str]) -> Vectors:
        """One text a request, four at a time."""
        requests = self.requests(bed, [[text] for text in texts])
        answers = requests.with_name("answers")
        self.run(bed, requests, clients=4, count=len(texts), answers=str(answers)).whole()
        return np.stack([_vector(json.loads(line)["data"][0]["embedding"]) for line in answers.open()])


@dataclass
class Offline:
    """Without a server: all texts at once. ids: it takes token ids."""

    name: str
    precision: str
    child: Child
    ids: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    cosine: float | None = None

    def run(self, texts: Path) -> float:
        """Seconds. texts: a JSON file of them, or of their token ids."""
        return float(self.child.ask({"texts": str(texts)})["seconds"])

    def vectors(self, bed: Bed, texts: Sequence[str]) -> Vectors:
        given = bed.words.ids(texts) if self.ids else list(texts)
        path = bed.written("check", given)
        self.child.ask({"texts": str(path), "vectors": str(path.with_suffix(".npy"))})
        found: Vectors = np.load(path.with_suffix(".npy"))
        return found


def _vector(said: str | list[float]) -> Vectors:
    return np.frombuffer(base64.b64decode(said), "<f4") if isinstance(said, str) else np.array(said, np.float32)


# -- ours


def ours(bed: Bed, precision: str | None, *, model: Path | None = None, task: str = "embedding") -> Server | None:
    """None: this machine has no such arithmetic, or what it needs is not installed; ``bed.absent`` says so."""
    name = f"ours {precision}"
    alias = f"{precision}-{task}"
    try:
        said = bed.loaded(model or bed.sample, precision=precision, alias=alias, task=task)
    except Refused as exc:
        bed.absent[name] = str(exc)
        return None
    if said["implementation"] != "REAL":
        raise SystemExit(f"not for real: {said}")
    assert bed.node.process is not None
    pids = [bed.node.process.pid, said["pid"]]
    versions = {**said["versions"], "device": said["device"]}
    return Server(name, said["precision"], bed.node.url, alias, pids, versions=versions)


def raw_loop(bed: Bed, precision: str) -> Offline | None:
    """A bare loop over the graph that the node made."""
    from ipfs_accelerate_node.inference.openvino import artefacts
    from ipfs_accelerate_node.inference.openvino.artefact import weights_of

    found = [
        one
        for one in artefacts.stored(bed.node.cache, root=bed.root(bed.sample))
        if one.artefact.weights == weights_of(precision) and one.artefact.graph("vectors")
    ]
    name = f"raw OpenVINO loop {precision}"
    if not found:
        bed.absent[name] = "the node made no such graph"
        return None
    graph = found[0].artefact.graph("vectors")
    assert graph is not None
    child = bed.program("raw_openvino", str(found[0].path / graph.xml.name), precision, str(bed.threads))
    return Offline(name, precision, child, ids=True)


# -- rivals


def rivals(bed: Bed, wanted: Sequence[str]) -> list[Server | Offline]:
    """Those that are installed; ``bed.absent`` says why the others are not."""
    begin: dict[str, Callable[[Bed], Server | Offline]] = {
        ST_SERVER: _sentence_server,
        ST_OFFLINE: _sentence_offline,
        INFINITY_NAME: _infinity,
        TEI: _tei,
    }
    found: list[Server | Offline] = []
    for name in wanted:
        try:
            found.append(begin[name](bed))
        except (ChildEnded, Absent) as exc:
            bed.absent[name] = " ".join(str(exc).split())[-300:]
    return found


class Absent(Exception):
    """The message says why."""


def _sentence_server(bed: Bed) -> Server:
    _check(SENTENCE_TRANSFORMERS.absent())
    port = _free_port()
    program = str(PROGRAMS / "sentence_server.py")
    command = [str(SENTENCE_TRANSFORMERS.python), program, str(bed.sample), str(port), _torch_device(bed)]
    process = _started(bed, ST_SERVER, command, f"http://127.0.0.1:{port}/v1/embeddings", "m")
    versions = SENTENCE_TRANSFORMERS.versions()
    return Server(ST_SERVER, "f32", f"http://127.0.0.1:{port}", "m", [process.pid], versions=versions)


def _sentence_offline(bed: Bed) -> Offline:
    _check(SENTENCE_TRANSFORMERS.absent())
    child = bed.program("sentence_offline", str(bed.sample), _torch_device(bed), python=SENTENCE_TRANSFORMERS.python)
    return Offline(ST_OFFLINE, "f32", child, versions=SENTENCE_TRANSFORMERS.versions())


def _infinity(bed: Bed) -> Server:
    _check(INFINITY.absent())
    port = _free_port()
    command = [str(INFINITY.python.with_name("infinity_emb")), "v2", "--model-id", str(bed.sample)]
    command += ["--served-model-name", "m", "--engine", "torch", "--device", _torch_device(bed).partition(":")[0]]
    command += ["--no-bettertransformer", "--host", "127.0.0.1", "--port", str(port)]
    process = _started(bed, INFINITY_NAME, command, f"http://127.0.0.1:{port}/embeddings", "m")
    return Server(
        INFINITY_NAME, "f32", f"http://127.0.0.1:{port}", "m", [process.pid], "/embeddings", INFINITY.versions()
    )


def _tei(bed: Bed) -> Server:
    binary = os.environ.get("TEI_BIN", "")
    _check("" if binary else "TEI_BIN is not set")
    port = _free_port()
    command = [binary, "--model-id", str(bed.sample), "--hostname", "127.0.0.1", "--port", str(port)]
    process = _started(bed, TEI, command, f"http://127.0.0.1:{port}/v1/embeddings", "m")
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return Server(TEI, "f32", f"http://127.0.0.1:{port}", "m", [process.pid], versions={"version": said})


def _check(absent: str) -> None:
    if absent:
        raise Absent(absent)


def _torch_device(bed: Bed) -> str:
    return bed.device if bed.device.startswith("cuda") else "cpu"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _started(bed: Bed, name: str, command: list[str], url: str, model: str) -> subprocess.Popen[bytes]:
    """A server that answers. Raises Absent."""
    log = bed.new("rival") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**clean_environment(), **QUIET})
    bed.callback(_end, process)
    body = json.dumps({"model": model, "input": ["a word"], "encoding_format": "base64"}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        call = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        try:
            with opener.open(call, timeout=60) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    if not wait_for(answers, process, START_S):
        raise Absent(f"{name} does not start: {log.read_text(errors='replace')[-250:]}")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(20)


# -- equal work


def check_equal(bed: Bed, contestants: Sequence[Contestant], texts: Sequence[str], reference: Vectors) -> list[str]:
    """Notes each one's least cosine with torch f32; returns who differs, and is not ranked."""
    differ = []
    for one in contestants:
        found = one.vectors(bed, texts)
        if found.shape != reference.shape:
            raise SystemExit(f"{one.name} gives {found.shape}, not {reference.shape}")
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(reference, axis=1)
        one.cosine = float(((found * reference).sum(axis=1) / lengths).min())
        if one.cosine < TOLERANCE[one.precision]:
            differ.append(one.name)
    return differ


def reference_vectors(bed: Bed, texts: Sequence[str], model: Path | None = None) -> Vectors:
    """Of torch in f32, by a program that has nothing of ours."""
    child = bed.program("reference", str(model or bed.sample), python=Path(sys.executable))
    found = Offline("torch f32", "f32", child).vectors(bed, texts)
    child.close()
    return found
