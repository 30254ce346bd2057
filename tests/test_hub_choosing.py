"""Some files of a Hub commit: chosen by the user, or as many as a loader needs; and what becomes of them later."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.content.selection import Choice
from ipfs_accelerate_node.fetch.hub_here import stored_commit
from ipfs_accelerate_node.fetch.pins import Wish
from ipfs_accelerate_node.sources.hub_names import HubRepo
from ipfs_accelerate_node.store import StoredModel
from tests.support.hub import FakeHub
from tests.support.running import Running, running

pytestmark = pytest.mark.timeout(120)

BIG = bytes(range(256)) * 5000  # more than a leaf
FILES = {
    ".gitattributes": b"hidden",
    "README.md": b"# a model",
    "config.json": b'{"a": 1}',
    "onnx/model.onnx": b"onnx" * 1000,
    "pytorch_model.bin": BIG[::-1],
    "model.safetensors": BIG,
    "tokenizer.json": b'{"t": 1}',
}
VISIBLE = {path for path in FILES if not path.startswith(".")}
JSON = ["*.json"]


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub(one_origin=True) as fake:
        fake.repo("org/model", FILES)
        yield fake


@pytest.fixture
async def node(cache: Path, hub: FakeHub) -> AsyncIterator[Running]:
    async with running(cache, hf_upstream=hub.url) as up:
        yield up


async def pinned(node: Running, ref: str = "hf:org/model", **wanted: Any) -> Any:
    started = await node.admin("POST", "/api/pins", json={"ref": ref, **wanted})
    assert started.status == 202, started.body
    here = node.node
    job = here.pin_job(started.json["id"])
    assert job is not None
    async for state in here.updates(job):
        job = state
    reply = await node.admin("GET", f"/api/pins/{job.id}")
    assert reply.json["state"] == "pinned", reply.json["error"]
    return reply.json["receipt"]


def files_of(receipt: Any) -> set[str]:
    root = Path(receipt["path"])
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def asked(hub: FakeHub) -> set[str]:
    """Paths of files whose bytes were asked for."""
    return {r.path.split("/resolve/")[1].partition("/")[2] for r in hub.asked("hub") if "/resolve/" in r.path}


def model(node: Running, root: str) -> StoredModel | None:
    return node.node.store.model(Cid.parse(root))


async def whole_root(tmp_path: Path, hub: FakeHub) -> str:
    (other := tmp_path / "stranger").mkdir(mode=0o700)
    async with running(other, hf_upstream=hub.url) as stranger:
        root: str = (await pinned(stranger))["root"]
    hub.seen.clear()
    return root


async def test_chosen_files_are_a_selection_under_a_root_of_their_own(
    tmp_path: Path, node: Running, hub: FakeHub
) -> None:
    root = await whole_root(tmp_path, hub)
    part = await pinned(node, include=JSON, name="mine")
    assert files_of(part) == {"config.json", "tokenizer.json"} == asked(hub)
    assert part["root"] != root
    lacking = VISIBLE - files_of(part)
    assert set(part["selection"]["left_out"]) == lacking
    assert part["selection"]["left_out_bytes"] == sum(len(FILES[path]) for path in lacking)
    assert (part["bytes_total"], part["bytes_fetched"], part["bytes_here"]) == (16, 16, 0)
    told = await node.ask("GET", "/api/maps?repo=org/model")
    assert told.status == 404  # a part is nobody's map
    info = (await node.admin("GET", "/api/store/hf:org/model")).json["model"]
    assert (info["root"], info["provenance"]["selection"]["left_out_files"]) == (part["root"], len(lacking))


async def test_a_selection_grows_and_yields_to_the_commits_own_root(
    tmp_path: Path, node: Running, hub: FakeHub
) -> None:
    root = await whole_root(tmp_path, hub)
    first = await pinned(node, include=JSON, name="mine")
    second = await pinned(node, include=["*.safetensors"])
    assert (here := files_of(second)) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (second["bytes_here"], second["bytes_fetched"]) == (16, len(BIG))
    assert second["replaced"] == [first["root"]]
    assert model(node, first["root"]) is None
    hub.seen.clear()
    again = await pinned(node, include=["config.json"])
    assert again["root"] == second["root"]
    assert not asked(hub)
    whole = await pinned(node)
    assert whole["root"] == root
    assert asked(hub) == VISIBLE - here
    assert (whole["bytes_here"], whole["bytes_copied"]) == (sum(len(FILES[path]) for path in here), 0)
    assert whole["bytes_fetched"] == whole["bytes_total"] - whole["bytes_here"]
    assert whole["selection"] is None
    assert [(m.root, m.names, m.pinned) for m in node.node.models()] == [(Cid.parse(root), ("mine",), True)]
    assert (await node.ask("GET", "/api/maps?repo=org/model")).status == 200


async def test_it_yields_to_what_clients_of_the_endpoint_brought_file_by_file(
    tmp_path: Path, node: Running, hub: FakeHub
) -> None:
    root = await whole_root(tmp_path, hub)
    await pinned(node, include=JSON, name="mine")
    for path in sorted(VISIBLE):
        assert (await node.ask("GET", f"/org/model/resolve/main/{path}")).body == FILES[path]
    assert [(str(m.root), m.names, m.pinned) for m in node.node.models()] == [(root, ("mine",), True)]


async def test_what_is_a_part_of_one_commit_can_be_all_of_the_next(node: Running, hub: FakeHub) -> None:
    part = await pinned(node, include=JSON)
    hub.repos["org/model"].commit({path: FILES[path] for path in ("config.json", "tokenizer.json")})
    whole = await pinned(node)
    assert (whole["root"], whole["selection"], whole["bytes_here"]) == (part["root"], None, 16)
    first = next(iter(hub.repos["org/model"].commits))
    await pinned(node, f"hf:org/model@{first}")
    assert model(node, whole["root"]) is not None  # it stands for itself now


async def test_exclude_goes_before_include_and_no_match_is_an_error(node: Running, hub: FakeHub) -> None:
    part = await pinned(node, include=["*.json", "*.md"], exclude=["tok*"])
    assert files_of(part) == {"config.json", "README.md"}
    with pytest.raises(AssertionError, match="matches"):
        await pinned(node, include=["*.nothing"])
    everything = await pinned(node, exclude=["*.nothing"])
    assert files_of(everything) == VISIBLE
    assert everything["selection"] is None


async def test_parts_of_a_commit_whose_cids_are_known_stay_under_its_root(
    tmp_path: Path, node: Running, hub: FakeHub
) -> None:
    """Known by an earlier stay of all its files, which have gone since."""
    whole = await pinned(node, name="mine")
    root = whole["root"]
    assert (await node.admin("DELETE", f"/api/store/{root}?force=true")).status == 200
    assert (await node.admin("POST", "/api/gc")).status == 200
    hub.seen.clear()
    part = await pinned(node, include=JSON)
    assert (part["root"], part["selection"], part["absent_files"]) == (root, None, len(VISIBLE) - 2)
    assert files_of(part) == {"config.json", "tokenizer.json"} == asked(hub)
    more = await pinned(node, include=["model.safetensors"])
    assert (more["root"], more["absent_files"]) == (root, len(VISIBLE) - 3)
    assert (Path(more["path"]) / "model.safetensors").read_bytes() == BIG
    assert (await pinned(node))["absent_files"] == 0
    assert (await node.admin("POST", "/api/verify", json={"ref": root})).json["corrupt"] == []
    leaf = Cid.of(BIG[: 1 << 20])
    assert node.node.store.block(leaf) == BIG[: 1 << 20]
    reply = await node.ask("GET", f"/ipfs/{root}/model.safetensors")
    assert (reply.status, reply.body) == (200, BIG)
    assert (await node.ask("GET", f"/ipfs/{root}?format=car")).status == 200  # so all its nodes are here


async def test_that_survives_a_new_start(cache: Path, hub: FakeHub) -> None:
    async with running(cache, hf_upstream=hub.url) as node:
        whole = await pinned(node)
        await node.admin("DELETE", f"/api/store/{whole['root']}?force=true")
        await node.admin("POST", "/api/gc")
        await pinned(node, include=JSON)
        part = await pinned(node, include=["pytorch_model.bin"])
    (cache / "index.sqlite").unlink()
    async with running(cache, hf_upstream=hub.url) as node:
        here = model(node, part["root"])
        assert here is not None
        assert (here.file_count, here.absent_files) == (3, len(VISIBLE) - 3)
        assert (await pinned(node))["absent_files"] == 0


async def test_parts_by_a_peers_map_are_under_the_commits_root(tmp_path: Path, hub: FakeHub) -> None:
    caches = [tmp_path / name for name in ("one", "two")]
    for cache in caches:
        cache.mkdir(mode=0o700)
    async with running(caches[0], hf_upstream=hub.url) as one:
        root = (await pinned(one))["root"]
        hub.seen.clear()
        async with running(caches[1], hf_upstream=hub.url, peers=(one.url,)) as two:
            part = await pinned(two, include=JSON)
            assert (part["root"], part["selection"], part["absent_files"]) == (root, None, len(VISIBLE) - 2)
            assert files_of(part) == {"config.json", "tokenizer.json"}
            kept = two.node.hub.shelf.commit(HubRepo("org/model"), next(iter(hub.repos["org/model"].commits)))
            assert kept is not None
            assert set(kept.cids) == files_of(part)  # of the others nothing was checked
            assert stored_commit(two.node.store, kept.snapshot) is not None


async def test_a_restricted_selection_is_given_to_nobody(cache: Path, hub: FakeHub) -> None:
    hub.tokens = frozenset(["hf_known"])
    hub.repo("org/private", FILES, readers=frozenset(["hf_known"]))
    async with running(cache, hf_upstream=hub.url, hf_token="hf_known") as node:
        part = await pinned(node, "hf:org/private", include=JSON)
        found = model(node, part["root"])
        assert found is not None
        assert (found.public, part["announced"]) == (False, False)
        assert (await node.ask("GET", f"/ipfs/{part['root']}?format=raw")).status == 404


async def test_a_plan_says_the_same(node: Running, hub: FakeHub) -> None:
    planned = (await node.admin("GET", "/api/plan?ref=hf:org/model&include=*.json&exclude=tok*")).json
    assert [file["path"] for file in planned["files"]] == ["config.json"]
    assert (planned["bytes_to_fetch"], planned["only"], planned["exclude"]) == (8, JSON, ["tok*"])
    await pinned(node, include=JSON)
    planned = (await node.admin("GET", "/api/plan?ref=hf:org/model")).json
    assert {file["path"]: file["here"] for file in planned["files"]} == {
        path: path in {"config.json", "tokenizer.json"} for path in VISIBLE
    }
    assert planned["bytes_here"] == 16
    assert (await node.admin("GET", "/api/plan?ref=hf:org/model&include=none")).json["code"] == "no_match"


NEEDED = {"config.json", "model.safetensors", "tokenizer.json"}


async def needed(node: Running, ref: str = "hf:org/model") -> Path:
    pins = node.node._pins
    root = await pins.bring(ref, node.node.catalogue.meant, Wish(needed=True))
    found = model(node, root)
    assert found is not None
    return found.path


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def test_a_load_brings_what_a_loader_needs(node: Running, hub: FakeHub) -> None:
    assert below(await needed(node)) == NEEDED == asked(hub)


async def test_of_shards_exactly_those_of_the_index(node: Running, hub: FakeHub) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "pytorch_model.bin.index.json": b"{}",
        "pytorch_model-1.bin": b"x",
        **{f"model-{i}.safetensors": b"%d" % i for i in range(1, 4)},
        "consolidated.safetensors": b"once more",
        "original/model.safetensors": b"once more too",
    }
    hub.repo("org/large", files)
    wanted = {"config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}
    assert below(await needed(node, "hf:org/large")) == wanted == asked(hub)
    hub.seen.clear()
    commit = next(iter(hub.repos["org/large"].commits))
    assert below(await needed(node, f"hf:org/large@{commit}")) == wanted
    assert not hub.seen  # what is here of a commit is here


@pytest.mark.parametrize(
    "text", [b"not json", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": "absent.safetensors"}}']
)
async def test_an_index_that_leads_nowhere_is_named(node: Running, hub: FakeHub, text: bytes) -> None:
    hub.repo("org/odd", {"config.json": b"{}", "model.safetensors.index.json": text})
    reply = await node.admin("POST", "/api/loads", json={"ref": "hf:org/odd"})
    assert (reply.status, reply.json["code"]) == (422, "bad_weights")


async def test_modules_of_sentence_transformers_come_along(node: Running, hub: FakeHub) -> None:
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense"},
    ]
    files = {
        **FILES,
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"dense",
        "2_Dense/pytorch_model.bin": b"dense again",
        "3_Other/config.json": b"{}",
    }
    hub.repo("org/sentences", files)
    assert below(await needed(node, "hf:org/sentences")) == NEEDED | {
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }


async def test_weights_that_no_loader_takes_are_not_fetched(node: Running, hub: FakeHub) -> None:
    hub.repo("org/pickled", {"config.json": b"{}", "pytorch_model.bin": BIG})
    reply = await node.admin("POST", "/api/loads", json={"ref": "hf:org/pickled"})
    assert (reply.status, reply.json["code"]) == (422, "format_refused")
    assert "pytorch_model.bin" in reply.json["detail"]
    assert not asked(hub)


async def test_what_a_selection_lacks_for_a_load_is_fetched(node: Running, hub: FakeHub) -> None:
    await pinned(node, include=["config.json"])
    await node.admin("POST", "/api/loads", json={"ref": "hf:org/model"})
    assert below(node.node.find("hf:org/model").path) == NEEDED


def test_a_choice_is_spelled_as_it_was_typed() -> None:
    assert str(Choice(("*.json",), ("a", "b"))) == "*.json --exclude a --exclude b"
