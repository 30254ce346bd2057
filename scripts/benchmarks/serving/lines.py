"""What is printed of a target: our figure, each rival's, the ratio, and whether it is what was wanted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """rounds: one value each."""

    rounds: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def told(self) -> dict[str, Any]:
        return {"median": self.median, "range": [min(self.rounds), max(self.rounds)], "unit": self.unit}

    def __str__(self) -> str:
        shown = f"{_short(self.median)} {self.unit}"
        return f"{shown} [{_short(min(self.rounds))}…{_short(max(self.rounds))}]" if len(self.rounds) > 1 else shown


def figure(values: Sequence[float] | float, unit: str) -> Figure:
    return Figure(tuple(values) if isinstance(values, Sequence) else (values,), unit)


@dataclass(frozen=True)
class Ratio:
    """target: such as ``<= 0.35``; None: nothing is wanted of it."""

    to: str
    value: float
    target: str | None

    @property
    def holds(self) -> bool | None:
        if self.target is None:
            return None
        sign, bound = self.target.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)

    def told(self) -> dict[str, Any]:
        return {"to": self.to, "value": self.value, "target": self.target, "holds": self.holds}

    def __str__(self) -> str:
        target = "" if self.target is None else f"   target {self.target}: {'yes' if self.holds else 'NO'}"
        return f"{self.value:.3g}{target}"


@dataclass
class Line:
    """what: was measured. absent: rivals with the reason. beside: further figures; notes: for a person."""

    id: str
    what: str
    ours: Figure
    rivals: dict[str, Figure] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def against(self, name: str, target: str | None = None) -> None:
        """Our figure over that rival's, if it was measured."""
        if name in self.rivals:
            self.ratios.append(Ratio(name, self.ours.median / self.rivals[name].median, target))

    def told(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "what": self.what,
            "ours": self.ours.told(),
            "rivals": {name: one.told() for name, one in self.rivals.items()},
            "ratios": [ratio.told() for ratio in self.ratios],
            "absent": self.absent,
            "beside": self.beside,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        rows = [f"{self.id:<6}{self.what:<66} {self.ours}"]
        ratios = {ratio.to: ratio for ratio in self.ratios}
        for name, one in self.rivals.items():
            rows.append(f"{'':6}  {name:<40} {one!s:<32} ratio {ratios.pop(name, '-')}")
        rows += [f"{'':6}  {name:<40} {ratio}" for name, ratio in ratios.items()]
        rows += [f"{'':6}  {name:<40} absent: {reason}" for name, reason in self.absent.items()]
        if self.beside:
            rows.append(f"{'':8}" + ", ".join(f"{name} {_told(value)}" for name, value in self.beside.items()))
        return "\n".join([*rows, *(f"{'':8}{note}" for note in self.notes)])


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(percent / 100 * len(ordered)))] if ordered else float("nan")


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _told(value: object) -> str:
    return _short(value) if isinstance(value, float) else str(value)
