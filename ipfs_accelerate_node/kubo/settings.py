"""The configuration of a managed Kubo, as a pure function of what it is for. Each choice says why.

Source: docs/config.md of Kubo 0.43; every value was tried against that version.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ipfs_accelerate_node.kubo.client import private_key_protobuf

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Network:
    """bootstrap: None is the public network's own list. private: a swarm key is in the repo. loopback: nobody but
    this machine."""

    bootstrap: tuple[str, ...] | None
    private: bool
    loopback: bool
    swarm_port: int


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call the RPC API: one secret, these paths."""

    secret: str = field(repr=False)
    paths: Sequence[str]


def peer_id(seed: bytes) -> str:
    """``12D3Koo…`` of an Ed25519 seed: base58 of the identity multihash of libp2p's public key message."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    number = int.from_bytes(b"\x00\x24\x08\x01\x12\x20" + public)
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" + digits  # the leading zero byte


def configured(config: dict[str, Any], *, seed: bytes, network: Network, access: Access) -> dict[str, Any]:
    """What `ipfs init` wrote, with our settings over it. The argument is not changed."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    ours: dict[str, Any] = {
        "Identity": {
            "PeerID": peer_id(seed),
            "PrivKey": base64.b64encode(private_key_protobuf(seed, public)).decode(),
        },
        "Addresses": {
            "API": "/ip4/127.0.0.1/tcp/0",  # any free port; the repo's api file says which
            "Gateway": [],  # nobody needs it, and it would show private models to every web page
            "Swarm": _swarm_addresses(network),
        },
        "API": {
            "Authorizations": {"node": {"AuthSecret": f"bearer:{access.secret}", "AllowedPaths": list(access.paths)}}
        },
        # Only what is pinned, and of that the root: private models are kept by an MFS entry and never pinned.
        "Provide": {"Enabled": True, "Strategy": "roots"},
        "Import": {"FastProvideRoot": False, "FastProvideDAG": False},
        "Experimental": {"FilestoreEnabled": True, "Libp2pStreamMounting": True},
        "Plugins": {"Plugins": {"telemetry": {"Config": {"Mode": "off"}}}},
    }
    result = _merged(config, ours)
    if network.bootstrap is not None or network.private or network.loopback:
        result["Bootstrap"] = list(network.bootstrap or ())
    if network.private or network.loopback:
        result = _merged(result, _NO_PUBLIC_SERVICES)
    if network.loopback:
        result = _merged(result, _LOOPBACK_ONLY)
    return result


_NO_PUBLIC_SERVICES: dict[str, Any] = {
    "AutoConf": {"Enabled": False},
    "AutoTLS": {"Enabled": False},
    "Routing": {"Type": "dht", "DelegatedRouters": []},
    "Ipns": {"DelegatedPublishers": []},
    "DNS": {"Resolvers": {}},
    "HTTPRetrieval": {"Enabled": False},
    "Swarm": {"RelayClient": {"Enabled": False}, "RelayService": {"Enabled": False}},
}

_LOOPBACK_ONLY: dict[str, Any] = {
    "Discovery": {"MDNS": {"Enabled": False}},
    "Routing": {"LoopbackAddressesOnLanDHT": True},
    "Swarm": {"DisableNatPortMap": True},
}


def _swarm_addresses(network: Network) -> list[str]:
    port = network.swarm_port
    if network.loopback:
        return [f"/ip4/127.0.0.1/tcp/{port}"]
    tcp = [f"/ip4/0.0.0.0/tcp/{port}", f"/ip6/::/tcp/{port}"]
    if network.private:
        return tcp  # the other transports know no pre-shared key
    hosts = ("/ip4/0.0.0.0", "/ip6/::")
    ways = ("quic-v1", "quic-v1/webtransport", "webrtc-direct")
    return tcp + [f"{host}/udp/{port}/{way}" for way in ways for host in hosts]


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Maps are merged, everything else is replaced; an empty map stands for none of what is there."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if value and isinstance(below, dict) and isinstance(value, dict) else value
    return result
