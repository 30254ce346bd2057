"""Pictures and sounds inside JSON: data URLs, or bare base64. Nothing is fetched for anybody."""

from __future__ import annotations

import binascii
import re

from ipfs_accelerate_node.content.cid import shown
from ipfs_accelerate_node.errors import InvalidInput

_DATA_URL = re.compile(r"data:(?P<type>[a-z0-9.+/-]*)(?P<parameters>(;[a-z0-9.+=_-]+)*?);base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def media_bytes(text: object, *, param: str, index: int | None = None) -> bytes:
    """Raises InvalidInput: no data URL and no base64, or a URL that would have to be fetched."""
    if not isinstance(text, str) or not text:
        raise InvalidInput("a data URL or base64 is expected", param=param, index=index)
    if (head := _DATA_URL.match(text[:256])) is not None:
        text = text[head.end() :]
    elif _URL.match(text[:64]):
        raise InvalidInput(
            f"{shown(text)} is not fetched: send the content itself as data:…;base64,…", param=param, index=index
        )
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidInput(f"not base64: {exc}", param=param, index=index) from exc
    if not data:
        raise InvalidInput("no content", param=param, index=index)
    return data
