"""`POST /api/add` with a form: the root of the directory, and nothing left of what is refused."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from ipfs_accelerate_node.api.pipeline import TRAFFIC
from ipfs_accelerate_node.api.uploads import MAX_DEPTH, upload_path
from ipfs_accelerate_node.errors import UnsafeContent
from ipfs_accelerate_node.store import hash_directory
from tests.support.running import Reply, Running, model, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("uploads") / "cache") as node:
        yield node


async def upload(here: Running, files: list[tuple[str, bytes]], **fields: str) -> Reply:
    parts = [b'name="%s"\r\n\r\n%s' % (name.encode(), value.encode()) for name, value in fields.items()]
    for filename, content in files:
        parts.append(b'name="file"; filename="%s"\r\n\r\n%s' % (quote(filename, safe="").encode(), content))
    body = b"".join(b"--part\r\nContent-Disposition: form-data; %s\r\n" % part for part in parts) + b"--part--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=part"}
    return await here.admin("POST", "/api/add", data=io.BytesIO(body), headers=headers)


async def test_a_form_of_a_client_library(here: Running, tmp_path: Path) -> None:
    folder = model(tmp_path / "form", "form", "sub/na%me é.txt")
    form = aiohttp.FormData()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        form.add_field("file", path.read_bytes(), filename=str(path.relative_to(folder)))
    reply = await here.admin("POST", "/api/add", data=form)
    assert reply.json["root"] == str(hash_directory(folder).plan.root)


def staged(here: Running) -> list[Path]:
    return list((here.node.config.cache / "uploads").iterdir())


async def test_an_upload_has_the_root_of_the_directory(here: Running, tmp_path: Path) -> None:
    names = ("sub/deep/weights.bin", "na%me é.txt", "1_Pooling/config.json", "a+b&c=d;e'f.txt")
    folder = model(tmp_path / "uploaded", "up", *names)
    (folder / "large.bin").write_bytes(bytes(range(256)) * 20_000)
    files = [(str(p.relative_to(folder)), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()]
    reply = await upload(here, files, name="org/uploaded", announce="false")
    assert reply.status == 200, reply.body
    assert reply.json["root"] == str(hash_directory(folder).plan.root)
    assert reply.json["name"] == "org/uploaded"
    assert (Path(reply.json["path"]) / "na%me é.txt").read_bytes() == (folder / "na%me é.txt").read_bytes()
    assert staged(here) == []


HOSTILE = ["..", ".", "", "a/../b", "/etc/passwd", "a//b", "a/", "a\\b", "C:x", "CON", "nul.txt", "a\0b", "x" * 256,
           "a/" * MAX_DEPTH + "b", "../" * 10 + "etc/passwd", "a\nb", "é" * 128]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:20] for name in HOSTILE])
async def test_names_that_are_refused(here: Running, name: str) -> None:
    """U7 on the way in."""
    used = here.node.store.used_bytes()
    reply = await upload(here, [("fine.txt", b"fine"), (name, b"content")])
    assert (reply.status, reply.json["code"]) == (400, "invalid_path")
    assert staged(here) == []
    assert here.node.store.used_bytes() == used


async def test_names_are_decoded_once() -> None:
    assert upload_path("a%252Fb") == "a%2Fb"
    assert upload_path("a%2Fb") == "a/b"
    for name in ("%2e%2e%2fx", "a%00", "%ff"):
        with pytest.raises(UnsafeContent):
            upload_path(name)


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("Model.bin", "model.bin"), ("é", "e\u0301")], ids=ascii
)
async def test_names_that_clash(here: Running, names: tuple[str, str]) -> None:
    """U8 on the way in."""
    reply = await upload(here, [(name, b"content") for name in names])
    assert (reply.status, reply.json["code"]) == (400, "invalid_path")
    assert staged(here) == []


async def test_forms_that_are_none(here: Running) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    whole = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n'
    assert (await here.admin("POST", "/api/add", data=whole, headers=kind)).status == 200
    for body in (b"", b"nothing", whole[:30], whole[:-12], b"--x--\r\n", whole.replace(b"filename", b"other")):
        reply = await here.admin("POST", "/api/add", data=body, headers=kind)
        assert 400 <= reply.status < 500, body
    for other in ("multipart/form-data", "multipart/mixed; boundary=x", "text/plain"):
        reply = await here.admin("POST", "/api/add", data=whole, headers={"Content-Type": other})
        assert 400 <= reply.status < 500, other
    assert (await upload(here, [])).status == 400
    assert (await upload(here, [("a", b"")], announce="perhaps")).status == 422
    assert (await upload(here, [("a", b"")], name="n" * 5000)).status == 413
    assert staged(here) == []


async def test_an_upload_over_the_quota_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "cache", quota_bytes=5 << 20) as here:
        reply = await upload(here, [("small", b"x" * 1000), ("large", bytes(8 << 20))])
        assert (reply.status, reply.json["code"]) == (507, "quota_exceeded")
        assert staged(here) == []
        assert here.node.store.used_bytes() == 0
        assert (await upload(here, [("small", b"x" * 1000)])).status == 200


async def test_an_uploader_who_vanishes_leaves_nothing(here: Running) -> None:
    """H11."""
    used = here.node.store.used_bytes()
    traffic = here.served.app[TRAFFIC]
    _, writer = await asyncio.open_connection("127.0.0.1", here.served.port)
    writer.write(
        f"POST /api/add HTTP/1.1\r\nHost: 127.0.0.1:{here.served.port}\r\nAuthorization: Bearer {here.key}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000000\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
        + bytes(3 << 20)
    )
    async with asyncio.timeout(10):
        while here.node.store.used_bytes() == used:  # noqa: ASYNC110 # a file that grows tells nobody
            await asyncio.sleep(0)
    writer.transport.abort()
    await traffic.idle()
    assert staged(here) == []
    assert here.node.store.used_bytes() == used
