"""All settings of a node, in one frozen dataclass built once by the CLI and passed down; no other module reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Config:
    cache: Path  # data folder: store, node key, managed Kubo; absolute
    host: str = "127.0.0.1"  # bind address; anything but loopback needs a key (security default 1)
    port: int = 8090  # 0: any free port, the real one is in daemon.json
    kubo: str = "auto"  # auto | managed | off | URL of an RPC API
    kubo_auth: str | None = field(
        default=None, repr=False
    )  # basic:user:password | bearer:token, for an external daemon
    ipfs_path: Path | None = None  # $IPFS_PATH: auto then means that daemon
    kubo_binary: Path | None = None  # None: `ipfs` on PATH, then .kubo/ipfs of the checkout
    swarm_key: Path | None = None  # private network: pre-shared key file of the managed Kubo
    bootstrap: tuple[str, ...] | None = None  # multiaddrs; None: the public network; (): nobody
    kubo_loopback: bool = False  # managed Kubo talks to loopback only (tests): no mDNS, no public helpers
    gateways: tuple[str, ...] = ()  # trustless gateways by URL
    peers: tuple[str, ...] = ()  # other nodes by URL
    allow_hosts: tuple[str, ...] = ()  # further Host header values that are ours (name or name:port)
    share: bool = False  # non-loopback bind: /ipfs and peers' routes are open without a key
    paranoid: bool = False  # hash every leaf again before it leaves by /ipfs
    quota_bytes: int | None = None  # None: what the disk has, less a reserve
    announce_pins: bool = True  # what was pinned by CID is announced
    publish: bool = False  # standing consent to publish benchmark records
    allow_mock: bool = False  # an hf: reference that cannot be had may become a marked mock
    hf_upstream: str = "https://huggingface.co"
    hf_token: str | None = field(default=None, repr=False)
    hf_offline: bool = False
    load_timeout_s: float = 300.0  # a model that takes longer to load is given up
    stall_timeout_s: float = 10.0  # a source that sends no byte for so long is given up
    first_byte_timeout_s: float = (
        15.0  # the same before its first byte (bitswap has to find a provider first: ×4 there)
    )
    threads: int | None = None  # torch threads of a worker; None: one per core
