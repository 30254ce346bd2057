"""What `huggingface_hub` is used for: metadata. A revision resolved, the tree of its commit, refs, whose token it is.

The library is made for programs that trust their server: it follows a ``Link: rel="next"`` anywhere with the token,
follows redirects, reads any amount for any time, and takes its endpoint from the environment. So its one HTTP client
(it has one per process) is replaced by one that speaks to the upstream origin of the call under way, and to nobody
else, within limits. Imported in a worker thread, on first use; everything here blocks.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile, RepoFolder
from yarl import URL

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.hub_answers import About, Asker, Lfs, TreeEntry, bad_source, refusal
from ipfs_accelerate_node.sources.hub_names import HubRepo

MAX_TREE_ENTRIES = 10_000
MAX_HOPS = 3
METADATA_DEADLINE_S = 60.0
MAX_ANSWER_BYTES = 32 << 20

_MAX_TAGS = 1000
_MAX_LETTERS = 1000
_SAID = {  # of the Hub's answer: by its name there, and what the library calls it
    "id": "id",
    "author": "author",
    "sha": "sha",
    "lastModified": "last_modified",
    "createdAt": "created_at",
    "private": "private",
    "gated": "gated",
    "disabled": "disabled",
    "downloads": "downloads",
    "likes": "likes",
    "pipeline_tag": "pipeline_tag",
    "library_name": "library_name",
    "mask_token": "mask_token",
}

_HEX40 = re.compile(r"[0-9a-f]{40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_upstream: ContextVar[Origin] = ContextVar("hub_upstream")


def read_about(asker: Asker, repo: HubRepo, revision: str) -> About:
    """revision resolved to a commit, and what the Hub says of that.

    Raises NotFound, AuthRequired or SourceUnavailable (rate_limited, stalled, bad_source, too_many_files, …).
    """
    with _asking(asker, str(repo)) as api:
        return _about(api, repo, revision, str(asker.upstream))


def read_tree(asker: Asker, repo: HubRepo, commit: str) -> tuple[TreeEntry, ...]:
    """The whole tree of a commit, folders too. Raises as `read_about`."""
    name = str(asker.upstream)
    with _asking(asker, str(repo)) as api:
        entries: list[TreeEntry] = []
        listed = api.list_repo_tree(repo.id, recursive=True, revision=commit, repo_type=repo.kind)
        for seen, entry in enumerate(listed):
            if seen >= MAX_TREE_ENTRIES:
                raise bad_source(name, f"lists more than {MAX_TREE_ENTRIES} files in {repo}", code="too_many_files")
            entries.append(_file(entry, name) if isinstance(entry, RepoFile) else _folder(entry, name))
        return tuple(entries)


def read_refs(asker: Asker, repo: HubRepo) -> dict[str, str]:
    """Full name (``refs/heads/main``) to commit. Raises as `read_about`."""
    with _asking(asker, str(repo)) as api:
        refs = api.list_repo_refs(repo.id, repo_type=repo.kind)
        found = {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.converts, *refs.tags]}
        if not all(isinstance(name, str) and _HEX40.fullmatch(commit) for name, commit in found.items()):
            raise bad_source(str(asker.upstream), "names no commit")
        return found


def read_identity(asker: Asker) -> dict[str, object]:
    """Whose token it is: the fields that tools read. Raises as `read_about`."""
    with _asking(asker, "whoami") as api:
        said = api.whoami(token=asker.token)
        return {key: said[key] for key in ("type", "id", "name", "fullname", "isPro") if _is_plain(said.get(key))} | {
            "orgs": [{"name": org["name"]} for org in said.get("orgs", [])[:_MAX_TAGS]]
        }


@contextmanager
def _asking(asker: Asker, what: str) -> Iterator[HfApi]:
    name = str(asker.upstream)
    reset = _upstream.set(asker.upstream)
    try:
        yield _api(asker)
    except HfHubHTTPError as exc:
        answer = exc.response
        raise refusal(name, what, answer.status_code, answer.headers, token=asker.token is not None) from exc
    except httpx2.TimeoutException as exc:
        raise SourceUnavailable(f"{name} did not answer in time", source=name, code="stalled") from exc
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as exc:
        code = "tls_error" if "certificate" in str(exc).lower() else None
        raise SourceUnavailable(f"{name} cannot be reached ({type(exc).__name__})", source=name, code=code) from exc
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as exc:  # whatever the library makes of a wrong shape
        raise bad_source(name, "does not answer like a Hub: a captive portal, or a wrong address?") from exc
    finally:
        _upstream.reset(reset)


def _about(api: HfApi, repo: HubRepo, revision: str, name: str) -> About:
    ask = api.model_info if repo.kind == "model" else api.dataset_info
    about = ask(repo.id, revision=revision, timeout=METADATA_DEADLINE_S)
    if not isinstance(about.sha, str) or not _HEX40.fullmatch(about.sha):
        raise bad_source(name, "names no commit")
    restricted = about.private is not False or about.gated not in (False, None)
    said: dict[str, object] = {}
    for field, attribute in _SAID.items():
        value = getattr(about, attribute, None)
        value = value.isoformat() if isinstance(value, datetime) else value
        if value is not None and _is_plain(value):
            said[field] = value
    said["tags"] = [tag for tag in (about.tags or ())[:_MAX_TAGS] if isinstance(tag, str) and _is_plain(tag)]
    return About(about.sha, restricted, said)


def _is_plain(value: object) -> bool:
    """A number or a short text: what may be kept and told on."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _MAX_LETTERS)


