"""`doctor`: what is there, what is missing, how to mend it. Works without a daemon and changes nothing.

Accelerators are asked for in another process, because that imports torch.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.cli.client import Daemon, read_daemon_file
from ipfs_accelerate_node.cli.options import json_option
from ipfs_accelerate_node.cli.render import clean, print_json, size
from ipfs_accelerate_node.config import PREFIX, Config, config_file, default_cache, load_config
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import EXIT_FAILURE, AuthRequired, InvalidConfig, NodeError
from ipfs_accelerate_node.sources.hub import HubSource

State = Literal["ok", "missing", "broken"]
ASK_TIMEOUT_S = 5.0
TORCH_TIMEOUT_S = 120.0  # a first import from a cold disk
LOW_DISK_BYTES = 10_000_000_000  # a few models of the usual sizes

_ASK_TORCH = """
import json, torch
cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "cuda": cuda, "built_for_cuda": torch.version.cuda}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """state: ``missing`` limits what the node can do, ``broken`` keeps it from working. mend: what to do about it."""

    name: str
    state: State
    found: str
    mend: str | None = None


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Data folder to look at.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE", help="Configuration file to check.")
@json_option
def doctor(cache: Path | None, file: Path | None, as_json: bool) -> None:
    """Say what is there, what is missing and how to mend it; exit code 1 if something keeps the node from working."""
    findings = []
    for finding in examine(cache, file, os.environ):
        findings.append(finding)
        if not as_json:
            print(f"{finding.state:<7}  {finding.name}: {clean(finding.found)}")
            if finding.mend:
                print(f"         → {clean(finding.mend)}")
            sys.stdout.flush()
    healthy = all(finding.state != "broken" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    if not healthy:
        click.get_current_context().exit(EXIT_FAILURE)


def examine(cache: Path | None, file: Path | None, env: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, the cheap ones first."""
    yield Finding("program", "ok", f"ipfs-accelerate-node {__version__}, Python {platform.python_version()}")
    try:
        config = load_config({"cache": cache}, env, file)
    except InvalidConfig as exc:
        yield Finding("settings", "broken", str(exc), "correct that setting; the rest is looked at without settings")
        named = cache or env.get(f"{PREFIX}CACHE")
        config = Config(cache=Path(named).absolute() if named else default_cache(env))
    else:
        used = file or config_file(env)
        yield Finding("settings", "ok", f"from {used}" if used.exists() else f"defaults ({used} does not exist)")
    yield _disk(config.cache)
    running, daemon_url = _daemon(config)
    yield running
    if daemon_url is None:
        yield _port(config)
    yield from _kubo(config, daemon_url)
    if daemon_url is not None:
        yield from _peers(config, daemon_url)
    yield _token(config, env)
    yield from _endpoint(config, daemon_url, env)
    yield _accelerators()


def _disk(cache: Path) -> Finding:
    folder = cache
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "disk", "broken", f"{folder} cannot be written", "give another folder with --cache, or make it yours"
        )
    try:
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        return Finding("disk", "broken", f"{folder}: {exc.strerror}", "give another folder with --cache")
    found = f"{size(free)} free for {cache}"
    if free < LOW_DISK_BYTES:
        return Finding("disk", "missing", found, "free some space, run `ian gc`, or give another folder with --cache")
    return Finding("disk", "ok", found)


def _daemon(config: Config) -> tuple[Finding, str | None]:
    """The finding, and the daemon's URL if it answers."""
    noted = read_daemon_file(config.cache)
    if noted is None:
        return Finding("daemon", "missing", f"none runs over {config.cache}", "start it with: ian up"), None
    url = str(noted["url"])
    try:
        health = Daemon(url, None, where="").call("GET", "/readyz", timeout_s=ASK_TIMEOUT_S)
    except Refused as exc:
        health = exc.body
    except NodeError as exc:
        return Finding("daemon", "missing", str(exc), "start it with: ian up"), None
    degraded = [str(reason) for reason in health.get("degraded") or []]
    if not health.get("ready"):
        return Finding(
            "daemon", "missing", f"{url} is {health.get('state', 'not ready')}", "wait, or look at its log"
        ), url
    if degraded:
        return Finding("daemon", "missing", f"{url} runs without: {'; '.join(degraded)}", "see below"), url
    return Finding("daemon", "ok", f"{url} (pid {noted.get('pid', '?')})"), url


def _port(config: Config) -> Finding:
    if config.port == 0:
        return Finding("port", "ok", "any free one is taken")
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    place = f"{config.host}:{config.port}"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host.strip("[]"), config.port))
        except OSError as exc:
            return Finding(
                "port", "broken", f"{place} cannot be had: {exc.strerror}", "take another: ian up --port PORT"
            )
    if not is_loopback(config.host):
        return Finding(
            "port", "ok", f"{place} is free; others reach it, so make a key first (ian keys add --scope infer)"
        )
    return Finding("port", "ok", f"{place} is free")


