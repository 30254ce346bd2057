"""Signed requests: what the signature covers, byte for byte; who is refused; nonces in bounded memory."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.errors import BadContent, Overloaded, Unauthorized
from ipfs_accelerate_node.records.key import NodeKey, verify
from ipfs_accelerate_node.records.request import (
    HEADERS,
    KEY,
    NONCE,
    SIGNATURE,
    TIME,
    Asked,
    Gatehouse,
    check_proof,
    prove,
    public_key,
    sign,
)

NOW = 1_800_000_000.0
US, ASKER, OTHER = NodeKey(bytes(32)), NodeKey(b"a" * 32), NodeKey(b"b" * 32)
ASKED = Asked("POST", "/api/infer?x=%20", b'{"ref": 1}')


def gatehouse(**limits: int) -> Gatehouse:
    return Gatehouse(US.peer_id, since=NOW - 3600, **limits)


def signed(asked: Asked = ASKED, *, now: float = NOW, key: NodeKey = ASKER, to: str = US.peer_id) -> dict[str, str]:
    return sign(key, asked, to=to, now=now)


def refusal(headers: dict[str, str], asked: Asked = ASKED, *, gate: Gatehouse | None = None, now: float = NOW) -> str:
    with pytest.raises(Unauthorized) as refused:
        (gate or gatehouse()).signer(headers, asked, now=now)
    return refused.value.code


def test_what_is_signed_byte_for_byte() -> None:
    headers = signed()
    message = (
        "ipfs-accel-req-v1:POST\n/api/infer?x=%20\n"
        f"{hashlib.sha256(ASKED.body).hexdigest()}\n1800000000\n{headers[NONCE]}\n{US.peer_id}"
    )
    verify(ASKER.public, base64.b64decode(headers[SIGNATURE]), message.encode())
    assert (headers[KEY], headers[TIME]) == (ASKER.peer_id, "1800000000")


def test_the_signer_is_known_and_who_does_not_sign_is_anonymous() -> None:
    gate = gatehouse()
    assert gate.signer(signed(), ASKED, now=NOW) == ASKER.peer_id
    assert gate.signer(signed(key=OTHER), ASKED, now=NOW) == OTHER.peer_id
    assert gate.signer({}, ASKED, now=NOW) is None
    assert gate.signer({"Accept": "*/*"}, ASKED, now=NOW) is None


@pytest.mark.parametrize(
    "asked",
    [
        Asked("GET", ASKED.target, ASKED.body),
        Asked("POST", "/api/infer?x=%21", ASKED.body),
        Asked("POST", "/api/infer", ASKED.body),
        Asked("POST", ASKED.target, b""),
    ],
    ids=["method", "query", "path", "body"],
)
def test_a_signature_is_for_one_request(asked: Asked) -> None:
    assert refusal(signed(), asked) == "bad_signature"


def test_a_signature_is_for_one_node() -> None:
    assert refusal(signed(to=OTHER.peer_id)) == "bad_signature"


def test_a_signature_is_of_one_key() -> None:
    assert refusal(signed() | {KEY: OTHER.peer_id}) == "bad_signature"


@given(at=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_bit_of_the_signature(at: int, bit: int) -> None:
    headers = signed()
    flipped = bytearray(base64.b64decode(headers[SIGNATURE]))
    flipped[at] ^= 1 << bit
    assert refusal(headers | {SIGNATURE: base64.b64encode(flipped).decode()}) == "bad_signature"


@pytest.mark.parametrize("absent", HEADERS)
def test_every_header_is_needed(absent: str) -> None:
    assert refusal({name: value for name, value in signed().items() if name != absent}) == "signature_incomplete"


BAD = {
    "time with a sign": {TIME: "+1800000000"},
    "time with a zero": {TIME: "01800000000"},
    "time with a fraction": {TIME: "1800000000.0"},
    "time in other digits": {TIME: "१८"},
    "endless time": {TIME: "9" * 5000},
    "short nonce": {NONCE: "00"},
    "upper case nonce": {NONCE: "AB" * 16},
    "nonce with a line feed": {NONCE: "ab" * 16 + "\n"},
    "no base64": {SIGNATURE: "ä" * 88},
    "short signature": {SIGNATURE: base64.b64encode(bytes(63)).decode()},
    "unpadded": {SIGNATURE: base64.b64encode(bytes(64)).decode().rstrip("=")},
    "key of another kind": {KEY: "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"},
    "no key": {KEY: ""},
    "endless key": {KEY: "1" * 100_000},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_malformed(change: dict[str, str]) -> None:
    assert refusal(signed() | change) in ("signature_incomplete", "bad_signature", "request_stale")


@pytest.mark.parametrize("target", ["", "api", "/a b", "/a\nb", "/ä"])
def test_a_target_that_could_be_two(target: str) -> None:
    with pytest.raises(Unauthorized):
        signed(Asked("GET", target))


@pytest.mark.parametrize(
    ("age_s", "fine"), [(-301, False), (-300, True), (0, True), (300, True), (301, False)], ids=str
)
def test_five_minutes_of_skew(age_s: int, fine: bool) -> None:
    headers = signed(now=NOW - age_s)
    if fine:
        assert gatehouse().signer(headers, ASKED, now=NOW) == ASKER.peer_id
    else:
        assert refusal(headers) == "request_stale"


def test_a_request_counts_once() -> None:
    gate, headers = gatehouse(), signed()
    gate.signer(headers, ASKED, now=NOW)
    assert refusal(headers, gate=gate) == "request_replayed"
    assert refusal(headers, gate=gate, now=NOW + 299) == "request_replayed"
    assert refusal(headers, gate=gate, now=NOW + 301) == "request_stale"


def test_what_an_earlier_run_may_have_seen_is_stale() -> None:
    gate = Gatehouse(US.peer_id, since=NOW)
    assert refusal(signed(now=NOW - 1), gate=gate) == "request_stale"
    assert gate.signer(signed(now=NOW), ASKED, now=NOW) == ASKER.peer_id


def test_a_wrong_signature_leaves_no_trace() -> None:
    gate, headers = gatehouse(limit=1), signed()
    for _ in range(5):
        assert refusal(headers | {SIGNATURE: base64.b64encode(bytes(64)).decode()}, gate=gate) == "bad_signature"
    assert gate.signer(headers, ASKED, now=NOW) == ASKER.peer_id


def test_memory_is_bounded_and_what_is_forgotten_is_not_believed_again() -> None:
    gate = gatehouse(limit=3)
    early = [signed(now=NOW - 10 + second) for second in range(3)]
    for headers in early:
        gate.signer(headers, ASKED, now=NOW)
    gate.signer(signed(now=NOW), ASKED, now=NOW)  # the oldest is forgotten
    assert refusal(early[0], gate=gate) == "request_stale"
    assert refusal(early[1], gate=gate) == "request_replayed"
    assert refusal(signed(now=NOW - 10), gate=gate) == "request_stale"  # never seen, but who can tell?
    assert gate.signer(signed(now=NOW - 7), ASKED, now=NOW) == ASKER.peer_id


def test_nonces_that_cannot_come_again_are_forgotten() -> None:
    gate = gatehouse(limit=3)
    for minutes in range(0, 60, 6):
        now = NOW + 60 * minutes
        for _ in range(3):
            assert gate.signer(signed(now=now), ASKED, now=now) == ASKER.peer_id


def test_one_key_cannot_fill_the_memory() -> None:
    gate = gatehouse(per_key=2)
    for _ in range(2):
        gate.signer(signed(), ASKED, now=NOW)
    with pytest.raises(Overloaded) as refused:
        gate.signer(signed(), ASKED, now=NOW)
    assert refused.value.code == "too_many_signed"
    assert gate.signer(signed(key=OTHER), ASKED, now=NOW) == OTHER.peer_id
    assert gate.signer(signed(now=NOW + 301), ASKED, now=NOW + 301) == ASKER.peer_id


def test_the_proof_of_who_was_dialled() -> None:
    challenge, kubo = "0f" * 16, OTHER.peer_id
    proof = prove(US, dialled=kubo, challenge=challenge)
    check_proof(US.peer_id, proof, dialled=kubo, challenge=challenge)
    for peer, dialled, asked in (
        (ASKER.peer_id, kubo, challenge),
        (US.peer_id, ASKER.peer_id, challenge),
        (US.peer_id, kubo, "f0" * 16),
    ):
        with pytest.raises(Unauthorized):
            check_proof(peer, proof, dialled=dialled, challenge=asked)


@given(st.binary(min_size=32, max_size=32))
def test_the_key_is_in_the_peer_id(seed: bytes) -> None:
    key = NodeKey(seed)
    assert public_key(key.peer_id) == key.public


@pytest.mark.parametrize("text", ["", "12D3KooW", US.peer_id + "1", US.peer_id[:-1], "/p2p/" + US.peer_id, "z" * 52])
def test_what_is_no_peer_id(text: str) -> None:
    with pytest.raises(BadContent):
        public_key(text)
