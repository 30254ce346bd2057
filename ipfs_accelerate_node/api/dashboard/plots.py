"""Figures as coordinates: what the page's SVG is drawn from. Pure; texts are left for the template to escape.

Every plot is WIDTH units wide and shown at about one pixel a unit, so that letters stay readable on a phone. Figures of
strangers may be anything, so each position is clamped into its plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ipfs_accelerate_node.api.dashboard.results import Measured, ModelResults, settings
from ipfs_accelerate_node.api.dashboard.words import milliseconds, number
from ipfs_accelerate_node.peers.ranking import Result

WIDTH = 340
ROW = 38  # a line of text, and its mark below
MAX_BARS = 8
MAX_SERIES = 5
_TOP = 4
_AXIS = 36  # below the rows: numbers, and what they are
_LOG_FROM = 30  # a range wider than this is drawn on a logarithmic scale


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """y: of its text's base line. low, high: ends of its whisker, None where there is none."""

    y: float
    label: str
    value: str
    width: float
    low: float | None
    high: float | None
    claim: bool


@dataclass(frozen=True, slots=True)
class BarPlot:
    title: str
    what: str
    axis: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    bottom: float
    left_out: int = 0

    @property
    def height(self) -> float:
        return self.bottom + _AXIS


@dataclass(frozen=True, slots=True)
class Pair:
    """One thing measured here and elsewhere. own: None where only others measured it."""

    y: float
    label: str
    value: str
    own: float | None
    peers: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairPlot:
    title: str
    what: str
    axis: str
    pairs: tuple[Pair, ...]
    ticks: tuple[Tick, ...]
    bottom: float
    left_out: int = 0

    @property
    def height(self) -> float:
        return self.bottom + _AXIS


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Series:
    """kind: which of the colours and marks."""

    name: str
    kind: int
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        return " ".join(f"{'L' if index else 'M'}{p.x:.1f} {p.y:.1f}" for index, p in enumerate(self.points))


@dataclass(frozen=True, slots=True)
class LinePlot:
    title: str
    what: str
    axis: str
    x_axis: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float
    bottom: float
    height: float
    left_out: int = 0


class Scale:
    """From figures to coordinates, clamped. Linear from 0, or logarithmic where the figures are far apart."""

    def __init__(self, values: Sequence[float], start: float, stop: float, *, log: bool = False) -> None:
        known = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
        self._start, self._stop = start, stop
        self._low, self._high = 0.0, 1.0
        self.log = log and max(known) / min(known) > _LOG_FROM
        if self.log:
            low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
            self._low, self._high = float(low), float(high)
            self.ticks = [10.0**power for power in _some(range(low, high + 1))]
        else:
            step = _step(max(known))
            self.ticks = [step * index for index in range(math.ceil(max(known) / step - 1e-9) + 1)]
            self._high = self.ticks[-1]

    def at(self, value: float) -> float:
        value = math.log10(value) if self.log and value > 0 else value
        share = (value - self._low) / ((self._high - self._low) or 1)
        return round(self._start + (self._stop - self._start) * min(1.0, max(0.0, share)), 1)


def _step(top: float) -> float:
    """1, 2 or 5 times a power of ten, so that three to five steps reach the top."""
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _some(powers: range) -> list[int]:
    every = max(1, math.ceil(len(powers) / 6))
    return list(powers)[::every]


def plots_of(model: ModelResults) -> tuple[BarPlot | PairPlot | LinePlot, ...]:
    """Latency by device, throughput by batch, this machine against what peers claim; those that there are figures
    for."""
    made = (latency(model.rows), throughput(model.rows), comparison(model.rows))
    return tuple(plot for plot in made if plot is not None)


