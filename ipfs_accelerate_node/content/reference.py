"""What a user types to mean a model, parsed: a root by CID, a Hub repository, a stored name, or a mock.

Only the documented forms: ``bafy…``, ``Qm…``, ``ipfs://CID[/path]``, ``/ipfs/CID[/path]``,
``hf:[org/]name[@revision]``, ``org/name[@revision]``, ``name``, ``mock:TASK``; a data set of the Hub is
``hf:datasets/[org/]name[@revision]``, as in its own URLs.
Nothing here is ever a path of this machine or an option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from ipfs_accelerate_node.content.cid import Cid, shown
from ipfs_accelerate_node.content.names import check_name
from ipfs_accelerate_node.errors import BadRequest, InvalidCid

DEFAULT_REVISION = "main"
DATASETS = "datasets/"  # before a data set's name, which no account of the Hub can be called
MAX_REFERENCE = 4096

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_NAME = re.compile(rf"{_PART}(?:/{_PART})?")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._/+-]{0,126}[A-Za-z0-9_+-])?")
_TASK = re.compile(r"[a-z][a-z0-9-]{0,62}")
# What only CIDs, PeerIDs and IPNS names start with, in the usual bases, before at least 26 more letters or digits.
_CID_SHAPE = re.compile(r"(?:Qm|12D3Koo|16Uiu2|k51|k2k4|zdj7|zb2r|[fF]01[57]|[mMuU]AX|ba[ef]|BA[EF])[A-Za-z0-9]{26,}")


@dataclass(frozen=True, slots=True)
class RootRef:
    """path: below the root, without leading or trailing "/"; empty for the root itself."""

    cid: Cid
    path: str = ""

    def __str__(self) -> str:
        return f"/ipfs/{self.cid}/{self.path}" if self.path else str(self.cid)


@dataclass(frozen=True, slots=True)
class HubRef:
    """repo: ``org/name``, or a bare ``name`` of the Hub's early days.

    revision: branch, tag, commit or ``refs/pr/1``.
    """

    repo: str
    revision: str = DEFAULT_REVISION
    kind: Literal["model", "dataset"] = "model"

    @property
    def named(self) -> str:
        """The repository as URLs of the Hub have it: a data set's with ``datasets/`` before it."""
        return f"{DATASETS}{self.repo}" if self.kind == "dataset" else self.repo

    def __str__(self) -> str:
        return f"hf:{self.named}" + ("" if self.revision == DEFAULT_REVISION else f"@{self.revision}")


@dataclass(frozen=True, slots=True)
class NameRef:
    """A name that someone gave to a stored model."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class MockRef:
    """task: what the mock pretends to do, such as ``embedding``; whether it exists is the registry's to say."""

    task: str

    def __str__(self) -> str:
        return f"mock:{self.task}"


Reference = RootRef | HubRef | NameRef | MockRef


def parse_reference(text: str) -> Reference:
    """Raises InvalidCid (codes of `Cid.parse`), UnsafeContent (invalid_path) or BadRequest (invalid_reference).

    A text that looks like a CID is a CID or an error, never a name.
    """
    if not isinstance(text, str) or not text.strip():
        raise InvalidCid("a reference is needed, got nothing")
    if len(text) > MAX_REFERENCE:
        raise InvalidCid(f"{shown(text)} is too long for a reference")
    if text.startswith("/ipfs/"):
        return _root(text, text.removeprefix("/ipfs/"))
    if text.startswith("ipfs://"):
        return _root_uri(text)
    if text.startswith("hf:"):
        return _hub(text, text.removeprefix("hf:"))
    if text.startswith("mock:"):
        return _mock(text)
    return _bare(text)


def check_model_name(name: str) -> None:
    """Raises BadRequest (invalid_reference) unless the name may be given to a model: one or two components of ASCII
    letters, digits, ``.``, ``_``, ``-``, not to be taken for a CID."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise BadRequest(
            f"{shown(name)} cannot be a name: letters, digits, '.', '_' and '-', "
            "at most one '/', 96 characters each side of it",
            code="invalid_reference",
        )
    if looks_like_cid(name):
        raise BadRequest(f"{shown(name)} cannot be a name: it looks like a CID", code="invalid_reference")


def looks_like_cid(text: str) -> bool:
    """Whether a person would take it for a CID: it is one, or one that the policy refuses, or has the shape of one
    (also with a character that does not belong there)."""
    try:
        Cid.parse(text)
    except InvalidCid as exc:
        if exc.code != "invalid_cid":
            return True
    else:
        return True
    head = text.split("/", 1)[0]
    if _NAME.fullmatch(head):
        return _CID_SHAPE.fullmatch(head) is not None
    rest = re.sub(r"[^A-Za-z0-9]", "", head)
    confused = len(rest) >= 40 and len(head) - len(rest) <= 2  # a look-alike letter, a space, a NUL
    return confused or _CID_SHAPE.match(rest) is not None


def _bare(text: str) -> Reference:
    if looks_like_cid(text):
        if "/" in text:
            raise InvalidCid(f"{shown(text)}: write a path below a CID as ipfs://CID/path")
        return RootRef(Cid.parse(text))
    if ".." in text.split("/"):
        raise BadRequest(f"{shown(text)} is a path, not a reference", code="invalid_path")
    if "/" in text:
        return _hub(text, text)
    if not _NAME.fullmatch(text) or ".." in text:
        raise _invalid(text)
    return NameRef(text)


def _root(text: str, rest: str) -> RootRef:
    cid, _, path = rest.partition("/")
    path = path.removesuffix("/")
    parsed = Cid.parse(cid)
    if path:
        for part in path.split("/"):
            check_name(part)
    return RootRef(parsed, path)


def _root_uri(text: str) -> RootRef:
    rest = text.removeprefix("ipfs://")
    if "?" in rest or "#" in rest:
        raise BadRequest(f"{shown(text)}: a query or fragment has no meaning here", code="invalid_path")
    cid, slash, path = rest.partition("/")
    try:
        return _root(text, cid + slash + unquote(path, errors="strict"))
    except UnicodeDecodeError as exc:
        raise BadRequest(f"{shown(text)} is not UTF-8 when unescaped", code="invalid_path") from exc


def _hub(text: str, rest: str) -> HubRef:
    named, at, revision = rest.removeprefix("//").partition("@")
    repo = named.removeprefix(DATASETS)
    kind: Literal["model", "dataset"] = "model" if repo == named else "dataset"
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise _invalid(text)
    if not at:
        return HubRef(repo, kind=kind)
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise BadRequest(f"{shown(text)}: {shown(revision)} is not a revision", code="invalid_reference")
    return HubRef(repo, revision, kind)


def _mock(text: str) -> MockRef:
    task = text.removeprefix("mock:")
    if not _TASK.fullmatch(task):
        raise _invalid(text)
    return MockRef(task)


def _invalid(text: str) -> BadRequest:
    return BadRequest(
        f"{shown(text)} is no reference: give a CID, ipfs://CID/path, hf:org/name[@revision], "
        "hf:datasets/org/name[@revision], a stored name, or mock:TASK",
        code="invalid_reference",
    )
