"""What a benchmark record must hold before anybody believes a figure of it, whoever signed it.

The signature is checked before (`records.envelope`), the time by who knows the time. Fields that are not known are left
alone: they are signed too, and a later version may mean something by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ipfs_accelerate_node.content.cid import Cid
from ipfs_accelerate_node.errors import BadContent
from ipfs_accelerate_node.records.canonical import Value

SCHEMA = "ipfs-accelerate-node/benchmark"
SCHEMA_VERSION = 2
MAX_TEXT = 200  # characters of any one text: some come from the system, and readers cap them too
MAX_SAMPLES = 1000
LONGEST_NS = 24 * 3600 * 10**9
_LARGEST = 1 << 53  # what every JSON reader can count to
_MAX_FIELDS = 64


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A record that makes sense.

    samples_ns: one per repeat, in order, from the call to the answer. work: what each of them did, in ``unit``.
    phases_ns: parts of the same repeats, by name. workload: its parameters, ``name`` apart. hub: repository and commit
    of the Hub, where the signer says so: a claim. agreement: with torch on the CPU in f32, where that was compared.
    busy: its machine was, so the figures mean little; only ever true of an own record.
    """

    root: Cid
    task: str
    device: str
    device_name: str
    engine: str
    precision: str
    workload: str
    parameters: dict[str, int]
    unit: str
    samples_ns: tuple[int, ...]
    work: tuple[int, ...]
    phases_ns: dict[str, tuple[int, ...]]
    versions: dict[str, str]
    machine: dict[str, int | str]
    hub: tuple[str, str] | None
    agreement: dict[str, int] | None
    memory_peak_bytes: int | None
    created: int
    seq: int
    busy: bool = False


def read_benchmark(record: Mapping[str, Value], *, busy: bool = False) -> Benchmark:
    """busy: take also a record whose machine was. Raises BadContent: record_version (skip it: another version's),
    mock_record, machine_busy, bad_record."""
    engine, was_busy = _believable(record, busy=busy)
    root = record.get("model")
    if not isinstance(root, Cid):
        raise _bad("its model is no link")
    workload = _map(record, "workload")
    samples = _numbers(record, "samples_ns", least=1, most=LONGEST_NS)
    repeats = _whole(workload, "repeats")
    if not 1 <= repeats == len(samples) <= MAX_SAMPLES:
        raise _bad(f"{len(samples)} samples of {repeats} repeats")
    return Benchmark(
        root=root.canonical,
        task=_text(record, "task"),
        device=_text(record, "device"),
        device_name=_text(record, "device_name"),
        engine=engine,
        precision=_text(record, "precision"),
        workload=_text(workload, "name"),
        parameters={name: _whole(workload, name) for name in workload if name != "name"},
        unit=_text(record, "unit"),
        samples_ns=samples,
        work=_parallel(_numbers(record, "work", least=0, most=_LARGEST), repeats),
        phases_ns=_phases(_map(record, "phases_ns"), repeats),
        versions={name: _text(_map(record, "versions"), name) for name in _map(record, "versions")},
        machine=_machine(_map(record, "machine")),
        hub=_hub(record),
        agreement=_agreement(record),
        memory_peak_bytes=_whole(record, "memory_peak_bytes") if "memory_peak_bytes" in record else None,
        created=_whole(record, "created"),
        seq=_whole(record, "seq"),
        busy=was_busy,
    )


def _believable(record: Mapping[str, Value], *, busy: bool) -> tuple[str, bool]:
    """Its engine and whether its machine was busy, of a record of this version that measured something."""
    if record.get("schema") != SCHEMA:
        raise _bad("its schema is another one")
    if type(record.get("v")) is not int or record["v"] != SCHEMA_VERSION:
        raise BadContent(f"a benchmark record of another version than {SCHEMA_VERSION}", code="record_version")
    engine = _text(record, "engine")
    if record.get("status") != "REAL" or engine == "mock":
        raise BadContent("a mock's record says nothing of any machine", code="mock_record")
    was_busy = _map(record, "state").get("busy")
    if not isinstance(was_busy, bool):
        raise _bad("it does not say whether its machine was busy")
    if was_busy and not busy:
        raise BadContent("its machine was too busy for the figures to mean anything", code="machine_busy")
    return engine, was_busy


def _bad(reason: str) -> BadContent:
    return BadContent(f"not a benchmark record: {reason}", code="bad_record")


def clean(text: str) -> str:
    """A text as a record may hold it: no control characters, nothing that turns the direction of writing, not long."""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_TEXT]


def _is_clean(text: object) -> bool:
    return isinstance(text, str) and len(text) <= MAX_TEXT and text.isprintable()


def _text(found: Mapping[str, Value], name: str) -> str:
    text = found.get(name)
    if not isinstance(text, str) or not _is_clean(text) or not _is_clean(name):
        raise _bad(f"{clean(name)} is no text, too long, or has characters that steer a terminal")
    return text


def _whole(found: Mapping[str, Value], name: str) -> int:
    value = found.get(name)
    if type(value) is not int or not 0 <= value <= _LARGEST or not _is_clean(name):
        raise _bad(f"{clean(name)} is no number from 0 to 2^53")
    return value


def _map(found: Mapping[str, Value], name: str) -> dict[str, Value]:
    value = found.get(name)
    if not isinstance(value, dict) or len(value) > _MAX_FIELDS:
        raise _bad(f"{name} is no map of at most {_MAX_FIELDS}")
    return value


def _numbers(found: Mapping[str, Value], name: str, *, least: int, most: int) -> tuple[int, ...]:
    values = found.get(name)
    if not isinstance(values, list) or len(values) > MAX_SAMPLES:
        raise _bad(f"{clean(name)} is no list of at most {MAX_SAMPLES}")
    numbers = tuple(value for value in values if type(value) is int and least <= value <= most)
    if len(numbers) != len(values):
        raise _bad(f"{clean(name)} has what is no number from {least} to {most}")
    return numbers


def _parallel(numbers: tuple[int, ...], repeats: int) -> tuple[int, ...]:
    if len(numbers) != repeats:
        raise _bad(f"{len(numbers)} figures for {repeats} repeats")
    return numbers


def _phases(found: dict[str, Value], repeats: int) -> dict[str, tuple[int, ...]]:
    if not all(map(_is_clean, found)):
        raise _bad("the name of a phase is no clean text")
    return {name: _parallel(_numbers(found, name, least=0, most=LONGEST_NS), repeats) for name in found}


def _machine(found: dict[str, Value]) -> dict[str, int | str]:
    return {name: _text(found, name) if isinstance(found[name], str) else _whole(found, name) for name in found}


def _hub(record: Mapping[str, Value]) -> tuple[str, str] | None:
    if "hub" not in record:
        return None
    hub = _map(record, "hub")
    return _text(hub, "repo"), _text(hub, "commit")


def _agreement(record: Mapping[str, Value]) -> dict[str, int] | None:
    """Cosines in millionths, which may be negative."""
    if "agreement" not in record:
        return None
    found = _map(record, "agreement")
    numbers = {name: value for name, value in found.items() if type(value) is int and abs(value) <= _LARGEST}
    if len(numbers) != len(found) or not all(map(_is_clean, found)):
        raise _bad("its agreement is not in whole numbers")
    return numbers
