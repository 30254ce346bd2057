"""What a handler finds in its application beside what the pipeline put there."""

from __future__ import annotations

from aiohttp import web

from ipfs_accelerate_node.api.delivery import LeafMaps
from ipfs_accelerate_node.api.hub_listings import Listings
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.api.limiter import Giving
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.node import Node

NODE: web.AppKey[Node] = web.AppKey("node", Node)
CONFIG: web.AppKey[Config] = web.AppKey("config", Config)
KEYS: web.AppKey[KeyRing] = web.AppKey("keys", KeyRing)
GIVING: web.AppKey[Giving] = web.AppKey("giving", Giving)
HUB_GIVING: web.AppKey[Giving] = web.AppKey("hub_giving", Giving)  # the same, unless only this machine's programs come
LEAF_MAPS: web.AppKey[LeafMaps] = web.AppKey("leaf_maps", LeafMaps)
LISTINGS: web.AppKey[Listings] = web.AppKey("listings", Listings)


def node(request: web.Request) -> Node:
    return request.app[NODE]