def latency(rows: Sequence[Measured]) -> BarPlot | None:
    """Of the workload that most devices were measured with; this node's own figures, else what others claim."""
    timed = [row for row in _best(rows) if row.result.workload not in ("load", "fetch")]
    picked = _most_devices([row for row in timed if row.own] or timed)
    if not picked:
        return None
    picked.sort(key=lambda row: _time(row)[0])
    shown = picked[:MAX_BARS]
    scale = Scale([high / 1e6 for row in shown for high in _time(row)], 0, WIDTH)
    bars = []
    for index, row in enumerate(shown):
        middle, low, high = _time(row)
        spread = high > low
        bars.append(
            Bar(
                _TOP + ROW * index + 13,
                place(row.result),
                milliseconds(middle),
                scale.at(middle / 1e6),
                scale.at(low / 1e6) if spread else None,
                scale.at(high / 1e6) if spread else None,
                row.own is None,
            )
        )
    return BarPlot(
        "Latency by device",
        workload_words(shown[0].result),
        "milliseconds, median; line: middle half",
        tuple(bars),
        _ticks(scale),
        _TOP + ROW * len(bars),
        len(picked) - len(shown),
    )


def throughput(rows: Sequence[Measured]) -> LinePlot | BarPlot | None:
    """By batch, where a device was measured with several; else of each workload."""
    rated = [row for row in _best(rows) if row.result.workload not in ("load", "fetch") and _rate(row) > 0]
    rated = [row for row in rated if row.own] or rated
    lines: dict[tuple[object, ...], dict[int, Measured]] = {}
    for row in rated:
        if row.batch:
            others = tuple(sorted((k, v) for k, v in settings(row.result).items() if k != "batch"))
            key = (others, row.result.unit, row.result.task, place(row.result))
            lines.setdefault(key, {})[row.batch] = row
    drawn = {key: points for key, points in lines.items() if len(points) > 1}
    if not drawn:
        return _rates(rated)
    family = max(drawn, key=lambda key: (sum(len(p) for k, p in drawn.items() if k[:3] == key[:3]), str(key)))[:3]
    return _lines([points for key, points in drawn.items() if key[:3] == family])


def _lines(lines: list[dict[int, Measured]]) -> LinePlot:
    lines.sort(key=lambda points: -max(_rate(row) for row in points.values()))
    shown, left, right, top, bottom = lines[:MAX_SERIES], 50.0, WIDTH - 12.0, 10.0, 170.0
    y = Scale([_rate(row) for points in shown for row in points.values()], bottom, top)
    batches = sorted({batch for points in shown for batch in points})
    low, high = math.log2(batches[0]), math.log2(batches[-1])

    def x(batch: int) -> float:
        return round(left + 8 + (right - left - 8) * (math.log2(batch) - low) / ((high - low) or 1), 1)

    series = tuple(
        Series(
            place(next(iter(points.values())).result),
            kind,
            tuple(Point(x(b), y.at(_rate(points[b])), f"batch {b}: {_rated(points[b])}") for b in sorted(points)),
        )
        for kind, points in enumerate(shown)
    )
    first = next(iter(shown[0].values())).result
    length = settings(first).get("length")
    what = f"{first.task}, {length:,} tokens each" if length else first.task
    return LinePlot(
        "Throughput by batch",
        what,
        f"{first.unit} per second, median",
        "inputs in one request",
        series,
        tuple(Tick(x(batch), f"{batch:,}") for batch in batches),
        tuple(Tick(y.at(value), _tick(value)) for value in y.ticks),
        left,
        bottom,
        bottom + _AXIS,
        len(lines) - len(shown),
    )


def _rates(rated: Sequence[Measured]) -> BarPlot | None:
    """Of the workload that most devices were measured with; of several, the one that asks most of them."""
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for row in rated:
        groups.setdefault((row.result.task, row.result.workload, row.result.settings, row.result.unit), []).append(row)
    if not groups:
        return None
    picked = max(groups.values(), key=lambda rows: (len(rows), -max(map(_rate, rows))))
    picked.sort(key=lambda row: -_rate(row))
    shown = picked[:MAX_BARS]
    scale = Scale([_rate(row) for row in shown], 0, WIDTH)
    bars = [
        Bar(
            _TOP + ROW * index + 13,
            place(row.result),
            number(_rate(row)),
            scale.at(_rate(row)),
            None,
            None,
            row.own is None,
        )
        for index, row in enumerate(shown)
    ]
    return BarPlot(
        "Throughput by device",
        workload_words(shown[0].result),
        f"{shown[0].result.unit} per second, median",
        tuple(bars),
        _ticks(scale),
        _TOP + ROW * len(bars),
        len(picked) - len(shown),
    )


