"""Artefacts: made once, shared, whole or not there. Real converting processes over a tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from ipfs_accelerate_node.errors import BadContent, InferenceFailed, ModelUnsupported, StorageError
from ipfs_accelerate_node.inference.openvino import artefacts
from ipfs_accelerate_node.inference.openvino.artefact import (
    DESCRIPTION,
    artefact_key,
    check_artefact,
    form_of,
    read_artefact,
    versions_of,
)
from ipfs_accelerate_node.inference.openvino.conversion import Conversion, Order
from ipfs_accelerate_node.inference.process import worker_environment
from tests.support.models import tiny_model, write_json

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

ROOT = "root of the model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(model: Path, kept: Path) -> Path:
    """An artefact that two callers asked for, a third having given up in the middle."""
    first_words = asyncio.Event()
    told: list[list[str]] = [[], []]

    def hear(at: int) -> Callable[[str], None]:
        def heard(words: str) -> None:
            told[at].append(words)
            first_words.set()

        return heard

    async with asyncio.TaskGroup() as group:
        gone = group.create_task(artefacts.ensure(model, ROOT, "embedding", "f32", kept, lambda words: None))
        await asyncio.sleep(0)  # it is the one that waits for the process
        callers = [
            group.create_task(artefacts.ensure(model, ROOT, "embedding", "bf16", kept, hear(at))) for at in range(2)
        ]
        await first_words.wait()
        gone.cancel()
    assert gone.cancelled()
    paths = {caller.result() for caller in callers}
    assert told[0] == told[1]
    assert "converting graph vectors (1 of 1)" in told[0]
    assert told[0].count("checking the model") == 1
    return paths.pop()


def entries(kept: Path) -> list[str]:
    return sorted(entry.name for entry in (kept / "artefacts").iterdir())


async def test_callers_share_one_conversion(made: Path, kept: Path) -> None:
    assert entries(kept) == [made.name]
    assert made.stat().st_mode & 0o777 == 0o700
    found = check_artefact(made)
    assert (found.root, found.form, found.weights, found.gate) == (ROOT, "embedding", "f32", None)
    assert found.key == made.name == artefact_key(ROOT, "embedding", "f32", versions_of("f32"))
    assert [(graph.name, graph.outputs) for graph in found.graphs] == [("vectors", ("vectors", "pooled", "hidden"))]


async def test_what_is_there_is_not_converted_again(made: Path, model: Path, kept: Path) -> None:
    told: list[str] = []
    found = await artefacts.ensure(model, ROOT, "embedding", "f16", kept, told.append)
    assert (found, told) == (made, [])


async def test_listed_and_counted(made: Path, kept: Path) -> None:
    (one,) = artefacts.stored(kept)
    assert (one.path, one.artefact) == (made, read_artefact(made))
    assert one.size_bytes == artefacts.size_bytes(kept) == sum(file.stat().st_size for file in made.iterdir())
    assert one.size_bytes > one.artefact.size_bytes > 0
    assert artefacts.stored(kept, root="another") == []
    assert artefacts.stored(kept / "nowhere") == []
    assert artefacts.size_bytes(kept / "nowhere") == 0
    assert artefacts.remove(kept, "another") == 0


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "link", "unnamed", "text", "schema", "path"])
async def test_damage_is_found(made: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    check_artefact(copy)
    weights, description = copy / "vectors.bin", copy / DESCRIPTION
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "gone":
        weights.unlink()
    elif damage == "link":
        weights.unlink()
        weights.symlink_to(made / "vectors.bin")
    elif damage == "unnamed":
        description.unlink()
    elif damage == "text":
        description.write_bytes(b"{" * 100_000)
    else:
        said = msgspec.json.decode(description.read_bytes())
        said["schema" if damage == "schema" else "graphs"] = 99 if damage == "schema" else said["graphs"]
        if damage == "path":
            said["graphs"][0]["xml"]["name"] = "../copy/vectors.xml"
        description.write_bytes(msgspec.json.encode(said))
    with pytest.raises(BadContent) as caught:
        check_artefact(copy)
    assert caught.value.code == "bad_artefact"


async def test_a_damaged_one_is_made_again(made: Path, model: Path, kept: Path) -> None:
    weights, good = made / "vectors.bin", (made / "vectors.bin").read_bytes()
    weights.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    dead = kept / "artefacts" / ".partial-999999999-1"  # of a daemon that was killed
    dead.mkdir()
    older = kept / "artefacts" / ("0" * 40)
    older.mkdir()
    for file in made.iterdir():
        (older / file.name).write_bytes(file.read_bytes())
    told: list[str] = []
    assert await artefacts.ensure(model, ROOT, "embedding", "f32", kept, told.append) == made
    assert "converting graph vectors (1 of 1)" in told
    assert weights.read_bytes() == good
    assert entries(kept) == [made.name]


async def test_nobody_waits_any_more(model: Path, tmp_path: Path) -> None:
    begun = asyncio.Event()
    caller = asyncio.create_task(artefacts.ensure(model, ROOT, "embedding", "f32", tmp_path, lambda words: begun.set()))
    await begun.wait()
    assert len(entries(tmp_path)) == 1
    assert children()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert entries(tmp_path) == []
    assert not children()


def children() -> list[int]:
    """Converting processes of this one."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [pid for pid in map(int, found) if b"openvino.convert" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_the_process_is_killed(model: Path, tmp_path: Path) -> None:
    def kill(words: str) -> None:
        if words == "loading torch":
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(InferenceFailed, match="out of memory"):
        await artefacts.ensure(model, ROOT, "embedding", "f32", tmp_path, kill)
    assert entries(tmp_path) == []


