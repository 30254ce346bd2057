"""Asking peers for results: TP1, a hundred peers of which ten are dead; TP2, a query by model among 100,000 records.

Peers are HTTP servers of this process on loopback, each with a record of a key of its own; of the dead half accept and
say nothing, half refuse. Records are really signed and really verified. What it is compared with is the rule: an answer
that waits for nobody may take as long as the patience with one peer and the work of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from ipfs_accelerate_node.benchmarks.exchange import Exchange  # noqa: E402
from ipfs_accelerate_node.content.cid import DAG_CBOR, DAG_PB, Cid  # noqa: E402
from ipfs_accelerate_node.kubo import KuboService  # noqa: E402
from ipfs_accelerate_node.peers.results_store import ResultsStore  # noqa: E402
from tests.support.results import MODEL, claim, fake_peers, key, sealed, silent, telling  # noqa: E402

TP1_S, TP2_MS = 2.5, 20.0
NOW = int(time.time())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench peers", description=__doc__)
    parser.add_argument("--peers", type=int, default=100, help="asked at once")
    parser.add_argument("--dead", type=int, default=10, help="of them")
    parser.add_argument("--rounds", type=int, default=5, help="of the question")
    parser.add_argument("--records", type=int, default=100_000, help="kept")
    parser.add_argument("--models", type=int, default=500, help="that they are about")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-peers-", dir=options.dir) as folder:
        asked = asyncio.run(ask(Path(folder), options.peers, options.dead, options.rounds))
        kept = query(Path(folder) / "kept", options.records, options.models)
    result = {"tp1": asked, "tp2": kept}
    print(json.dumps(result) if options.json else report(result))
    return 0 if asked["dead_named"] and asked["seconds"] <= TP1_S and kept["p99_ms"] <= TP2_MS else 1


async def ask(folder: Path, peers: int, dead: int, rounds: int) -> dict[str, Any]:
    """seconds: the slowest round. alone_s: the same question to the living ones only."""
    alive = peers - dead
    answers = [telling([sealed(key(n), created=NOW, ns=n * 1_000)]) for n in range(1, alive + 1)]
    hanging = dead - dead // 2
    took, alone, named = [], [], True
    async with fake_peers([silent] * (dead // 2)) as refusing:
        pass  # they are gone
    async with fake_peers([*answers, *[silent] * hanging]) as urls:
        for number in range(rounds):
            (cache := folder / f"round{number}").mkdir()
            async with KuboService(mode="off", cache=cache) as kubo, Exchange(cache, kubo, key(9999)) as exchange:
                began = time.perf_counter()
                found = await exchange.results(MODEL, peers=[*urls, *refusing])
                took.append(time.perf_counter() - began)
                assert found.inquiry is not None
                failed = {failure.peer for failure in found.inquiry.failures}
                named = named and failed == {*urls[alive:], *refusing} and found.keys == alive
                began = time.perf_counter()
                await exchange.results(MODEL, peers=urls[:alive])
                alone.append(time.perf_counter() - began)
    return {
        "peers": peers, "dead": dead, "rounds": rounds, "seconds": max(took), "median_s": statistics.median(took),
        "alone_s": statistics.median(alone), "dead_named": named,
    }  # fmt: skip


def query(folder: Path, records: int, models: int) -> dict[str, Any]:
    """Records are those of 200 keys, spread over the models; each model is asked for once."""
    folder.mkdir()
    store = ResultsStore(folder)
    one, keys = claim(key(1), created=NOW), 200
    roots = [Cid.of(b"%d" % n, DAG_PB) for n in range(models)]
    made = [
        replace(
            one,
            envelope_cid=Cid.of(b"e%d" % n, DAG_CBOR),
            record_cid=Cid.of(b"r%d" % n, DAG_CBOR),
            key=b"%036d" % (n % keys),
            model=roots[n // keys % models],
            seq=n,
            created=NOW + n,
            cell=f"cell {n}",
        )
        for n in range(records)
    ]
    began = time.perf_counter()
    for start in range(0, records, 10_000):
        store.take(made[start : start + 10_000])
    filled_s = time.perf_counter() - began
    took_ms = []
    for root in roots:
        began = time.perf_counter()
        store.of(root)
        took_ms.append(1e3 * (time.perf_counter() - began))
    kept = store.count()
    store.close()
    took_ms.sort()
    return {
        "records": kept, "models": models, "filled_s": filled_s, "p50_ms": took_ms[len(took_ms) // 2],
        "p99_ms": took_ms[min(len(took_ms) - 1, int(0.99 * len(took_ms)))],
    }  # fmt: skip


def report(result: dict[str, Any]) -> str:
    asked, kept = result["tp1"], result["tp2"]
    return "\n".join(
        [
            f"{asked['peers']} peers, {asked['dead']} dead, {asked['rounds']} rounds",
            f"  the living alone   {asked['alone_s']:.2f} s (median)",
            f"  all of them        {asked['median_s']:.2f} s (median), {asked['seconds']:.2f} s (slowest)",
            f"  the dead named     {'yes' if asked['dead_named'] else 'NO'}",
            f"TP1  {asked['seconds']:.2f} s of {TP1_S} s",
            f"{kept['records']} records, {kept['models']} models, taken in {kept['filled_s']:.1f} s",
            f"TP2  p50 {kept['p50_ms']:.1f} ms, p99 {kept['p99_ms']:.1f} ms of {TP2_MS:g} ms",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
