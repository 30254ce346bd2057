"""Signed requests: who asks, told to one node, for one request, once; and the proof of who answers.

What a request's signature covers, as bytes: the prefix ``ipfs-accel-req-v1:``, then six texts in ASCII joined by a
line feed (none can hold one), nothing after the last:

1. method, upper case
2. request target as sent: path and query, percent-encoded
3. sha256 of the body, 64 lower-case hex digits (of no bytes where there is no body)
4. time: seconds since 1970, decimal, no sign, no leading zero
5. nonce: 32 lower-case hex digits
6. PeerID of the node that is asked

Sent as ``X-Node-Key`` (PeerID of the asker: an Ed25519 one holds the key itself), ``X-Node-Time``, ``X-Node-Nonce`` and
``X-Node-Signature`` (base64 of 64 bytes, padded). A body is named before it is sent, by ``Content-Digest`` (RFC 9530,
``sha-256=:BASE64:``), so that nobody has to read one to find out that its sender is a stranger.

The proof: prefix ``ipfs-accel-peer-v1:``, then the PeerID that was dialled and the challenge (32 lower-case hex
digits), joined likewise. It binds the node key to the address of the connection, so that who stands in between cannot
pass on somebody else's proof.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import heapq
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.content.multibase import BadMultibase, base58btc_decode
from ipfs_accelerate_node.errors import BadContent, Overloaded, Unauthorized
from ipfs_accelerate_node.records.envelope import REQUEST_PREFIX, SKEW_S
from ipfs_accelerate_node.records.key import PUBLIC_BYTES, SIGNATURE_BYTES, NodeKey, peer_id, verify

PROOF_PREFIX = b"ipfs-accel-peer-v1:"
KEY, TIME, NONCE, SIGNATURE = "X-Node-Key", "X-Node-Time", "X-Node-Nonce", "X-Node-Signature"
HEADERS = (KEY, TIME, NONCE, SIGNATURE)
DIGEST = "Content-Digest"

MAX_NONCES = 65_536  # of all askers; about 16 MiB
MAX_NONCES_PER_KEY = 4096  # within the window: 6 requests a second

_NONCE = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"0|[1-9][0-9]{0,11}")
_METHOD = re.compile(r"[A-Z]{1,16}")
_TARGET = re.compile(r"/[\x21-\x7e]*")
_PEER_ID = re.compile(r"12D3Koo[1-9A-HJ-NP-Za-km-z]{45}")
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


@dataclass(frozen=True, slots=True)
class Asked:
    """The request itself. target: path and query as they stand in the request line. body_sha256: of a body that is not
    here yet, in hex."""

    method: str
    target: str
    body: bytes = b""
    body_sha256: str | None = None

    def signed(self, *, time_s: int, nonce: str, to: str) -> bytes:
        """The bytes under the signature. Raises Unauthorized(bad_signature) for what has no unambiguous form."""
        if not _METHOD.fullmatch(self.method) or not _TARGET.fullmatch(self.target):
            raise _refused("this method or request target cannot be signed", "bad_signature")
        digest = self.body_sha256 or hashlib.sha256(self.body).hexdigest()
        parts = (self.method, self.target, digest, str(time_s), nonce, to)
        return REQUEST_PREFIX + "\n".join(parts).encode("ascii")


def content_digest(body: bytes) -> str:
    """As `DIGEST` has it."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def digest_hex(text: str) -> str:
    """The sha256 that such a header names, in hex. Raises Unauthorized(signature_incomplete)."""
    found = _DIGEST.fullmatch(text.strip())
    if found is None:
        raise _refused(f"a signed body is named first: {DIGEST}: sha-256=:BASE64:", "signature_incomplete")
    return base64.b64decode(found[1]).hex()


def fresh_nonce() -> str:
    return secrets.token_hex(16)


def is_nonce(text: str) -> bool:
    return _NONCE.fullmatch(text) is not None


def public_key(peer: str) -> bytes:
    """The 36 bytes of an Ed25519 PeerID (``12D3Koo…``). Raises BadContent(bad_signature) for any other text."""
    if _PEER_ID.fullmatch(peer):
        try:
            decoded = base58btc_decode(peer)
        except BadMultibase:
            decoded = b""
        public = decoded[2:]
        if len(public) == PUBLIC_BYTES and peer_id(public) == peer:
            return public
    raise BadContent("not the PeerID of an Ed25519 key", code="bad_signature")


def sign(key: NodeKey, asked: Asked, *, to: str, now: float) -> dict[str, str]:
    """The headers that sign it. to: PeerID (node key) of who is asked. now: seconds since 1970."""
    time_s, nonce = int(now), fresh_nonce()
    signature = key.sign(asked.signed(time_s=time_s, nonce=nonce, to=to))
    return {
        KEY: key.peer_id,
        TIME: str(time_s),
        NONCE: nonce,
        SIGNATURE: base64.b64encode(signature).decode(),
    }


