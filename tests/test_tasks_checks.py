"""What a request may hold."""

from __future__ import annotations

from typing import Any

import pytest

from ipfs_accelerate_node.errors import InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference.model import (
    Audio,
    Chat,
    Ids,
    Image,
    ImageChoice,
    Item,
    Message,
    Options,
    Pair,
    Text,
)
from ipfs_accelerate_node.inference.tasks.checks import MAX_CHARS, MAX_ITEMS, check_items, check_options

ALL = (Text, Pair, Ids, Image, Audio, Chat, ImageChoice)


def check(*items: Item) -> None:
    check_items(items, ALL, task="any")


def test_one_of_each_kind_is_fine() -> None:
    check(
        Text("a"),
        Pair("a", "b"),
        Ids((1,)),
        Image(b"x"),
        Audio(b"x"),
        Chat((Message("user", ""),)),
        ImageChoice(b"x", ("a",)),
    )


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (Text(""), "is empty"),
        (Text("a\0b"), "NUL character at position 1"),
        (Text("ab\ud800"), "half a surrogate pair at position 2"),
        (Pair("a", ""), "is empty"),
        (Pair("\udfff", "a"), "half a surrogate"),
        (Ids(()), "is empty"),
        (Image(b""), "is empty"),
        (Audio(b""), "is empty"),
        (Chat(()), "has no message"),
        (Chat((Message("", "x"),)), "is empty"),
        (Chat((Message("user", "\0"),)), "NUL"),
        (ImageChoice(b"x", ()), "has 0 labels"),
        (ImageChoice(b"x", ("a", "")), "is empty"),
        (ImageChoice(b"", ("a",)), "is empty"),
    ],
)
def test_an_item_of_no_use_is_named_by_its_index(item: Item, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        check(Text("fine"), item)
    assert caught.value.detail["index"] == 1


def test_a_kind_that_the_task_does_not_take_is_named() -> None:
    with pytest.raises(InvalidInput, match="input 1 is of kind image, rerank takes pair or text") as caught:
        check_items([Text("a"), Image(b"x")], (Pair, Text), task="rerank")
    assert caught.value.detail["index"] == 1


@pytest.mark.parametrize(
    "items",
    [
        [Text("a")] * (MAX_ITEMS + 1),
        [Text("a" * (MAX_CHARS // 2 + 1)), Pair("a" * (MAX_CHARS // 2), "b")],
        [Ids((1,) * ((1 << 20) + 1))],
        [Image(bytes((32 << 20) + 1))],
        [ImageChoice(bytes((32 << 20) + 1), ("a",))],
        [Image(bytes(32 << 20))] * 9,
    ],
)
def test_more_than_may_be_is_too_large(items: list[Item]) -> None:
    with pytest.raises(PayloadTooLarge):
        check(*items)


def test_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty list"):
        check()


@pytest.mark.parametrize(
    "options",
    [
        {"dimensions": 0},
        {"dimensions": -1},
        {"dimensions": True},
        {"top_k": 0},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": 10**9},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e308},
        {"temperature": "1"},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": True},
        {"seed": -1},
        {"seed": 1 << 64},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
        {"stop": ("x" * 2000,)},
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_options(Options(**options))
    assert caught.value.detail["param"] in options


def test_options_within_range_pass() -> None:
    check_options(Options())
    check_options(
        Options(
            dimensions=1, top_k=1, max_new_tokens=1, temperature=0, top_p=1, seed=0, stop=("x",), language="en",
            prompt_name="q",
        )
    )  # fmt: skip
