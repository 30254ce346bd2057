"""How values read on the page: units, counts, sentences cut short."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

_SIZES = ("kB", "MB", "GB", "TB", "PB")


def clean(value: object) -> object:
    """What every printed value passes: what a reader might be misled by (controls, turns of the writing direction,
    invisible letters) is shown as an escape. Markup of our own templates is left alone."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def size(count: int | None) -> str:
    """Bytes in decimal units, three digits."""
    if count is None:
        return "–"
    if count < 1000:
        return f"{count} B"
    value, power = count / 1000, 0
    while value >= 999.5 and power + 1 < len(_SIZES):
        value, power = value / 1000, power + 1
    unit = _SIZES[power]
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:#.3g}".rstrip(".") + f" {unit}"


def number(value: float | None) -> str:
    """Three digits at least, thousands apart."""
    if value is None:
        return "–"
    if value >= 1e12:
        return f"{value:.1e}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 0.001 or value == 0 else f"{value:.1g}"


def milliseconds(ns: float | None) -> str:
    """Of nanoseconds, in the unit that reads well."""
    if ns is None:
        return "–"
    ms = ns / 1e6
    return f"{number(ms / 1000)} s" if ms >= 10_000 else f"{number(ms)} ms" if ms >= 0.1 else f"{number(ms * 1000)} µs"


def waiting(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def cut(text: str, most: int = 160) -> str:
    """The beginning of a long sentence."""
    flat = " ".join(text[: 4 * most].split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(max(0.0, min(seconds, 253_000_000_000.0)), UTC)


def told(at: datetime) -> str:
    """As a page without script shows it."""
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def agreement(value: float) -> str:
    """Never rounded up to 1."""
    return "1" if value == 1.0 else f"{int(value * 1e6) / 1e6:.6f}"
