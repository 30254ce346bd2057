"""All settings of a node, in one frozen dataclass built once by the CLI and passed down; no other module reads the
environment. Precedence: flags > environment > file > default."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from ipfs_accelerate_node.errors import InvalidConfig

PREFIX = "IPFS_ACCELERATE_NODE_"
APP = "ipfs-accelerate-node"


@dataclass(frozen=True, slots=True)
class Config:
    cache: Path  # data folder: store, node key, managed Kubo; absolute
    host: str = "127.0.0.1"  # bind address; anything but loopback needs a key (security default 1)
    port: int = 8090  # 0: any free port, the real one is in daemon.json
    kubo: str = "auto"  # auto | managed | off | URL of an RPC API
    kubo_auth: str | None = field(default=None, repr=False)  # basic:user:password | bearer:token, external daemon
    ipfs_path: Path | None = None  # $IPFS_PATH: auto then means that daemon
    kubo_binary: Path | None = None  # None: `ipfs` on PATH, then .kubo/ipfs of the checkout
    swarm_key: Path | None = None  # private network: pre-shared key file of the managed Kubo
    bootstrap: tuple[str, ...] | None = None  # multiaddrs; None: the public network; (): nobody
    kubo_loopback: bool = False  # managed Kubo talks to loopback only (tests): no mDNS, no public helpers
    gateways: tuple[str, ...] = ()  # trustless gateways by URL
    peers: tuple[str, ...] = ()  # other nodes by URL
    allow_hosts: tuple[str, ...] = ()  # further Host header values that are ours (name or name:port)
    share: bool = False  # non-loopback bind: /ipfs and peers' routes are open without a key
    paranoid: bool = False  # hash every leaf again before it leaves by /ipfs
    quota_bytes: int | None = None  # None: what the disk has, less a reserve
    announce_pins: bool = True  # what was pinned by CID is announced
    publish: bool = False  # standing consent to publish benchmark records
    hf_upstream: str = "https://huggingface.co"  # origin of the Hub; https, or a loopback address
    hf_token: str | None = field(default=None, repr=False)  # sent to hf_upstream only
    hf_offline: bool = False  # never ask the Hub
    load_timeout_s: float = 300.0  # a model that takes longer to load is given up
    stall_timeout_s: float = 10.0  # a source that sends no byte for so long is given up
    first_byte_timeout_s: float = 15.0  # the same before its first byte (×4 for bitswap, which first finds a provider)
    threads: int | None = None  # of a worker's computation; None: one per core
    keep_alive_s: float | None = None  # a model that was idle for so long is unloaded; None: never
    memory_bytes: int | None = None  # what all workers together may take; None: what the machine has
    allow_mock: bool = False  # where a model cannot be had, a mock of its task answers, marked as one


SECRETS = frozenset({"kubo_auth", "hf_token"})
# One URL per flag, so flags and their variables are singular; both forms are read.
SINGULAR = {
    "gateway": "gateways",
    "peer": "peers",
    "allow_host": "allow_hosts",
    "quota": "quota_bytes",
    "memory": "memory_bytes",
}
_FLAGS = {plural: singular for singular, plural in SINGULAR.items()}
# Variables of the prefix that are not settings of the node: they say where the daemon is, and where the settings are.
_OTHER_VARIABLES = frozenset({"URL", "KEY", "KEY_FILE", "CONFIG", "DEBUG"})
_FIELDS = {f.name: str(f.type) for f in fields(Config)}


@dataclass(frozen=True, slots=True)
class _Given:
    """One value as someone wrote it. place: flag, variable, or file and line. base: what relative paths stand on."""

    name: str
    value: object
    place: str
    base: Path

    def refused(self, reason: str) -> InvalidConfig:
        said = "a secret" if self.name in SECRETS else f"{self.value!r:.80}"
        return InvalidConfig(f"{self.place}: {self.name} {reason}, not {said}", param=self.name)


def load_config(flags: Mapping[str, object], env: Mapping[str, str], file: Path | None) -> Config:
    """flags: by field name, None or () where not given. file: must exist; None: the default place, if there is one.

    Raises InvalidConfig that names key and place (flag, variable, or file and line): unknown key, wrong type, value
    that cannot be used, bad TOML, or a file with a secret that others can read.
    """
    given = {**_from_file(_chosen_file(env, file)), **_from_environment(env), **_from_flags(flags)}
    values = {name: _READERS[name if name in _READERS else _FIELDS[name]](item) for name, item in given.items()}
    for name, item in given.items():
        if name in _CHECKS:
            values[name] = _CHECKS[name](item, values[name])
    values.setdefault("cache", default_cache(env))
    values.setdefault("ipfs_path", _path_variable(env, "IPFS_PATH"))
    values.setdefault("hf_token", _hub_token(env))
    values.setdefault("hf_offline", any(_true(env.get(name)) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")))
    return Config(**values)  # type: ignore[arg-type]  # _READERS made each value of its field's own type


def is_loopback(host: str) -> bool:
    """Whether a bind address or URL host is reached from this machine only (``localhost`` counts; names do not)."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def config_file(env: Mapping[str, str]) -> Path:
    """Where the file is when nobody says otherwise."""
    folder = _path_variable(env, "XDG_CONFIG_HOME") or _home(env) / ".config"
    return folder / APP / "config.toml"


