"""The outline of a DAG agrees with the walk of a fetch, and wants no leaf for it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.content.cid import DAG_PB, RAW, Cid
from ipfs_accelerate_node.content.dagpb import Link
from ipfs_accelerate_node.content.outline import Outline
from ipfs_accelerate_node.content.plan import ModelPlan
from ipfs_accelerate_node.content.unixfs import directory_node
from ipfs_accelerate_node.errors import BadContent, NodeError, UnsafeContent
from tests.support.small_model import CHUNK, SmallModel, foreign_model, random_model, small_model


def outlined(root: Cid, blocks: dict[Cid, bytes]) -> tuple[ModelPlan, list[Cid]]:
    """The plan, and what had to be read for it."""
    outline, read = Outline(root), []
    while wanted := outline.wanted(3):
        for cid in wanted:
            outline.give(cid, blocks[cid])
            read.append(cid)
    return outline.plan(), read


def told(plan: ModelPlan) -> list[tuple[str, Cid, int]]:
    return [(file.path, file.cid, file.size) for file in plan.files]


MODELS = {
    "two files": random_model(3),
    "many levels": small_model({"a/b/c/deep.bin": random.Random(1).randbytes(40 * CHUNK)}, ("empty", "a/x")),
    "sharded": small_model({f"{'x' * 60}-{i:05}.json": b"%d" % i for i in range(3000)}),
    "twins": small_model({"a": b"same" * 999, "b": b"same" * 999, "nothing": b""}),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_lists_what_the_walk_lists(name: str) -> None:
    model = MODELS[name]
    plan, read = outlined(model.root, model.blocks)
    assert told(plan) == told(model.plan)
    assert plan.directories == model.plan.directories
    assert set(read) <= {cid for cid, _ in model.nodes}


def test_leaves_that_are_raw_are_those_of_the_walk() -> None:
    """Inner nodes of at most 2 MiB of file are not opened: here that is every one below the file's own."""
    model = small_model({"weights.bin": random.Random(2).randbytes(4 * CHUNK)})
    plan, _ = outlined(model.root, model.blocks)
    assert plan == model.plan


def test_dag_pb_leaves_stay_unread() -> None:
    model = foreign_model(5)
    plan, read = outlined(model.root, model.blocks)
    assert told(plan) == [(file.path, file.cid.canonical, file.size) for file in model.plan.files]
    big = next(file for file in model.plan.files if file.path == "big.bin")
    assert not {leaf.cid.canonical for leaf in big.leaves} & set(read)


@pytest.mark.parametrize("codec", [RAW, DAG_PB])
def test_a_root_that_is_a_file(codec: int) -> None:
    if codec == RAW:
        cid, blocks = Cid.of(b"just a file"), {Cid.of(b"just a file"): b"just a file"}
        plan, _ = outlined(cid, blocks)
        assert told(plan) == [("", cid, 11)]
    else:
        model = random_model(3)
        file = next(file for file in model.plan.files if file.path == "weights.bin")
        plan, _ = outlined(file.cid, model.blocks)
        assert told(plan) == [("", file.cid, file.size)]


def test_an_inline_root_wants_nothing() -> None:
    plan, read = outlined(Cid.of(b"hello", RAW, 0), {})
    assert (told(plan)[0][2], read) == (5, [])


def test_names_that_no_disk_should_have_are_refused() -> None:
    for names in ((b"..",), (b"a/b",), (b"A", b"a"), (b"\xff",)):
        block = directory_node([Link(Cid.of(b"x"), name, 1) for name in names])
        root = Cid.of(block, DAG_PB)
        with pytest.raises(UnsafeContent):
            outlined(root, {root: block})


def test_codecs_that_are_no_model() -> None:
    with pytest.raises(BadContent) as refused:
        Outline(Cid.of(b"x", 0x71))
    assert refused.value.code == "unsupported_codec"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 6))
def test_damaged_blocks_are_typed_errors_or_another_outline(seed: int, flips: int) -> None:
    rng = random.Random(seed)
    model: SmallModel = MODELS["many levels"]
    blocks = dict(model.blocks)
    for cid, node in model.nodes:
        data = bytearray(node)
        for _ in range(flips):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        blocks[cid] = bytes(data)
    outline = Outline(model.root)
    try:
        for _ in range(10_000):
            if outline.done:
                break
            for cid in outline.wanted(5):
                outline.give(cid, blocks.get(cid, b""))
        outline.plan()
    except NodeError:
        pass
