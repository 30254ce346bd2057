"""What the plots of a model's results show, as figures and texts; how they are drawn is `benchmarks.plots`' affair.

In: what ``GET /api/results`` answers. Each key is one mark beside this machine's own; where many keys say something of
one device the first few stand alone and the rest as their median, and what does not fit is counted, so that nothing is
hidden by silence. Texts of strangers are made harmless and short here.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ipfs_accelerate_node.benchmarks.workload import Workload, workload
from ipfs_accelerate_node.errors import InvalidInput

ALONE = 4  # claims about one device that are drawn each by itself
MOST_MARKS = 36  # of one panel
MOST_LINES = 8  # of one panel: so many colours that everybody can tell apart
MOST_PANELS = 8  # of one figure
LOG_FROM = 30  # a range wider than this is drawn on a logarithmic scale
LABEL, HALF_LABEL = 46, 30  # characters
_BATCHED = ("encode", "pair", "images", "examples")  # kinds of workload that come in several batches
_NO_RATE = ("load", "fetch")  # kinds whose rate says nothing of a device

Read = Callable[[Mapping[str, Any]], tuple[float, float, float]]  # a figure and the ends of its spread
Kind = Literal["own", "claim", "trusted", "many"]


@dataclass(frozen=True, slots=True)
class Mark:
    """name: of the hardware. device: as its runtime calls it, the runtime, the precision. who: whose figure it is. low,
    high: ends of its spread. unlike: flagged as too far from ours or from the other keys'. keys: how many it stands
    for. at: its place on an axis of batches."""

    name: str
    device: str
    who: str
    kind: Kind
    value: float
    low: float
    high: float
    unlike: str = ""
    keys: int = 1
    at: int = 0


@dataclass(frozen=True, slots=True)
class Bars:
    """marks: the best first. left_out: how many keys' figures are not drawn."""

    title: str
    axis: str
    marks: tuple[Mark, ...]
    log: bool
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """lines: marks of one device and key each, by rising batch."""

    title: str
    axis: str
    lines: tuple[tuple[Mark, ...], ...]
    log: bool
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure. left_out: panels that did not fit."""

    title: str
    panels: tuple[Bars | Lines, ...]
    left_out: int = 0


def latency(found: Mapping[str, Any]) -> Chart:
    """Latency by device, a panel for each workload."""
    panels = []
    for title, results in _by_workload(found["results"]):
        scale, unit = _time_unit(results)
        marks = [mark for result in results for mark in _marks(result, _time(scale), smaller=True)]
        panels.append(_bars(title, f"time of one request, median ({unit})", marks, smaller=True))
    return _chart("Latency by device", panels)


def throughput(found: Mapping[str, Any]) -> Chart:
    """Throughput: by batch where a workload was measured with several, by device where its kind never was."""
    families: dict[tuple[object, ...], list[tuple[Workload, dict[str, Any]]]] = defaultdict(list)
    for result in sorted(found["results"], key=lambda result: _weight(result["workload"])):
        known = _known(result["workload"])
        if known is not None and known.kind not in _NO_RATE:
            family = (known.kind, known.length) if known.kind in _BATCHED else (known.name,)
            families[*family, result["task"], result["unit"]].append((known, result))
    panels: list[Bars | Lines] = []
    several = {members[0][0].kind for members in families.values() if len({w.batch for w, _ in members}) > 1}
    for members in families.values():
        known, first = members[0]
        task, axis = short(first["task"], HALF_LABEL), f"{short(first['unit'], HALF_LABEL)} per second, median"
        if len({member.batch for member, _ in members}) > 1:
            panels.append(_lines(f"{_family(known)} ({task})", axis, members))
        elif known.kind not in several:
            marks = [mark for _, result in members for mark in _marks(result, _rate, smaller=False)]
            panels.append(_bars(f"{known.name} ({task})", axis, marks, smaller=False))
    return _chart("Throughput by batch" if several else "Throughput by device", panels)


def _chart(title: str, panels: Sequence[Bars | Lines]) -> Chart:
    filled = [panel for panel in panels if isinstance(panel, Lines) or panel.marks]
    return Chart(title, tuple(filled[:MOST_PANELS]), len(filled[MOST_PANELS:]))


# -- panels


def _by_workload(results: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """What did the same work stands together; light work first."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        groups[result["workload"], result["task"], result["settings"]].append(result)
    names = [name for name, _, _ in groups]
    titled = []
    for (name, task, settings), members in sorted(groups.items(), key=lambda item: _weight(item[0][0])):
        more = f", {short(settings, LABEL)}" if names.count(name) > 1 and settings else ""
        titled.append((f"{short(name, HALF_LABEL)} ({short(task, HALF_LABEL)}{more})", members))
    return titled


def _weight(name: str) -> tuple[int, str, int, int, str]:
    known = _known(name)
    if known is None:
        return 2, "", 0, 0, name
    return int(known.kind in _NO_RATE), known.kind, known.length + known.new_tokens, known.batch, name


def _known(name: str) -> Workload | None:
    try:
        return workload(name)
    except InvalidInput:
        return None


def _family(known: Workload) -> str:
    return f"{known.kind}, {known.length} tokens each" if known.length else known.kind


