"""The shelf: what the Hub said survives restarts and damage; what a peer says never replaces it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ipfs_accelerate_node.fetch import hub_shelf
from ipfs_accelerate_node.fetch.hub_shelf import HubShelf, KeptCommit
from ipfs_accelerate_node.sources.hub_answers import About, Commit, Lfs, TreeEntry
from ipfs_accelerate_node.sources.hub_names import HubRepo

REPO = HubRepo("org/model")
SHA, OTHER_SHA = "a" * 40, "b" * 40
HUB, PEER = "https://hub.example", "http://10.0.0.2:8090"
ENTRIES = (
    TreeEntry(".gitattributes", 5, "1" * 40),
    TreeEntry("sub", 0, "2" * 40, folder=True),
    TreeEntry("sub/config.json", 2, "3" * 40),
    TreeEntry("weights.safetensors", 9, "4" * 40, Lfs("5" * 64, 9, 130)),
)


def kept(sha: str = SHA, *, restricted: bool = False, repo: HubRepo = REPO) -> KeptCommit:
    about = About(sha, restricted, {"id": repo.id, "tags": ["a"], "lastModified": "2026-01-01T00:00:00+00:00"})
    return KeptCommit.of(repo, Commit(about, ENTRIES), HUB)


def files(cache: Path) -> list[Path]:
    return sorted((cache / "hub" / "shelf").rglob("*.json"))


def test_it_survives_a_restart(cache: Path) -> None:
    shelf = HubShelf(cache, now_s=lambda: 1000.0)
    shelf.keep(kept(), "main")
    shelf.note_cids(REPO, SHA, {"sub/config.json": "bafkqaaa"}, "bafyroot")
    again = HubShelf(cache, now_s=lambda: 1060.0)
    found = again.commit(REPO, SHA)
    assert found == replace(kept(), cids={"sub/config.json": "bafkqaaa"}, root="bafyroot")
    assert again.ref(REPO, "main") == (SHA, 60.0)
    assert again.ref(REPO, SHA) == (SHA, 0.0)
    assert again.ref(REPO, "v1") is None
    assert again.commit(REPO, OTHER_SHA) is None
    assert found is not None
    assert [file.path for file in found.snapshot.files] == ["sub/config.json", "weights.safetensors"]
    assert found.snapshot.files[1].oid == "5" * 64


def test_kinds_and_repositories_do_not_mix(cache: Path) -> None:
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    for other in (HubRepo("org/model", "dataset"), HubRepo("org/Model"), HubRepo("org/other")):
        assert shelf.commit(other, SHA) is None
        assert shelf.ref(other, "main") is None


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"kind": "model"}', b"\xff", b"null", b'{"version": 1, "kind": "space"}']
)
def test_a_damaged_file_is_as_if_absent_and_is_written_anew(cache: Path, damage: bytes) -> None:
    HubShelf(cache).keep(kept(), "main")
    for file in files(cache):
        file.write_bytes(damage)
    shelf = HubShelf(cache)
    assert shelf.commit(REPO, SHA) is None
    assert shelf.ref(REPO, "main") is None
    shelf.keep(kept(), "main")
    assert HubShelf(cache).commit(REPO, SHA) == kept()


def test_another_version_or_another_repositorys_file_is_as_if_absent(cache: Path) -> None:
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    (file,) = [path for path in files(cache) if path.name == f"{SHA}.json"]
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":2'))
    assert HubShelf(cache).commit(REPO, SHA) is None
    shelf.keep(kept(repo=HubRepo("org/other")))
    (other,) = [path for path in files(cache) if path.name == f"{SHA}.json" and path.parent != file.parent]
    file.write_bytes(other.read_bytes())
    assert HubShelf(cache).commit(REPO, SHA) is None


def test_a_file_that_is_too_large_is_not_kept_nor_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_shelf, "MAX_FILE_BYTES", 700)
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    assert [path.name for path in files(cache)] == ["refs.json"]
    monkeypatch.setattr(hub_shelf, "MAX_FILE_BYTES", 1 << 20)
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    monkeypatch.setattr(hub_shelf, "MAX_FILE_BYTES", 100)
    assert HubShelf(cache).commit(REPO, SHA) is None


def test_it_never_follows_a_link(cache: Path, tmp_path: Path) -> None:
    HubShelf(cache).keep(kept(), "main")
    (file,) = [path for path in files(cache) if path.name == f"{SHA}.json"]
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    assert HubShelf(cache).commit(REPO, SHA) is None


def test_what_a_crash_left_goes_at_the_next_start(cache: Path) -> None:
    HubShelf(cache).keep(kept(), "main")
    (left := files(cache)[0].with_name("refs.json.abcd.tmp")).write_bytes(b"{")
    HubShelf(cache)
    assert not left.exists()


def test_a_clock_that_was_set_back_makes_an_answer_old(cache: Path) -> None:
    HubShelf(cache, now_s=lambda: 1000.0).keep(kept(), "main")
    ref = HubShelf(cache, now_s=lambda: 10.0).ref(REPO, "main")
    assert ref == (SHA, float("inf"))


def test_a_repository_that_became_restricted_is_so_at_every_commit(cache: Path) -> None:
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    shelf.keep(kept(OTHER_SHA, restricted=True), "main")
    for at in (shelf, HubShelf(cache)):
        old = at.commit(REPO, SHA)
        assert old is not None
        assert old.restricted
    shelf.note_ref(REPO, "main", About(OTHER_SHA, False), HUB)
    old = shelf.commit(REPO, SHA)
    assert old is not None
    assert not old.restricted


def test_a_claim_gives_way_to_the_hub_and_never_replaces_it(cache: Path) -> None:
    shelf = HubShelf(cache, now_s=lambda: 5.0)
    claim = replace(kept(), source=PEER, claimed=True, entries=ENTRIES[2:])
    assert shelf.keep(claim, "main").claimed
    assert shelf.ref(REPO, "main") == (SHA, float("inf"))
    assert shelf.keep(kept(), "main") == kept()
    assert shelf.ref(REPO, "main") == (SHA, 0.0)
    assert shelf.keep(claim, "main") == kept()
    shelf.keep(kept(OTHER_SHA, restricted=True))
    shelf.keep(replace(claim, restricted=False), "main")
    assert shelf.refs(REPO).restricted  # a peer cannot open what the Hub closed


def test_it_stays_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_shelf, "MAX_REFS", 3)
    monkeypatch.setattr(hub_shelf, "MAX_REPOS", 2)
    monkeypatch.setattr(hub_shelf, "KEPT_IN_MEMORY", 1)
    shelf = HubShelf(cache)
    for number in range(5):
        shelf.keep(kept(), f"branch-{number}")
    assert list(shelf.refs(REPO).refs) == ["branch-2", "branch-3", "branch-4"]
    for number in range(4):
        shelf.keep(kept(repo=HubRepo(f"org/m{number}")), "main")
        folder = max((cache / "hub" / "shelf").iterdir(), key=lambda path: path.lstat().st_ctime_ns)
        os.utime(folder, (number, number))
    assert len(list((cache / "hub" / "shelf").iterdir())) == 2
    assert shelf.commit(HubRepo("org/m3"), SHA) is not None


def test_a_disk_that_refuses_costs_only_what_a_restart_forgets(cache: Path) -> None:
    (cache / "hub").mkdir()
    (cache / "hub" / "shelf").write_bytes(b"in the way")
    shelf = HubShelf(cache)
    shelf.keep(kept(), "main")
    assert shelf.commit(REPO, SHA) == kept()
    assert HubShelf(cache).commit(REPO, SHA) is None
