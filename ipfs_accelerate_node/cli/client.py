"""The daemon as the command line sees it: where it is, its native routes, and its failures in our words.

One connection, no proxy, no redirects. Every connection starts with a look at `/healthz`, so another program on the
port, or one that accepts and says nothing, is told from our daemon within seconds; after that an answer may take as
long as the work takes.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ipfs_accelerate_node import __version__
from ipfs_accelerate_node.cli import Refused
from ipfs_accelerate_node.config import PREFIX, load_config
from ipfs_accelerate_node.errors import (
    EXIT_FAILURE,
    EXIT_NOT_FOUND,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    EXIT_VERIFICATION,
    InvalidConfig,
    Unavailable,
)

PROBE_TIMEOUT_S = 5.0  # connect and first answer; more than a busy daemon's p99 by far
EVENTS_TIMEOUT_S = 60.0  # without an event or a ping; the daemon pings every 15 s
MAX_PROBE_BYTES = 64 * 1024
_EXIT_OF_STATUS = {
    400: EXIT_USAGE, 404: EXIT_NOT_FOUND, 405: EXIT_USAGE, 408: EXIT_UNAVAILABLE, 413: EXIT_USAGE, 415: EXIT_USAGE,
    422: EXIT_USAGE, 429: EXIT_UNAVAILABLE, 502: EXIT_VERIFICATION, 503: EXIT_UNAVAILABLE, 504: EXIT_UNAVAILABLE,
}  # fmt: skip


def find_daemon(*, url: str | None, cache: Path | None, key_file: Path | None, env: Mapping[str, str]) -> Daemon:
    """The daemon that was named, else that of the cache, else whoever listens at the configured place.

    The key in a cache's ``daemon.json`` goes to the address in that file only. Raises InvalidConfig.
    """
    url = url or env.get(f"{PREFIX}URL") or None
    key = _key_of_file(key_file) if key_file is not None else env.get(f"{PREFIX}KEY") or None
    if key is None and env.get(f"{PREFIX}KEY_FILE"):
        key = _key_of_file(Path(env[f"{PREFIX}KEY_FILE"]))
    if url is not None and key is not None:
        return Daemon(url, key, where="")
    config = load_config({"cache": cache}, env, None)
    noted = read_daemon_file(config.cache)
    if noted is None:
        where = f" (no daemon has left a daemon.json in {config.cache})"
        usual = f"http://{config.host}:{config.port}" if config.port else "http://127.0.0.1:8090"
        return Daemon(url or usual, key, where="" if url else where)
    if url is None or url.rstrip("/") == noted["url"]:
        return Daemon(noted["url"], key or noted["key"], where=f" (from {config.cache / 'daemon.json'})")
    return Daemon(url, key, where="")


def read_daemon_file(cache: Path) -> dict[str, Any] | None:
    """``url``, ``pid`` and ``key`` of the daemon that runs, or last ran, over this cache."""
    try:
        noted = json.loads((cache / "daemon.json").read_text())
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) and {"url", "key"} <= noted.keys() else None


def _key_of_file(path: Path) -> str:
    try:
        with path.open() as file:
            private = not stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
            key = file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not text"
        raise InvalidConfig(f"the key file {path} cannot be read: {reason}") from exc
    if not private:
        raise InvalidConfig(f"the key file {path} can be read by others: chmod 600 {path}")
    if not re.fullmatch(r"[!-~]+", key):
        raise InvalidConfig(f"the key file {path} does not hold one key")
    return key


def path_of(*parts: str) -> str:
    """A route's path with references and names in it."""
    return "/".join(part if part.startswith("/api") else quote(part, safe=":@") for part in parts)


