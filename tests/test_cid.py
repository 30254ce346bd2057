"""CIDs against an independent oracle (the ``multiformats`` package), the bad-input table C, and round trips."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from multiformats import CID as OracleCid
from multiformats import multibase as oracle_multibase
from multiformats import multihash as oracle_multihash

from ipfs_accelerate_node.content import multibase, varint
from ipfs_accelerate_node.content.cid import (
    BLAKE2B_256,
    DAG_CBOR,
    DAG_PB,
    IDENTITY,
    RAW,
    SHA2_256,
    Cid,
)
from ipfs_accelerate_node.errors import IntegrityError, InvalidCid

V0 = "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR"
V1 = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
HASHES = ["sha2-256", "sha2-512", "sha3-256", "sha3-512", "blake2b-256", "blake2b-512", "blake2s-256"]
CODES = {"invalid_cid", "digest_too_small", "digest_too_large", "hash_not_allowed", "unsupported_codec"}
BASES = [
    "base16", "base16upper", "base32", "base32upper", "base32pad", "base32padupper", "base32hex", "base32hexupper",
    "base32hexpad", "base32hexpadupper", "base36", "base36upper", "base58btc", "base58flickr", "base64", "base64pad",
    "base64url", "base64urlpad",
]  # fmt: skip
# Every spelling that Kubo 0.43.1 printed for V1 with `ipfs cid format -b` and reads back.
KUBO_SPELLINGS = [
    V0,
    V1,
    "z" + V0,
    V1.upper(),
    "f01701220c3c4733ec8affd06cf9e9ff50ffc6bcd2ec85a6170004bb709669c31de94391a",
    "F01701220C3C4733EC8AFFD06CF9E9FF50FFC6BCD2EC85A6170004BB709669C31DE94391A",
    "cafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi======",
    "CAFYBEIGDYRZT5SFP7UDM7HU76UH7Y26NF3EFUYLQABF3OCLGTQY55FBZDI======",
    "v05o14863ohpjti5fvk3cv7kvuk7voqud5r45kobg015re2b6jgott51p38",
    "V05O14863OHPJTI5FVK3CV7KVUK7VOQUD5R45KOBG015RE2B6JGOTT51P38",
    "t05o14863ohpjti5fvk3cv7kvuk7voqud5r45kobg015re2b6jgott51p38======",
    "T05O14863OHPJTI5FVK3CV7KVUK7VOQUD5R45KOBG015RE2B6JGOTT51P38======",
    "k2jmtxw8rjh1z69c6not3wtdxb0u3urbzhyll1t9jg6ox26dhi5sfi1m",
    "K2JMTXW8RJH1Z69C6NOT3WTDXB0U3URBZHYLL1T9JG6OX26DHI5SFI1M",
    "zdj7Wic6KcJAfWz1c9o4M6kq9Lwd5BfbxkVafnrojaaGiSFxM",
    "ZCJ7vHB6jBiaEvZ1B9N4m6KQ9kWC5bEAXKuzEMRNJzzgHrfXm",
    "mAXASIMPEcz7Ir/0Gz56f9Q/8a80uyFphcABLtwlmnDHelDka",
    "MAXASIMPEcz7Ir/0Gz56f9Q/8a80uyFphcABLtwlmnDHelDka",
    "uAXASIMPEcz7Ir_0Gz56f9Q_8a80uyFphcABLtwlmnDHelDka",
    "UAXASIMPEcz7Ir_0Gz56f9Q_8a80uyFphcABLtwlmnDHelDka",
]


def spelled(*, version: int = 1, codec: int = RAW, code: int, digest: bytes, declared: int | None = None) -> str:
    """A CIDv1 text made by hand, also one that the policy refuses."""
    length = len(digest) if declared is None else declared
    head = b"".join(varint.write(number) for number in (version, codec, code, length))
    return "b" + multibase.base32_encode(head + digest)


@pytest.mark.parametrize("text", KUBO_SPELLINGS)
def test_c14_every_spelling_has_one_canonical_form(text: str) -> None:
    cid = Cid.parse(text)
    assert cid.canonical == Cid.parse(V1)
    assert str(cid.canonical) == V1
    assert str(cid) == (V0 if text in (V0, "z" + V0) else V1)


@pytest.mark.parametrize("name", HASHES)
@pytest.mark.parametrize("codec", [("raw", RAW), ("dag-pb", DAG_PB), ("dag-cbor", DAG_CBOR)])
@pytest.mark.parametrize("base", BASES)
def test_cids_of_a_block_are_the_oracles(name: str, codec: tuple[str, int], base: str) -> None:
    block = b"some bytes " * 7
    digest = oracle_multihash.digest(block, name)
    oracle = OracleCid(base, 1, codec[0], digest)
    cid = Cid.parse(str(oracle))
    assert bytes(cid) == bytes(oracle)
    assert str(cid) == str(oracle.set(base="base32"))
    assert (cid.hash_name, cid.codec_name) == (name, codec[0])
    assert cid == Cid.of(block, codec[1], cid.hash_code)
    assert cid.matches(memoryview(block))
    assert not cid.matches(block + b"!")


@given(data=st.binary(max_size=160), base=st.sampled_from(BASES))
def test_multibase_reads_what_the_oracle_writes(data: bytes, base: str) -> None:
    assert multibase.decode(oracle_multibase.get(base).encode(data)) == data


@given(st.binary(max_size=100))
def test_base58_and_base32_round_trip(data: bytes) -> None:
    assert multibase.base58btc_decode(multibase.base58btc_encode(data)) == data
    assert multibase.decode("b" + multibase.base32_encode(data)) == data


@given(block=st.binary(max_size=300), code=st.sampled_from([0x12, 0x13, 0x14, 0x16, 0xB220, 0xB240, 0xB260]))
def test_binary_and_text_round_trip(block: bytes, code: int) -> None:
    cid = Cid.of(block, RAW, code)
    assert Cid.decode(bytes(cid)) == cid
    assert Cid.parse(str(cid)) == cid
    assert Cid.decode_prefix(b"xy" + bytes(cid) + b"rest", 2) == (cid, 2 + len(bytes(cid)))
    for cut in range(len(bytes(cid))):
        with pytest.raises(InvalidCid):
            Cid.decode(bytes(cid)[:cut])


@given(st.binary(max_size=60))
@example(b"")
@example(b"\x12\x20" + bytes(32))
@example(b"\x01\x55\x12\x20" + bytes(32))
def test_any_bytes_are_one_cid_or_a_typed_error(data: bytes) -> None:
    try:
        cid = Cid.decode(data)
    except InvalidCid:
        return
    assert bytes(cid) == data


@given(st.text(max_size=100))
def test_any_text_is_a_cid_or_a_typed_error(text: str) -> None:
    try:
        cid = Cid.parse(text)
    except InvalidCid as exc:
        refusal = exc
    else:
        assert Cid.parse(str(cid)) == cid
        return
    assert refusal.code in CODES
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 1200


@given(st.integers(min_value=0, max_value=2**63 - 1))
@example(127)
@example(128)
def test_varints_round_trip(value: int) -> None:
    data = varint.write(value)
    assert varint.read(b"\xff" + data + b"\xff", 1) == (value, 1 + len(data))
    for cut in range(len(data)):
        with pytest.raises(varint.BadVarint) as caught:
            varint.read(data[:cut])
        assert caught.value.truncated


@pytest.mark.parametrize("data", [b"\x81\x00", b"\x80\x80\x00", b"\xff" * 9, b"\xff" * 10, b"\x80" * 9 + b"\x01"])
def test_varints_that_are_padded_or_too_long_are_refused(data: bytes) -> None:
    with pytest.raises(varint.BadVarint) as caught:
        varint.read(data)
    assert not caught.value.truncated


@pytest.mark.parametrize("value", [-1, 2**63])
def test_varints_outside_the_range_are_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        varint.write(value)


BAD_TEXTS = {
    "C1 empty": ("", "invalid_cid"),
    "C1 spaces": ("   ", "invalid_cid"),
    "C1 the word None": ("None", "invalid_cid"),
    "C2 257 letters": ("b" + "a" * 256, "invalid_cid"),
    "C2 ten megabytes": ("z" + "1" * 10_000_000, "invalid_cid"),
    "C3 zero in base58": ("Qm0" + V0[3:], "invalid_cid"),
    "C3 capital O in base58": ("QmO" + V0[3:], "invalid_cid"),
    "C3 capital I in base58": ("QmI" + V0[3:], "invalid_cid"),
    "C3 small l in base58": ("Qml" + V0[3:], "invalid_cid"),
    "C3 45 letters": (V0[:-1], "invalid_cid"),
    "C3 47 letters": (V0 + "a", "invalid_cid"),
    "C3 v1 in plain base58": ("Qm", "invalid_cid"),
    "C4 newline": (V1 + "\n", "invalid_cid"),
    "C4 NUL": (V1 + "\0", "invalid_cid"),
    "C4 NUL in v0": (V0 + "\0", "invalid_cid"),
    "C4 leading space": (" " + V1, "invalid_cid"),
    "C5 unknown multibase": ("y" + V1[1:], "invalid_cid"),
    "C5 base8, which nobody reads": ("7" + "0" * 50, "invalid_cid"),
    "C5 Cyrillic letter": ("bаfy" + V1[4:], "invalid_cid"),
    "C6 version 2": (spelled(version=2, code=SHA2_256, digest=bytes(32)), "invalid_cid"),
    "C6 version 0 in base32": (spelled(version=0, code=SHA2_256, digest=bytes(32)), "invalid_cid"),
    "C6 padded varint": ("b" + multibase.base32_encode(b"\x81\x00\x55\x12\x20" + bytes(32)), "invalid_cid"),
    "C6 padded codec": ("b" + multibase.base32_encode(b"\x01\xd5\x00\x12\x20" + bytes(32)), "invalid_cid"),
    "C7 sha2-256 of 16 bytes": (spelled(code=SHA2_256, digest=bytes(16)), "digest_too_small"),
    "C7 Kubo's fixture": ("bafkreez3itiri7ghbbf6lzej7paxyxy2qznpw", "digest_too_small"),
    "C7 sha2-256 of 33 bytes": (spelled(code=SHA2_256, digest=bytes(33)), "digest_too_large"),
    "C8 murmur3": (spelled(code=0x23, digest=bytes(4)), "hash_not_allowed"),
    "C8 shake-128": ("bafksebhh7d53e", "hash_not_allowed"),
    "C8 sha1": (spelled(code=0x11, digest=bytes(20)), "hash_not_allowed"),
    "C8 blake3": (spelled(code=0x1E, digest=bytes(32)), "hash_not_allowed"),
    "C9 identity of 129 bytes": (spelled(code=IDENTITY, digest=bytes(129)), "digest_too_large"),
    "C11 digest shorter than declared": (
        spelled(code=SHA2_256, digest=bytes(31), declared=32),
        "invalid_cid",
    ),
    "C11 trailing bytes": (spelled(code=SHA2_256, digest=bytes(33), declared=32), "invalid_cid"),
    "C11 declared 2^63": ("b" + multibase.base32_encode(b"\x01\x55\x12" + b"\xff" * 8 + b"\x7f"), "invalid_cid"),
    "C12 IPNS name": (
        "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r",
        "unsupported_codec",
    ),
    "C12 PeerID": ("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "unsupported_codec"),
    "C12 git": (spelled(codec=0x78, code=SHA2_256, digest=bytes(32)), "unsupported_codec"),
    "C12 dag-json": (spelled(codec=0x0129, code=SHA2_256, digest=bytes(32)), "unsupported_codec"),
    "C13 a URI": ("ipfs://" + V1, "invalid_cid"),
    "C13 a query": (V1 + "?x=1", "invalid_cid"),
    "C13 a path": ("../../etc/passwd", "invalid_cid"),
    "C13 an option": ("-rf", "invalid_cid"),
    "last letter changed, same bytes": (V1[:-1] + "j", "invalid_cid"),
    "base64 with odd bits": ("mAVUAAf", "invalid_cid"),  # mAVUAAQ is the identity of one byte, cut off
    "odd hex": ("f0", "invalid_cid"),
    "wrong padding": ("cafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi=====", "invalid_cid"),
    "padding alone": ("c========", "invalid_cid"),
}


@pytest.mark.parametrize(("text", "code"), BAD_TEXTS.values(), ids=BAD_TEXTS.keys())
def test_bad_texts_are_refused_by_code(text: str, code: str) -> None:
    with pytest.raises(InvalidCid) as caught:
        Cid.parse(text)
    assert caught.value.code == code
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["", "b" + "a" * 255, "z" + "2" * 255, "1" * 256, "z" + "1" * 10_000_000])
def test_refusing_takes_less_than_a_millisecond(text: str) -> None:
    def once() -> float:
        start = time.perf_counter()
        with pytest.raises(InvalidCid):
            Cid.parse(text)
        return time.perf_counter() - start

    assert min(once() for _ in range(20)) < 0.001


def test_the_input_is_echoed_escaped_and_cut() -> None:
    with pytest.raises(InvalidCid) as caught:
        Cid.parse("\x1b[31m" + "x" * 200)
    assert "\\x1b[31m" + "x" * 75 + "'…" in str(caught.value)
    assert "x" * 76 not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 7, b"bafkqaaa"])
def test_c1_other_types_are_refused_like_nothing(wrong: object) -> None:
    with pytest.raises(InvalidCid):
        Cid.parse(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("payload", [b"", b"hello", bytes(128)])
def test_c10_identity_is_inline(payload: bytes) -> None:
    cid = Cid.of(payload, RAW, IDENTITY)
    assert Cid.parse(str(cid)) == cid
    assert cid.inline == payload
    assert cid.matches(payload)


def test_c10_empty_identity_is_the_known_text() -> None:
    assert Cid.parse("bafkqaaa").inline == b""
    assert Cid.parse(V1).inline is None


@pytest.mark.parametrize("name", HASHES)
def test_the_empty_block_is_known_by_its_cid(name: str) -> None:
    empty = Cid.decode(bytes(OracleCid("base32", 1, "dag-pb", oracle_multihash.digest(b"", name))))
    assert (empty.known_block, empty.inline) == (b"", None)
    assert Cid.of(b"x", RAW, empty.hash_code).known_block is None
    assert Cid.of(b"x", RAW, IDENTITY).known_block == b"x"


def test_c9_identity_over_the_limit_is_not_made() -> None:
    with pytest.raises(InvalidCid) as caught:
        Cid.of(bytes(129), RAW, IDENTITY)
    assert caught.value.code == "digest_too_large"


def test_a_hash_outside_the_policy_is_not_made() -> None:
    with pytest.raises(InvalidCid) as caught:
        Cid.of(b"x", RAW, 0x11)
    assert caught.value.code == "hash_not_allowed"


def test_version_0_is_sha2_256_of_dag_pb() -> None:
    cid = Cid.parse(V0)
    assert (cid.version, cid.codec, cid.hash_name) == (0, DAG_PB, "sha2-256")
    assert bytes(cid) == b"\x12\x20" + cid.digest
    assert Cid.decode(bytes(cid)) == cid


def test_check_names_origin_and_both_cids() -> None:
    block = b"right"
    for cid in (
        Cid.of(block),
        Cid.of(block, DAG_PB, BLAKE2B_256),
        Cid(0, DAG_PB, b"\x12\x20" + hashlib.sha256(block).digest()),
    ):
        cid.check(block, "http://gateway")
        with pytest.raises(IntegrityError) as caught:
            cid.check(b"wrong", "http://gateway")
        assert caught.value.detail == {
            "expected": str(cid),
            "actual": str(cid.of_same_hash(b"wrong")),
            "source": "http://gateway",
            "cid": str(cid),
        }
        assert cid.of_same_hash(block) == cid


def test_check_of_an_identity_does_not_echo_what_was_sent() -> None:
    with pytest.raises(IntegrityError) as caught:
        Cid.parse("bafkqaaa").check(bytes(10_000), "peer")
    assert caught.value.detail["actual"] == str(Cid.of(bytes(10_000)))