class Gatehouse:
    """Checks signed requests to one node, and remembers their nonces for as long as they could come again.

    own: PeerID of that node. since: seconds since 1970 from which on it remembers: what was signed before, an earlier
    run of the node may have seen. Not thread-safe.
    """

    def __init__(self, own: str, *, since: float, limit: int = MAX_NONCES, per_key: int = MAX_NONCES_PER_KEY) -> None:
        self._own = own
        self._limit = limit
        self._per_key = per_key
        self._oldest_s = int(since)  # nothing older is accepted: its nonce may be forgotten
        self._seen: set[tuple[str, str]] = set()
        self._by_time: list[tuple[int, str, str]] = []  # heap
        self._of_key: Counter[str] = Counter()

    def signer(self, headers: Mapping[str, str], asked: Asked, *, now: float) -> str | None:
        """PeerID of who signed it; None for a request that claims no signature.

        Raises Unauthorized: signature_incomplete (some of the headers are missing or malformed), request_stale (time
        too far from now, or too long ago to know its nonce), bad_signature, request_replayed; and Overloaded
        (too_many_signed) for a key that signs more than can be remembered.
        """
        given = [headers[name] for name in HEADERS if name in headers]
        if not given:
            return None
        if len(given) != len(HEADERS):
            raise _refused(f"a signed request has {', '.join(HEADERS)}", "signature_incomplete")
        peer, time_text, nonce, signature_text = given
        if not _TIME.fullmatch(time_text) or not _NONCE.fullmatch(nonce):
            raise _refused(f"{TIME} is in whole seconds, {NONCE} has 32 hex digits", "signature_incomplete")
        time_s = int(time_text)
        if abs(now - time_s) > SKEW_S or time_s < self._oldest_s:
            raise _refused("the request was signed at another time: is a clock wrong?", "request_stale")
        _verify(peer, signature_text, asked.signed(time_s=time_s, nonce=nonce, to=self._own))
        self._remember(peer, time_s, nonce, now)
        return peer

    def _remember(self, peer: str, time_s: int, nonce: str, now: float) -> None:
        """Only what is signed gets here, so a nonce costs its sender a signature."""
        while self._by_time and self._by_time[0][0] < now - SKEW_S:
            self._forget()
        if (peer, nonce) in self._seen:
            raise _refused("the request was made before", "request_replayed")
        if self._of_key[peer] >= self._per_key:
            raise Overloaded("too many signed requests of one key", code="too_many_signed", retry_after_s=SKEW_S)
        if len(self._seen) >= self._limit:  # what is forgotten early must not be believed again
            self._oldest_s = self._forget() + 1
            if time_s < self._oldest_s:
                raise _refused("the request is older than what is remembered here", "request_stale")
        self._seen.add((peer, nonce))
        self._of_key[peer] += 1
        heapq.heappush(self._by_time, (time_s, peer, nonce))

    def _forget(self) -> int:
        """The oldest one; its time."""
        time_s, peer, nonce = heapq.heappop(self._by_time)
        self._seen.discard((peer, nonce))
        self._of_key[peer] -= 1
        if not self._of_key[peer]:
            del self._of_key[peer]
        return time_s


def prove(key: NodeKey, *, dialled: str, challenge: str) -> str:
    """Signature (base64) of the node that is reached at that PeerID over the challenge of who dialled it."""
    return base64.b64encode(key.sign(_proof(dialled, challenge))).decode()


def check_proof(peer: str, proof: str, *, dialled: str, challenge: str) -> None:
    """Returns when the node of that key says that it is the one dialled. Raises Unauthorized(bad_signature)."""
    _verify(peer, proof, _proof(dialled, challenge))


def _proof(dialled: str, challenge: str) -> bytes:
    return PROOF_PREFIX + f"{dialled}\n{challenge}".encode("ascii")


def _verify(peer: str, signature_text: str, message: bytes) -> None:
    try:
        signature = base64.b64decode(signature_text, validate=True)
        if len(signature) != SIGNATURE_BYTES or base64.b64encode(signature).decode() != signature_text:
            raise _refused(f"a signature is the base64 of {SIGNATURE_BYTES} bytes", "bad_signature")
        verify(public_key(peer), signature, message)
    except (binascii.Error, ValueError, BadContent) as exc:
        raise _refused("the signature is not that key's over this request", "bad_signature") from exc


def _refused(reason: str, code: str) -> Unauthorized:
    return Unauthorized(f"signed request refused: {reason}", code=code)
