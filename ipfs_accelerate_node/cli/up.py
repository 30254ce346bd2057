"""`up`: the one command that is the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ipfs_accelerate_node.cli.options import json_option
from ipfs_accelerate_node.cli.render import print_json
from ipfs_accelerate_node.config import Config, load_config
from ipfs_accelerate_node.errors import EXIT_OK

F = TypeVar("F", bound=Callable[..., Any])

# field of Config -> (metavar, help), in the order of --help. Secrets are no flags: environment or file only.
_VALUES = {
    "cache": ("DIR", "Data folder (default: a checkout's cache/, else the XDG cache folder)."),
    "host": ("ADDRESS", "Where to listen (127.0.0.1); anything but loopback needs a key first."),
    "port": ("PORT", "8090; 0 takes any free one."),
    "kubo": ("auto|managed|off|URL", "A private Kubo child, none, or an existing daemon's RPC API (auto)."),
    "kubo_binary": ("FILE", "The ipfs program (default: on PATH, then a checkout's .kubo/ipfs)."),
    "ipfs_path": ("DIR", "Repo of an existing Kubo daemon, as $IPFS_PATH."),
    "swarm_key": ("FILE", "Pre-shared key of a private IPFS network."),
    "quota": ("BYTES", "Most that the store may take, such as 200GB (default: what the disk has)."),
    "share_rate": ("BYTES", "A second, to all who fetch from us, while inference is busy (100MB)."),
    "share_connections": ("N", "How many may fetch content from us at a time (32)."),
    "hf_upstream": ("URL", "The Hub to fetch hf: references from."),
    "load_timeout_s": ("SECONDS", "Give up loading a model after so long (300)."),
    "stall_timeout_s": ("SECONDS", "Give up a source that sends nothing for so long (10)."),
    "first_byte_timeout_s": ("SECONDS", "The same before its first byte (15)."),
    "threads": ("N", "Threads of a model's worker (one per core)."),
    "keep_alive_s": ("SECONDS", "Unload a model that was idle for so long (never)."),
    "memory": ("BYTES", "Most that loaded models may take; the one unused for longest makes room (all there is)."),
    "queue_wait_s": ("SECONDS", "Refuse a request that would wait longer for its model (2)."),
    "otlp_endpoint": ("URL", "Send spans of requests to this OpenTelemetry collector ($OTEL_EXPORTER_OTLP_ENDPOINT)."),
    "precision": ("auto|f32|bf16|f16|int8", "Of models that are loaded without naming one (auto)."),
    "default_model": ("REF", "Model of inference routes that name none (the only one that is loaded)."),
}
_LISTS = {
    "gateway": ("URL", "Trustless gateway to fetch from; may be repeated."),
    "peer": ("URL|PEERID", "Another node to fetch from; may be repeated."),
    "bootstrap": ("MULTIADDR", "First peers of the managed Kubo, instead of the public network's; none: nobody."),
    "hf_redirect_origin": (
        "URL",
        "A private origin that --hf-upstream may redirect to, without token; may be repeated.",
    ),
    "allow_host": ("NAME", "A further Host header that means this node; may be repeated."),
    "allow_peer": ("PEERID", "With --serve-peers: a key that may run models here; may be repeated."),
}
_SWITCHES = {
    "announce_pins": "Announce what was pinned by CID (on).",
    "tunnels": "Meet other nodes over libp2p, through Kubo (on).",
    "serve_peers": "Let peers whose key is allowed run public models here (off).",
    "share": "Let anybody read public content when not on loopback (off).",
    "paranoid": "Hash every leaf again before it leaves (off).",
    "publish": "Standing consent to publish benchmark records (off).",
    "allow_mock": "Where a model cannot be had, let a mock answer, marked MOCK (off).",
    "share_identical": "Compute identical requests that wait at the same time once (on).",
    "hf_offline": "Never ask the Hub (off).",
    "hub_open": "Serve the Hub's routes when not on loopback, public content only (off).",
    "kubo_loopback": "Keep the managed Kubo on loopback, for tests (off).",
}
_PLURAL = {
    "gateway": "gateways",
    "peer": "peers",
    "allow_host": "allow_hosts",
    "hf_redirect_origin": "hf_redirect_origins",
    "allow_peer": "allow_peers",
    "quota": "quota_bytes",
    "share_rate": "share_rate_bytes",
    "memory": "memory_bytes",
}


def _settings(command: F) -> F:
    for field, text in reversed(_SWITCHES.items()):
        flag = field.replace("_", "-")
        command = click.option(f"--{flag}/--no-{flag}", field, default=None, help=text)(command)
    for name, (metavar, text) in reversed(_LISTS.items()):
        flag, field = f"--{name.replace('_', '-')}", _PLURAL.get(name, name)
        command = click.option(flag, field, multiple=True, metavar=metavar, help=text)(command)
    for name, (metavar, text) in reversed(_VALUES.items()):
        flag, field = f"--{name.replace('_', '-')}", _PLURAL.get(name, name)
        command = click.option(flag, field, metavar=metavar, help=text)(command)
    return command


@click.command(
    epilog="Each setting is also a variable, IPFS_ACCELERATE_NODE_ and its name (IPFS_ACCELERATE_NODE_PORT), and a key "
    "of the configuration file; flags win over variables, variables over the file. Secrets are no flags: hf_token "
    "(or HF_TOKEN) and kubo_auth."
)
@_settings
@click.option(
    "--config", "file", type=click.Path(path_type=Path), metavar="FILE",
    help="TOML file ($XDG_CONFIG_HOME/ipfs-accelerate-node/config.toml).",
)  # fmt: skip
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
@json_option
def up(file: Path | None, log_level: str, as_json: bool, **flags: object) -> None:
    """Run the daemon until Ctrl-C or SIGTERM.

    It writes its URL and an admin key into daemon.json in its data folder, where the other commands find them.
    """
    config = load_config(flags, os.environ, file)
    _log_to_stderr(log_level, [config.hf_token, config.kubo_auth])
    from ipfs_accelerate_node.api.server import serve

    with asyncio.Runner() as runner:
        finished = runner.run(serve(config, on_ready=lambda url: _ready(config, url, as_json=as_json)))
        if not finished:
            logging.shutdown()
            os._exit(EXIT_OK)  # an orderly end would wait for threads whose work was cut off, however long it takes


def _ready(config: Config, url: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"url": url, "pid": os.getpid(), "cache": str(config.cache)})
    else:
        print(f"listening on {url}\ndata in {config.cache}\nCtrl-C stops it.")
    sys.stdout.flush()


class RedactSecrets(logging.Formatter):
    """Takes out of every line what looks like a secret: Hub tokens, bearers, passwords in URLs, signed queries, and the
    secrets of this configuration."""

    _SHAPES = (
        (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "hf_[redacted]"),
        (re.compile(r"\b(Bearer|Basic)\s+[^\s'\",]+", re.IGNORECASE), r"\1 [redacted]"),
        (re.compile(r"(\w+://)[^/\s@'\"]+@"), r"\1[redacted]@"),
        (
            re.compile(r"([?&][\w.-]*(?:signature|token|credential|key|policy)[\w.-]*=)[^&\s'\"]+", re.IGNORECASE),
            r"\1[redacted]",
        ),
    )

    def __init__(self, known: list[str | None]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._known = [secret for value in known if value for secret in (value, value.partition(":")[2]) if secret]

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for secret in self._known:
            line = line.replace(secret, "[redacted]")
        for shape, instead in self._SHAPES:
            line = shape.sub(instead, line)
        return line


def _log_to_stderr(level: str, secrets: list[str | None]) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(RedactSecrets(secrets))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the Hub client's: a line with the URL for each request
