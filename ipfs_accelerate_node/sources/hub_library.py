"""What `huggingface_hub` is used for: resolving a revision, and the tree of its commit.

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
from contextvars import ContextVar

import httpx2
from huggingface_hub import HfApi, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from yarl import URL

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.errors import SourceUnavailable
from ipfs_accelerate_node.sources.guard import Origin
from ipfs_accelerate_node.sources.hub_answers import HOP_HEADER, Commit, HubFile, bad_source, refusal

MAX_TREE_ENTRIES = 10_000
MAX_HOPS = 3
METADATA_DEADLINE_S = 60.0
MAX_ANSWER_BYTES = 32 << 20

_HEX40 = re.compile(r"[0-9a-f]{40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_upstream: ContextVar[Origin] = ContextVar("hub_upstream")


def read_commit(upstream: Origin, token: str | None, repo: str, revision: str) -> Commit:
    """revision resolved once, and the tree of the commit it means.

    Raises NotFound, AuthRequired or SourceUnavailable (rate_limited, stalled, bad_source, too_many_files, …).
    """
    name = str(upstream)
    reset = _upstream.set(upstream)
    try:
        return _read_commit(_api(upstream, token), name, repo, revision)
    except HfHubHTTPError as exc:
        answer = exc.response
        raise refusal(name, repo, answer.status_code, answer.headers, token=token is not None) from exc
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


def _read_commit(api: HfApi, name: str, repo: str, revision: str) -> Commit:
    about = api.model_info(repo, revision=revision, timeout=METADATA_DEADLINE_S)
    if not isinstance(about.sha, str) or not _HEX40.fullmatch(about.sha):
        raise bad_source(name, "names no commit")
    files: list[HubFile] = []
    for seen, entry in enumerate(api.list_repo_tree(repo, recursive=True, revision=about.sha)):
        if seen >= MAX_TREE_ENTRIES:
            raise bad_source(name, f"lists more than {MAX_TREE_ENTRIES} files in {repo}", code="too_many_files")
        if isinstance(entry, RepoFile):
            files.append(_file(entry, name))
    restricted = about.private is not False or about.gated not in (False, None)
    return Commit(about.sha, restricted, tuple(files))


def _file(entry: RepoFile, name: str) -> HubFile:
    size, oid, form = entry.size, entry.blob_id, _HEX40
    if entry.lfs is not None:
        size, oid, form = entry.lfs.size, entry.lfs.sha256, _HEX64
    if not isinstance(entry.path, str) or type(size) is not int or not 0 <= size < 1 << 63:
        raise bad_source(name, "lists a file without a name or size")
    if not isinstance(oid, str) or not form.fullmatch(oid):
        raise bad_source(name, f"lists {entry.path[:80]!a} without a usable oid")
    return HubFile(entry.path, size, oid)


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


def _api(upstream: Origin, token: str | None) -> HfApi:
    _guard_library()
    return HfApi(
        endpoint=str(upstream),
        token=token if token is not None else False,  # False: none, also if the environment has one
        library_name="ipfs-accelerate-node",
        library_version=__version__,
        headers={HOP_HEADER: "1", "Accept-Encoding": "identity"},
    )
