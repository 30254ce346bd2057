"""What other nodes claim beside a report: marked, asked only about what is public, and no cell of this machine."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import pytest_asyncio

from ipfs_accelerate_node.benchmarks.cells import Cell, ClaimedCell, Report, Status, compare, read_report
from ipfs_accelerate_node.benchmarks.exchange import Found
from ipfs_accelerate_node.benchmarks.neighbours import MOST_CLAIMS, claimed, with_claims
from ipfs_accelerate_node.cli.report_tables import markdown
from ipfs_accelerate_node.content.cid import DAG_PB, Cid
from ipfs_accelerate_node.peers.ranking import ranked
from tests.support.models import tiny_model
from tests.support.results import fake_peers, key, sealed, telling
from tests.support.results_found import measured, usual
from tests.support.running import Running, running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("claims")
    (folder / "cache").mkdir(mode=0o700)
    async with running(folder / "cache") as node:
        await node.node.add(tiny_model(folder / "tiny"), name="tiny")
        yield node


def cell(model: str, device: str, status: Status = "REAL") -> Cell:
    return Cell(
        model=model, root=f"bafy{model}", task="embedding", device=device, engine="torch", precision="f32",
        status=status, p50_ms=1.0,
    )  # fmt: skip


HERE = Report({"cpu": "A processor"}, (cell("bert", "cpu"), cell("t5", "cpu")))
THERE = Report({"cpu": "Another"}, (cell("bert", "cuda:0"),))


def test_a_claim_is_made_of_the_workloads_that_come_closest() -> None:
    claims = [*usual(2, 1.0, device="cuda:0", device_name="NVIDIA H100"), *usual(3, 100.0)]
    claims.append(
        measured(2, 2500, workload="load", batch=0, settings={}, seq=9, device="cuda:0", device_name="NVIDIA H100")
    )
    claims.append(measured(4, 1, workload="fetch", seq=9))
    one, two = claimed("m", "bafy", ranked(claims, usual(1, 1.0), trusted={key(3).peer_id}))
    assert (one.signer, one.trusted, one.unlike, one.device, one.load_s) == (
        key(3).peer_id,
        True,
        "slower",
        "cpu",
        None,
    )
    assert (two.signer, two.device_name, two.load_s) == (key(2).peer_id, "NVIDIA H100", 2.5)
    assert (two.by, two.p50_ms, two.throughput_by, two.unit) == ("encode-1x128", 0.128, "encode-8x128", "tokens/s")
    assert two.throughput == pytest.approx(1e6)
    many = [one for n in range(2, 90) for one in usual(n, n)]
    assert len(claimed("m", "bafy", ranked(many, ()))) == MOST_CLAIMS


def claims_of(*named: str) -> tuple[ClaimedCell, ...]:
    made: dict[str, Any] = {
        "root": "bafybert",
        "task": "embedding",
        "cpu": "A CPU",
        "engine": "torch",
        "precision": "f16",
    }
    return tuple(
        ClaimedCell(
            **made, model="bert", device="cuda:0", device_name=name, signer="12D3Koo", p50_ms=0.5, unlike="faster"
        )
        for name in named
    )


def test_a_claim_is_no_cell_of_this_machine() -> None:
    told = msgspec.structs.replace(HERE, claims=claims_of("<b>|x"), not_asked=("secret",))
    text = markdown(told)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| machine | model |")
    assert len(rows) == 2 + len(HERE.cells) + 1
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    (claim,) = [row for row in rows if "CLAIM" in row]
    assert claim.startswith("| claim by 12D3Koo (\\<b\\>\\|x, A CPU) | bert |")
    assert "REAL" not in claim
    assert text.count("REAL") == markdown(HERE).count("REAL") + 1  # the sentence that says that no claim is
    assert "signed, not run here; unlike: faster" in text
    assert "secret is private here: nobody was asked about it" in text
    read = read_report(msgspec.json.encode(told), name="other.json")
    assert read == told
    assert compare([read, THERE]) == compare([HERE, THERE])
    assert read_report(msgspec.json.encode(HERE), name="other.json") == HERE
    assert b"claims" not in msgspec.json.encode(HERE)


@pytest.mark.timeout(120)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_report_with_what_peers_claim(here: Running) -> None:
    root = here.node.find("tiny").root
    told = sealed(key(5), created=int(time.time()) - 5, model=root, workload={"name": "encode-1x16", "repeats": 3})
    async with fake_peers([telling([told])]) as (url,):
        assert (await here.admin("POST", "/api/peers", json={"peer": url})).status == 201
        found = (await here.admin("POST", "/api/report", json={"refs": ["tiny"], "devices": ["cpu"]})).json
        assert "claims" not in found
        wish = {"refs": ["tiny", "mock:embedding"], "devices": ["cpu"], "peers": True}
        reply = await here.admin("POST", "/api/report", json=wish)
        await here.admin("DELETE", f"/api/peers/{quote(url, safe='')}")
    (claim,) = reply.json["claims"]
    assert (claim["model"], claim["root"], claim["signer"]) == ("tiny", str(root), key(5).peer_id)
    assert (claim["by"], claim["p50_ms"]) == ("encode-1x16", 2.0)
    assert "status" not in claim
    assert [cell["status"] for cell in reply.json["cells"]] == ["REAL", "MOCK"]


async def test_of_a_private_model_nobody_is_asked() -> None:
    asked: list[Cid] = []

    async def ask(root: Cid) -> Found:
        asked.append(root)
        return Found(root, tuple(ranked([measured(2, 1.0)], ())), 1, 1, (), None)

    secret, known = Cid.of(b"secret", DAG_PB), Cid.of(b"known", DAG_PB)
    cells = tuple(
        msgspec.structs.replace(cell(name, "cpu"), root=str(root))
        for name, root in (("secret", secret), ("known", known))
    )
    mock = msgspec.structs.replace(cell("mock:embedding", "cpu", "MOCK"), root="mock:embedding")
    told = await with_claims(Report({}, (*cells, mock)), ask, lambda root: root != secret)
    assert asked == [known]
    assert told.not_asked == ("secret",)
    assert [claim.model for claim in told.claims] == ["known"]
    assert told.cells == (*cells, mock)
