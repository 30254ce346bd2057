"""What a URL of the Hub's protocol asks for: decoded once and strictly, from the raw request target (table F9h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.errors import BadRequest
from ipfs_accelerate_node.sources.hub_names import DEFAULT_REVISION, HubRepo, Kind, check_repo, checked_revision
from ipfs_accelerate_node.sources.hub_plain import PLAIN

MAX_PATH_BYTES = 4096
What = Literal["about", "tree", "paths", "refs", "resolve"]
_WITH_REVISION: dict[str, What] = {"revision": "about", "tree": "tree", "paths-info": "paths"}
_KINDS: dict[str, Kind] = {"models": "model", "datasets": "dataset"}


@dataclass(frozen=True, slots=True)
class HubPath:
    """what is asked of repo at revision; path: of a file or folder in it. plain: the CID that repo really is."""

    what: What
    repo: HubRepo
    revision: str = DEFAULT_REVISION
    path: str = ""
    plain: Cid | None = None


def api_path(raw: str) -> HubPath:
    """Of ``/api/models/…`` and ``/api/datasets/…``. Raises BadRequest."""
    kind, *parts = _parts(raw)[1:]
    wide = len(parts) >= 2 and not _is_bare(parts)
    repo, rest = ("/".join(parts[:2]), parts[2:]) if wide else (parts[0], parts[1:])
    match rest:
        case []:
            return _checked("about", _KINDS[kind], repo, DEFAULT_REVISION, ())
        case ["refs"]:
            return _checked("refs", _KINDS[kind], repo, DEFAULT_REVISION, ())
        case [word, revision, *path] if word in _WITH_REVISION and (word == "tree" or not path):
            return _checked(_WITH_REVISION[word], _KINDS[kind], repo, revision, path)
        case _:
            raise BadRequest(f"the Hub's {shown('/'.join(rest))} is not served here", code="invalid_path")


def file_path(raw: str) -> HubPath:
    """Of ``/[datasets/]{repo}/resolve/{revision}/{path}``. Raises BadRequest."""
    parts = _parts(raw)
    kind: Kind = "model"
    if parts[0] == "datasets":
        kind, parts = "dataset", parts[1:]
    at = 1 if len(parts) > 1 and parts[1] == "resolve" else 2
    if len(parts) < at + 3 or parts[at] != "resolve":
        raise BadRequest("a file of the Hub is /{repo}/resolve/{revision}/{path}", code="invalid_path")
    return _checked("resolve", kind, "/".join(parts[:at]), parts[at + 1], parts[at + 2 :])


def _is_bare(parts: list[str]) -> bool:
    """Whether the repository has no organisation in its name: ``gpt2/refs``, ``gpt2/tree/main``."""
    return parts[1:] == ["refs"] or (len(parts) > 2 and parts[1] in _WITH_REVISION)


def _checked(what: What, kind: Kind, repo: str, revision: str, path: list[str] | tuple[()]) -> HubPath:
    plain = None
    if kind == "model" and repo.startswith(PLAIN):
        plain = Cid.parse(repo.removeprefix(PLAIN))
    else:
        check_repo(repo)
    for name in path:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise BadRequest(f"{shown(name)} is no name in a path", code="invalid_path")
    return HubPath(what, HubRepo(repo, kind), checked_revision(revision), "/".join(path), plain)


def _parts(raw: str) -> list[str]:
    target = raw.partition("?")[0].strip("/")
    if len(target) > MAX_PATH_BYTES:
        raise BadRequest(f"the path is over {MAX_PATH_BYTES} letters", code="invalid_path")
    try:
        return [unquote_to_bytes(part).decode("utf-8") for part in target.split("/")]
    except UnicodeError as exc:
        raise BadRequest(f"{shown(raw)} is not UTF-8", code="invalid_path") from exc
