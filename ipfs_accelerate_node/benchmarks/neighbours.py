"""What other nodes claim of the models of a report, put beside its cells: never among them, never REAL here."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from ipfs_accelerate_node.benchmarks.cells import ClaimedCell, Report
from ipfs_accelerate_node.benchmarks.exchange import Found
from ipfs_accelerate_node.benchmarks.trial import BATCH
from ipfs_accelerate_node.benchmarks.workload import Workload, workload
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidCid, InvalidInput
from ipfs_accelerate_node.peers.ranking import Result, Vote

log = logging.getLogger(__name__)

MOST_CLAIMS = 60  # of one model
USUAL_LENGTH = 128

_Seat = tuple[str, str, str, str, str, str]  # signer, task, device, its name, engine, precision


async def with_claims(made: Report, ask: Callable[[Cid], Awaitable[Found]], may_ask: Callable[[Cid], bool]) -> Report:
    """The report with what is claimed of its models. ask: what is known of one, others having been asked. may_ask:
    whether others may learn that it is of interest here; of a private model nobody is asked."""
    names = dict.fromkeys((cell.model, cell.root) for cell in made.cells)
    claims: list[ClaimedCell] = []
    silent: list[str] = []
    for model, text in names:
        try:
            root = Cid.parse(text)
        except InvalidCid:
            continue  # a mock: nobody has results of one
        if not await asyncio.to_thread(may_ask, root):
            silent.append(model)
            continue
        claims += claimed(model, text, (await ask(root)).results)
    log.info("report.claims claims=%d", len(claims))
    return msgspec.structs.replace(made, claims=tuple(claims), not_asked=tuple(silent))


def claimed(model: str, root: str, results: Iterable[Result]) -> list[ClaimedCell]:
    """A cell for each key and device: latency of the workload with one input, throughput of the one that comes closest
    to the report's own batch. Trusted keys first, MOST_CLAIMS at most."""
    seats: dict[_Seat, list[tuple[Result, Vote]]] = defaultdict(list)
    for result in results:
        for vote in result.votes:
            seat = (vote.signer, result.task, result.device, result.device_name, result.engine, result.precision)
            seats[seat].append((result, vote))
    made = [cell for seat, votes in seats.items() if (cell := _cell(model, root, seat, votes)) is not None]
    return sorted(made, key=lambda c: (not c.trusted, c.device, c.precision, c.p50_ms or 0.0))[:MOST_CLAIMS]


def _cell(model: str, root: str, seat: _Seat, votes: Sequence[tuple[Result, Vote]]) -> ClaimedCell | None:
    known = [(found, result, vote) for result, vote in votes if (found := _known(result.workload)) is not None]
    measured = [one for one in known if one[0].kind not in ("load", "fetch")]
    if not measured:
        return None
    signer, task, device, device_name, engine, precision = seat
    single = min(measured, key=lambda one: (one[0].batch, abs(one[0].length - USUAL_LENGTH), one[0].name))
    batched = min(measured, key=lambda one: (abs(one[0].batch - BATCH), abs(one[0].length - USUAL_LENGTH), one[0].name))
    load = next((vote for found, _, vote in known if found.kind == "load"), None)
    return ClaimedCell(
        model=model,
        root=root,
        task=task,
        device=device,
        device_name=device_name,
        cpu=single[2].cpu,
        engine=engine,
        precision=precision,
        signer=signer,
        trusted=single[2].trusted,
        unlike=single[2].unlike or batched[2].unlike,
        p50_ms=round(single[2].median_ns / 1e6, 3),
        by=single[0].name,
        throughput=round(batched[2].per_s, 3),
        unit=f"{batched[1].unit}/s",
        throughput_by=batched[0].name,
        load_s=None if load is None else round(load.median_ns / 1e9, 3),
        created=max(vote.created for _, vote in votes),
    )


def _known(name: str) -> Workload | None:
    try:
        return workload(name)
    except InvalidInput:
        return None