def _bars(title: str, axis: str, marks: list[Mark], *, smaller: bool) -> Bars:
    """The own ones and those of trusted keys are kept whatever comes; of the others the best."""
    ordered = sorted(marks, key=lambda mark: mark.value if smaller else -mark.value)
    kept = sorted(ordered, key=lambda mark: _STANDING[mark.kind])[:MOST_MARKS]
    left = sum(mark.keys for mark in ordered) - sum(mark.keys for mark in kept)
    shown = tuple(mark for mark in ordered if any(mark is one for one in kept))
    return Bars(title, axis, shown, _wide(shown), left)


_STANDING: dict[Kind, int] = {"own": 0, "trusted": 1, "claim": 2, "many": 2}


def _lines(title: str, axis: str, members: Sequence[tuple[Workload, dict[str, Any]]]) -> Lines:
    lines: dict[tuple[str, str, str, Kind], list[Mark]] = defaultdict(list)
    for known, result in members:
        for mark in _votes(result, _rate):
            lines[mark.name, mark.device, mark.who, mark.kind].append(replace(mark, at=known.batch))
    ordered = sorted(lines.items(), key=lambda item: (_STANDING[item[0][3]], -len(item[1]), -_best(item[1])))
    kept = [_by_batch(marks) for _, marks in ordered[:MOST_LINES]]
    shown = tuple(sorted(kept, key=_best, reverse=True))
    return Lines(title, axis, shown, _wide([mark for line in shown for mark in line]), len(ordered[MOST_LINES:]))


def _by_batch(marks: Sequence[Mark]) -> tuple[Mark, ...]:
    """One mark for each batch: two of one batch (of other settings) would be drawn as a fall."""
    best: dict[int, Mark] = {}
    for mark in marks:
        if mark.at not in best or mark.value > best[mark.at].value:
            best[mark.at] = mark
    return tuple(best[at] for at in sorted(best))


def _best(marks: Sequence[Mark]) -> float:
    return max(mark.value for mark in marks)


def _wide(marks: Sequence[Mark]) -> bool:
    values = [mark.value for mark in marks if mark.value > 0]
    return bool(values) and max(values) > LOG_FROM * min(values)


# -- marks


def _marks(result: Mapping[str, Any], read: Read, *, smaller: bool) -> list[Mark]:
    """Own figure, trusted keys, then ALONE others and the median of the rest."""
    marks = _votes(result, read)
    alone = [mark for mark in marks if mark.kind != "claim"]
    claims = [mark for mark in marks if mark.kind == "claim"]
    if len(claims) <= ALONE + 1:
        return alone + claims
    flagged = sorted(claims, key=lambda mark: (not mark.unlike, mark.value if smaller else -mark.value))
    rest = [mark for mark in claims if not any(mark is one for one in flagged[:ALONE])]
    values = [mark.value for mark in rest]
    many = Mark(
        rest[0].name,
        rest[0].device,
        f"{len(rest)} more claims, their median",
        "many",
        statistics.median(values),
        min(values),
        max(values),
        keys=len(rest),
    )
    return [*alone, *flagged[:ALONE], many]


def _votes(result: Mapping[str, Any], read: Read) -> list[Mark]:
    named = _device(result)
    marks = []
    if result["own"] is not None:
        marks.append(Mark(*named, "this machine", "own", *read(result["own"])))
    for vote in result["votes"]:
        kind: Kind = "trusted" if vote["trusted"] else "claim"
        value, low, high = read(vote)
        who = f"claim by {key_name(vote['signer'])}"
        marks.append(Mark(*named, who, kind, value, low, high, str(vote["unlike"])))
    return [mark for mark in marks if mark.value > 0]


def _time_unit(results: Iterable[Mapping[str, Any]]) -> tuple[float, str]:
    """Nanoseconds of one, and its name."""
    medians = [ns for r in results for ns in (r["own_ns"], r["median_ns"]) if ns is not None]
    return (1e9, "s") if medians and statistics.median(medians) >= 2e9 else (1e6, "ms")


def _time(scale: float) -> Read:
    return lambda said: (said["median_ns"] / scale, said["low_ns"] / scale, said["high_ns"] / scale)


def _rate(said: Mapping[str, Any]) -> tuple[float, float, float]:
    """The ends are what the quartiles of the times make of it, the work being the same."""
    per_s, median = said["per_s"], said["median_ns"]
    return per_s, per_s * median / max(1, said["high_ns"]), per_s * median / max(1, said["low_ns"])


# -- texts


def _device(result: Mapping[str, Any]) -> tuple[str, str]:
    """As ``NVIDIA H100`` and ``cuda:0, torch f16``; of a processor, which one."""
    device, name = result["device"], result["device_name"]
    if not name or name == device:
        name = ", ".join(result["cpus"][:1]) or device
    what = f"{short(device, HALF_LABEL)}, {short(result['engine'], 12)} {short(result['precision'], 8)}"
    return short(name, 2 * LABEL), what


def key_name(signer: str) -> str:
    """A PeerID short enough for a label: its end, since all begin alike."""
    text = plain(signer)
    return text if len(text) <= 14 else f"{text[:4]}…{text[-8:]}"


def plain(text: object) -> str:
    """What has no letter of its own (controls, marks that turn the direction of writing, surrogates) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def short(text: object, most: int) -> str:
    """Without its middle, where it is longer."""
    whole = plain(text)
    if len(whole) <= most:
        return whole
    head = (most - 1) * 2 // 3
    return f"{whole[:head]}…{whole[len(whole) - (most - 1 - head) :]}"
