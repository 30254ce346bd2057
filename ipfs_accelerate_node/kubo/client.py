"""What the rest of the node can ask of a Kubo daemon. Bytes that come from here are as untrusted as any other
source's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterable
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import (
    IntegrityError,
    InvalidCid,
    NodeError,
    SourceUnavailable,
    StorageError,
    Unavailable,
)
from ipfs_accelerate_node.kubo import calls
from ipfs_accelerate_node.kubo.calls import Call
from ipfs_accelerate_node.kubo.control import Control
from ipfs_accelerate_node.kubo.endpoint import Endpoint
from ipfs_accelerate_node.kubo.routing import find_providers
from ipfs_accelerate_node.kubo.rpc import Body, Parameters, Rpc
from ipfs_accelerate_node.kubo.streams import Streams

T = TypeVar("T")

SOURCE = "kubo"
MAX_BLOCK_BYTES = 2 * 1024 * 1024  # what bitswap carries; a bigger block is refused before it fills memory
_CONTROL_TIMEOUT_S = 15.0
_CIDS_AT_ONCE = 256  # per request: about 20 KB of query
_JSON_BYTES = 1 << 20
_REFERENCE = (0, 10, 11, 12)  # filestore/ls: good; its file cannot be read, is gone, was changed

ADD_FLOOR_BYTES_S = 4 << 20  # slower than this, an add is given up


class KuboClient:
    """One daemon. peer_id, version: of the daemon as it answered at `open`. managed: it is our own child.

    Every method raises Unavailable (kubo_unavailable, kubo_timeout, kubo_forbidden, or kubo_error with Kubo's words)
    unless it says otherwise.
    """

    def __init__(self, place: Endpoint, *, peer_id: str, version: str, managed: bool) -> None:
        self.url = place.url
        self.peer_id = peer_id
        self.version = version
        self.managed = managed
        self._control = Control(place)
        self._rpc = Rpc(place)
        self.streams = Streams(self._rpc)

    @classmethod
    async def open(cls, place: Endpoint, *, managed: bool, timeout_s: float = _CONTROL_TIMEOUT_S) -> KuboClient:
        """Of a daemon that answers now."""
        client = cls(place, peer_id="", version="", managed=managed)
        try:
            client.version = await client.probe(timeout_s=timeout_s)
            client.peer_id = str((await client.id(timeout_s=timeout_s))["ID"])
        except (KeyError, TypeError) as exc:
            await client.aclose()
            raise Unavailable(f"what answers at {place.url} is not Kubo", code="kubo_unavailable") from exc
        except BaseException:
            await client.aclose()
            raise
        return client

    async def aclose(self) -> None:
        self._control.close()
        await self._rpc.aclose()

    # --- the daemon itself

    async def probe(self, *, timeout_s: float) -> str:
        """Its version: the cheapest sign of life, and no thread has to be free for it."""
        version = (await self._one(calls.VERSION, (), timeout_s=timeout_s)).get("Version")
        if not isinstance(version, str):
            raise Unavailable(f"what answers at {self.url} is not Kubo", code="kubo_unavailable")
        return version

    async def id(self, *, timeout_s: float = _CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """ID, PublicKey, Addresses, AgentVersion, Protocols."""
        answer = await self._control.call(calls.ID, lambda api: api.id(timeout=timeout_s), timeout_s=timeout_s)
        return dict(answer)

    async def addresses(self) -> list[str]:
        """Multiaddrs that others may dial, each ending in /p2p/<peer id>."""
        return [str(address) for address in (await self.id()).get("Addresses") or ()]

    async def repo_stat(self) -> dict[str, Any]:
        """RepoSize, StorageMax (bytes), NumObjects, RepoPath, Version."""
        answer = await self._control.call(
            calls.REPO_STAT, lambda api: api.repo.stat(timeout=_CONTROL_TIMEOUT_S), timeout_s=_CONTROL_TIMEOUT_S
        )
        return dict(answer)

    async def connect(self, multiaddr: str, *, timeout_s: float = _CONTROL_TIMEOUT_S) -> None:
        """Dial a peer (not through `ipfshttpclient`, which sends the address letter by letter)."""
        await self._one(calls.SWARM_CONNECT, [("arg", multiaddr)], timeout_s=timeout_s)

    # --- blocks

    async def block_get(self, cid: Cid, *, timeout_s: float, offline: bool = False) -> bytes:
        """The block's bytes as Kubo has them: not verified here.

        offline: only what the daemon holds already. Raises SourceUnavailable (source "kubo"): stalled when nothing
        came within timeout_s (the network has no "nobody has it"), not_found when offline, truncated,
        block_too_large, kubo_…
        """
        if cid.matches(b""):  # bitswap never delivers the empty block (tried: 0.43.1 to itself), and nobody need ask
            return b""
        query = [("arg", str(cid)), *([("offline", "true")] if offline else ())]
        try:
            async with asyncio.timeout(timeout_s):
                return await self._rpc.read(calls.BLOCK_GET, query, limit_bytes=MAX_BLOCK_BYTES)
        except TimeoutError as exc:
            raise SourceUnavailable(
                f"Kubo found no {cid} within {timeout_s:g} s", source=SOURCE, cid=cid, code="stalled"
            ) from exc
        except Unavailable as exc:
            raise SourceUnavailable(str(exc), source=SOURCE, cid=cid, code=_source_code(exc)) from exc

    async def block_put(self, cid: Cid, data: bytes, *, pin: bool = False, timeout_s: float = 30.0) -> None:
        """Store one block. Raises IntegrityError when Kubo names it otherwise (so data is not what cid says).

        pin: with all that it links, in the same step, so that no garbage collection comes between.
        """
        if cid.inline is not None:
            return  # an identity CID is its own block
        query = [("cid-codec", cid.codec_name), ("mhtype", cid.hash_name), ("pin", str(pin).lower())]
        answer = await self._one(calls.BLOCK_PUT, query, timeout_s=timeout_s, body=Body(bytes(data)))
        stored = _cid(answer.get("Key"))
        if stored.canonical != cid.canonical:
            raise IntegrityError(expected=cid, actual=stored, origin=SOURCE)

    async def block_rm(self, cids: Iterable[Cid], *, timeout_s: float = 60.0) -> list[Cid]:
        """Remove blocks from the daemon's repo; those it has not are no error. Returns those it kept because a pin
        holds them."""
        refused: list[Cid] = []
        remaining = iter([cid for cid in cids if cid.inline is None])
        while batch := list(islice(remaining, _CIDS_AT_ONCE)):
            query = [("force", "true"), *(("arg", str(cid)) for cid in batch)]
            lines = await self._all(calls.BLOCK_RM, query, timeout_s=timeout_s)
            refused += [_cid(line.get("Hash")) for line in lines if line.get("Error")]
        return refused

    async def has_block(self, cid: Cid, *, timeout_s: float = _CONTROL_TIMEOUT_S) -> bool:
        """Whether the daemon's own repo holds it."""
        query = [("arg", str(cid)), ("offline", "true")]
        return await _unless(self._one(calls.BLOCK_STAT, query, timeout_s=timeout_s), "not", "find") is not None

    async def add_nocopy(self, path: Path, parameters: Parameters) -> Cid:
        """Reference the blocks of an immutable file, unpinned; the root that Kubo built.

        parameters: import options (chunker, hash, …) as the RPC spells them. The file is read once by us and sent. It
        must lie below the parent folder of the daemon's repo and never change. Raises StorageError when it cannot be
        read here.
        """
        try:
            size = (await asyncio.to_thread(path.stat)).st_size
        except OSError as exc:
            raise StorageError(f"cannot read {path.name}: {exc.strerror}") from exc
        query = [("nocopy", "true"), ("pin", "false"), ("progress", "false")]
        answer = await self._one(
            calls.ADD,
            [*query, *parameters],
            timeout_s=30.0 + size / ADD_FLOOR_BYTES_S,
            body=Body(path, abspath=True),
        )
        return _cid(answer.get("Hash"))

    async def references(self, cids: Iterable[Cid], *, timeout_s: float = 60.0) -> set[Cid]:
        """Those of these raw blocks (canonical) that the daemon keeps as references into files, lost ones too."""
        found: set[bytes] = set()
        remaining = iter(list(cids))
        wanted: dict[bytes, Cid] = {}
        while batch := list(islice(remaining, _CIDS_AT_ONCE)):
            wanted |= {cid.multihash: cid.canonical for cid in batch}
            listed = self._all(calls.FILESTORE_LS, [("arg", str(cid)) for cid in batch], timeout_s=timeout_s)
            for line in await _unless(listed, "filestore", "enabled") or ():
                if line.get("Status") in _REFERENCE:
                    found.add(_cid(line["Key"]["/"]).multihash)
        return {cid for multihash, cid in wanted.items() if multihash in found}

    # --- what is kept, what is told

    async def pin_add(
        self, cid: Cid, *, recursive: bool = True, name: str | None = None, timeout_s: float = 120.0
    ) -> None:
        """Keep it and, in a daemon of ours, have it announced from time to time. Fetches what is missing."""
        options = {} if name is None else {"name": name}
        await self._control.call(
            calls.PIN_ADD,
            lambda api: api.pin.add(str(cid), recursive=recursive, opts=dict(options), timeout=timeout_s),
            timeout_s=timeout_s,
        )

    async def pin_rm(self, cid: Cid) -> bool:
        """False: it was not pinned."""
        removed = self._control.call(
            calls.PIN_RM,
            lambda api: api.pin.rm(str(cid), timeout=_CONTROL_TIMEOUT_S),
            timeout_s=_CONTROL_TIMEOUT_S,
        )
        return await _unless(removed, "not pinned") is not None

    async def pin_name(self, cid: Cid) -> str | None:
        """The name of its recursive pin ("" when that has none), or None when it is not pinned."""
        listed = self._control.call(
            calls.PIN_LS,
            lambda api: api.pin.ls(str(cid), type="recursive", opts={"names": "true"}, timeout=_CONTROL_TIMEOUT_S),
            timeout_s=_CONTROL_TIMEOUT_S,
        )
        pins = (await _unless(listed, "not pinned") or {}).get("Keys") or {}
        return next((str(pin.get("Name", "")) for pin in pins.values()), None)

    async def pinned(self, cid: Cid) -> bool:
        return await self.pin_name(cid) is not None

    async def pins_named(self, name: str) -> list[Cid]:
        """The roots of all recursive pins of that name."""
        listed = self._control.call(
            calls.PIN_LS,
            lambda api: api.pin.ls(type="recursive", opts={"names": "true"}, timeout=_CONTROL_TIMEOUT_S),
            timeout_s=_CONTROL_TIMEOUT_S,
        )
        pins = (await listed).get("Keys") or {}
        return [_cid(root) for root, pin in pins.items() if pin.get("Name") == name]

    async def files_cp(self, cid: Cid, path: str, *, timeout_s: float = 30.0) -> None:
        """Name it in the daemon's own file tree (MFS), which keeps it from garbage collection. Idempotent."""
        copied = self._control.call(
            calls.FILES_CP,
            lambda api: api.files.cp(f"/ipfs/{cid}", path, opts={"parents": "true"}, timeout=timeout_s),
            timeout_s=timeout_s,
        )
        await _unless(copied, "already has entry")

    async def files_cid(self, path: str) -> Cid | None:
        """What that name in the file tree stands for, or None."""
        stat = self._one(calls.FILES_STAT, [("arg", path)], timeout_s=_CONTROL_TIMEOUT_S)
        answer = await _unless(stat, "does not exist")
        return None if answer is None else _cid(answer.get("Hash"))

    async def files_names(self, folder: str) -> list[str]:
        """What that folder of the file tree holds; nothing if it does not exist."""
        listed = await _unless(self._one(calls.FILES_LS, [("arg", folder)], timeout_s=30.0), "does not exist")
        return [str(entry["Name"]) for entry in (listed or {}).get("Entries") or ()]

    async def files_rm(self, path: str, *, timeout_s: float = 30.0) -> None:
        """Idempotent."""
        await self._one(
            calls.FILES_RM,
            [("arg", path), ("recursive", "true"), ("force", "true")],
            timeout_s=timeout_s,
            empty=True,
        )

    async def complete(self, cid: Cid, *, timeout_s: float) -> bool:
        """Whether the daemon's own repo holds the whole DAG. Reads all of it."""
        query = [("arg", f"/ipfs/{cid}"), ("with-local", "true"), ("offline", "true")]
        answer = await _unless(self._one(calls.FILES_STAT, query, timeout_s=timeout_s), "not", "find")
        return (answer or {}).get("Local") is True

    async def providers(self, cid: Cid, *, limit: int = 20, timeout_s: float) -> list[str]:
        """Peer ids of those who announced it, as found within timeout_s; none found is an empty list."""
        async with aclosing(self.find_providers(cid, limit=limit, timeout_s=timeout_s)) as found:
            return [peer_id async for peer_id in found]

    def find_providers(self, cid: Cid, *, limit: int = 20, timeout_s: float) -> AsyncGenerator[str, None]:
        """The same as they are found, each once; ends after limit or timeout_s. Close it (`aclosing`)."""
        return find_providers(self._rpc, cid, limit=limit, timeout_s=timeout_s)

    async def provide(self, cid: Cid, *, timeout_s: float = 60.0) -> None:
        """Announce it now; the daemon must have the block. Waits until that is done (a Kubo newer than 0.43, which may
        lack the deprecated call that waits: until it is queued)."""
        try:
            await self._one(calls.PROVIDE, [("arg", str(cid))], timeout_s=timeout_s, empty=True)
        except Unavailable as exc:
            if exc.code != "kubo_unsupported":
                raise
            await self._one(calls.PROVIDE_ONCE, [("arg", str(cid))], timeout_s=timeout_s, empty=True)

    # --- records and names

    async def dag_get(self, cid: Cid, *, timeout_s: float = _CONTROL_TIMEOUT_S) -> Any:
        """The node as dag-json values."""
        return await self._control.call(
            calls.DAG_GET, lambda api: api.dag.get(str(cid), timeout=timeout_s), timeout_s=timeout_s
        )

    async def key_import(self, name: str, seed: bytes) -> str:
        """Hand an Ed25519 key to the daemon (its 32-byte seed); the key's id. A key of that name stays as it is."""
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        keys = await self._control.call(
            calls.KEY_LIST, lambda api: api.key.list(timeout=_CONTROL_TIMEOUT_S), timeout_s=_CONTROL_TIMEOUT_S
        )
        for key in keys.get("Keys") or ():
            if key["Name"] == name:
                return str(key["Id"])
        answer = await self._one(
            calls.KEY_IMPORT,
            [("arg", name), ("format", "libp2p-protobuf-cleartext")],
            timeout_s=_CONTROL_TIMEOUT_S,
            body=Body(private_key_protobuf(seed, public)),
        )
        return str(answer["Id"])

    async def name_publish(self, key_name: str, cid: Cid, *, timeout_s: float = 120.0) -> str:
        """Point the IPNS name of that key ("self": the daemon's own) to cid; the name.

        Without peers it is kept, and published later.
        """
        answer = await self._control.call(
            calls.NAME_PUBLISH,
            lambda api: api.name.publish(
                f"/ipfs/{cid}", key=key_name, allow_offline=True, resolve=False, timeout=timeout_s
            ),
            timeout_s=timeout_s,
        )
        return str(answer["Name"])

    async def name_resolve(self, peer_id: str, *, timeout_s: float) -> Cid:
        """What the IPNS name of that key points to now; the daemon checks the name's own signature."""
        query = [("arg", f"/ipns/{peer_id}"), ("recursive", "false"), ("nocache", "true")]
        answer = await self._one(calls.NAME_RESOLVE, query, timeout_s=timeout_s)
        return _cid(str(answer.get("Path")).removeprefix("/ipfs/"))

    # --- plumbing

    async def _one(
        self,
        call: Call,
        query: Parameters,
        *,
        timeout_s: float,
        body: Body | None = None,
        empty: bool = False,
    ) -> dict[str, Any]:
        """The last object of the answer. empty: there may be none."""
        lines = await self._all(call, query, timeout_s=timeout_s, body=body)
        if not lines and not empty:
            raise Unavailable(f"Kubo broke off its answer to {call.path}", code="kubo_truncated", call=call.path)
        return lines[-1] if lines else {}

    async def _all(
        self, call: Call, query: Parameters, *, timeout_s: float, body: Body | None = None
    ) -> list[dict[str, Any]]:
        """Every object of the answer."""
        try:
            async with asyncio.timeout(timeout_s), aclosing(self._rpc.lines(call, query, body=body)) as lines:
                return [line async for line in lines]
        except TimeoutError as exc:
            raise Unavailable(
                f"Kubo did not answer {call.path} within {timeout_s:g} s", code="kubo_timeout", call=call.path
            ) from exc


async def _unless(asked: Awaitable[T], *words: str) -> T | None:
    """What was asked for, or None when Kubo refuses it in these words (its errors have no codes)."""
    try:
        return await asked
    except Unavailable as exc:
        if exc.code == "kubo_error" and all(word in str(exc.detail.get("kubo")) for word in words):
            return None
        raise


def _cid(value: object) -> Cid:
    """A CID in Kubo's answer."""
    try:
        return Cid.parse(str(value))
    except InvalidCid as exc:
        raise Unavailable(f"Kubo named a block in a way not understood: {exc}", code="kubo_error") from exc


def private_key_protobuf(seed: bytes, public: bytes) -> bytes:
    """libp2p's PrivateKey message of an Ed25519 key: type 1, then 64 bytes of seed and public key."""
    return b"\x08\x01\x12\x40" + seed + public


def _source_code(error: NodeError) -> str:
    if error.code == "kubo_truncated":
        return "truncated"
    said = str(error.detail.get("kubo", ""))
    if "not found" in said or "could not find" in said:
        return "not_found"
    return error.code
