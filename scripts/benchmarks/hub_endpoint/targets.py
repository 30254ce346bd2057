"""The parts of `bench hub`: each makes its own upstream and nodes, and returns lines of figures with their targets."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from hub_endpoint.bed import MIB, Bed, Node, first_byte, run_client
from hub_endpoint.upstream import Upstream

CLIENTS = 20
MANY = 5000


@dataclass(frozen=True)
class Line:
    """figure in unit; target: the most that it may be, None where there is none. beside: what it is compared with."""

    what: str
    figure: float | str
    unit: str
    target: float | str | None = None
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        if self.target is None:
            return None
        if isinstance(self.figure, str) or isinstance(self.target, str):
            return self.figure == self.target
        return self.figure <= self.target

    def told(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def first(bed: Bed) -> list[Line]:
    """Of files that are not here, after the client asked for the head, as the real ones do: interleaved with the same
    GET at the upstream itself."""
    large = {f"large-{n}.safetensors": 48 * MIB + n for n in range(bed.rounds)}  # no two of one size, as in life
    small = {f"small-{n}.safetensors": 24 * MIB + n for n in range(bed.rounds)}
    upstream = bed.upstream({"org/unknown": {"sizes": large}, "org/mapped": {"sizes": {**large, **small}}})
    node = bed.node(upstream)
    node.json("pin", "hf:org/mapped")
    root = node.json("info", "hf:org/mapped")["model"]["root"]
    node.request("DELETE", f"/api/store/{root}?force=true")
    return [
        _first(node, upstream, "org/unknown", list(large), "48 MiB, without a map"),
        _first(node, upstream, "org/mapped", list(large), "48 MiB, with a confirmed map"),
        _first(node, upstream, "org/mapped", list(small), "24 MiB, with a confirmed map"),
    ]


def _first(node: Node, upstream: Upstream, repo: str, paths: list[str], what: str) -> Line:
    _head(node.url, f"/{repo}/resolve/main/{paths[0]}")
    later, ours_ms, plain_ms, whole_ms = [], [], [], []
    for path in paths:
        url = f"/{repo}/resolve/main/{path}"
        plain = first_byte(upstream.url, url)
        ours = first_byte(node.url, url)
        if plain.sha256 != ours.sha256:
            raise SystemExit(f"{url} is another file through the endpoint")
        later.append(1000 * (ours.first_s - plain.first_s))
        ours_ms.append(1000 * ours.first_s)
        plain_ms.append(1000 * plain.first_s)
        whole_ms.append(1000 * ours.whole_s)
    beside = {
        "worst_ms": max(later),
        "ours_ms": statistics.median(ours_ms),
        "upstream_ms": statistics.median(plain_ms),
        "whole_file_ms": statistics.median(whole_ms),
    }
    return Line(f"first byte after the upstream's, {what}", statistics.median(later), "ms", 50.0, beside)


def _head(origin: str, path: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(origin).netloc, timeout=60)
    connection.request("HEAD", path)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    if reply.status != 200:
        raise SystemExit(f"HEAD {path}: {reply.status}")


def warm(bed: Bed) -> list[Line]:
    """`from_pretrained` through the endpoint and of a local folder, interleaved; then each call of the API by itself,
    over one connection, bodies read."""
    upstream = bed.upstream({"org/sample": {"folder": str(bed.sample)}, "org/many": {"many": MANY}})
    node = bed.node(upstream)
    home = bed.new("client")
    node_ms, local_ms = [], []
    run_client(_LOAD, "org/sample", home=home, endpoint=node.url)
    for _ in range(bed.rounds):
        local_ms.append(1000 * float(run_client(_LOAD, str(bed.sample), home=home, endpoint=node.url)))
        node_ms.append(1000 * float(run_client(_LOAD, "org/sample", home=home, endpoint=node.url)))
    ours, local = statistics.median(node_ms), statistics.median(local_ms)
    beside = {"ours_ms": ours, "local_ms": local, "ours_all_ms": node_ms, "local_all_ms": local_ms}
    lines = [Line("warm from_pretrained after the local load", ours - local, "ms", 100.0, beside)]
    files = [path.relative_to(bed.sample).as_posix() for path in bed.sample.rglob("*") if path.is_file()]
    for repo, path, note in (
        ("org/sample", sorted(files)[0], f"{len(files)} files"),
        ("org/many", "part-049/data-04999.json", f"{MANY} files"),
    ):
        lines += [_api(node, bed.requests, note, *call) for call in _calls(repo, path)]
    return lines


def _calls(repo: str, path: str) -> list[tuple[str, str, str, str | None]]:
    tree = f"/api/models/{repo}/tree/main?recursive=true&expand=false"
    form = urlencode({"paths": path, "expand": "False"})
    return [
        ("model info", "GET", f"/api/models/{repo}", None),
        ("model info at a revision", "GET", f"/api/models/{repo}/revision/main", None),
        ("tree", "GET", tree, None),
        ("tree, last page", "GET", f"{tree}&cursor={MANY - 1000}", None),
        ("HEAD resolve", "HEAD", f"/{repo}/resolve/main/{path}", None),
        ("HEAD of no file", "HEAD", f"/{repo}/resolve/main/no-such-file.json", None),
        ("paths-info", "POST", f"/api/models/{repo}/paths-info/main", form),
    ]


def _api(node: Node, requests: int, note: str, what: str, method: str, path: str, body: str | None) -> Line:
    connection = http.client.HTTPConnection(urlsplit(node.url).netloc, timeout=60)
    headers = {} if body is None else {"Content-Type": "application/x-www-form-urlencoded"}
    took, size = [], 0
    for number in range(requests + 20):
        began = time.perf_counter()
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        size = len(reply.read())
        if number >= 20:
            took.append(1000 * (time.perf_counter() - began))
        if reply.status not in (200, 404):
            raise SystemExit(f"{method} {path}: {reply.status}")
    connection.close()
    cuts = statistics.quantiles(took, n=100)
    beside = {"p50_ms": statistics.median(took), "p99_ms": cuts[98], "bytes": size}
    return Line(f"{what}, {note}, p95", cuts[94], "ms", 10.0, beside)


def crowd(bed: Bed) -> list[Line]:
    """So many clients at once for one file that is not here."""
    size = bed.mib * MIB
    upstream = bed.upstream({"org/large": {"sizes": {"model.safetensors": size}}})
    node = bed.node(upstream)
    url = f"{node.url}/org/large/resolve/main/model.safetensors"
    right = upstream.sha256("org/large", "model.safetensors")
    upstream.forget()
    command = f"curl -sf {url} | sha256sum"
    began = time.perf_counter()
    clients = [subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)]
    got = [client.communicate()[0].split()[0] for client in clients]
    seconds = time.perf_counter() - began
    if set(got) != {right}:
        raise SystemExit(f"clients got other bytes: {sorted(set(got))}")
    served = upstream.served()
    return [
        Line(
            f"bytes from upstream for {CLIENTS} clients of {bed.mib} MiB, in files",
            served["bytes"] / size,
            "×",
            1.0,
            {**served, "seconds": seconds, "given_mb_s": CLIENTS * size / seconds / 1e6},
        )
    ]


def corrupt(bed: Bed) -> list[Line]:
    """The plain client and the same call through the node, of a file of which the upstream sends other bytes of the
    same size."""
    repos: dict[str, dict[str, Any]] = {"org/large": {"sizes": {"model.safetensors": bed.mib * MIB}}}
    upstream, elsewhere = bed.upstream(repos), bed.upstream(repos, one_origin=False)
    right = upstream.sha256("org/large", "model.safetensors")

    def said(endpoint: str) -> str:
        got: str = json.loads(run_client(_DOWNLOAD, "org/large", home=bed.new("client"), endpoint=endpoint))
        return {right: "right bytes"}.get(got, "wrong bytes" if len(got) == 64 else f"an error: {got}")

    elsewhere.corrupt("model.safetensors")
    plain = said(elsewhere.url)
    upstream.corrupt("model.safetensors")
    lasting = said(bed.node(upstream).url)
    upstream.corrupt("model.safetensors", 1)
    once = said(bed.node(upstream).url)
    upstream.corrupt("model.safetensors", 0)
    what = f"hf_hub_download of {bed.mib} MiB,"
    return [
        Line(f"{what} upstream corrupt, straight from it", plain, ""),
        Line(f"{what} upstream corrupt, through the node", _short(lasting), "", "an error", {"said": lasting}),
        Line(f"{what} upstream corrupt once, through the node", _short(once), "", "right bytes", {"said": once}),
    ]


def _short(said: str) -> str:
    return said.partition(":")[0]


_LOAD = """
import sys, time
import torch
from transformers import AutoModel, AutoTokenizer
began = time.perf_counter()
AutoModel.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
print(time.perf_counter() - began)
"""
_DOWNLOAD = """
import hashlib, json, sys
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
try:
    path = hf_hub_download(sys.argv[1], "model.safetensors")
    print(json.dumps(hashlib.sha256(open(path, "rb").read()).hexdigest()))
except (HfHubHTTPError, OSError) as exc:
    print(json.dumps(type(exc).__name__ + ": " + str(exc).splitlines()[0]))
"""

TARGETS: dict[str, Callable[[Bed], list[Line]]] = {"first": first, "warm": warm, "crowd": crowd, "corrupt": corrupt}
