from __future__ import annotations

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from ipfs_accelerate_node.content.cid import RAW, Cid
from ipfs_accelerate_node.content.plan import FilePlan, Leaf, ModelPlan
from ipfs_accelerate_node.errors import AlreadyRunning, BadRequest, Conflict, IntegrityError, NotFound
from ipfs_accelerate_node.store import Store
from tests.support.small_model import FROM_CID, bring, bring_files, foreign_model, random_model, small_model


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "cache")


def test_committed_model_is_a_read_only_directory_of_the_files(store: Store) -> None:
    model = random_model(1)
    stored = bring(store, model, name="mini")
    assert (stored.root, stored.size_bytes, stored.file_count) == (model.root, model.plan.size_bytes, 2)
    assert stored.path == store.root / "models" / str(model.root)
    for path, data in model.files.items():
        file = stored.path / path
        assert file.read_bytes() == data
        assert stat.S_IMODE(file.stat().st_mode) == 0o400
    for directory in (store.root / "blobs", store.root / "models", stored.path, stored.path / "sub"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert store.named("mini") == model.root
    assert store.plan(model.root) == model.plan
    assert dict(store.nodes(model.root)) == dict(model.nodes)


def test_file_hashes_are_those_of_hugging_face(store: Store) -> None:
    model = random_model(1)
    bring(store, model)
    for file in model.plan.files:
        data = model.files[file.path]
        stored = store.file(file.cid)
        assert stored is not None
        assert stored.sha256 == hashlib.sha256(data).digest()
        assert stored.git_sha1 == hashlib.sha1(f"blob {len(data)}\0".encode() + data).digest()
        assert stored.path.read_bytes() == data


@pytest.mark.parametrize("build", [random_model, foreign_model])
def test_every_block_comes_back(store: Store, build: object) -> None:
    model = build(3)  # type: ignore[operator]
    bring(store, model)
    for cid, block in model.blocks.items():
        assert store.block(cid) == block
        assert store.has(cid)
    assert {cid.canonical: block for cid, block in store.blocks(model.root)} == model.blocks
    assert store.block(Cid.of(b"elsewhere")) is None


def test_any_spelling_of_a_cid_finds_the_same(store: Store) -> None:
    model = foreign_model(3)
    bring(store, model)
    leaf = model.plan.files[0].leaves[0].cid
    v0 = Cid.parse(str(Cid(0, leaf.codec, leaf.multihash)))
    assert store.block(v0) == model.blocks[leaf]
    assert store.file(Cid(0, *_parts(model.plan.files[0].cid))) is not None


def _parts(cid: Cid) -> tuple[int, bytes]:
    return cid.codec, cid.multihash


def test_depth_first_order_and_scopes(store: Store) -> None:
    model = random_model(3)
    bring(store, model)
    order = [cid for cid, _ in store.blocks(model.root)]
    assert order[0] == model.root
    weights = store.resolve(model.root, "weights.bin")
    assert [cid for cid, _ in store.blocks(weights, scope="block")] == [weights]
    entity = [cid for cid, _ in store.blocks(weights, scope="entity")]
    assert entity == [cid for cid, _ in store.blocks(weights)]
    assert [cid for cid, _ in store.blocks(model.root, scope="entity")] == [model.root]
    with pytest.raises(NotFound):
        list(store.blocks(Cid.of(b"elsewhere")))


def test_entity_of_a_sharded_directory_is_its_shards(store: Store) -> None:
    many = {f"{'x' * 60}-{i:05}.json": b"%d" % i for i in range(3000)}
    model = small_model(many)
    bring_files(store, small_model({}))
    with store.reserve(model.plan.size_bytes):
        for file in list(model.plan.files)[:1]:
            bring_files(store, small_model({file.path: model.files[file.path]}))
        for cid, block in model.nodes:
            store.keep_node(cid, block)
    shards = {cid for cid, _ in store.blocks(model.root, scope="entity")}
    assert shards == {cid for cid, _ in model.nodes}
    assert store.resolve(model.root, model.plan.files[17].path) == model.plan.files[17].cid


def test_resolve(store: Store) -> None:
    model = random_model(3)
    bring(store, model)
    config = next(file for file in model.plan.files if file.path == "sub/config.json")
    assert store.resolve(model.root) == model.root
    assert store.resolve(model.root, "sub/config.json") == config.cid
    for path in ("nothing", "sub/nothing", "sub/../weights.bin"):
        with pytest.raises(NotFound):
            store.resolve(model.root, path)
    with pytest.raises(NotFound):
        store.resolve(Cid.of(b"elsewhere"), "a")


def test_identity_needs_no_store(store: Store) -> None:
    inline = Cid.of(b"hello", RAW, 0)
    assert store.block(inline) == b"hello"
    assert store.has(inline)


def test_inline_and_empty_files(store: Store) -> None:
    """An identity CID carries its leaf; an empty file has one leaf without bytes, or none."""
    inline = Cid.of(b"hello", RAW, 0)
    empty = Cid.of(b"")
    plan = ModelPlan(inline, (FilePlan("", inline, 5, (Leaf(inline, 0, 5),)),))
    with store.partial(inline, 5) as part:
        part.commit(plan.files[0])
    assert (store.commit(plan, (), provenance=FROM_CID).path / str(inline)).read_bytes() == b"hello"
    with store.partial(empty, 0) as part:
        part.commit(FilePlan("", empty, 0, (Leaf(empty, 0, 0),)))
    assert store.block(empty) == b""


def test_root_that_is_a_file_lies_under_its_cid(store: Store) -> None:
    cid = Cid.of(b"just a file")
    file = FilePlan("", cid, 11, (Leaf(cid, 0, 11),))
    with store.partial(cid, 11) as part:
        part.write(file.leaves[0], b"just a file")
        part.commit(file)
    stored = store.commit(ModelPlan(cid, (file,)), (), provenance=FROM_CID)
    assert (stored.path / str(cid)).read_bytes() == b"just a file"


def test_equal_bytes_under_two_file_cids_are_one_inode(store: Store) -> None:
    foreign = foreign_model(9)
    own = small_model({"copy.bin": foreign.files["big.bin"]})
    bring(store, foreign)
    before = store.used_bytes()
    bring(store, own)
    one = store.file(foreign.plan.files[0].cid)
    two = store.file(own.plan.files[0].cid)
    assert one is not None
    assert two is not None
    assert one.cid != two.cid
    assert one.path.stat().st_ino == two.path.stat().st_ino
    assert store.used_bytes() - before == sum(len(block) for _, block in own.nodes)
    assert store.remove(foreign.root, force=True) == len(b"tiny")
    assert store.block(own.plan.files[0].leaves[1].cid) == own.blocks[own.plan.files[0].leaves[1].cid]


def test_names(store: Store) -> None:
    one, two = random_model(1), random_model(2)
    bring(store, one, name="org/one")
    bring(store, two)
    with pytest.raises(Conflict):
        store.set_name(two.root, "org/one")
    with pytest.raises(Conflict):
        bring(store, two, name="org/one")
    store.set_name(two.root, "two")
    store.set_name(two.root, "two")
    assert store.named("two") == two.root
    store.drop_name("two")
    assert store.named("two") is None
    with pytest.raises(NotFound):
        store.drop_name("two")
    for bad in ("", " a", "a\n", "x" * 201):
        with pytest.raises(BadRequest):
            store.set_name(two.root, bad)


def test_pins_keep_and_force_removes(store: Store) -> None:
    model = random_model(1)
    bring(store, model)
    with pytest.raises(Conflict):
        store.remove(model.root)
    store.unpin(model.root)
    assert store.gc().models == (model.root,)
    bring(store, model)
    assert store.remove(model.root, force=True) == model.plan.size_bytes
    assert store.model(model.root) is None
    assert not any((store.root / "blobs").iterdir())
    assert not any((store.root / "models").iterdir())
    assert store.used_bytes() == 0
    with pytest.raises(NotFound):
        store.remove(model.root)


def test_a_model_in_use_stays(store: Store) -> None:
    model = random_model(1)
    bring(store, model, pinned=False)
    with store.use(model.root) as used:
        assert store.gc().models == ()
        with pytest.raises(Conflict):
            store.remove(model.root, force=True)
        assert used.path.is_dir()
    assert store.gc().models == (model.root,)


def test_a_shared_file_outlives_the_first_model(store: Store) -> None:
    shared = b"shared" * 400
    one = small_model({"shared.bin": shared, "one": b"1"})
    two = small_model({"shared.bin": shared, "two": b"2"})
    bring(store, one)
    bring(store, two)
    assert store.remove(one.root, force=True) == 1
    assert (store.root / "models" / str(two.root) / "shared.bin").read_bytes() == shared


def test_access_is_by_root_not_by_leaf(store: Store) -> None:
    """What a private and a public model share is served for the public one; the rest of the private one is not."""
    shared = b"shared" * 400
    private = small_model({"shared.bin": shared, "secret.bin": b"secret"})
    public = small_model({"shared.bin": shared, "open.bin": b"open"})
    bring(store, private, public=False)
    shared_leaf = private.plan.files[1].leaves[0].cid
    assert store.block(shared_leaf, public_only=True) is None
    bring(store, public)
    secret = next(file for file in private.plan.files if file.path == "secret.bin")
    assert store.block(shared_leaf, public_only=True) is not None
    assert store.block(secret.cid, public_only=True) is None
    assert store.block(private.root, public_only=True) is None
    assert store.file(secret.cid, public_only=True) is None
    assert store.block(secret.cid) == b"secret"
    store.set_public(public.root, False)
    assert store.block(shared_leaf, public_only=True) is None


def test_commit_again_widens(store: Store) -> None:
    model = random_model(1)
    bring(store, model, name="a", pinned=False, public=False)
    again = bring(store, model, name="b")
    assert (again.names, again.pinned, again.public) == (("a", "b"), True, True)
    assert bring(store, model, pinned=False, public=False).pinned


def test_commit_refuses_what_is_incomplete_or_wrong(store: Store) -> None:
    model = random_model(1)
    with pytest.raises(NotFound):
        store.commit(model.plan, model.nodes, provenance=FROM_CID)
    bring_files(store, model)
    with pytest.raises(NotFound):
        store.commit(model.plan, (), provenance=FROM_CID)
    wrong = [(cid, block + b"\0") for cid, block in model.nodes]
    with pytest.raises(IntegrityError):
        store.commit(model.plan, wrong, provenance=FROM_CID)
    with pytest.raises(IntegrityError):
        store.keep_node(*wrong[0])
    assert store.models() == []


def test_order_of_use_is_by_counter(store: Store) -> None:
    models = [random_model(seed) for seed in range(3)]
    for model in models:
        bring(store, model)
    with store.use(models[0].root):
        assert [model.root for model in store.models()] == [models[1].root, models[2].root, models[0].root]


def test_second_owner_is_refused_and_told_the_pid(store: Store) -> None:
    with pytest.raises(AlreadyRunning, match=f"already running pid {os.getpid()}"):
        Store.open(store.root)
    store.close()
    Store.open(store.root).close()


def test_lock_file_of_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "store.lock").write_text("999999\n")
    Store.open(tmp_path).close()


def test_threads_share_a_store(store: Store) -> None:
    models = [random_model(seed) for seed in range(8)]
    failures: list[BaseException] = []

    def work(model: object) -> None:
        try:
            bring(store, model, name=None)  # type: ignore[arg-type]
            assert store.block(model.root) is not None  # type: ignore[attr-defined]
            store.verify(model.root)  # type: ignore[attr-defined]
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(model,)) for model in models for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.models()) == 8
    assert store.used_bytes() == sum(m.plan.size_bytes + sum(len(b) for _, b in m.nodes) for m in models)
