"""The user's listener as one application: every route of every module, behind the pipeline."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import ProcessCollector

from ipfs_accelerate_node.api import (
    gateway,
    health,
    hf_cache,
    hf_routes,
    hub_maps,
    hub_routes,
    inference_routes,
    kserve_repository,
    kserve_routes,
    kserve_stats,
    native,
    openai_routes,
    openapi,
    peers_inference,
    peers_routes,
    pinning_service,
    pins,
    remotes,
    reports,
    results,
    storage,
    tei_info,
    tei_routes,
    tei_tokens,
    uploads,
)
from ipfs_accelerate_node.api.access import Gate
from ipfs_accelerate_node.api.browser import Origins
from ipfs_accelerate_node.api.context import CONFIG, GIVING, HUB_GIVING, KEYS, LEAF_MAPS, LISTINGS, NODE
from ipfs_accelerate_node.api.dashboard import routes as dashboard
from ipfs_accelerate_node.api.delivery import LeafMaps
from ipfs_accelerate_node.api.hub_listings import Listings
from ipfs_accelerate_node.api.idempotency import KNOWN_KEYS, KnownKeys
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.api.limiter import BUSY_S, Giving, Limiter
from ipfs_accelerate_node.api.metrics import Metrics
from ipfs_accelerate_node.api.metrics_models import Models
from ipfs_accelerate_node.api.metrics_node import Fetched, Given, Kept, Loop
from ipfs_accelerate_node.api.pipeline import GATE, METRICS, ORIGINS, TRAFFIC, mount
from ipfs_accelerate_node.api.tracing import TRACING, tracing_to
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.api.watchdog import WATCHDOG, Watchdog
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.node import Node

ROUTES = (
    *health.ROUTES,
    *openapi.ROUTES,
    *openai_routes.ROUTES,
    *tei_info.ROUTES,
    *tei_routes.ROUTES,
    *tei_tokens.ROUTES,
    *hf_routes.ROUTES,
    *kserve_repository.ROUTES,
    *kserve_stats.ROUTES,
    *kserve_routes.ROUTES,
    *inference_routes.ROUTES,
    *native.ROUTES,
    *reports.ROUTES,
    *results.ROUTES,
    *storage.ROUTES,
    *peers_routes.ROUTES,
    *pinning_service.ROUTES,
    *pins.ROUTES,
    *remotes.ROUTES,
    *dashboard.ROUTES,
    *uploads.ROUTES,
    *hf_cache.ROUTES,
    *hub_maps.ROUTES,
    *hub_routes.ROUTES,
    *gateway.ROUTES,
)

OWN_TRANSFERS = 512  # of this machine's programs at a time by the Hub's routes


def build_app(node: Node, keys: KeyRing, config: Config, *, port: int | None = None) -> web.Application:
    """node: entered already. port: the bound one, where the configuration says 0."""
    app = web.Application()
    traffic = Traffic()
    app[NODE] = node
    app[CONFIG] = config
    app[KEYS] = keys
    app[LEAF_MAPS] = LeafMaps(node.store)
    app[LISTINGS] = Listings()
    local = is_loopback(config.host)
    app[peers_inference.DOORMAN], app[peers_inference.DESK] = peers_inference.opened(node, traffic)
    gate = Gate(keys, loopback=local, share=config.share, hub_open=config.hub_open)
    app[GATE] = peers_inference.EitherGate(gate, app[peers_inference.DOORMAN])
    app[ORIGINS] = Origins.of(config.host, config.port if port is None else port, config.allow_hosts)
    app[TRAFFIC] = traffic
    limiter = Limiter(config.share_rate_bytes, lambda: traffic.inferred_within(BUSY_S))
    app[GIVING] = giving = Giving(limiter, connections=config.share_connections)
    app.on_cleanup.append(giving.close)
    app[HUB_GIVING] = giving
    if local:  # the user's own loads: neither slowed down nor refused
        app[HUB_GIVING] = own = Giving(Limiter(config.share_rate_bytes, lambda: False), connections=OWN_TRANSFERS)
        app.on_cleanup.append(own.close)
    app[reports.ONE_AT_A_TIME] = asyncio.Lock()
    app[WATCHDOG] = Watchdog()
    app[KNOWN_KEYS] = KnownKeys()
    app[TRACING] = tracing = tracing_to(config.otlp_endpoint)
    app.on_cleanup.append(lambda _: tracing.close())
    app[METRICS] = Metrics(
        {
            "in_flight": lambda: traffic.in_flight,
            "body_bytes": lambda: traffic.held_bytes,
            "ready": lambda: float(node.ready and not traffic.draining),
            "store_bytes": lambda: node.store.used_bytes(),
            "models_stored": lambda: len(node.store.models()),
            "models_loaded": lambda: len(node.registry.loaded()),
        },
        (
            Models(node.registry.loaded, node.registry.stats),
            Given(giving),
            Fetched(node),
            Kept(node),
            Loop(app[WATCHDOG]),
            ProcessCollector(registry=None),
        ),
    )
    dashboard.furnish(app)
    app[openapi.MADE] = {}
    mount(app, peers_inference.peers_too(ROUTES))
    return app
