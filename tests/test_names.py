"""Bad-input rows U7 (names) and U8 (names that some file system confuses)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfs_accelerate_node.content.names import check_name, check_tree
from ipfs_accelerate_node.errors import UnsafeContent

BAD_NAMES = [
    "", ".", "..", "/", "a/b", "/a", "a\\b", "\\\\server\\share", "a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\x85b", "C:x",
    "c:", "CON", "con", "con.txt", "Nul.tar.gz", "nul .txt", "COM1", "lpt9.bin", "COM¹", "a" * 256, "ä" * 128,
    "bad\udcff", "\ud800",
]  # fmt: skip
GOOD_NAMES = [
    "model.safetensors", ".gitattributes", "...", "a b", "-rf", "~", "README.md", "console", "com10", "nullable",
    "a" * 255, "ä" * 127, "模型.bin", "xy:z", "what?", "*",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: ascii(name[:20]))
def test_u7_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UnsafeContent) as caught:
        check_name(name)
    assert caught.value.code == "invalid_path"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", GOOD_NAMES, ids=lambda name: ascii(name[:20]))
def test_good_names_pass(name: str) -> None:
    check_name(name)


BAD_TREES = {
    "case": ["Model.bin", "model.bin"],
    "case beyond ASCII": ["STRASSE", "straße"],
    "NFC and NFD": ["caf\u00e9", "cafe\u0301"],
    "case of a folder": ["Weights/a", "weights/b"],
    "twins below one folder": ["w/A", "w/a"],
    "listed twice": ["a", "a"],
    "listed twice below": ["w/a", "b", "w/a"],
    "file then folder": ["a", "a/b"],
    "folder then file": ["a/b", "a"],
    "file and folder by case": ["A", "a/b"],
    "bad component": ["w/../a"],
    "absolute": ["/etc/passwd"],
    "empty component": ["a//b"],
    "trailing slash": ["a/"],
}


@pytest.mark.parametrize("paths", BAD_TREES.values(), ids=BAD_TREES.keys())
def test_u8_confusable_trees_are_refused(paths: list[str]) -> None:
    with pytest.raises(UnsafeContent) as caught:
        check_tree(paths)
    assert caught.value.code == "invalid_path"


def test_a_tree_without_twins_passes() -> None:
    check_tree(["config.json", "1_Pooling/config.json", "a/b/c", "a/b/d", "a/c"], ["a", "a/b", "empty", "empty/x"])
    check_tree([])


def test_directories_count_too() -> None:
    with pytest.raises(UnsafeContent):
        check_tree(["a"], ["a"])
    with pytest.raises(UnsafeContent):
        check_tree(["a/b"], ["A"])


def test_both_names_are_in_the_message() -> None:
    with pytest.raises(UnsafeContent, match=r"'model\.bin' and 'Model\.bin'"):
        check_tree(["Model.bin", "model.bin"])


@given(st.text(max_size=300))
def test_whatever_passes_is_one_safe_component(name: str) -> None:
    try:
        check_name(name)
    except UnsafeContent:
        return
    assert name not in ("", ".", "..")
    assert not set("/\\\0\n") & set(name)
    assert len(name.encode()) <= 255