class Daemon:
    """url: as given. where: said after the URL when nothing answers there."""

    def __init__(self, url: str, key: str | None, *, where: str) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._where = where
        self._connection = _connection(self.url)

    def call(self, method: str, path: str, body: object = None, *, timeout_s: float | None = None) -> Any:
        """One request; the reply's JSON. timeout_s: for a silent daemon, None waits as long as the connection lives.

        Raises Refused for what the daemon refused, Unavailable when it is not there or not ours.
        """
        return self.exchange(method, path, body, timeout_s=timeout_s)[0]

    def exchange(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> tuple[Any, Mapping[str, str]]:
        """The same with the reply's headers, by lower-case name."""
        encoded = None if body is None else json.dumps(body).encode()
        headers = {} if encoded is None else {"Content-Type": "application/json"}
        reply = self._request(method, path, encoded, headers, timeout_s)
        return self._json(reply), {name.lower(): value for name, value in reply.getheaders()}

    def upload(self, path: str, content_type: str, pieces: Iterable[bytes]) -> Any:
        """POST of a body made while it is sent; the reply's JSON. A refusal that comes early is read all the same."""
        return self._json(self._request("POST", path, pieces, {"Content-Type": content_type}, None))

    def events(self, path: str, *, method: str = "GET", body: object = None) -> Iterator[tuple[str, Any]]:
        """Server-sent events as (name, JSON data) until the stream ends. Raises like `call`."""
        headers = {"Accept": "text/event-stream"}
        encoded = None if body is None else json.dumps(body).encode()
        if encoded is not None:
            headers["Content-Type"] = "application/json"
        reply = self._request(method, path, encoded, headers, EVENTS_TIMEOUT_S)
        if reply.status != 200 or not (reply.getheader("Content-Type") or "").startswith("text/event-stream"):
            self._json(reply)
            raise self._stranger("it sent no events")
        name, data = "message", ""
        try:
            while line := reply.readline():
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                field, _, value = text.partition(":")
                if field == "event":
                    name = value.strip()
                elif field == "data":
                    data += value.strip()
                elif not text and data:
                    yield name, json.loads(data)
                    name, data = "message", ""
        except (OSError, http.client.HTTPException) as exc:
            raise self._gone(exc) from exc
        except ValueError as exc:
            raise self._stranger("its events are not JSON") from exc
        finally:
            self._connection.close()

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> http.client.HTTPResponse:
        if self._connection.sock is None:
            self._connect()
        assert self._connection.sock is not None
        self._connection.sock.settimeout(timeout_s)
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        chunked = body is not None and not isinstance(body, bytes)
        if chunked:
            headers = {**headers, "Transfer-Encoding": "chunked"}
        try:
            try:
                self._connection.request(method, path, body, {**_AGENT, **key, **headers}, encode_chunked=chunked)
            except (BrokenPipeError, ConnectionResetError):
                if not chunked:
                    raise
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise self._gone(exc) from exc

    def _connect(self) -> None:
        """Connects and makes sure that it is our daemon."""
        try:
            self._connection.timeout = PROBE_TIMEOUT_S
            self._connection.connect()
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._connection.request("GET", "/healthz", headers=_AGENT)
            reply = self._connection.getresponse()
            alive = reply.status == 200 and json.loads(reply.read(MAX_PROBE_BYTES)).get("live") is True
        except (ValueError, AttributeError, http.client.HTTPException) as exc:
            raise self._stranger("its /healthz is another's") from exc
        except OSError as exc:
            self._connection.close()
            raise self._nobody(exc) from exc
        if not alive:
            raise self._stranger(f"its /healthz says {reply.status}")

    def _json(self, reply: http.client.HTTPResponse) -> Any:
        try:
            data = reply.read()
        except (OSError, http.client.HTTPException) as exc:
            raise self._gone(exc) from exc
        try:
            body = json.loads(data)
        except ValueError as exc:
            raise self._stranger(f"it answered {reply.status} without JSON") from exc
        if reply.status >= 300:
            raise refusal(reply.status, body, retry_after=reply.getheader("Retry-After"))
        return body

    def _nobody(self, error: OSError) -> Unavailable:
        reason = "it says nothing" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        return Unavailable(
            f"no daemon answers at {self.url}{self._where}: {reason}. Start one with: ian up",
            code="daemon_unreachable",
            url=self.url,
        )

    def _gone(self, error: Exception) -> Unavailable:
        reason = str(error) or type(error).__name__
        return Unavailable(f"the daemon at {self.url} went away: {reason}", code="daemon_gone", url=self.url)

    def _stranger(self, reason: str) -> Unavailable:
        self._connection.close()
        return Unavailable(
            f"what answers at {self.url}{self._where} is not this program's daemon: {reason}. "
            "Name the right one with --url, or start one with: ian up --port PORT",
            code="not_our_daemon",
            url=self.url,
        )


_AGENT = {"User-Agent": f"ipfs-accelerate-node-cli/{__version__}", "Accept": "application/json"}


def refusal(status: int, body: Any, *, retry_after: str | None = None) -> Refused:
    """From problem+json, or an OpenAI route's error object. retry_after: that header, in whole seconds."""
    fields: dict[str, Any] = body if isinstance(body, dict) else {}
    if isinstance(fields.get("error"), dict):
        fields = fields["error"]
    if retry_after is not None and retry_after.isdigit() and len(retry_after) < 10:
        fields = {"retry_after_s": int(retry_after), **fields}
    message = str(fields.get("detail") or fields.get("message") or f"the daemon answered {status}") + _tried(fields)
    code = str(fields.get("code") or "error")
    told = fields.get("exit_code")
    exit_code = _EXIT_OF_STATUS.get(status, EXIT_FAILURE)
    if isinstance(told, int) and EXIT_FAILURE <= told <= EXIT_UNAVAILABLE:
        exit_code = told
    return Refused(message, code=code, exit_code=exit_code, body={"code": code, "detail": message, **fields})


def _tried(fields: dict[str, Any]) -> str:
    """The steps by which a reference to the Hub was followed, where the failure tells them."""
    chain = fields.get("chain")
    steps = [step for step in chain if isinstance(step, dict)] if isinstance(chain, list) else []
    told = "; ".join(f"{step.get('step')}: {step.get('outcome')}: {step.get('reason')}" for step in steps)
    return f" (tried: {told})" if told else ""


def _connection(url: str) -> http.client.HTTPConnection:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise InvalidConfig("the daemon's URL is not one") from exc
    if parts.scheme not in ("http", "https") or not host or parts.path or parts.query or "@" in parts.netloc:
        raise InvalidConfig("the daemon's URL must look like http://127.0.0.1:8090, without a path or password")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=PROBE_TIMEOUT_S, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT_S)
