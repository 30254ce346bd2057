"""Which Kubo a node works with, decided from its settings once, at start."""

from __future__ import annotations

from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.errors import InvalidConfig
from ipfs_accelerate_node.kubo.binary import HINT, find_binary
from ipfs_accelerate_node.kubo.calls import Feature
from ipfs_accelerate_node.kubo.service import KuboService, Mode


def service_for(config: Config, key_seed: bytes) -> KuboService:
    """``auto``: the daemon of IPFS_PATH where that is set, else a private child where a binary is found, else none.

    key_seed: 32 bytes, the node key; a private child has it as its identity. Raises InvalidConfig for ``managed``
    without a binary.
    """
    auto = config.kubo == "auto"
    binary = find_binary(config.kubo_binary) if config.kubo in ("auto", "managed") else None
    mode: Mode
    if config.kubo == "off":
        mode = "off"
    elif config.kubo not in ("auto", "managed") or (auto and config.ipfs_path is not None):
        mode = "external"
    elif binary is not None:
        mode = "managed"
    elif auto:
        mode = "off"
    else:
        raise InvalidConfig(f"--kubo managed needs an `ipfs` binary: {HINT}", param="kubo")
    service = KuboService(
        mode=mode,
        cache=config.cache,
        binary=binary,
        url=config.kubo if mode == "external" and not auto else None,
        ipfs_path=config.ipfs_path if auto else None,
        auth=config.kubo_auth,
        key_seed=key_seed,
        swarm_key=config.swarm_key,
        bootstrap=config.bootstrap,
        loopback=config.kubo_loopback,
        features={Feature.PUBLISH, Feature.TUNNEL} if config.tunnels else {Feature.PUBLISH},
    )
    if auto and mode == "off":
        service.reason = f"not there: {HINT}"
    return service
