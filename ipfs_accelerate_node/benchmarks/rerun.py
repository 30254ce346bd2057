"""A peer's workload run again here, beside what the peer says: same workload, same precision, on the device asked for
or the one that comes closest, through the path of a request. What is measured is an own record like any other, kept
here.

A peer chooses neither how long this machine computes nor how much memory that takes: only the usual workloads of the
task are run, or those that the user names. What the two figures mean beside each other is `peers.likeness`' affair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ipfs_accelerate_node.benchmarks.run import Bench, LeftOut, Wish
from ipfs_accelerate_node.benchmarks.workload import DEFAULTS, QUICK, workload
from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import InvalidInput, NodeError, NotFound
from ipfs_accelerate_node.inference.devices import canonical, kind_of
from ipfs_accelerate_node.inference.model import Accelerator
from ipfs_accelerate_node.peers.claims import Claim
from ipfs_accelerate_node.peers.likeness import RULE, allowed, hardware_class, unlike
from ipfs_accelerate_node.peers.results import Inquiry
from ipfs_accelerate_node.records.canonical import decode

log = logging.getLogger(__name__)

MOST_RUNS = 16  # workloads of one call
PRECISIONS = ("f32", "bf16", "f16", "int8")

Verdict = Literal["alike", "faster", "slower", "other_hardware", "other_device", "other_work"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. low_ns, high_ns: quartiles of its samples. per_s: of unit, of the median repeat."""

    device: str
    device_name: str
    engine: str
    cpu: str
    cores: int
    median_ns: int
    low_ns: int
    high_ns: int
    per_s: float
    unit: str
    samples: int
    created: int
    envelope_cid: Cid


@dataclass(frozen=True, slots=True)
class Beside:
    """ratio: the claim's median over ours, below 1 is faster than here. most: how far apart they may be and be alike.
    verdict: alike, faster and slower are only ever said of like machines; the others say why nothing is. reason: in
    words. differs: versions that are not the same, as ``torch 2.9 there, 2.10 here``."""

    signer: str
    trusted: bool
    task: str
    workload: str
    settings: str
    precision: str
    claim: Figure
    own: Figure
    ratio: float
    most: float
    verdict: Verdict
    reason: str
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rerun:
    """left_out: what was not run here, and why. rule: by which the verdicts were made. inquiry: None where nobody was
    asked."""

    model: Cid
    beside: tuple[Beside, ...]
    left_out: tuple[LeftOut, ...]
    rule: str
    inquiry: Inquiry | None


@dataclass(frozen=True, slots=True)
class Again:
    """What to run again. device: here, None is what the claim names or comes closest to it. workloads: none are the
    usual ones of the task. keys: PeerIDs; none are all. quick: fewer repeats, nothing compared with the reference."""

    ref: str
    device: str | None = None
    workloads: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Hands:
    """What it takes here. measure: runs workloads and keeps their records. opened: an own record by its envelope."""

    accelerators: Sequence[Accelerator]
    measure: Callable[[Wish], Awaitable[Bench]]
    opened: Callable[[Cid], Claim]


_Load = tuple[str, str, str]  # task, precision, device here