def _folder(entry: RepoFolder, name: str) -> TreeEntry:
    if not isinstance(entry.path, str) or not isinstance(entry.tree_id, str) or not _HEX40.fullmatch(entry.tree_id):
        raise bad_source(name, "lists a folder without a name or oid")
    return TreeEntry(entry.path, 0, entry.tree_id, folder=True)


def _file(entry: RepoFile, name: str) -> TreeEntry:
    size, oid, lfs = entry.size, entry.blob_id, entry.lfs
    if not isinstance(entry.path, str) or not _is_size(size) or (lfs is not None and not _is_size(lfs.size)):
        raise bad_source(name, "lists a file without a name or size")
    if not isinstance(oid, str) or not _HEX40.fullmatch(oid):
        raise bad_source(name, f"lists {entry.path[:80]!a} without a usable oid")
    if lfs is None:
        return TreeEntry(entry.path, size, oid)
    if not isinstance(lfs.sha256, str) or not _HEX64.fullmatch(lfs.sha256) or not _is_size(lfs.pointer_size):
        raise bad_source(name, f"lists {entry.path[:80]!a} without a usable oid")
    return TreeEntry(entry.path, lfs.size, oid, Lfs(lfs.sha256, lfs.size, lfs.pointer_size))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


class _BoundedAnswer(httpx2.SyncByteStream):
    """A body that ends in an error after MAX_ANSWER_BYTES or METADATA_DEADLINE_S."""

    def __init__(self, inner: httpx2.SyncByteStream, name: str) -> None:
        self._inner = inner
        self._name = name

    def __iter__(self) -> Iterator[bytes]:
        left, ends = MAX_ANSWER_BYTES, time.monotonic() + METADATA_DEADLINE_S
        for part in self._inner:
            left -= len(part)
            if left < 0:
                raise bad_source(self._name, "sends more than metadata can be")
            if time.monotonic() > ends:
                raise bad_source(self._name, "sends its metadata too slowly", code="stalled")
            yield part

    def close(self) -> None:
        self._inner.close()


class _OneOrigin(httpx2.HTTPTransport):
    """Sees every request just before it leaves, those after a redirect or a Link header too."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        upstream = _upstream.get(None)
        if upstream is None:
            raise httpx2.ConnectError("only metadata of a configured upstream is asked for", request=request)
        if _origin(request) != upstream:
            raise bad_source(str(upstream), "sends us to another origin for its metadata", code="redirect_refused")
        response = super().handle_request(request)
        assert isinstance(response.stream, httpx2.SyncByteStream)
        response.stream = _BoundedAnswer(response.stream, str(upstream))
        return response


def _origin(request: httpx2.Request) -> Origin | None:
    try:
        return Origin.of(URL(str(request.url)))
    except ValueError:
        return None


def _fail_at_once(response: httpx2.Response) -> None:
    """Ahead of the library's own retries, which sleep in a thread that nobody can cancel."""
    if response.status_code >= 400:
        raise HfHubHTTPError(f"status {response.status_code}", response=response)


def _client() -> httpx2.Client:
    return httpx2.Client(
        transport=_OneOrigin(),
        event_hooks={"response": [_fail_at_once]},
        follow_redirects=True,
        max_redirects=MAX_HOPS,
        timeout=httpx2.Timeout(15.0, connect=5.0),
        trust_env=False,
    )


@functools.cache
def _guard_library() -> None:
    """Puts our client in place of the library's, once per process."""
    set_client_factory(_client)


def _api(asker: Asker) -> HfApi:
    _guard_library()
    return HfApi(
        endpoint=str(asker.upstream),
        token=asker.token if asker.token is not None else False,  # False: none, also if the environment has one
        library_name="ipfs-accelerate-node",
        library_version=__version__,
        headers={**asker.headers, "Accept-Encoding": "identity"},
    )
