"""Multibase texts to bytes: the encodings that Kubo reads in CIDs, either letter case where the alphabet has one.

Stricter than Kubo in one thing: bits left over after the last whole byte must be zero, so that changing the last
letter never gives another spelling of the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

_BASE58BTC = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58FLICKR = "123456789abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE32HEX = "0123456789abcdefghijklmnopqrstuv"
_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE64URL = _BASE64[:-2] + "-_"


class BadMultibase(ValueError):
    """Not a text of a known multibase encoding."""


def base58btc_decode(text: str) -> bytes:
    """Bitcoin's base58, without a multibase prefix (CIDv0, PeerIDs)."""
    return _DECODERS["z"](text)


def base58btc_encode(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    letters = []
    while number:
        number, digit = divmod(number, 58)
        letters.append(_BASE58BTC[digit])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(letters))


def base32_encode(data: bytes) -> str:
    """Lower case, unpadded, without a multibase prefix."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def decode(text: str) -> bytes:
    """The bytes of a multibase text. Raises BadMultibase; the caller bounds the length (base58 is quadratic)."""
    if not text:
        raise BadMultibase("empty")
    decoder = _DECODERS.get(text[0])
    if decoder is None:
        raise BadMultibase(f"no multibase encoding has the prefix {text[0]!a}")
    return decoder(text[1:])


def _digits(alphabet: str, *, fold: bool) -> dict[str, int]:
    digits = {letter: value for value, letter in enumerate(alphabet)}
    return digits | {letter.upper(): value for letter, value in digits.items()} if fold else digits


def _positional(alphabet: str, *, fold: bool) -> Callable[[str], bytes]:
    """A number in base len(alphabet); leading zero digits are leading zero bytes."""
    digits = _digits(alphabet, fold=fold)

    def decoder(text: str) -> bytes:
        number = 0
        for letter in text:
            if letter not in digits:
                raise BadMultibase(f"{letter!a} is not a letter of base{len(alphabet)}")
            number = number * len(alphabet) + digits[letter]
        zeros = len(text) - len(text.lstrip(alphabet[0]))
        return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")

    return decoder


def _grouped(alphabet: str, bits: int, *, fold: bool = False, padded: bool = False) -> Callable[[str], bytes]:
    """RFC 4648: ``bits`` per letter; padded: to whole groups of 8 (base32) or 4 (base64) letters."""
    digits = _digits(alphabet, fold=fold)
    group = {1: 8, 4: 2, 5: 8, 6: 4}[bits]

    def decoder(text: str) -> bytes:
        letters = text.rstrip("=") if padded else text
        if padded and (len(text) % group or len(text) - len(letters) >= group):
            raise BadMultibase("wrong padding")
        number = 0
        for letter in letters:
            if letter not in digits:
                raise BadMultibase(f"{letter!a} is not a letter of base{len(alphabet)}")
            number = number << bits | digits[letter]
        spare = len(letters) * bits % 8
        if spare >= bits or number & (1 << spare) - 1:
            raise BadMultibase("does not end on a whole byte")
        return (number >> spare).to_bytes(len(letters) * bits // 8, "big")

    return decoder


_DECODERS: dict[str, Callable[[str], bytes]] = {
    "0": _grouped("01", 1),
    "f": _grouped("0123456789abcdef", 4, fold=True),
    "b": _grouped(_BASE32, 5, fold=True),
    "c": _grouped(_BASE32, 5, fold=True, padded=True),
    "v": _grouped(_BASE32HEX, 5, fold=True),
    "t": _grouped(_BASE32HEX, 5, fold=True, padded=True),
    "k": _positional(_BASE36, fold=True),
    "z": _positional(_BASE58BTC, fold=False),
    "Z": _positional(_BASE58FLICKR, fold=False),
    "m": _grouped(_BASE64, 6),
    "M": _grouped(_BASE64, 6, padded=True),
    "u": _grouped(_BASE64URL, 6),
    "U": _grouped(_BASE64URL, 6, padded=True),
}
_DECODERS |= {upper: _DECODERS[upper.lower()] for upper in "FBCVTK"}