def comparison(rows: Sequence[Measured]) -> PairPlot | None:
    """Latency here against the median of others' keys, with the range of what they say."""
    others = [row for row in rows if row.result.median_ns is not None]
    if not others:
        return None
    others.sort(key=lambda row: (row.own is None, -row.result.keys))
    shown = others[:MAX_BARS]
    values = [
        ns / 1e6
        for row in shown
        for ns in (row.result.own_ns, row.result.median_ns, row.result.low_ns, row.result.high_ns)
        if ns
    ]
    scale = Scale(values, 6, WIDTH - 6, log=True)
    pairs = [_pair(row.result, scale, _TOP + ROW * index + 13) for index, row in enumerate(shown)]
    both = any(pair.own is not None for pair in pairs)
    return PairPlot(
        "This machine against others" if both else "What others measured",
        "faster or slower here than what others claim" if both else "claims, one vote a key",
        "milliseconds, median" + (", logarithmic" if scale.log else ""),
        tuple(pairs),
        _ticks(scale),
        _TOP + ROW * len(pairs),
        len(others) - len(shown),
    )


def _pair(result: Result, scale: Scale, y: float) -> Pair:
    peers = result.median_ns or 0
    own = result.own_ns
    value = f"{milliseconds(peers)}, {result.keys} {'key' if result.keys == 1 else 'keys'}"
    if own and peers:
        ratio = peers / own if own <= peers else own / peers
        same = ratio < 1.05
        value = "as fast" if same else f"{number(ratio)}× {'faster' if own < peers else 'slower'}"
    return Pair(
        y,
        f"{result.workload}, {place(result)}",
        value,
        None if own is None else scale.at(own / 1e6),
        scale.at(peers / 1e6),
        scale.at((result.low_ns or peers) / 1e6),
        scale.at((result.high_ns or peers) / 1e6),
    )


def place(result: Result) -> str:
    """Where it ran, and how precisely."""
    return f"{result.device} {result.precision}"


def workload_words(result: Result) -> str:
    return f"{result.task}, {result.workload}"


def _best(rows: Sequence[Measured]) -> list[Measured]:
    """Of several for one device, precision and workload (other accelerators, other processors) the first."""
    kept: dict[tuple[str, ...], Measured] = {}
    for row in rows:
        result = row.result
        kept.setdefault((result.workload, result.settings, result.unit, result.task, place(result)), row)
    return list(kept.values())


def _most_devices(rows: Sequence[Measured]) -> list[Measured]:
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for row in rows:
        groups.setdefault((row.result.task, row.result.workload, row.result.settings), []).append(row)
    if not groups:
        return []
    return groups[max(groups, key=lambda key: (len(groups[key]), max(row.result.newest for row in groups[key]), key))]


def _time(row: Measured) -> tuple[int, int, int]:
    """Median, low and high, in nanoseconds."""
    if row.own is not None:
        return row.own.median_ns, row.own.low_ns, row.own.high_ns
    median = row.result.median_ns or 0
    return median, row.result.low_ns or median, row.result.high_ns or median


def _rate(row: Measured) -> float:
    rate = row.own.per_s if row.own is not None else row.result.per_s or 0.0
    return rate if math.isfinite(rate) else 0.0


def _rated(row: Measured) -> str:
    return f"{number(_rate(row))} {row.result.unit}/s"


def _ticks(scale: Scale) -> tuple[Tick, ...]:
    return tuple(Tick(scale.at(value), _tick(value)) for value in scale.ticks)


def _tick(value: float) -> str:
    for factor, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{sign}"
    return f"{value:g}" if value < 1e12 else f"{value:.0e}"