def _kubo(config: Config, daemon_url: str | None) -> Iterator[Finding]:
    if config.kubo == "off":
        yield Finding(
            "Kubo", "missing", "switched off: gateways and peers by URL only", "allow it with: ian up --kubo auto"
        )
        return
    external = _external_kubo(config)
    if external is not None:
        yield _kubo_rpc(external)
        return
    binary = _kubo_binary(config)
    mend = "install Kubo (https://docs.ipfs.tech/install/command-line/), or in a checkout run scripts/install-kubo"
    if binary is None:
        yield Finding("Kubo", "missing", "no `ipfs` program: no peers, no seeding; HTTP sources still work", mend)
        return
    try:
        # A repo that does not exist: asking for a version must neither make nor lock the user's own.
        bare = {"PATH": os.defpath, "IPFS_PATH": "/nonexistent/ipfs", "IPFS_TELEMETRY": "off"}
        asked = subprocess.run(
            [binary, "version", "--number"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True,
            stdin=subprocess.DEVNULL, env=bare,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as exc:
        yield Finding("Kubo", "broken", f"{binary} does not run: {type(exc).__name__}", mend)
        return
    runs = "runs with the daemon" if daemon_url else "starts with the daemon"
    yield Finding("Kubo", "ok", f"{asked.stdout.strip()[:80]} at {binary}, {runs}")


def _peers(config: Config, daemon_url: str) -> Iterator[Finding]:
    """Whether other nodes can come in, as the running daemon says; nothing where it does not say."""
    key = (read_daemon_file(config.cache) or {}).get("key")
    try:
        told = Daemon(daemon_url, str(key), where="").call("GET", "/api/peers", timeout_s=ASK_TIMEOUT_S)
        door, tunnels = told["door"], len(told["tunnels"])
        state, reason = str(door["state"]), str(door["reason"])
    except (NodeError, KeyError, TypeError):
        return
    if state == "open":
        yield Finding("peers", "ok", f"others dial {told.get('dial')}; {tunnels} reached now")
        return
    mend = "for an external Kubo: ipfs config --json Experimental.Libp2pStreamMounting true, and restart it"
    yield Finding("peers", "missing", f"other nodes cannot come in: {reason}", mend)


def _external_kubo(config: Config) -> str | None:
    """The RPC API of an existing daemon, as URL or multiaddr, if the settings mean one."""
    if config.kubo not in ("auto", "managed"):
        return config.kubo
    if config.kubo == "auto" and config.ipfs_path is not None:
        try:
            return (config.ipfs_path / "api").read_text().strip() or None
        except (OSError, UnicodeDecodeError):
            return None
    return None


def _kubo_rpc(address: str) -> Finding:
    """Whether something listens; the RPC itself may want a secret, which is the daemon's to send."""
    parts = address.removeprefix("http://").removeprefix("https://").strip("/").split("/")
    host, port = (parts[1], parts[3]) if len(parts) >= 4 else parts[0].rpartition(":")[::2]
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_TIMEOUT_S):
            return Finding("Kubo", "ok", f"a daemon listens at {address}")
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        return Finding("Kubo", "missing", f"nothing answers at {address}: {reason}", "start it with: ipfs daemon")


def _kubo_binary(config: Config) -> str | None:
    if config.kubo_binary is not None:
        return str(config.kubo_binary)
    if (on_path := shutil.which("ipfs")) is not None:
        return on_path
    built = Path(__file__).resolve().parents[2] / ".kubo" / "ipfs"
    return str(built) if built.is_file() else None


def _token(config: Config, env: Mapping[str, str]) -> Finding:
    """Whether there is one and the Hub takes it, never what it is."""
    if config.hf_token is None:
        mend = "for gated or private models: set HF_TOKEN, or `hf auth login`"
        return Finding("Hub token", "missing", "none; public models work without", mend)
    named = [v for v in ("IPFS_ACCELERATE_NODE_HF_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if env.get(v)]
    found = f"there is one, from {named[0] if named else 'a file'}"
    if config.hf_offline:
        return Finding("Hub token", "ok", f"{found}; not checked, as offline mode is on")
    try:
        whose = asyncio.run(_owner(config))
    except AuthRequired:
        mend = "make a new one at the Hub's settings and set HF_TOKEN, or `hf auth login`"
        return Finding("Hub token", "missing", f"{found}; {config.hf_upstream} refuses it: invalid or expired", mend)
    except (NodeError, TimeoutError) as exc:
        return Finding("Hub token", "ok", f"{found}; not checked: {exc or 'no answer in time'}")
    return Finding("Hub token", "ok", f"{found}; {config.hf_upstream} takes it, of {whose}")


async def _owner(config: Config) -> str:
    async with asyncio.timeout(ASK_TIMEOUT_S * 2):
        async with HubSource(config.hf_upstream, token=config.hf_token, backoff_s=0.2) as hub:
            return str((await hub.identity()).get("name", "an account without a name"))


def _endpoint(config: Config, daemon_url: str | None, env: Mapping[str, str]) -> Iterator[Finding]:
    endpoint = env.get("HF_ENDPOINT", "").rstrip("/")
    if not endpoint:
        return
    ours = {daemon_url, f"http://{config.host}:{config.port}", f"http://localhost:{config.port}"}
    if endpoint in ours:
        yield Finding("HF_ENDPOINT", "ok", f"{endpoint} is this node: right for Hugging Face tools")
    else:
        yield Finding(
            "HF_ENDPOINT", "ok", f"{endpoint}; the node itself fetches from {config.hf_upstream} (--hf-upstream)"
        )


def _accelerators() -> Finding:
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        told = json.loads(asked.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as exc:
        found = f"torch does not load here ({type(exc).__name__}): no model runs"
        return Finding("accelerators", "broken", found, "install the package again, with its locked requirements")
    cpu = f"cpu with {os.cpu_count()} cores, torch {told['torch']}"
    if told["cuda"]:
        return Finding("accelerators", "ok", f"{', '.join(told['cuda'])}; {cpu}")
    if told["built_for_cuda"] and shutil.which("nvidia-smi"):
        mend = f"check that the NVIDIA driver is new enough for CUDA {told['built_for_cuda']}: nvidia-smi"
        return Finding("accelerators", "missing", f"{cpu}; an NVIDIA driver is here, but torch sees no GPU", mend)
    return Finding("accelerators", "ok", f"{cpu}; no GPU is seen, models run on the CPU")
