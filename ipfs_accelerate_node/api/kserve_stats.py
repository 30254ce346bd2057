"""What models have done since they were loaded, as Triton's statistics say it; times in nanoseconds."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from ipfs_accelerate_node.api.access import Surface
from ipfs_accelerate_node.api.context import node
from ipfs_accelerate_node.api.kserve_routes import VERSION, model_name, of_model
from ipfs_accelerate_node.api.pipeline import Route
from ipfs_accelerate_node.api.problems import Dialect
from ipfs_accelerate_node.api.wire import json_reply
from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.inference.model import ModelStats


class Duration(msgspec.Struct, frozen=True):
    """ns: of all of them together."""

    count: int
    ns: int = 0


class InferenceStats(msgspec.Struct, frozen=True):
    """compute_input: at the tokenizer; compute_infer: in passes, which requests share; cache_hit: answered by the
    computation of an identical request."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    cache_hit: Duration


class Stats(msgspec.Struct, frozen=True):
    """inference_count: inputs; execution_count: passes."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats


class Statistics(msgspec.Struct, frozen=True):
    model_stats: list[Stats]


async def of_one(request: web.Request) -> web.Response:
    """Raises Unavailable: it is not loaded."""
    ref = model_name(request)
    found = node(request).registry.find(ref)
    root = found.root if found else str((await asyncio.to_thread(node(request).catalogue.find, ref)).root)
    stats = [_stats(ref, one) for one in node(request).registry.stats() if one.root == root]
    if not stats and found is None:
        raise Unavailable(f"{shown(ref)} is not loaded", code="not_ready")
    return json_reply(Statistics(stats))


async def of_all(request: web.Request) -> web.Response:
    """Of every loaded model."""
    return json_reply(Statistics([_stats(one.model, one) for one in node(request).registry.stats()]))


def _stats(name: str, stats: ModelStats) -> Stats:
    done = stats.requests - stats.failed
    queue, tokenize, compute = (round(1e9 * s) for s in (stats.queue_s, stats.tokenize_s, stats.compute_s))
    inference = InferenceStats(
        success=Duration(done, queue + tokenize + compute),
        fail=Duration(stats.failed),
        queue=Duration(done, queue),
        compute_input=Duration(done, tokenize),
        compute_infer=Duration(done, compute),
        cache_hit=Duration(stats.shared),
    )
    return Stats(name, VERSION, stats.rows, stats.passes, inference)


ROUTES = (
    Route("GET", "/v2/models/stats", of_all, Surface.INFER, Dialect.KSERVE, gives=Statistics),
    *of_model("GET", "/stats", of_one, gives=Statistics),
)
