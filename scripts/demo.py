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
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0  # the daemon's own drain is 30 s
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
    except OSError as exc:
        raise SystemExit(f"{method} {path}: the daemon does not answer: {exc}") from exc


def started(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Where the daemon listens, as `up --json` says, with the admin key from its data folder; ends the script when the
    daemon ends first or takes too long."""
    assert process.stdout is not None
    patience = threading.Timer(START_TIMEOUT_S, process.terminate)
    patience.start()
    told = ""
    try:
        for line in process.stdout:
            told += line
            if line.rstrip() == "}" and "cache" in (place := json.loads(told)):
                noted: dict[str, Any] = json.loads((Path(place["cache"]) / "daemon.json").read_text())
                return noted
        code = process.wait()
    finally:
        patience.cancel()
    if code == 0:  # --help and the like
        raise SystemExit(told.rstrip())
    raise SystemExit(f"the daemon ended with exit code {code} before it listened")


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


def stop(process: subprocess.Popen[str], *, told: bool) -> None:
    """told: the daemon heard the terminal's Ctrl-C itself; a second signal would cut off what it is finishing."""
    try:
        if not told:
            process.terminate()
        process.wait(STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.terminate()
        process.wait()


def up_command(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The daemon's command line and environment: what the user said wins over what is set here."""
    environment = dict(os.environ)
    if options.check:
        # A check must not fail because another node holds the usual port, and has no business on the public network.
        environment.setdefault("IPFS_ACCELERATE_NODE_PORT", "0")
        environment.setdefault("IPFS_ACCELERATE_NODE_KUBO_LOOPBACK", "true")
        environment.setdefault("IPFS_ACCELERATE_NODE_BOOTSTRAP", "none")
    if options.kubo_binary:
        environment.setdefault("IPFS_ACCELERATE_NODE_KUBO_BINARY", options.kubo_binary)
    arguments = [argument for argument in options.up if argument != "--"]
    return [sys.executable, "-m", "ipfs_accelerate_node", "up", "--json", *arguments], environment


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/run", description="Run the node with its sample model.")
    parser.add_argument("--check", action="store_true", help="do the same, then stop")
    parser.add_argument("--sample", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--kubo-binary", default="", help=argparse.SUPPRESS)
    parser.add_argument("up", nargs="*", metavar="-- ARGUMENT", help="arguments for `up`, after --")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    command, environment = up_command(options)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    told = False
    try:
        daemon = started(process)
        print(f"node    {daemon['url']} (pid {daemon['pid']})")
        report_kubo(daemon)
        show(daemon, options.sample)
        if options.check:
            print("check passed")
            return 0
        print("Ctrl-C stops the node.", flush=True)
        return process.wait()
    except KeyboardInterrupt:
        told = True
        return 130 if options.check else 0
    finally:
        stop(process, told=told)


if __name__ == "__main__":
    sys.exit(main())
