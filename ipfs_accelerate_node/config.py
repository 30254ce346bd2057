"""All settings of a node, in one frozen dataclass built once by the CLI and passed down; no other module reads the
environment. Precedence: flags > environment > file > default."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ipfs_accelerate_node.config_values import CHECKS, READERS, SECRETS, Given, is_true, peer_id
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
    peers: tuple[str, ...] = ()  # other nodes by URL, or by PeerID (through a tunnel)
    tunnels: bool = True  # meet other nodes over libp2p: our peers' listener by `ipfs p2p`, theirs by PeerID
    serve_peers: bool = False  # peers whose key is allowed may run public models here, by signed requests
    allow_peers: tuple[str, ...] = ()  # PeerIDs of those keys, beside those of `peers allow`
    allow_hosts: tuple[str, ...] = ()  # further Host header values that are ours (name or name:port)
    share: bool = False  # non-loopback bind: /ipfs and peers' routes are open without a key
    paranoid: bool = False  # hash every leaf again before it leaves by /ipfs
    share_rate_bytes: int = 100_000_000  # a second, to all who fetch from us, while inference is busy; else unlimited
    share_connections: int = 32  # that may fetch content from us at a time
    quota_bytes: int | None = None  # None: what the disk has, less a reserve
    announce_pins: bool = True  # what was pinned by CID is announced
    publish: bool = False  # standing consent to publish benchmark records
    hf_upstream: str = "https://huggingface.co"  # origin of the Hub; https, or a loopback address
    hf_redirect_origins: tuple[str, ...] = ()  # private ones that hf_upstream may redirect to; never with the token
    hf_token: str | None = field(default=None, repr=False)  # sent to hf_upstream only
    hf_offline: bool = False  # never ask the Hub
    hub_open: bool = False  # non-loopback bind: the Hub's routes are open, for public content only
    load_timeout_s: float = 300.0  # a model that takes longer to load is given up
    stall_timeout_s: float = 10.0  # a source that sends no byte for so long is given up
    first_byte_timeout_s: float = 15.0  # the same before its first byte (×4 for bitswap, which first finds a provider)
    threads: int | None = None  # of a worker's computation; None: one per core
    keep_alive_s: float | None = None  # a model that was idle for so long is unloaded; None: never
    memory_bytes: int | None = None  # what all workers together may take; None: what the machine has
    queue_wait_s: float = 2.0  # a request that would wait longer for its model is refused at once, with a time
    share_identical: bool = True  # identical requests that wait at the same time share one computation
    otlp_endpoint: str | None = None  # $OTEL_EXPORTER_OTLP_ENDPOINT: a collector that spans of requests are sent to
    precision: str = "auto"  # of models that are loaded without naming one: auto, f32, bf16, f16 or int8
    default_model: str | None = None  # of inference routes that name none; None: the only one that is loaded
    allow_mock: bool = False  # where a model cannot be had, a mock of its task answers, marked as one


# One URL per flag, so flags and their variables are singular; both forms are read.
SINGULAR = {
    "gateway": "gateways",
    "peer": "peers",
    "allow_host": "allow_hosts",
    "hf_redirect_origin": "hf_redirect_origins",
    "allow_peer": "allow_peers",
    "quota": "quota_bytes",
    "share_rate": "share_rate_bytes",
    "memory": "memory_bytes",
}
_FLAGS = {plural: singular for singular, plural in SINGULAR.items()}
# Variables of the prefix that are not settings of the node: they say where the daemon is, and where the settings are.
_OTHER_VARIABLES = frozenset({"URL", "KEY", "KEY_FILE", "CONFIG", "DEBUG", "REMOTE_KEY"})
_FIELDS = {f.name: str(f.type) for f in fields(Config)}


def load_config(flags: Mapping[str, object], env: Mapping[str, str], file: Path | None) -> Config:
    """flags: by field name, None or () where not given. file: must exist; None: the default place, if there is one.

    Raises InvalidConfig that names key and place (flag, variable, or file and line): unknown key, wrong type, value
    that cannot be used, bad TOML, or a file with a secret that others can read.
    """
    given = {**_from_file(_chosen_file(env, file)), **_from_environment(env), **_from_flags(flags)}
    values = {name: READERS[name if name in READERS else _FIELDS[name]](item) for name, item in given.items()}
    for name, item in given.items():
        if name in CHECKS:
            values[name] = CHECKS[name](item, values[name])
    values.setdefault("cache", default_cache(env))
    values.setdefault("ipfs_path", _path_variable(env, "IPFS_PATH"))
    values.setdefault("otlp_endpoint", env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None)
    values.setdefault("hf_token", _hub_token(env))
    values.setdefault("hf_offline", any(is_true(env.get(name)) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")))
    config = Config(**values)  # type: ignore[arg-type]  # READERS made each value of its field's own type
    if not config.tunnels and (named := next((p for p in config.peers if peer_id(p)), None)):
        raise InvalidConfig(f"peers: {named} is reached by a tunnel, and tunnels are switched off", param="peers")
    return config


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


def _from_flags(flags: Mapping[str, object]) -> dict[str, Given]:
    given = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        if name not in _FIELDS:
            raise InvalidConfig(f"there is no setting {name!r}", param=name)
        given[name] = Given(name, value, f"--{_FLAGS.get(name, name).replace('_', '-')}", Path.cwd())
    return given


def _from_environment(env: Mapping[str, str]) -> dict[str, Given]:
    given: dict[str, Given] = {}
    for variable, value in env.items():
        if not variable.startswith(PREFIX) or variable.removeprefix(PREFIX) in _OTHER_VARIABLES:
            continue
        name = _field_of(variable.removeprefix(PREFIX).lower())
        if name is None:
            raise InvalidConfig(f"{variable}: there is no such setting", param=variable)
        if name in given:
            raise InvalidConfig(f"{variable}: {name} is also given as {given[name].place}", param=name)
        given[name] = Given(name, value, variable, Path.cwd())
    return given


def _chosen_file(env: Mapping[str, str], file: Path | None) -> Path | None:
    named = file or _path_variable(env, f"{PREFIX}CONFIG")
    if named is not None:
        return named
    usual = config_file(env)
    return usual if usual.exists() else None


def _from_file(path: Path | None) -> dict[str, Given]:
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
    given: dict[str, Given] = {}
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
        given[name] = Given(name, value, f"{path} line {line}", path.absolute().parent)
    return given


def _field_of(key: str) -> str | None:
    name = SINGULAR.get(key, key)
    return name if name in _FIELDS else None


def _line_of(text: str, key: str) -> int:
    """The line on which a top-level key or table starts."""
    start = re.compile(rf"""\s*\[*\s*["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if start.match(line)), 1)


# -- what other tools' variables say


def _home(env: Mapping[str, str]) -> Path:
    return _path_variable(env, "HOME") or Path.home()


def _path_variable(env: Mapping[str, str], name: str) -> Path | None:
    """An absolute path, None where the variable is unset or empty."""
    return Path(env[name]).absolute() if env.get(name) else None


def _hub_token(env: Mapping[str, str]) -> str | None:
    """As huggingface_hub looks for it: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, then the token file."""
    if is_true(env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN")):
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
