"""The charts of a model's results drawn as PNG or SVG.

matplotlib (the extra ``plot``) is imported here only, and without its global state: no display, no settings of the
user. Colours are Okabe and Ito's, which people tell apart who do not see all colours; what is a claim is hatched as
well, and what is unlike says so in words. Texts are drawn as they are, never as formulas.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, Literal

from ipfs_accelerate_node.benchmarks.charts import Bars, Chart, Kind, Lines, Mark, short
from ipfs_accelerate_node.errors import Unavailable
from ipfs_accelerate_node.peers.likeness import ALIKE, AMONG_KEYS, MOST_SPREAD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, INK = "#595959", "#222222"
_FACE: dict[Kind, str] = {"own": BLUE, "trusted": GREEN, "claim": ORANGE, "many": SKY}
_WORDS: dict[Kind, str] = {
    "own": "this machine, measured here",
    "trusted": "claim by a key that you trust",
    "claim": "claim by another key",
    "many": "median of more claims (range of the keys)",
}
_OWN_LINES = (BLUE, SKY, INK)
_CLAIMED_LINES = (ORANGE, GREEN, VERMILION, PURPLE, "#8C6D00", GREY, "#882255", "#44AA99")
_POINTS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LEGEND = (
    "Each bar is one key's median, its whisker the middle half of the samples. Hatched: a claim, signed, but not "
    "measured here.",
)
_UNLIKE = (
    f"Unlike: on like hardware more than {ALIKE:g} to {ALIKE + MOST_SPREAD:g} times (by their spread) from this "
    "machine's figure or,",
    f"where it has none, more than {AMONG_KEYS:g} times from the other keys'. That does not mean wrong.",
)

# In inches; everything has its place, so that nothing can lie on anything else.
_WIDTH, _EDGE = 11.0, 0.35
_HEADING, _TITLE, _FOOT = 0.45, 0.42, 0.7  # a chart's, a panel's title; its axis
_NAME, _LINE, _ROW = 0.5, 0.2, 0.23  # of the head: the title; a line of text, of the legend
_BAR, _LABELS, _ROOM = 0.46, 3.7, 1.75  # of one bar; for its label; beyond its end, for its figure
_LINES, _SIDE, _LEFT, _ENTRY = 3.4, 3.6, 1.15, 0.62  # a plot of lines; its legend, its axis, an entry of the legend
_DPI, _SMALL, _IN_A_ROW = 130, 8.5, 4  # dots of an inch; points of a label; entries of the legend
_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.formatter.use_mathtext": False,
    "hatch.linewidth": 1.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "ipfs-accelerate-node",
    "figure.facecolor": "white",
}


def require() -> None:
    """Raises Unavailable (extra_missing) where nothing can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        raise Unavailable(
            "plots need matplotlib, which is not installed: pip install 'ipfs-accelerate-node[plot]'",
            code="extra_missing",
            extra="plot",
        ) from exc


def drawn(title: str, charts: Sequence[Chart], form: Format) -> bytes:
    """All panels of all charts below each other, as a file of that form; the title, if any, above them. Raises
    Unavailable (extra_missing)."""
    output = io.BytesIO()
    metadata = {**({"Title": title} if title else {}), **({"Date": None} if form == "svg" else {})}
    with styled():
        figure(title, charts).savefig(output, format=form, dpi=_DPI, metadata=metadata)
    return output.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """Whatever the user's own settings of matplotlib are. Raises Unavailable (extra_missing)."""
    require()
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # of a letter that the font has not a box is drawn; the SVG has the letter itself
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def figure(title: str, charts: Sequence[Chart]) -> Figure:
    """To be made and saved within `styled`."""
    return _Sheet(title, charts).figure


