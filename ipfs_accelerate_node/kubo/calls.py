"""Every RPC call this package makes, and from that the paths a secret of a managed daemon may reach.

A call that is not declared here cannot be made (`rpc` and `control` take a `Call`, never a path), so the table handed
to ``API.Authorizations`` is complete by construction and holds nothing that is not needed: no ``config``, no
``repo/gc``, no ``shutdown``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "/api/v0/"


class Feature(StrEnum):
    """What a node has switched on; each feature adds paths."""

    STORE = "store"  # fetch, seed, announce: always on
    PUBLISH = "publish"  # names: key/import, name/publish
    TUNNEL = "tunnel"  # meet other nodes: dial them, mount streams


@dataclass(frozen=True, slots=True)
class Call:
    """path: below ``/api/v0/``."""

    path: str
    feature: Feature


ID = Call("id", Feature.STORE)
VERSION = Call("version", Feature.STORE)
BLOCK_GET = Call("block/get", Feature.STORE)
BLOCK_PUT = Call("block/put", Feature.STORE)
BLOCK_RM = Call("block/rm", Feature.STORE)
BLOCK_STAT = Call("block/stat", Feature.STORE)
ADD = Call("add", Feature.STORE)
PIN_ADD = Call("pin/add", Feature.STORE)
PIN_RM = Call("pin/rm", Feature.STORE)
PIN_LS = Call("pin/ls", Feature.STORE)
FILES_CP = Call("files/cp", Feature.STORE)
FILES_LS = Call("files/ls", Feature.STORE)
FILES_RM = Call("files/rm", Feature.STORE)
FILES_STAT = Call("files/stat", Feature.STORE)
FILESTORE_LS = Call("filestore/ls", Feature.STORE)
FIND_PROVIDERS = Call("routing/findprovs", Feature.STORE)
PROVIDE = Call("routing/provide", Feature.STORE)
PROVIDE_ONCE = Call("provide/once", Feature.STORE)
DAG_GET = Call("dag/get", Feature.STORE)
REPO_STAT = Call("repo/stat", Feature.STORE)
NAME_RESOLVE = Call("name/resolve", Feature.STORE)
KEY_IMPORT = Call("key/import", Feature.PUBLISH)
KEY_LIST = Call("key/list", Feature.PUBLISH)
NAME_PUBLISH = Call("name/publish", Feature.PUBLISH)
SWARM_CONNECT = Call("swarm/connect", Feature.TUNNEL)
P2P_LISTEN = Call("p2p/listen", Feature.TUNNEL)
P2P_FORWARD = Call("p2p/forward", Feature.TUNNEL)
P2P_CLOSE = Call("p2p/close", Feature.TUNNEL)
P2P_LS = Call("p2p/ls", Feature.TUNNEL)

CALLS: tuple[Call, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Call))


def allowed_paths(features: Collection[Feature]) -> list[str]:
    """The value of ``AllowedPaths`` for these features, sorted. Kubo takes each as a prefix."""
    wanted = {Feature.STORE, *features}
    return sorted(PREFIX + call.path for call in CALLS if call.feature in wanted)
