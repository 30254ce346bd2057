"""Settings: precedence, bad-input row L6 (each names key and place), G10, and what other tools' variables say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.config import Config, config_file, default_cache, load_config
from ipfs_accelerate_node.config_values import is_loopback, peer_id
from ipfs_accelerate_node.errors import InvalidConfig

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment without anything of the person who runs the tests."""
    return {"HOME": str(tmp_path / "home"), "PATH": "/bin"}


def toml(tmp_path: Path, text: str, mode: int = 0o644) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def refused(flags: Mapping[str, object], env: Mapping[str, str], file: Path | None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        load_config(flags, env, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults(home: dict[str, str]) -> None:
    config = load_config({}, home, None)
    assert config == Config(cache=CHECKOUT / "cache")
    assert (config.host, config.port, config.kubo) == ("127.0.0.1", 8090, "auto")


def test_flags_win_over_environment_over_file(home: dict[str, str], tmp_path: Path) -> None:
    file = toml(tmp_path, 'port = 1\nhost = "::1"\nkubo = "off"\ngateways = ["http://file"]\n')
    env = home | {"IPFS_ACCELERATE_NODE_PORT": "2", "IPFS_ACCELERATE_NODE_HOST": "localhost"}
    config = load_config({"port": 3, "kubo": None, "gateways": ()}, env, file)
    assert (config.port, config.host, config.kubo, config.gateways) == (3, "localhost", "off", ("http://file",))
    assert load_config({}, env, file).port == 2
    assert load_config({}, home, file).port == 1


def test_every_kind_of_value_from_the_environment(home: dict[str, str]) -> None:
    env = {
        "CACHE": "relative/cache",
        "PORT": "0",
        "KUBO": "http://127.0.0.1:5001/api/v0",
        "KUBO_AUTH": "basic:me:secret",
        "BOOTSTRAP": "none",
        "KUBO_LOOPBACK": "TRUE",
        "GATEWAYS": "http://a:1, https://b/ http://a:1",
        "PEER": "http://[::1]:8090",
        "ANNOUNCE_PINS": "no",
        "QUOTA_BYTES": "1.5 GiB",
        "STALL_TIMEOUT_S": "2.5",
        "THREADS": "2",
        "URL": "http://read.by.the.client",
        "KEY": "read by the client",
    }
    config = load_config({}, home | {f"IPFS_ACCELERATE_NODE_{name}": value for name, value in env.items()}, None)
    assert config == Config(
        cache=Path.cwd() / "relative/cache",
        port=0,
        kubo="http://127.0.0.1:5001",
        kubo_auth="basic:me:secret",
        bootstrap=(),
        kubo_loopback=True,
        gateways=("http://a:1", "https://b"),
        peers=("http://[::1]:8090",),
        announce_pins=False,
        quota_bytes=3 << 29,
        stall_timeout_s=2.5,
        threads=2,
    )


def test_every_kind_of_value_from_the_file(home: dict[str, str], tmp_path: Path) -> None:
    text = """
    cache = "data"
    port = 8091
    kubo = "/ip4/127.0.0.1/tcp/5001"
    bootstrap = ["/dns4/example.org/tcp/4001/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"]
    gateway = ["https://gateway.example"]
    publish = true
    quota_bytes = 5000000
    load_timeout_s = 60
    hf_upstream = "http://127.0.0.1:9999/"
    hf_token = "hf_canary"
    """
    config = load_config({}, home, toml(tmp_path, text, 0o600))
    assert config.cache == tmp_path / "data"
    assert (config.port, config.publish, config.quota_bytes, config.load_timeout_s) == (8091, True, 5_000_000, 60.0)
    assert config.gateways == ("https://gateway.example",)
    assert config.hf_upstream == "http://127.0.0.1:9999"
    assert config.hf_token == "hf_canary"
    assert "hf_canary" not in repr(config)


def test_the_file_has_a_usual_place(home: dict[str, str], tmp_path: Path) -> None:
    env = home | {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert config_file(env) == tmp_path / "xdg/ipfs-accelerate-node/config.toml"
    assert config_file(home) == Path(home["HOME"]) / ".config/ipfs-accelerate-node/config.toml"
    config_file(env).parent.mkdir(parents=True)
    config_file(env).write_text("port = 7")
    assert load_config({}, env, None).port == 7
    other = toml(tmp_path, "port = 9")
    assert load_config({}, env | {"IPFS_ACCELERATE_NODE_CONFIG": str(other)}, None).port == 9


BAD_FILES = {
    "not TOML": ("port = 1\nhost = [", ("config.toml", "line 2")),
    "a key twice": ("port = 1\nport = 2", ("config.toml", "line 2")),
    "nested too deep": ("port = " + "[" * 100_000, ("config.toml", "not TOML")),
    "unknown key": ("port = 1\n\nprot = 2", ("line 3", "'prot'")),
    "unknown table": ("port = 1\n[kubo.api]\nx = 1", ("line 2", "kubo")),
    "one setting under both its names": ('peer = ["http://a"]\npeers = ["http://b"]', ("line 2", "peers")),
    "text for a number": ('port = "many"', ("line 1", "port")),
    "true for a number": ("port = true", ("line 1", "port")),
    "a float for a number": ("# x\nport = 1.5", ("line 2", "port")),
    "port out of range": ("port = 65536", ("line 1", "port")),
    "number for a text": ("host = 5", ("line 1", "host")),
    "empty host": ('host = ""', ("line 1", "host")),
    "a host with a newline": ('host = "a\\nb"', ("line 1", "host")),
    "a host with a path": ('host = "127.0.0.1/x"', ("line 1", "host")),
    "text for a switch": ('share = "maybe"', ("line 1", "share")),
    "number for a switch": ("share = 1", ("line 1", "share")),
    "list with a number": ("peers = [5]", ("line 1", "peers")),
    "table for a list": ("peers = {}", ("line 1", "peers")),
    "no time": ("stall_timeout_s = 0", ("line 1", "stall_timeout_s")),
    "not a number": ("stall_timeout_s = nan", ("line 1", "stall_timeout_s")),
    "for ever": ("stall_timeout_s = inf", ("line 1", "stall_timeout_s")),
    "a quota of nothing": ("quota_bytes = 0", ("line 1", "quota_bytes")),
    "a kubo that is nothing we know": ('kubo = "yes"', ("line 1", "kubo")),
    "auth of another kind": ('kubo_auth = "digest:x"', ("line 1", "kubo_auth")),
    "the token over plain http": ('hf_upstream = "http://hub.example"', ("line 1", "hf_upstream")),
}


@pytest.mark.parametrize(("text", "named"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_l6_bad_files_name_key_and_line(
    home: dict[str, str], tmp_path: Path, text: str, named: tuple[str, ...]
) -> None:
    message = refused({}, home, toml(tmp_path, text, 0o600))
    for part in named:
        assert part in message


@pytest.mark.parametrize("setting", ['hf_token = "hf_canary"', 'kubo_auth = "bearer:canary"'])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_l6_a_secret_that_others_can_read_is_refused(
    home: dict[str, str], tmp_path: Path, setting: str, mode: int
) -> None:
    message = refused({}, home, toml(tmp_path, f"port = 1\n{setting}", mode))
    assert "line 2" in message
    assert "chmod 600" in message
    assert "canary" not in message
    load_config({}, home, toml(tmp_path, setting, 0o600))


def test_l6_a_bad_secret_is_not_echoed(home: dict[str, str], tmp_path: Path) -> None:
    assert "canary" not in refused({}, home, toml(tmp_path, 'kubo_auth = "canary"', 0o600))
    assert "canary" not in refused({}, home | {"IPFS_ACCELERATE_NODE_HF_TOKEN": "canary "}, None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "many"), ("PORT", ""), ("PORT", "9" * 5000), ("PORT", "١"), ("SHARE", "2"),
        ("STALL_TIMEOUT_S", "1e999"), ("THREADS", "0"), ("QUOTA", "5 parsecs"), ("GATEWAYS", "gateway"),
        ("KUBO", "http://u:p@h"), ("NO_SUCH", "1"), ("PRECISION", "f64"),
        ("HOST", "\x1b[31m"), ("CACHE", ""),
    ],
)  # fmt: skip
def test_l6_junk_in_the_environment_names_the_variable(home: dict[str, str], variable: str, value: str) -> None:
    message = refused({}, home | {f"IPFS_ACCELERATE_NODE_{variable}": value}, None)
    assert f"IPFS_ACCELERATE_NODE_{variable}" in message
    assert message.isprintable()
    assert len(message) < 400


def test_flags_are_named_as_flags(home: dict[str, str]) -> None:
    assert "--gateway:" in refused({"gateways": ("ftp://x",)}, home, None)
    assert "--port:" in refused({"port": -1}, home, None)
    assert "nonsense" in refused({"nonsense": 1}, home, None)


def test_a_file_that_was_named_must_be_there(home: dict[str, str], tmp_path: Path) -> None:
    assert "No such file" in refused({}, home, tmp_path / "absent.toml")
    assert "directory" in refused({}, home, tmp_path)
    (latin := tmp_path / "latin.toml").write_bytes(b'host = "\xe4"')
    assert "not UTF-8" in refused({}, home, latin)


G10 = [
    "javascript:alert(1)", "ftp://h", "file:///etc/passwd", "//h", "h", "h:80", "http://", "http://:80", "http://h:x",
    "http://h:", "http://h:0", "http://h:99999", "http://h/path", "http://h/ipfs/", "http://h?x", "http://h#x", "http://h/?",
    "http://h\\@evil", "http://hä", "http://аpple.example", "http://h%2f", "http://h h", "http://[::1", "http://h\n",
]  # fmt: skip


@pytest.mark.parametrize("url", G10, ids=ascii)
@pytest.mark.parametrize("name", ["gateways", "peers"])
def test_g10_gateway_and_peer_urls(home: dict[str, str], name: str, url: str) -> None:
    refused({name: (url,)}, home, None)


def test_g10_a_password_in_a_url_is_refused_and_not_echoed(home: dict[str, str]) -> None:
    for url in ("http://user:canary@h", "http://canary@h", "http://user:canary@[bad"):
        assert "canary" not in refused({"gateways": (url,)}, home, None)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://h", "http://h"),
        ("HTTPS://Host.Example:8443/", "https://host.example:8443"),
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090"),
        ("http://[FD00::1]:80/", "http://[fd00::1]:80"),
    ],
)
def test_good_urls_are_kept_as_origins(home: dict[str, str], url: str, kept: str) -> None:
    assert load_config({"gateways": (url,), "peers": (url,)}, home, None).gateways == (kept,)


PEER = "12D3KooWGaUYk5TBjFRYZVcoCQtEtbownBXysrvGUjy89ig63u3e"


@pytest.mark.parametrize("spelled", [PEER, f"/p2p/{PEER}", f"peer:{PEER}"])
def test_a_peer_by_its_peer_id(home: dict[str, str], spelled: str) -> None:
    assert load_config({"peers": (spelled, "http://a")}, home, None).peers == (PEER, "http://a")
    assert "a URL" in refused({"gateways": (spelled,)}, home, None)
    assert "tunnels are switched off" in refused({"peers": (spelled,), "tunnels": False}, home, None)


@pytest.mark.parametrize("text", [PEER[:-1], PEER + "1", PEER.replace("W", "0"), f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}"])
def test_what_is_no_peer_id(home: dict[str, str], text: str) -> None:
    assert "peers" in refused({"peers": (text,)}, home, None)


def test_the_hub_token_is_found_as_the_hub_library_finds_it(home: dict[str, str], tmp_path: Path) -> None:
    def token(**env: str) -> str | None:
        return load_config({}, home | env, None).hf_token

    assert token() is None
    (usual := Path(home["HOME"]) / ".cache/huggingface").mkdir(parents=True)
    (usual / "token").write_text("from-file\n")
    assert token() == "from-file"
    (tmp_path / "elsewhere").write_text("from-path")
    assert token(HF_TOKEN_PATH=str(tmp_path / "elsewhere")) == "from-path"
    (tmp_path / "token").write_text("from-home")
    assert token(HF_HOME=str(tmp_path)) == "from-home"
    assert token(HUGGING_FACE_HUB_TOKEN="older") == "older"
    assert token(HF_TOKEN=" newer\n", HUGGING_FACE_HUB_TOKEN="older") == "newer"
    assert token(HF_TOKEN="", HUGGING_FACE_HUB_TOKEN="older") == "older"
    assert token(HF_TOKEN="newer", IPFS_ACCELERATE_NODE_HF_TOKEN="ours") == "ours"
    assert token(HF_TOKEN="newer", HF_HUB_DISABLE_IMPLICIT_TOKEN="1") is None


def test_other_tools_variables(home: dict[str, str], tmp_path: Path) -> None:
    config = load_config({}, home | {"IPFS_PATH": str(tmp_path), "TRANSFORMERS_OFFLINE": "1"}, None)
    assert config.ipfs_path == tmp_path
    assert config.hf_offline
    config = load_config({}, home | {"HF_HUB_OFFLINE": "YES", "IPFS_ACCELERATE_NODE_HF_OFFLINE": "0"}, None)
    assert not config.hf_offline
    endpoint = home | {"HF_ENDPOINT": "http://127.0.0.1:8090"}
    assert load_config({}, endpoint, None).hf_upstream == "https://huggingface.co"


def test_the_default_cache_of_a_checkout_and_of_an_installed_package(home: dict[str, str], tmp_path: Path) -> None:
    assert default_cache(home) == CHECKOUT / "cache"
    installed = tmp_path / "site-packages/package/config.py"
    assert default_cache(home, installed) == Path(home["HOME"]) / ".cache/ipfs-accelerate-node"
    assert default_cache(home | {"XDG_CACHE_HOME": "/xdg"}, installed) == Path("/xdg/ipfs-accelerate-node")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "localhost.example.org", "", "127.0.0.1.nip.io"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@given(
    st.dictionaries(
        st.sampled_from(
            ["PORT", "HOST", "KUBO", "GATEWAYS", "PEERS", "QUOTA", "SHARE", "STALL_TIMEOUT_S", "HF_UPSTREAM"]
        ),
        st.text(st.characters(exclude_characters="\0"), max_size=30),
        max_size=3,
    )
)
def test_any_environment_is_a_config_or_a_refusal(env: dict[str, str]) -> None:
    try:
        config = load_config({}, {"HOME": "/nowhere"} | {f"IPFS_ACCELERATE_NODE_{k}": v for k, v in env.items()}, None)
    except InvalidConfig:
        return
    assert 0 <= config.port <= 65535
    assert all(url.startswith(("http://", "https://")) or peer_id(url) for url in (*config.gateways, *config.peers))