class _Sheet:
    """One figure, filled from the top."""

    def __init__(self, title: str, charts: Sequence[Chart]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        charts = [chart for chart in charts if chart.panels]
        panels = [panel for chart in charts for panel in chart.panels]
        marks = [mark for panel in panels if isinstance(panel, Bars) for mark in panel.marks]
        handles = _handles(marks)
        words = [*(_LEGEND if marks else ()), *(_UNLIKE if any(mark.unlike for mark in marks) else ())]
        if not panels:
            words = ["Nobody's results are known here."]
        name, rows = _NAME if title else 0.1, -(-len(handles) // _IN_A_ROW)
        top = name + _LINE * len(words) + _ROW * rows + _EDGE
        self._height = top + sum(map(_height, panels)) + _HEADING * len(charts) + _EDGE
        self.figure = Figure(figsize=(_WIDTH, self._height))
        self._renderer: Any = FigureCanvasAgg(self.figure).get_renderer()  # type: ignore[no-untyped-call]
        self._text(_EDGE, 0.45, self._fitted(title, _WIDTH - 2 * _EDGE, 14, "bold"), size=14, weight="bold")
        for number, line in enumerate(words, 1):
            self._text(_EDGE, name + _LINE * number, line, size=9, color=GREY)
        if handles:
            self._legend(handles, name + _LINE * len(words) + 0.1)
        self._down = top
        for chart in charts:
            more = f"  ({chart.left_out} more workloads are in the table)" if chart.left_out else ""
            self._text(_EDGE, self._down + 0.3, f"{chart.title}{more}", size=13, weight="bold")
            self._down += _HEADING
            for panel in chart.panels:
                self._panel(panel)

    def _legend(self, handles: Sequence[Any], down: float) -> None:
        self.figure.legend(
            handles=list(handles), loc="upper left", bbox_to_anchor=self._at(_EDGE, down), ncols=_IN_A_ROW,
            fontsize=9, frameon=False, borderaxespad=0, borderpad=0.1, handlelength=2.6, columnspacing=1.6,
        )  # fmt: skip

    def _panel(self, panel: Bars | Lines) -> None:
        height = _height(panel)
        left, right = (_LABELS + _EDGE, _EDGE) if isinstance(panel, Bars) else (_LEFT, _SIDE + _EDGE)
        inner = height - _TITLE - _FOOT
        bottom = self._height - self._down - _TITLE - inner
        axes = self.figure.add_axes(
            (left / _WIDTH, bottom / self._height, (_WIDTH - left - right) / _WIDTH, inner / self._height)
        )
        self._text(left, self._down + _TITLE - 0.12, panel.title, size=11, weight="bold")
        if isinstance(panel, Bars):
            labels = [self._label((mark.name, f"{mark.device}, {mark.who}"), _LABELS - 0.1) for mark in panel.marks]
            _draw_bars(axes, panel, labels, _WIDTH - left - right)
        else:
            labels = [self._label(_line_label(line), _SIDE - 0.75) for line in panel.lines]
            _draw_lines(axes, panel, labels)
        self._down += height

    def _label(self, lines: Sequence[str], inches: float) -> str:
        return "\n".join(self._fitted(line, inches, _SMALL) for line in lines)

    def _at(self, right: float, down: float) -> tuple[float, float]:
        return right / _WIDTH, 1 - down / self._height

    def _text(self, right: float, down: float, text: str, *, size: float = 10, **more: Any) -> None:
        self.figure.text(*self._at(right, down), text, fontsize=size, va="baseline", **{"color": INK, **more})

    def _fitted(self, text: str, inches: float, size: float, weight: str = "normal") -> str:
        """The text, or as much of its ends as has room there."""
        from matplotlib.font_manager import FontProperties

        font, most = FontProperties(size=size, weight=weight), len(text)
        dots = inches * self.figure.dpi

        def fits(count: int) -> bool:
            return bool(self._renderer.get_text_width_height_descent(short(text, count), font, False)[0] <= dots)

        low = 2
        while low < most:
            middle = (low + most + 1) // 2
            low, most = (middle, most) if fits(middle) else (low, middle - 1)
        return short(text, most)


def _height(panel: Bars | Lines) -> float:
    if isinstance(panel, Bars):
        return _TITLE + _FOOT + _BAR * len(panel.marks)
    return _TITLE + _FOOT + max(_LINES, _ENTRY * len(panel.lines) + 0.2)


# -- bars


def _draw_bars(axes: Axes, panel: Bars, labels: Sequence[str], width_in: float) -> None:
    marks = panel.marks
    if panel.log:
        axes.set_xscale("log")
    for place, mark in enumerate(marks):
        axes.barh(
            place, mark.value, height=0.66, **_look(mark),
            xerr=[[max(0.0, mark.value - mark.low)], [max(0.0, mark.high - mark.value)]],
            error_kw={"ecolor": INK, "elinewidth": 1.4, "capsize": 3.5},
        )  # fmt: skip
        axes.annotate(
            _number(mark.value) + (f"  unlike: {mark.unlike}" if mark.unlike else ""),
            (max(mark.value, mark.high), place), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9,
            color=VERMILION if mark.unlike else INK, fontweight="bold" if mark.unlike else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(marks)), labels, fontsize=_SMALL)
    for label, mark in zip(axes.get_yticklabels(), marks, strict=True):
        label.set_color(BLUE if mark.kind == "own" else INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(marks) - 0.4, -0.6)
    _span(axes, panel, width_in)
    said = f"; {panel.left_out} more are in the table" if panel.left_out else ""
    axes.set_xlabel(f"{panel.axis}{', logarithmic scale' if panel.log else ''}{said}", fontsize=9.5)
    _scale(axes, "x", log=panel.log)


def _look(mark: Mark) -> dict[str, Any]:
    own = mark.kind == "own"
    return {
        "color": _FACE[mark.kind],
        "alpha": 1.0 if own else 0.6,
        "hatch": None if own else "///",
        "edgecolor": VERMILION if mark.unlike else INK,
        "linewidth": 2.2 if mark.unlike else 0.8,
    }


def _handles(marks: Sequence[Mark]) -> list[Any]:
    """What the looks mean that are there."""
    from matplotlib.patches import Patch

    kinds = sorted({mark.kind for mark in marks}, key=list(_FACE).index)
    handles = [
        Patch(
            facecolor=_FACE[kind],
            alpha=1.0 if kind == "own" else 0.6,
            edgecolor=INK,
            hatch=None if kind == "own" else "///",
            label=_WORDS[kind],
        )
        for kind in kinds
    ]
    if any(mark.unlike for mark in marks):
        handles.append(Patch(facecolor="none", edgecolor=VERMILION, linewidth=2.2, label="unlike"))
    return handles


def _span(axes: Axes, panel: Bars, width_in: float) -> None:
    """Beyond the longest bar there is room for its figure."""
    top = max(max(mark.value, mark.high) for mark in panel.marks)
    room = width_in / (width_in - _ROOM)
    if panel.log:
        low = min(min(mark.value, mark.low if mark.low > 0 else mark.value) for mark in panel.marks) / 2
        axes.set_xlim(low, low * (top / low) ** room)
    else:
        axes.set_xlim(0, top * room)


# -- lines


def _draw_lines(axes: Axes, panel: Lines, labels: Sequence[str]) -> None:
    axes.set_xscale("log", base=2)
    if panel.log:
        axes.set_yscale("log")
    own, claimed = cycle(_OWN_LINES), cycle(_CLAIMED_LINES)
    for number, (label, line) in enumerate(zip(labels, panel.lines, strict=True)):
        mine = line[0].kind == "own"
        aside = 1 + 0.025 * (number - (len(panel.lines) - 1) / 2)  # whiskers beside each other, not upon
        axes.errorbar(
            [mark.at * aside for mark in line], [mark.value for mark in line],
            yerr=[[max(0.0, m.value - m.low) for m in line], [max(0.0, m.high - m.value) for m in line]],
            color=next(own if mine else claimed), marker=_POINTS[number % len(_POINTS)], markersize=7,
            markerfacecolor=None if mine else "white", linestyle="-" if mine else "--",
            linewidth=2.4 if mine else 1.6, capsize=3.5, label=label,
        )  # fmt: skip
    batches = sorted({mark.at for line in panel.lines for mark in line})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xticks([], minor=True)
    axes.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axes.set_xlabel("inputs of one request (batch)", fontsize=9.5)
    axes.set_ylabel(f"{panel.axis}{', logarithmic scale' if panel.log else ''}", fontsize=9.5)
    if not panel.log:
        axes.set_ylim(bottom=0)
    _scale(axes, "y", log=panel.log)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.03, 1.02), borderaxespad=0, fontsize=_SMALL, frameon=False,
        labelspacing=0.9, handlelength=3.2, title=f"{panel.left_out} more are in the table" if panel.left_out else None,
        title_fontsize=_SMALL,
    )  # fmt: skip


def _line_label(line: Sequence[Mark]) -> tuple[str, ...]:
    first = line[0]
    flagged = sorted({mark.unlike for mark in line if mark.unlike})
    who = first.who + (f" (unlike: {', '.join(flagged)})" if flagged else "")
    return who, first.name, first.device


def _scale(axes: Axes, axis: Literal["x", "y"], *, log: bool) -> None:
    """Ticks that do not run into each other, and lines to read them by."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    of = axes.xaxis if axis == "x" else axes.yaxis
    of.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if axis == "y" else (1.0,), numticks=12) if log else MaxNLocator(6)
    )
    of.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    of.set_minor_formatter(NullFormatter())
    axes.tick_params(axis=axis, labelsize=9)
    axes.grid(visible=True, axis=axis, color="#d0d0d0", linewidth=0.7)
    axes.set_axisbelow(True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
