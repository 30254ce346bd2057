"""A peer's benchmark record as a claim: verified in the order size, key, signature, schema, time; the counter is the
store's affair (`peers.results_store`), which knows the others of that key.

A signature proves who says it, not that it is true. What a record must hold is said by a `Reader`, which whoever makes
records has; only what a claim is compared and ranked by is taken out here, and the signed bytes are kept whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent
from ipfs_accelerate_node.records.canonical import Value
from ipfs_accelerate_node.records.envelope import BENCH_PREFIX, check_time, open_envelope

_CELL_CHARACTERS = 4096


class Measured(Protocol):
    """What a benchmark record says, as far as others compare it. samples_ns: one per repeat; work: what each of them
    did, in unit."""

    @property
    def root(self) -> Cid: ...
    @property
    def task(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, int]: ...
    @property
    def unit(self) -> str: ...
    @property
    def samples_ns(self) -> Sequence[int]: ...
    @property
    def work(self) -> Sequence[int]: ...
    @property
    def machine(self) -> Mapping[str, int | str]: ...
    @property
    def seq(self) -> int: ...


Reader = Callable[[Mapping[str, Value]], Measured]  # raises BadContent for what is no benchmark record


@dataclass(frozen=True, slots=True)
class Claim:
    """signer: PeerID of key. cell: everything that was fixed when it was measured; of those of one key with equal cells
    the newest counts. settings: of the workload, as text. cpu, arch, cores: of the machine. median_ns, low_ns,
    high_ns: of its samples; the latter two are quartiles. per_s: unit per second, of the median repeat."""

    envelope_cid: Cid
    record_cid: Cid
    envelope_bytes: bytes
    record_bytes: bytes
    key: bytes
    signer: str
    model: Cid
    seq: int
    created: int
    expires: int
    task: str
    engine: str
    precision: str
    device: str
    device_name: str
    workload: str
    settings: str
    cell: str
    cpu: str
    arch: str
    cores: int
    samples: int
    median_ns: int
    low_ns: int
    high_ns: int
    unit: str
    per_s: float


def open_claim(envelope: bytes, record: bytes, read: Reader, *, now: int | None, model: Cid | None = None) -> Claim:
    """The claim, once everything about it is verified.

    now: seconds since 1970; None leaves the times unchecked (one's own archive). model: the only root accepted.
    Raises BadContent: bad_record, bad_signature, record_expired, record_from_future, foreign_record (of another model),
    and what read raises; IntegrityError.
    """
    opened = open_envelope(envelope, record, BENCH_PREFIX)
    measured = read(opened.record)
    if model is not None and measured.root.canonical != model.canonical:
        raise BadContent("the record is of another model", code="foreign_record")
    if now is not None:
        check_time(opened.record, now)
    low, median, high = _quartiles(measured.samples_ns)
    created, expires = opened.record["created"], opened.record["expires"]
    assert isinstance(created, int) and isinstance(expires, int)  # noqa: PT018 checked before
    machine = measured.machine
    cores = machine.get("cores", 0)
    return Claim(
        opened.envelope_cid,
        opened.record_cid,
        envelope,
        record,
        opened.key,
        opened.signer,
        measured.root.canonical,
        measured.seq,
        created,
        expires,
        measured.task,
        measured.engine,
        measured.precision,
        measured.device,
        measured.device_name,
        measured.workload,
        _settings(measured),
        _cell(measured),
        str(machine.get("cpu", "")),
        str(machine.get("arch", "")),
        cores if isinstance(cores, int) else 0,
        len(measured.samples_ns),
        median,
        low,
        high,
        measured.unit,
        _per_s(measured),
    )


def _quartiles(samples: Sequence[int]) -> tuple[int, int, int]:
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
    return round(low), round(middle), round(high)


def _per_s(measured: Measured) -> float:
    return statistics.median(w / s * 1e9 for w, s in zip(measured.work, measured.samples_ns, strict=True))


def _settings(measured: Measured) -> str:
    """Of the workload; not how often it was repeated, nor with which seed."""
    fixed = ("repeats", "warmup", "seed")
    return " ".join(f"{name}={value}" for name, value in sorted(measured.parameters.items()) if name not in fixed)[
        :_CELL_CHARACTERS
    ]


def _cell(measured: Measured) -> str:
    parts = (measured.task, measured.engine, measured.precision, measured.device, measured.device_name)
    return "\n".join((*parts, measured.workload, _settings(measured)))
