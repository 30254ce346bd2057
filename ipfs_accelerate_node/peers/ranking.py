"""Claims beside each other: one vote per key, medians with spread, keys that the user trusts first."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.likeness import Unlike, hardware_class, outliers, unlike

MAX_SIGNERS = 8
_CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Hardware:
    """Of this machine. devices: names of its accelerators as a record has them."""

    cpu: str
    arch: str
    cores: int
    devices: frozenset[str] = frozenset()

    def is_like(self, claim: Claim) -> bool:
        """Whether a claim is about such a device: the same processor for what ran on one, else the same accelerator."""
        if claim.device.lower().startswith(_CPU):
            return (claim.cpu, claim.arch, claim.cores) == (self.cpu, self.arch, self.cores)
        return (claim.device_name or claim.device) in self.devices


@dataclass(frozen=True, slots=True)
class Vote:
    """What one key says of a result, or what this node measured itself. counted: whether it is in the figures. low_ns,
    high_ns: quartiles of its samples. cores: of the machine. created: seconds since 1970. unlike: too far from what
    this node measured on like hardware or, without that, from the other keys (`peers.likeness`); it counts all the
    same."""

    signer: str
    trusted: bool
    counted: bool
    median_ns: int
    low_ns: int
    high_ns: int
    per_s: float
    samples: int
    cpu: str
    cores: int
    created: int
    envelope_cid: Cid
    unlike: Unlike


@dataclass(frozen=True, slots=True)
class Result:
    """One thing measured, by whoever measured it. keys: how many vote. trusted: how many of them the user trusts; where
    there are any, only they are counted in the figures. median_ns: of the keys' medians; low_ns, high_ns: the extremes
    of them, or the quartiles of the samples where only one key votes. per_s: median, of unit. own_ns, own_per_s: this
    node's. signers: PeerIDs, trusted ones first, MAX_SIGNERS at most. votes: of all keys, in that order. own: the whole
    of what this node measured."""

    task: str
    engine: str
    precision: str
    device: str
    device_name: str
    workload: str
    settings: str
    unit: str
    keys: int
    trusted: int
    median_ns: int | None
    low_ns: int | None
    high_ns: int | None
    per_s: float | None
    own_ns: int | None
    own_per_s: float | None
    cpus: tuple[str, ...]
    newest: int
    signers: tuple[str, ...]
    votes: tuple[Vote, ...] = ()
    own: Vote | None = None


def ranked(
    claims: Iterable[Claim], own: Iterable[Claim], *, trusted: Collection[str] = (), flagged: Collection[bytes] = ()
) -> list[Result]:
    """trusted: PeerIDs. flagged: keys that contradicted themselves: they have no vote. What trusted keys say comes
    first, then what most say, then the fastest."""
    votes: dict[tuple[str, ...], dict[bytes, Claim]] = {}
    mine: dict[tuple[str, ...], Claim] = {}
    for claim in own:
        if (known := mine.get(_what(claim))) is None or claim.seq > known.seq:
            mine[_what(claim)] = claim
    for claim in claims:
        if claim.key in flagged:
            continue
        of = votes.setdefault(_what(claim), {})
        if (known := of.get(claim.key)) is None or claim.seq > known.seq:
            of[claim.key] = claim
    found = [_result(list(votes.get(what, {}).values()), mine.get(what), trusted) for what in {**votes, **mine}]
    return sorted(found, key=lambda r: (-min(r.trusted, 1), -r.keys, r.median_ns or r.own_ns or 0, r.device))


def _what(claim: Claim) -> tuple[str, ...]:
    """As `Claim.cell`, and on which processor where that is what computes."""
    cpu = claim.cpu if claim.device.lower().startswith(_CPU) else ""
    return claim.cell, claim.unit, cpu


def _result(votes: list[Claim], own: Claim | None, trusted: Collection[str]) -> Result:
    first = votes[0] if votes else own
    assert first is not None
    known = [vote for vote in votes if vote.signer in trusted]
    counted = known or votes
    medians = [vote.median_ns for vote in counted]
    alone = counted[0] if len(counted) == 1 else None
    ordered = known + [vote for vote in votes if vote.signer not in trusted]
    return Result(
        first.task,
        first.engine,
        first.precision,
        first.device,
        first.device_name,
        first.workload,
        first.settings,
        first.unit,
        len(votes),
        len(known),
        round(statistics.median(medians)) if medians else None,
        (alone.low_ns if alone else min(medians)) if medians else None,
        (alone.high_ns if alone else max(medians)) if medians else None,
        statistics.median(vote.per_s for vote in counted) if counted else None,
        own.median_ns if own else None,
        own.per_s if own else None,
        tuple(sorted({claim.cpu for claim in (*votes, *([own] if own else ()))}))[:MAX_SIGNERS],
        max(claim.created for claim in (*votes, *([own] if own else ()))),
        tuple(vote.signer for vote in ordered[:MAX_SIGNERS]),
        tuple(_votes(ordered, own, trusted)),
        None if own is None else _vote(own, trusted=True, counted=False),
    )


def _votes(ordered: list[Claim], own: Claim | None, trusted: Collection[str]) -> Iterator[Vote]:
    far = outliers(ordered)
    only_trusted = bool(ordered) and ordered[0].signer in trusted
    for vote in ordered:
        known = vote.signer in trusted
        if own is not None and hardware_class(vote) == hardware_class(own):
            flag = unlike(vote, own)
        else:
            flag = far.get(vote.key, "")
        yield _vote(vote, trusted=known, counted=known or not only_trusted, flag=flag)


def _vote(claim: Claim, *, trusted: bool, counted: bool, flag: Unlike = "") -> Vote:
    return Vote(
        claim.signer,
        trusted,
        counted,
        claim.median_ns,
        claim.low_ns,
        claim.high_ns,
        claim.per_s,
        claim.samples,
        claim.cpu,
        claim.cores,
        claim.created,
        claim.envelope_cid,
        flag,
    )
