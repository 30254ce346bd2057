"""The node key: its file, its PeerID, and signatures that the library alone would let pass (table E3)."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ipfs_accelerate_node.errors import BadContent, StorageError
from ipfs_accelerate_node.records.key import NodeKey, peer_id, verify

KEY = NodeKey(bytes(range(32)))
SMALL_ORDER = [  # all eight points, then their encodings that are not canonical
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_key_that_signs_anything_is_refused(point: str) -> None:
    """Found with cryptography 50: for some message each of these keys is accepted with S = 0."""
    public = bytes.fromhex("08011220" + point)
    for r in (bytes.fromhex(SMALL_ORDER[0]), bytes.fromhex(point)):
        for n in range(32):
            with pytest.raises(BadContent, match=r"small order|canonical"):
                verify(public, r + bytes(32), b"%d" % n)
    with pytest.raises(BadContent, match=r"small order|canonical"):
        verify(KEY.public, bytes.fromhex(point) + bytes(32), b"")


def test_the_library_alone_would_accept_one() -> None:
    identity = bytes.fromhex(SMALL_ORDER[0])
    Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"any message at all")


def test_a_malleated_signature_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = KEY.sign(b"data")
    verify(KEY.public, signature, b"data")
    twin = signature[:32] + (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(BadContent, match="canonical"):
        verify(KEY.public, twin, b"data")


def test_rfc_8032_vector() -> None:
    key = NodeKey(bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"))
    assert key.public[4:].hex() == "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
    assert key.sign(bytes.fromhex("af82")).hex() == (
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )


def test_peer_id_is_base58_of_the_public_key() -> None:
    alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number = 0
    for letter in KEY.peer_id:
        number = number * 58 + alphabet.index(letter)
    assert number.to_bytes(37, "big") == b"\x24" + KEY.public  # the leading zero byte is the leading "1"
    assert KEY.peer_id.startswith("12D3Koo")
    assert peer_id(KEY.public) == KEY.peer_id


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    made = NodeKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert NodeKey.load_or_create(path).seed == made.seed
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    assert private.private_bytes_raw() == made.seed
    assert made.seed.hex() not in repr(made)


def test_a_key_file_that_cannot_be_used_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    other_kind = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    for content in (b"", b"not a key", other_kind, encrypted):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(StorageError, match=r"node\.key"):
            NodeKey.load_or_create(path)
        assert path.read_bytes() == content


def test_an_exposed_or_foreign_key_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    NodeKey.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        NodeKey.load_or_create(path)
    path.chmod(0o600)
    (link := tmp_path / "link").symlink_to(path)
    with pytest.raises(StorageError, match="link"):
        NodeKey.load_or_create(link)
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="not a regular file"):
        NodeKey.load_or_create(tmp_path / "folder")
    with pytest.raises(StorageError):
        NodeKey.load_or_create(tmp_path / "absent" / "node.key")
