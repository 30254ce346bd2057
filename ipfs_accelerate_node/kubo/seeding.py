"""Hand a stored model to Kubo without a second copy: its leaves as references into our immutable files.

Order and reasons. Kubo's filestore keeps a block that it already has, so leaves that Kubo itself brought (bitswap,
while we fetched) are removed first; then each file is referenced with the options under which its DAG comes out
again, and the root compared; then the node blocks; then the root is kept: pinned and announced, or, when it is
private, by an entry in the daemon's own file tree, which guards against garbage collection and is never announced (a
managed daemon announces pinned roots only). Where a DAG or a daemon does not allow references nothing is copied: the
model is then served over HTTP only, and the note says why.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import StorageError, Unavailable
from ipfs_accelerate_node.kubo.client import ADD_FLOOR_BYTES_S, KuboClient
from ipfs_accelerate_node.kubo.layout import Import, imports

log = logging.getLogger(__name__)

FOLDER = "/ipfs-accelerate-node"  # of private models, in the daemon's file tree
PIN_NAME = "ipfs-accelerate-node"  # of our pins, so that a pin of the user's own is never removed
NOT_ANNOUNCED = "served over HTTP only; --announce hands it to Kubo"
_NO_RULE = "its files are cut into blocks by no rule that Kubo's chunkers know"
_PUTS_AT_ONCE = 8
_COPY_SHARE = 200  # leaves that cannot be references may be copied up to 1/200 of the model
_PROVIDE_TIMEOUT_S = 60.0

Nodes = Iterable[tuple[Cid, bytes]]


@dataclass(frozen=True, slots=True)
class Seeded:
    """seeded: Kubo serves it by CID. note: for the user, why not, or what to know. announced: can be found now."""

    seeded: bool
    note: str | None = None
    announced: bool = False


class _NotPossible(Exception):
    """This model cannot be seeded by this daemon; the text is the note. Never leaves this module."""


async def seed(
    client: KuboClient,
    plan: ModelPlan,
    nodes: Nodes,
    blob_paths: Mapping[Cid, Path],
    *,
    announce: bool,
    brought: bool,
) -> Seeded:
    """Have Kubo serve a model whose files are all stored. Idempotent; what Kubo refuses is a note and no error.

    nodes: every node block of the DAG. blob_paths: file CID (of the plan, or canonical) → stored file. brought: Kubo
    fetched blocks of it, so its copies go first, and stay away when seeding is not possible.
    """
    known = {cid.canonical: block for cid, block in nodes}
    try:
        held = await _drop_copies(client, plan) if brought else []
        if not announce and not client.managed:
            return Seeded(False, NOT_ANNOUNCED)
        await _reference(client, plan, known, blob_paths)
        announced, late = await _keep(client, plan, announce=announce)
    except _NotPossible as exc:
        return Seeded(False, f"not seeded: {exc}")
    except (Unavailable, StorageError) as exc:
        log.warning("kubo.seed root=%s failed: %s", plan.root, exc)
        return Seeded(False, f"not seeded: {exc}")
    notes = [late] if late else []
    if held:
        notes.append(f"{len(held)} blocks stay as copies in Kubo, another pin of it holds them")
    log.info("kubo.seeded root=%s bytes=%d announced=%s", plan.root, plan.size_bytes, announced)
    return Seeded(True, "; ".join(notes) or None, announced)


async def is_seeded(client: KuboClient, root: Cid, *, announced: bool) -> bool:
    """Whether this daemon keeps the model already, and, if it should, announces it. Raises Unavailable."""
    if await client.pinned(root):
        return True
    return not announced and await client.files_cid(_entry(root)) is not None


async def unseed(client: KuboClient, plan: ModelPlan, nodes: Nodes, *, keep: Collection[Cid] = frozenset()) -> None:
    """Take back what `seed` did, before the files go: pin and entry, then references and node blocks.

    keep: canonical CIDs of files and nodes that other seeded models share; their blocks stay. A pin that is not ours
    stays, with its blocks. Raises Unavailable as the client does.
    """
    await let_go(client, plan.root)
    kept = {cid.canonical for cid in keep}
    kept |= {leaf.cid.canonical for file in plan.files if file.cid.canonical in kept for leaf in file.leaves}
    blocks = [*_leaf_cids(plan), *(cid for cid, _ in nodes)]
    await client.block_rm([cid for cid in blocks if cid.canonical not in kept])


async def kept_roots(client: KuboClient) -> set[Cid]:
    """The models (canonical roots) that this daemon keeps because of `seed`. Raises Unavailable."""
    return {root.canonical for root in await client.pins_named(PIN_NAME)} | {
        Cid.parse(name) for name in await client.files_names(FOLDER)
    }


async def let_go(client: KuboClient, root: Cid) -> None:
    """End what `seed` keeps a model by; its blocks may go from then on. Raises Unavailable."""
    if await client.pin_name(root) == PIN_NAME:
        await client.pin_rm(root)
    await client.files_rm(_entry(root))


async def _drop_copies(client: KuboClient, plan: ModelPlan) -> list[Cid]:
    """Remove the leaves that Kubo holds as bytes of its own; returns those that another pin keeps there.

    References stay: another private model may rest on them.
    """
    leaves = _leaf_cids(plan)
    references = await client.references(leaves)
    return await client.block_rm([cid for cid in leaves if cid.canonical not in references])


async def _reference(
    client: KuboClient, plan: ModelPlan, nodes: Mapping[Cid, bytes], blob_paths: Mapping[Cid, Path]
) -> None:
    copies = _copies(plan)
    files = {file.cid.canonical: file for file in plan.files if file.cid.inline is None and file.leaves}
    ways = {cid: imports(file, nodes) for cid, file in files.items() if cid not in copies}
    if not all(ways.values()):
        raise _NotPossible(_NO_RULE)
    certain = True
    for cid, file in files.items():
        path = blob_paths.get(cid) or blob_paths[file.cid]
        if cid in copies:
            await _put(client, await asyncio.to_thread(_wrapped, path, file.leaves))
        else:
            certain &= await _add(client, file, path, ways[cid])
    await _put(client, nodes.items())
    if not certain and not await client.complete(plan.root, timeout_s=_patience_s(plan)):
        raise _NotPossible("Kubo does not cut these files into the same blocks")


def _copies(plan: ModelPlan) -> set[Cid]:
    """Files whose leaves are wrapped in dag-pb, which the filestore cannot reference, if few bytes. Raises
    _NotPossible if not."""
    wrapped = [file for file in plan.files if any(leaf.prefix or leaf.suffix for leaf in file.leaves)]
    if sum(file.size for file in wrapped) * _COPY_SHARE > plan.size_bytes:
        raise _NotPossible(
            "its leaves are dag-pb blocks (imported without raw leaves), which Kubo cannot reference in place"
        )
    return {file.cid.canonical for file in wrapped}


async def _add(client: KuboClient, file: FilePlan, path: Path, ways: Sequence[Import]) -> bool:
    """Reference one file. True: the root came out. False: the leaves did, the tree above them is ours to put."""
    for way in ways:
        try:
            built = await client.add_nocopy(path, way.options)
        except Unavailable as exc:
            if exc.code != "kubo_error":
                raise
            raise _NotPossible(_hint(str(exc.detail["kubo"]))) from exc
        if built.canonical == file.cid.canonical:
            return True
        log.debug("kubo.seed file=%s built=%s options=%s", file.cid, built, way.options)
    if not any(way.fixed for way in ways):
        raise _NotPossible(_NO_RULE)
    return False


def _hint(message: str) -> str:
    if "must be enabled" in message:
        return "this Kubo daemon has its filestore off (`ipfs config --json Experimental.FilestoreEnabled true`)"
    if "outside" in message:
        return (
            "this Kubo daemon may reference only files below the parent folder of its repo, and the cache is elsewhere"
        )
    return message


async def _keep(client: KuboClient, plan: ModelPlan, *, announce: bool) -> tuple[bool, str | None]:
    """Whether it is announced, and what to know when it should be and is not."""
    if not announce:
        await client.files_cp(plan.root, _entry(plan.root))
        return False, None
    if not await client.pinned(plan.root):
        await client.pin_add(plan.root, name=PIN_NAME, timeout_s=_patience_s(plan))
    await client.files_rm(_entry(plan.root))
    try:
        await client.provide(plan.root, timeout_s=_PROVIDE_TIMEOUT_S)
    except Unavailable as exc:
        return False, f"not announced yet, Kubo does it when it has peers ({exc.detail.get('kubo', exc)})"
    return True, None


async def _put(client: KuboClient, blocks: Iterable[tuple[Cid, bytes]]) -> None:
    slots = asyncio.Semaphore(_PUTS_AT_ONCE)

    async def one(cid: Cid, block: bytes) -> None:
        async with slots:
            await client.block_put(cid, block)

    try:
        async with asyncio.TaskGroup() as group:
            for cid, block in blocks:
                group.create_task(one(cid, block), name=f"put {cid}")
    except ExceptionGroup as several:
        raise several.exceptions[0] from several


def _wrapped(path: Path, leaves: Iterable[Leaf]) -> list[tuple[Cid, bytes]]:
    try:
        with path.open("rb") as file:
            return [(leaf.cid, leaf.wrap(os.pread(file.fileno(), leaf.length, leaf.offset))) for leaf in leaves]
    except OSError as exc:
        raise StorageError(f"cannot read {path.name}: {exc.strerror}") from exc


def _leaf_cids(plan: ModelPlan) -> list[Cid]:
    return list({leaf.cid.canonical: None for file in plan.files for leaf in file.leaves})


def _entry(root: Cid) -> str:
    return f"{FOLDER}/{root.canonical}"


def _patience_s(plan: ModelPlan) -> float:
    return 60.0 + plan.size_bytes / ADD_FLOOR_BYTES_S
