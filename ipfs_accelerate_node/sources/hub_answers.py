"""What the Hub says, in our words: files and commits, and what a refusal means (table F1h, F2h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ipfs_accelerate_node.errors import AuthRequired, NodeError, NotFound, SourceUnavailable
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.hub_hops import HOP_HEADER

INVALID_TOKEN = "Invalid credentials in Authorization header"  # what the Hub's own client tells apart from a 401


@dataclass(frozen=True, slots=True)
class Asker:
    """One upstream, one caller's token; None asks without one, whatever the environment has. hops: see `hub_hops`."""

    upstream: Origin
    token: str | None = field(repr=False)
    hops: tuple[str, ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        return {HOP_HEADER: ",".join(self.hops)} if self.hops else {}


@dataclass(frozen=True, slots=True)
class HubFile:
    """oid: sha256 (64 hex digits) of a file in large file storage, git's blob sha1 (40) of any other."""

    path: str
    size: int
    oid: str


@dataclass(frozen=True, slots=True)
class Lfs:
    """A file in large file storage: of its content, and how long the pointer in git is that stands for it."""

    sha256: str
    size: int
    pointer_size: int


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A line of a commit's tree. oid: git's, 40 hex digits: of the blob (in large file storage, of its pointer) or of
    the folder's tree. size: of the content, 0 for a folder."""

    path: str
    size: int
    oid: str
    lfs: Lfs | None = None
    folder: bool = False

    @property
    def file(self) -> HubFile:
        return HubFile(self.path, self.size, self.oid if self.lfs is None else self.lfs.sha256)


@dataclass(frozen=True, slots=True)
class About:
    """What the Hub says of a repository at a commit. said: JSON-able fields by the names of the Hub's own answer; only
    such as are known here, so never a token or a hash of Xet's. restricted: private or gated, so not ours to pass on.
    """

    sha: str
    restricted: bool
    said: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Commit:
    """entries: the whole tree, also hidden files."""

    about: About
    entries: tuple[TreeEntry, ...]

    @property
    def files(self) -> tuple[HubFile, ...]:
        return tuple(entry.file for entry in self.entries if not entry.folder)


def bad_source(name: str, reason: str, *, code: str = "bad_source") -> SourceUnavailable:
    return SourceUnavailable(f"{name} {reason}", source=name, code=code)


def refusal(name: str, repo: str, status: int, headers: Mapping[str, str], *, token: bool) -> NodeError:
    """What an answer other than success means, in the Hub's own words where it has some (detail: hub_code, the
    X-Error-Code that says it).

    headers: case-insensitive mapping. token: whether one was sent.
    """
    code, said = headers.get("X-Error-Code"), headers.get("X-Error-Message", "")
    page = f"{name}/{repo}"
    if said == INVALID_TOKEN:
        how = "it is invalid or has expired; make a new one"
        return AuthRequired(f"{name} refuses this token: {how}", source=name, hub_message=said)
    if code == "GatedRepo":
        if status == 401 or not token:
            how = f"log in: set HF_TOKEN to a token of an account that has been given access at {page}"
        else:
            how = f"accept the licence at {page} with the account of this token"
        return AuthRequired(f"{repo} is gated; {how}", source=name, hub_code=code)
    if code is None and headers.get("X-Xet-Hash"):
        how = f"fetch them with the Hub's own client (`hf download {repo}`), then `import-hf-cache hf:{repo}`"
        return bad_source(name, f"delivers files of {repo} through Xet only: {how}", code="xet_only")
    if code in ("EntryNotFound", "RevisionNotFound"):
        what = "file" if code == "EntryNotFound" else "revision"
        return NotFound(f"{repo} has no such {what} at {name}", source=name, hub_code=code)
    if said == "Access to this resource is disabled.":
        return SourceUnavailable(f"{repo} has been disabled at {name}", source=name, code="blocked")
    if code == "RepoNotFound" or status in (401, 404):
        how = "or no access for this token" if token else "or private: check the name, or set a token (HF_TOKEN)"
        return NotFound(f"{repo}: no such repository at {name}, {how}", source=name, hub_code="RepoNotFound")
    if status == 403:
        return AuthRequired(f"{name} denies access to {repo}", source=name)
    return _trouble(name, repo, status, headers)


def _trouble(name: str, repo: str, status: int, headers: Mapping[str, str]) -> NodeError:
    if status == 508:
        how = "set hf_upstream to the Hub, or to a node that does not ask this one"
        return bad_source(name, f"leads back to this node: {how}", code="loop")
    wait = retry_after_s(headers)
    if status == 429:
        when = "" if wait is None else f", come back in {wait:.0f} s"
        return SourceUnavailable(
            f"{name} is asked too often{when}", source=name, code="rate_limited", retry_after_s=wait
        )
    return SourceUnavailable(f"{name} answered {status}", source=name, retry_after_s=wait)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header; None for a date, garbage, or none."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
