"""Maps on disk: verified again when read, one of each signer, bounded, and nothing of who lied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent, IntegrityError, NodeError, NotFound
from ipfs_accelerate_node.fetch import hub_map_shelf
from ipfs_accelerate_node.fetch.hub_map_shelf import DEMOTED_S, MAX_SIGNERS, MapShelf, Parcel
from ipfs_accelerate_node.records.envelope import LIFETIME_S
from ipfs_accelerate_node.records.hub_map import HubMap, MappedFile, renewed, seal_map
from ipfs_accelerate_node.records.key import NodeKey
from ipfs_accelerate_node.sources.hub_names import HubRepo

NOW = 1_800_000_000
REPO, COMMIT = HubRepo("org/name"), "01" * 20
KEY = NodeKey(bytes(32))
FILE = MappedFile("config.json", 1, Cid.of(b"x").digest.hex(), Cid.of(b"x"))
MAP = HubMap("model", REPO.id, COMMIT, None, (FILE,), NOW, NOW + LIFETIME_S, 1)


def shelf(cache: Path, now: float = NOW) -> MapShelf:
    return MapShelf(cache, KEY, now_s=lambda: now)


def of(number: int, made: HubMap = MAP) -> Parcel:
    return Parcel.of(seal_map(made, NodeKey(number.to_bytes(32, "big"))))


def refused(maps: MapShelf, parcel: Parcel, repo: HubRepo = REPO, commit: str | None = COMMIT) -> str:
    with pytest.raises(NodeError) as caught:
        maps.take(parcel, repo, commit)
    assert isinstance(caught.value, BadContent | IntegrityError)
    return caught.value.code


def test_own_maps_count_up_also_when_all_was_lost(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    assert maps.own(REPO, COMMIT) is None
    one = maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    two = maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    assert two.opened.map.seq > one.opened.map.seq >= NOW
    back = shelf(tmp_path, NOW - 10**6)  # the clock was set back
    three = back.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    assert three.opened.map.seq > two.opened.map.seq
    assert back.own(REPO, COMMIT) == three
    lost = shelf(tmp_path / "new", NOW + 9)
    assert (
        lost.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq)).opened.map.seq > two.opened.map.seq
    )
    assert back.find(three.opened.envelope_cid) == three
    with pytest.raises(NotFound):
        back.find(one.opened.envelope_cid)
    assert back.of(REPO, COMMIT) == []  # one's own is nobody's claim


def test_of_each_signer_the_newest(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    old, new = of(1), of(1, replace(MAP, seq=2))
    assert maps.take(old, REPO, COMMIT).parcel == old
    assert maps.take(new, REPO, None).parcel == new
    assert refused(maps, old) == "record_stale"
    assert refused(maps, of(1, replace(MAP, seq=2, about={"tags": ["x"]}))) == "record_stale"
    assert maps.take(new, REPO, COMMIT).parcel == new
    whole = of(2, replace(MAP, root=Cid.of(b"r", 0x70)))
    maps.take(whole, REPO, COMMIT)
    assert [kept.parcel for kept in shelf(tmp_path).of(REPO, COMMIT)] == [whole, new]
    assert maps.of(REPO, "02" * 20) == maps.of(HubRepo("org/name", "dataset"), COMMIT) == []


def test_what_is_not_taken(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    assert refused(maps, of(1), HubRepo("org/other")) == "bad_record"
    assert refused(maps, of(1), commit="02" * 20) == "bad_record"
    assert refused(shelf(tmp_path, NOW + 2 * LIFETIME_S), of(1)) == "record_expired"
    assert refused(shelf(tmp_path, NOW - 1000), of(1)) == "record_from_future"
    assert refused(maps, Parcel(of(1).envelope, [])) == "bad_record"
    flipped = bytearray(of(1).envelope)
    flipped[60] ^= 1  # within the signature
    assert refused(maps, Parcel(bytes(flipped), of(1).blocks)) == "bad_signature"
    ours = maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    older = Parcel.of(seal_map(MAP, KEY))
    assert maps.take(older, REPO, COMMIT) == ours  # what we said ourselves does not come back older
    assert maps.own(REPO, COMMIT) == ours


def test_who_lied_is_not_believed_for_a_while(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    lie = maps.take(of(1), REPO, COMMIT)
    maps.take(of(2), REPO, COMMIT)
    maps.refute(lie, "config.json", "its oid is another")
    assert [kept.parcel for kept in maps.of(REPO, COMMIT)] == [of(2)]
    assert refused(shelf(tmp_path), of(1, replace(MAP, seq=5))) == "signer_refuted"
    said = maps.refuted()[lie.opened.signer]
    assert (said.path, said.reason, said.envelope) == (
        "config.json",
        "its oid is another",
        str(lie.opened.envelope_cid),
    )
    later = shelf(tmp_path, NOW + DEMOTED_S + 1)
    assert later.refuted() == {}
    assert later.take(of(1, replace(MAP, seq=5)), REPO, COMMIT).opened.signer == lie.opened.signer


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"envelope":"","blocks":[]}', b"[" * 100_000])
def test_what_is_damaged_counts_as_absent(tmp_path: Path, damage: bytes) -> None:
    maps = shelf(tmp_path)
    maps.take(of(1), REPO, COMMIT)
    (path,) = (tmp_path / "maps").rglob("*.map")
    path.write_bytes(damage)
    (tmp_path / "maps" / "refuted.json").write_bytes(damage)
    assert maps.of(REPO, COMMIT) == []
    assert maps.refuted() == {}
    assert maps.take(of(1), REPO, COMMIT).parcel == of(1)


def test_a_file_under_another_signers_name_is_nobodys(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    maps.take(of(1), REPO, COMMIT)
    (path,) = (tmp_path / "maps").rglob("*.map")
    path.write_bytes(msgspec.json.encode(of(2)))
    assert maps.of(REPO, COMMIT) == []


def test_there_is_room_for_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_map_shelf, "MAX_COMMITS", 3)
    maps = shelf(tmp_path)
    maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    for number in range(1, MAX_SIGNERS + 5):
        maps.take(of(number), REPO, COMMIT)
    assert len(maps.of(REPO, COMMIT)) == MAX_SIGNERS
    assert maps.own(REPO, COMMIT) is not None
    for number in range(5):
        commit = f"{number:040x}"
        maps.take(of(1, replace(MAP, commit=commit)), REPO, commit)
    assert len([path for path in (tmp_path / "maps").iterdir() if path.is_dir()]) == 3


def test_what_was_published_is_noted_by_its_very_envelope(tmp_path: Path) -> None:
    maps = shelf(tmp_path)
    one = maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq))
    assert not maps.published(one)
    maps.note_published(one)
    assert shelf(tmp_path).published(one)
    assert not maps.published(maps.keep_own(lambda created, seq: renewed(MAP, created=created, seq=seq)))
