"""The daemon: port, node, listener, signals, in the order that lets each failure be reported and nothing be left.

Stop: the first SIGTERM or SIGINT ends readiness at once, refuses new work and lets what is under way finish, at most
``drain_s``; the second cuts it off. Either way the node is closed properly and the process ends with 0.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from ipfs_accelerate_node.api.app import build_app
from ipfs_accelerate_node.api.daemon_file import remove_daemon_file, write_daemon_file
from ipfs_accelerate_node.api.keys import KeyRing
from ipfs_accelerate_node.api.listener import listening, take_port
from ipfs_accelerate_node.api.peers_app import PeersListener
from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.api.traffic import Traffic
from ipfs_accelerate_node.api.uploads import clear_uploads
from ipfs_accelerate_node.config import Config
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import InvalidConfig, NodeError
from ipfs_accelerate_node.node import Node

log = logging.getLogger(__name__)

DRAIN_S = 30.0
KEYS_FILE = "keys.json"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(config: Config, *, on_ready: Callable[[str], None] | None = None, drain_s: float = DRAIN_S) -> bool:
    """Runs the daemon until it is told to stop. on_ready gets the URL once requests are answered.

    Returns whether everything under way was finished. If not, threads may still be at work that was cut off: nobody
    wants it any more, and the store, closed by then, survives its end at any point.

    Raises InvalidConfig (a bind that needs a key and has none, an address that is not ours), AlreadyRunning, Conflict
    (code port_in_use), and what the start of the node raises.
    """
    keys = await asyncio.to_thread(KeyRing.open, config.cache / KEYS_FILE)
    check_bind(config, keys)
    try:
        return await _serve(config, keys, on_ready, drain_s)
    except ExceptionGroup as group:  # of the node's task groups, around what went wrong inside them
        raise _sole(group) from group


async def _serve(config: Config, keys: KeyRing, on_ready: Callable[[str], None] | None, drain_s: float) -> bool:
    with closing(take_port(config)) as sock, _stop_signals() as stop:
        async with Node(config) as node:
            await asyncio.to_thread(clear_uploads, config.cache)
            app = build_app(node, keys, config, port=sock.getsockname()[1])
            async with PeersListener(node, app), listening(app, sock) as url:
                await asyncio.to_thread(write_daemon_file, config.cache, url, keys.session_key())
                try:
                    _settle_memory()
                    log.info("serve.start url=%s", url)
                    if on_ready is not None:
                        on_ready(url)
                    await stop.first.wait()
                    finished = await _drain(app[TRAFFIC], stop, drain_s)
                finally:
                    remove_daemon_file(config.cache)
    log.info("serve.stop url=%s", url)
    return finished


def _settle_memory() -> None:
    """What the start made stays for good: full collections of garbage, which hold up the loop, need not look at it."""
    gc.collect()
    gc.freeze()


def _sole(group: ExceptionGroup[Exception]) -> Exception:
    """The one failure that a person is to be told, else the group."""
    error: Exception = group
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, NodeError) else group


def check_bind(config: Config, keys: KeyRing) -> None:
    """Raises InvalidConfig for an address that others reach while no stored key exists to keep them out."""
    if not is_loopback(config.host) and not keys.stored():
        raise InvalidConfig(
            f"listening on {config.host} needs a key: start once on 127.0.0.1, run "
            "`ipfs-accelerate-node keys add --scope infer`, and start again",
            code="key_needed",
            key="host",
        )


class _Stop:
    """first: stop, finishing what is under way. second: stop now."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def heard(self, number: signal.Signals) -> None:
        log.info("serve.signal name=%s", number.name)
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    loop = asyncio.get_running_loop()
    stop = _Stop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.heard, number)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _drain(traffic: Traffic, stop: _Stop, drain_s: float) -> bool:
    """Was everything under way finished?"""
    traffic.drain()
    async with asyncio.TaskGroup() as group:
        waits = {group.create_task(traffic.idle()), group.create_task(stop.second.wait())}
        await asyncio.wait(waits, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    if traffic.in_flight:
        log.warning("serve.cut requests=%d", traffic.in_flight)
    return not traffic.in_flight