async def test_refusals_come_through(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"  # somebody's own IR: its .xml may name files and libraries, so nobody reads it
    tiny_model(foreign)
    (foreign / "model.safetensors").unlink()
    (foreign / "openvino_model.xml").write_text('<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><net>&e;</net>')
    (foreign / "openvino_model.bin").write_bytes(b"\0" * 64)
    huge = tmp_path / "huge"
    tiny_model(huge)
    write_json(huge / "config.json", msgspec.json.decode((huge / "config.json").read_bytes()) | {"hidden_size": 10**9})
    for directory, codes in ((foreign, {"format_refused"}), (huge, {"model_too_large", "bad_config", "bad_weights"})):
        with pytest.raises(ModelUnsupported) as caught:
            await artefacts.ensure(directory, directory.name, "embedding", "f32", tmp_path)
        assert caught.value.code in codes
    assert entries(tmp_path) == []


async def test_int8_of_what_is_no_text_encoder(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        await artefacts.ensure(model, ROOT, "fill-mask", "int8", tmp_path)
    assert caught.value.code == "task_unsupported"


async def test_a_cache_that_cannot_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "artefacts").write_text("a file")
    with pytest.raises(StorageError):
        await artefacts.ensure(model, ROOT, "embedding", "f32", tmp_path)


DAEMON = """
import asyncio, sys
from pathlib import Path
from ipfs_accelerate_node.inference.openvino import artefacts
say = lambda words: print(words, flush=True)
asyncio.run(artefacts.ensure(Path(sys.argv[1]), "root", "embedding", "f32", Path(sys.argv[2]), say))
"""


async def test_it_dies_with_its_daemon(model: Path, tmp_path: Path) -> None:
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(model), str(tmp_path)],
        stdout=subprocess.PIPE, env=worker_environment(1), text=True,
    )  # fmt: skip
    assert daemon.stdout is not None
    assert daemon.stdout.readline() == "checking the model\n"
    (child,) = map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())
    watch = os.pidfd_open(child)
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watch, ended.set)
    await ended.wait()
    loop.remove_reader(watch)
    os.close(watch)
    assert len(entries(tmp_path)) == 1  # the next conversion clears it away


async def test_silence(model: Path, tmp_path: Path) -> None:
    """Words that are no answer, and an end without any."""
    order = Order(model, ROOT, "no such task", "embedding", "f32", versions_of("f32"))
    conversion = Conversion(tmp_path, order)
    with pytest.raises(ModelUnsupported) as caught:
        await conversion.run(lambda words: None)
    assert caught.value.code == "task_unsupported"
    await conversion.end()
    await conversion.end()
    assert not children()


async def test_what_decides_an_artefact() -> None:
    found = versions_of("f32")
    assert found.keys() == {"openvino", "torch", "transformers", "exporter"}
    assert versions_of("int8").keys() == found.keys() | {"nncf"}
    keys = {
        artefact_key("a", "embedding", "f32", found),
        artefact_key("b", "embedding", "f32", found),
        artefact_key("a", "fill-mask", "f32", found),
        artefact_key("a", "embedding", "int8", found),
        artefact_key("a", "embedding", "f32", found | {"torch": "0"}),
    }
    assert len(keys) == 5
    assert form_of("rerank") == form_of("text-classification")
    assert form_of("zero-shot-image-classification") == form_of("embedding")


async def test_removed(made: Path, kept: Path) -> None:
    size = artefacts.size_bytes(kept)
    assert artefacts.remove(kept, ROOT) == size > 0
    assert entries(kept) == []
    assert artefacts.stored(kept) == []