@dataclass(slots=True)
class _Plan:
    """runs: by what has to be loaded, the workloads and who claims each."""

    runs: dict[_Load, dict[str, list[Claim]]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


async def rerun(
    claims: Iterable[Claim],
    again: Again,
    hands: Hands,
    *,
    model: Cid,
    trusted: Collection[str] = (),
    inquiry: Inquiry | None = None,
) -> Rerun:
    """claims: about model, without those that have no vote. trusted: PeerIDs.

    Raises NotFound (no_claims) where there is nothing to run again, DeviceUnavailable for what no runtime calls a
    device; where nothing at all could be measured what stood in the way of the first: Unavailable (machine_busy), ….
    """
    plan = planned(claims, again, hands.accelerators, trusted)
    if not plan.runs:
        why = "; ".join(dict.fromkeys(left.reason for left in plan.left_out)) or "nobody's such results are known here"
        raise NotFound(f"there is nothing to run again: {why}", code="no_claims")
    beside: list[Beside] = []
    errors: list[NodeError] = []
    for (task, precision, device), wanted in plan.runs.items():
        wish = Wish(again.ref, device, task, precision, tuple(wanted), quick=again.quick)
        try:
            done = await hands.measure(wish)
        except NodeError as exc:
            errors.append(exc)
            plan.left_out += [LeftOut(device, name, exc.code, " ".join(str(exc).split())) for name in wanted]
            continue
        plan.left_out += done.left_out
        for result in done.results:
            own = await asyncio.to_thread(hands.opened, Cid.parse(result.envelope_cid))
            beside += [_beside(claim, own, claim.signer in trusted) for claim in wanted.get(own.workload, ())]
    if not beside and errors:
        raise errors[0]
    log.info("rerun.done root=%s beside=%d left_out=%d", model, len(beside), len(plan.left_out))
    return Rerun(model, tuple(beside), tuple(plan.left_out), RULE, inquiry)


def planned(claims: Iterable[Claim], again: Again, found: Sequence[Accelerator], trusted: Collection[str]) -> _Plan:
    """What will be run: the newest of each key, those of trusted keys first, MOST_RUNS workloads at most."""
    for name in again.workloads:
        workload(name)
    asked = None if again.device is None else canonical(again.device)
    plan = _Plan()
    for claim in _votes(claims, again, trusted):
        if reason := _why_not(claim, again):
            _note(plan, LeftOut(claim.device, claim.workload, "not_run_again", reason))
            continue
        load = (claim.task, claim.precision, asked or closest(claim.device, found))
        wanted = plan.runs.get(load, {})
        if claim.workload not in wanted and sum(map(len, plan.runs.values())) >= MOST_RUNS:
            reason = f"at most {MOST_RUNS} workloads are run at once; name those wanted"
            _note(plan, LeftOut(claim.device, claim.workload, "too_many", reason))
            continue
        plan.runs.setdefault(load, {}).setdefault(claim.workload, []).append(claim)
    return plan


def _note(plan: _Plan, left: LeftOut) -> None:
    if left not in plan.left_out:
        plan.left_out.append(left)


def _votes(claims: Iterable[Claim], again: Again, trusted: Collection[str]) -> list[Claim]:
    newest: dict[tuple[bytes, str], Claim] = {}
    for claim in claims:
        if again.keys and claim.signer not in again.keys:
            continue
        if again.workloads and claim.workload not in again.workloads:
            continue
        known = newest.get((claim.key, claim.cell))
        if known is None or claim.seq > known.seq:
            newest[claim.key, claim.cell] = claim
    return sorted(newest.values(), key=lambda c: (c.signer not in trusted, c.workload, c.device, c.signer))


def _why_not(claim: Claim, again: Again) -> str:
    """Why it is not run here; empty when it is."""
    try:
        kind = workload(claim.workload).kind
    except InvalidInput:
        return "this version knows no workload of that name"
    if kind == "fetch":
        return "a fetch is of the network, not of the machine"
    usual = (*DEFAULTS.get(claim.task, ()), *QUICK.get(claim.task, ()), "load")
    if claim.workload not in (again.workloads or usual):
        return f"it is not a usual workload of {claim.task or 'that task'}; --workload {claim.workload} runs it"
    if claim.precision not in PRECISIONS:
        return f"this version knows no precision {claim.precision}"
    return ""


def closest(device: str, found: Sequence[Accelerator]) -> str:
    """The same device where it is here; else another of its kind, else the processor by the same engine, else by
    torch."""
    here = [accelerator.device for accelerator in found if accelerator.available]
    if device in here:
        return device
    kind = _kind(device)
    alike = [name for name in here if _kind(name) == kind]
    processor = "openvino:CPU" if kind_of(device) == "openvino" else "cpu"
    return next(iter((*alike, *(name for name in here if name == processor))), "cpu")


def _kind(device: str) -> str:
    """Without its number: ``cuda:1`` is ``cuda``, ``openvino:GPU.0`` is ``openvino:GPU``."""
    head, _, number = device.rpartition(":")
    return head if head and number.isdigit() else device.partition(".")[0]


def _beside(claim: Claim, own: Claim, trusted: bool) -> Beside:
    verdict, reason = judged(claim, own)
    return Beside(
        claim.signer,
        trusted,
        claim.task,
        claim.workload,
        claim.settings,
        claim.precision,
        _figure(claim),
        _figure(own),
        round(claim.median_ns / own.median_ns, 4),
        round(allowed(claim, own), 4),
        verdict,
        reason,
        _differing(claim, own),
    )


def judged(claim: Claim, own: Claim) -> tuple[Verdict, str]:
    """What may be said of the two, and why. Figures of other work or another machine are shown, never flagged."""
    if (claim.settings, claim.unit, claim.precision) != (own.settings, own.unit, own.precision):
        return "other_work", f"its requests did other work: {_said(claim)} there, {_said(own)} here"
    if (claim.engine, _kind(claim.device)) != (own.engine, _kind(own.device)):
        return "other_device", f"{claim.device} ({claim.engine}) there, {own.device} ({own.engine}) here"
    there, here = hardware_class(claim), hardware_class(own)
    if there != here:
        return "other_hardware", f"{_words(there)} there, {_words(here)} here"
    said = unlike(claim, own)
    times = f"{_times(claim, own):.2f} times, {allowed(claim, own):.2f} at most are alike"
    if not said:
        return "alike", times
    return said, f"unlike ours: {said} by {times}"


def _times(one: Claim, other: Claim) -> float:
    return max(one.median_ns, other.median_ns) / min(one.median_ns, other.median_ns)


def _said(claim: Claim) -> str:
    return f"{claim.settings} {claim.unit} {claim.precision}".strip()


def _words(hardware: tuple[object, ...]) -> str:
    if len(hardware) == 3:
        cpu, arch, cores = hardware
        return f"{cpu}, {arch}, {cores} cores"
    return " ".join(map(str, hardware))


def _figure(claim: Claim) -> Figure:
    return Figure(
        claim.device,
        claim.device_name,
        claim.engine,
        claim.cpu,
        claim.cores,
        claim.median_ns,
        claim.low_ns,
        claim.high_ns,
        claim.per_s,
        claim.unit,
        claim.samples,
        claim.created,
        claim.envelope_cid,
    )


def _differing(claim: Claim, own: Claim) -> tuple[str, ...]:
    there, here = _versions(claim), _versions(own)
    return tuple(
        f"{name} {there[name]} there, {here[name]} here"
        for name in sorted(there.keys() & here.keys())
        if there[name] != here[name]
    )


def _versions(claim: Claim) -> dict[str, str]:
    record = decode(claim.record_bytes)
    versions = record.get("versions") if isinstance(record, dict) else None
    return {name: str(text) for name, text in versions.items()} if isinstance(versions, dict) else {}