def default_cache(env: Mapping[str, str], module: Path = Path(__file__)) -> Path:
    """A checkout's own ``cache/``; for an installed package a folder in the XDG cache folder.

    module: this file, wherever it was installed.
    """
    checkout = module.resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "cache").is_dir():
        return checkout / "cache"
    return (_path_variable(env, "XDG_CACHE_HOME") or _home(env) / ".cache") / APP


# -- where values come from


def _from_flags(flags: Mapping[str, object]) -> dict[str, _Given]:
    given = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        if name not in _FIELDS:
            raise InvalidConfig(f"there is no setting {name!r}", param=name)
        given[name] = _Given(name, value, f"--{_FLAGS.get(name, name).replace('_', '-')}", Path.cwd())
    return given


def _from_environment(env: Mapping[str, str]) -> dict[str, _Given]:
    given: dict[str, _Given] = {}
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable.removeprefix(PREFIX) in _OTHER_VARIABLES:
            continue
        name = _field_of(variable.removeprefix(PREFIX).lower())
        if name is None:
            raise InvalidConfig(f"{variable}: there is no such setting", param=variable)
        if name in given:
            raise InvalidConfig(f"{variable}: {name} is also given as {given[name].place}", param=name)
        given[name] = _Given(name, value, variable, Path.cwd())
    return given


def _chosen_file(env: Mapping[str, str], file: Path | None) -> Path | None:
    named = file or _path_variable(env, f"{PREFIX}CONFIG")
    if named is not None:
        return named
    usual = config_file(env)
    return usual if usual.exists() else None


def _from_file(path: Path | None) -> dict[str, _Given]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read().decode()
    except OSError as exc:
        raise InvalidConfig(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise InvalidConfig(f"{path} is not UTF-8", path=str(path)) from exc
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        reason = str(exc).replace("end of document", f"line {len(text.splitlines())}, the end")
        raise InvalidConfig(f"{path} is not TOML: {reason}", path=str(path)) from exc
    given: dict[str, _Given] = {}
    for key, value in table.items():
        line = _line_of(text, key)
        name = _field_of(key)
        if name is None:
            raise InvalidConfig(f"{path} line {line}: there is no setting {key!r}", param=key, line=line)
        if name in given:
            raise InvalidConfig(f"{path} line {line}: {name} is also given at {given[name].place}", param=name)
        if name in SECRETS and stat.S_IMODE(mode) & 0o077:
            raise InvalidConfig(
                f"{path} line {line}: {name} is a secret that others can read: chmod 600 {path}", param=name, line=line
            )
        given[name] = _Given(name, value, f"{path} line {line}", path.absolute().parent)
    return given


def _field_of(key: str) -> str | None:
    name = SINGULAR.get(key, key)
    return name if name in _FIELDS else None


def _line_of(text: str, key: str) -> int:
    """The line on which a top-level key or table starts."""
    start = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if start.match(line)), 1)


# -- what values may be


def _text(given: _Given) -> str:
    if not isinstance(given.value, str):
        raise given.refused("wants a text")
    if not given.value or given.value != given.value.strip() or not given.value.isprintable():
        raise given.refused("wants a text without control characters or spaces around it")
    return given.value


def _path(given: _Given) -> Path:
    if isinstance(given.value, Path):
        return given.base / given.value
    text = _text(given)
    try:
        return given.base / Path(text).expanduser()
    except RuntimeError as exc:
        raise given.refused("wants the path of a user that exists") from exc


def _number(given: _Given) -> int:
    if isinstance(given.value, str) and re.fullmatch(r"-?[0-9]{1,18}", given.value):
        return int(given.value)
    if not isinstance(given.value, int) or isinstance(given.value, bool):
        raise given.refused("wants a whole number")
    return given.value


def _bytes(given: _Given) -> int:
    """A number of bytes, also as a text with a unit: ``50GB``, ``1.5 TiB``."""
    text = str(given.value).strip()
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([kMGT]i?)B", text, re.IGNORECASE)
    if not isinstance(given.value, str) or match is None:
        return _number(given)
    power = "kmgt".index(match[2][0].lower()) + 1
    return int(float(match[1]) * (1024 if match[2].lower().endswith("i") else 1000) ** power)


def _seconds(given: _Given) -> float:
    value = given.value
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= 86_400:
        raise given.refused("wants a number of seconds, more than 0 and at most a day")
    return seconds


def _true(value: str | None) -> bool:
    return value is not None and value.strip().lower() in ("1", "on", "yes", "true")


