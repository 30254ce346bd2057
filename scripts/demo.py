"""The main job of `scripts/run`: daemon up, sample model added and loaded, a first request answered, then wait.

Speaks to the daemon as any client would, over HTTP; nothing here is part of the package.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 60.0
KUBO_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 300.0


def request(daemon: dict[str, Any], method: str, path: str, body: object = None) -> Any:
    """One JSON request with the daemon's admin key; a refusal ends the script with the daemon's own words."""
    call = urllib.request.Request(
        daemon["url"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {daemon['key']}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(call, timeout=REQUEST_TIMEOUT_S) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as exc:
        raise SystemExit(f"{method} {path}: {exc.code} {exc.read().decode(errors='replace')}") from exc


def started(process: subprocess.Popen[bytes], cache: Path) -> dict[str, Any]:
    """What the daemon wrote about itself, once it listens; ends the script when the daemon ends first."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise SystemExit(f"the daemon ended with exit code {code} before it listened")
        try:
            found: dict[str, Any] = json.loads((cache / "daemon.json").read_text())
            if found["pid"] == process.pid:
                return found
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.05)
    raise SystemExit(f"the daemon did not listen within {START_TIMEOUT_S:.0f} s")


def show(daemon: dict[str, Any], sample: Path) -> None:
    receipt = request(daemon, "POST", "/api/add", {"path": str(sample), "name": "all-MiniLM-L6-v2"})
    root = receipt["root"]
    print(f"added   {sample.name}: {receipt['bytes_total'] / 1e6:.0f} MB in {receipt['seconds']:.2f} s")
    print(f"CID     {root}")
    loaded = request(daemon, "POST", "/api/loads", {"ref": root})
    print(f"loaded  on {loaded['device']} ({loaded['engine']}, {loaded['precision']}) in {loaded['load_s']:.1f} s")
    began = time.perf_counter()
    text = "Model weights that travel like a swarm."
    reply = request(daemon, "POST", "/v1/embeddings", {"model": root, "input": text})
    vector = reply["data"][0]["embedding"]
    print(f"vector  {len(vector)} numbers in {(time.perf_counter() - began) * 1e3:.0f} ms: {vector[:4]} …")
    url = daemon["url"]
    print(f"""
Try it:

  curl {url}/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{{"model": "all-MiniLM-L6-v2", "input": "hello"}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="unused")
  print(client.embeddings.create(model="all-MiniLM-L6-v2", input=["hello"]).data[0].embedding[:4])
""")


def report_kubo(daemon: dict[str, Any]) -> None:
    """Kubo's state once it is no longer starting, and in words what the node lacks without it."""
    deadline = time.monotonic() + KUBO_TIMEOUT_S
    while (health := request(daemon, "GET", "/readyz"))["kubo"] == "starting" and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"Kubo    {health['kubo']}, peer {health['peer_id']}")
    for reason in health["degraded"]:
        print(f"lacking {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the node with its sample model.")
    parser.add_argument("--check", action="store_true", help="do the same, then stop")
    parser.add_argument("--sample", type=Path, required=True)
    parser.add_argument("--kubo-binary", default="")
    parser.add_argument("up", nargs="*", help="arguments for `up`, after --")
    options = parser.parse_args()

    cache = CHECKOUT / "cache"
    if "--cache" in options.up:
        cache = Path(options.up[options.up.index("--cache") + 1]).resolve()
    arguments = list(options.up)
    if options.check and "--port" not in arguments:
        arguments += ["--port", "0"]  # a check must not fail because another node holds the usual port
    environment = dict(os.environ)
    if options.check:  # and it has no business on the public network for its few seconds
        environment.setdefault("IPFS_ACCELERATE_NODE_KUBO_LOOPBACK", "true")
        environment.setdefault("IPFS_ACCELERATE_NODE_BOOTSTRAP", "none")
    if options.kubo_binary:
        environment.setdefault("IPFS_ACCELERATE_NODE_KUBO_BINARY", options.kubo_binary)
    command = [sys.executable, "-m", "ipfs_accelerate_node", "up", "--cache", str(cache)]
    process = subprocess.Popen([*command, *(a for a in arguments if a != "--")], env=environment)
    try:
        daemon = started(process, cache)
        print(f"node    {daemon['url']} (pid {daemon['pid']})")
        report_kubo(daemon)
        show(daemon, options.sample)
        if options.check:
            print("check passed")
            return 0
        print("Ctrl-C stops the node.")
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