def _flag(given: _Given) -> bool:
    if isinstance(given.value, bool):
        return given.value
    if isinstance(given.value, str) and given.value.lower() in ("1", "on", "yes", "true", "0", "off", "no", "false"):
        return _true(given.value)
    raise given.refused("wants true or false")


def _texts(given: _Given) -> tuple[str, ...]:
    """A list; a variable holds it with commas or spaces between, ``none`` is the empty one."""
    value = given.value
    if isinstance(value, str):
        value = [item for item in re.split(r"[,\s]+", value) if item]
    if not isinstance(value, (list, tuple)):
        raise given.refused("wants a list of texts")
    items = tuple(_text(_Given(given.name, item, given.place, given.base)) for item in value)
    return () if items == ("none",) else items


# By a field's own name, else by its type.
_READERS: dict[str, Callable[[_Given], object]] = {
    "Path": _path,
    "Path | None": _path,
    "str": _text,
    "str | None": _text,
    "int": _number,
    "int | None": _number,
    "float": _seconds,
    "bool": _flag,
    "tuple[str, ...]": _texts,
    "tuple[str, ...] | None": _texts,
    "quota_bytes": _bytes,
    "memory_bytes": _bytes,
    "keep_alive_s": _seconds,
}


def _within(low: int, high: int) -> Callable[[_Given, object], object]:
    def check(given: _Given, value: object) -> object:
        if not isinstance(value, int) or not low <= value <= high:
            raise given.refused(f"wants a number from {low} to {high}")
        return value

    return check


def _host(given: _Given, value: object) -> object:
    if not re.fullmatch(r"[A-Za-z0-9.:_\[\]%-]{1,253}", str(value)):
        raise given.refused("wants an address or a host name")
    return value


def _origin(given: _Given, url: str, *, said: str = "wants a URL like https://host:port") -> str:
    """The URL as ``scheme://host[:port]``. Raises InvalidConfig for another scheme, credentials, a path, a query, a
    host that is not ASCII, or no port where one is begun."""
    if "@" in url:  # never echoed
        raise InvalidConfig(f"{given.place}: {given.name}: a URL with a user or password is refused", param=given.name)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise given.refused(said) from exc
    clean = re.fullmatch(r"[A-Za-z0-9.:_-]+", host or "") and "\\" not in url
    if parts.scheme not in ("http", "https") or not clean or parts.path not in ("", "/") or re.search(r"[?#]", url):
        raise given.refused(f"{said}, without a path, query or letters beyond ASCII")
    if port == 0 or parts.netloc.endswith(":"):
        raise given.refused(said)
    named = f"[{host}]" if ":" in str(host) else str(host)
    return f"{parts.scheme}://{named}" + ("" if port is None else f":{port}")


def _origins(given: _Given, value: object) -> object:
    urls = value if isinstance(value, tuple) else ()
    return tuple(dict.fromkeys(_origin(_Given(given.name, url, given.place, given.base), url) for url in urls))


def _upstream(given: _Given, value: object) -> object:
    origin = _origin(given, str(value))
    if not origin.startswith("https://") and not is_loopback(urlsplit(origin).hostname or ""):
        raise given.refused("wants https, or http to a loopback address: the Hub token goes there")
    return origin


def _kubo(given: _Given, value: object) -> object:
    if value in ("auto", "managed", "off") or str(value).startswith("/"):
        return value
    return _origin(given, str(value).removesuffix("/api/v0"), said="wants auto, managed, off or the URL of an RPC API")


def _kubo_auth(given: _Given, value: object) -> object:
    if not re.fullmatch(r"basic:[^:]+:.+|bearer:.+", str(value)):
        raise given.refused("wants basic:USER:PASSWORD or bearer:TOKEN")
    return value


_CHECKS: dict[str, Callable[[_Given, object], object]] = {
    "host": _host,
    "port": _within(0, 65535),
    "kubo": _kubo,
    "kubo_auth": _kubo_auth,
    "gateways": _origins,
    "peers": _origins,
    "quota_bytes": _within(1 << 20, 1 << 62),
    "memory_bytes": _within(1 << 20, 1 << 62),
    "threads": _within(1, 4096),
    "hf_upstream": _upstream,
}


# -- what other tools' variables say


def _home(env: Mapping[str, str]) -> Path:
    return _path_variable(env, "HOME") or Path.home()


def _path_variable(env: Mapping[str, str], name: str) -> Path | None:
    """An absolute path, None where the variable is unset or empty."""
    return Path(env[name]).absolute() if env.get(name) else None


def _hub_token(env: Mapping[str, str]) -> str | None:
    """As huggingface_hub looks for it: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, then the token file."""
    if _true(env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
        return None
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := env.get(name, "").strip():
            return token
    hub_home = _path_variable(env, "HF_HOME") or (
        (_path_variable(env, "XDG_CACHE_HOME") or _home(env) / ".cache") / "huggingface"
    )
    path = _path_variable(env, "HF_TOKEN_PATH") or hub_home / "token"
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None
