"""The tables, plots and pages of results: the same rows in every form, whoever wrote the names in them."""

from __future__ import annotations

import csv
import io
import re
import sys
import warnings
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from ipfs_accelerate_node.benchmarks.charts import (
    ALONE,
    MOST_LINES,
    MOST_MARKS,
    Bars,
    Chart,
    Lines,
    key_name,
    latency,
    plain,
    short,
    throughput,
)
from ipfs_accelerate_node.benchmarks.page import Part, page
from ipfs_accelerate_node.benchmarks.plots import drawn, figure, require, styled
from ipfs_accelerate_node.cli.results_sheets import by_key, summary
from ipfs_accelerate_node.cli.sheets import Column, Sheet, Type, Value, require_parquet
from ipfs_accelerate_node.errors import Unavailable
from tests.support.results import key
from tests.support.results_found import found, measured, usual

SVG = "{http://www.w3.org/2000/svg}"
H100: dict[str, Any] = {"device": "cuda:0", "device_name": "NVIDIA H100"}
HOSTILE = "<script>alert(1)</script>&\"'`|$\\frac{1}{0}$ =1+1"
NAMES = ("one", "two\x1b[31m\u202e", HOSTILE, "漢字", "")

# -- the same rows in every form

texts = st.text(max_size=20)
values: dict[str, st.SearchStrategy[Value]] = {
    "text": st.none() | texts.map(plain),
    "count": st.none() | st.integers(-(2**53), 2**53),
    "number": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "flag": st.none() | st.booleans(),
}
TYPES: tuple[Type, ...] = ("text", "count", "number", "flag")


@st.composite
def sheets(draw: st.DrawFn) -> Sheet:
    columns = tuple(Column(f"{kind} {n}", kind) for n, kind in enumerate(draw(st.permutations(TYPES))))
    rows = draw(st.lists(st.tuples(*(values[column.type] for column in columns)), max_size=8))
    return Sheet(columns, tuple(rows))


@given(sheets())
def test_csv_and_parquet_hold_the_same_rows(sheet: Sheet) -> None:
    read = pyarrow.parquet.read_table(io.BytesIO(sheet.parquet())).to_pylist()
    assert [tuple(row[column.name] for column in sheet.columns) for row in read] == list(sheet.rows)
    header, *lines = csv.reader(io.StringIO(sheet.csv()))
    assert header == [column.name for column in sheet.columns]
    assert len(lines) == len(sheet.rows)
    for line, row in zip(lines, sheet.rows, strict=True):
        for cell, value, column in zip(line, row, sheet.columns, strict=True):
            assert _of_csv(cell, column) == (None if value == "" else value)


def _of_csv(cell: str, column: Column) -> Value:
    if cell == "":
        return None
    match column.type:
        case "count":
            return int(cell)
        case "number":
            return float(cell)
        case "flag":
            return {"true": True, "false": False}[cell]
        case _:
            assert cell[0] not in "=+-@"  # which a spreadsheet would take for a formula
            return cell[1:] if cell[0] == "'" and cell[1:2] in ("=", "+", "-", "@") else cell


@given(sheets())
def test_markdown_is_a_table_of_the_same_rows(sheet: Sheet) -> None:
    header, rule, *lines = sheet.markdown().splitlines()
    cells = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in (header, *lines)]
    assert {len(row) for row in cells} == {len(sheet.columns)}
    assert rule == "|" + " --- |" * len(sheet.columns)
    assert len(lines) == len(sheet.rows)
    for line, row in zip(cells[1:], sheet.texts(wide=False), strict=True):
        assert [_of_markdown(cell) for cell in line] == row


def _of_markdown(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell[1:-1].replace("&amp;", "&"))


def test_all_tables_of_results_have_the_same_figures() -> None:
    answer = found([*usual(2, 1.0), *usual(3, 2.0, **H100)], usual(1, 3.0), trusted={key(3).peer_id})
    sheet = summary(answer)
    rows = pyarrow.parquet.read_table(io.BytesIO(sheet.parquet())).to_pylist()
    assert len(rows) == len(sheet.rows) == len(answer["results"]) == 8
    for row, result in zip(rows, answer["results"], strict=True):
        assert row["median_ms"] == result["median_ns"] / 1e6
        assert (row["keys"], row["trusted"], row["unit"]) == (result["keys"], result["trusted"], "tokens/s")
    each = pyarrow.parquet.read_table(io.BytesIO(by_key(answer).parquet())).to_pylist()
    assert len(each) == 12
    assert [row["who"] for row in each].count("own") == 4
    assert {row["key"] for row in each} == {key(n).peer_id for n in (1, 2, 3)}
    assert all(row["record"].startswith("bafyrei") for row in each)


@pytest.mark.parametrize("name", NAMES)
def test_no_form_obeys_a_name(name: str) -> None:
    text = plain(name)
    answer = found([measured(2, 1.0, device="cuda:0", device_name=text)], [measured(1, 1.0, device=text or "cpu")])
    for sheet in (summary(answer), by_key(answer)):
        for form in (sheet.csv(), sheet.markdown(), *(cell for row in sheet.texts(wide=True) for cell in row)):
            assert not set(form) & {"\x1b", "\u202e", "\x00"}
        assert "<script>" not in sheet.markdown().replace("\\<", "")


# -- plots


def titles(chart: Chart) -> list[str]:
    return [panel.title for panel in chart.panels]


def test_what_is_drawn_of_one_model() -> None:
    answer = found([*usual(2, 0.01, **H100), *usual(3, 1.1)], usual(1, 1.0), trusted={key(2).peer_id})
    times, rates = latency(answer), throughput(answer)
    assert titles(times) == [
        f"{name} (embedding)" for name in ("encode-1x16", "encode-1x128", "encode-8x128", "encode-32x128")
    ]
    panel = times.panels[2]
    assert isinstance(panel, Bars)
    assert [(mark.kind, mark.unlike) for mark in panel.marks] == [("trusted", ""), ("own", ""), ("claim", "")]
    assert [round(mark.value, 3) for mark in panel.marks] == [0.010, 1.024, 1.126]
    assert [mark.who for mark in panel.marks[::2]] == [f"claim by {key_name(key(n).peer_id)}" for n in (2, 3)]
    own = panel.marks[1]
    assert (round(own.low, 4), round(own.high, 4)) == (0.9728, 1.0752)  # the middle half of the samples
    assert panel.log  # a hundred times between them
    (lines,) = rates.panels
    assert isinstance(lines, Lines)
    assert lines.title == "encode, 128 tokens each (embedding)"
    assert [[mark.at for mark in line] for line in lines.lines] == [[1, 8, 32]] * 3
    assert lines.lines[0][0].value == pytest.approx(1e8)  # 128 tokens in 1.28 µs
    assert [line[0].kind for line in lines.lines] == ["trusted", "own", "claim"]
    for line in lines.lines:
        assert all(mark.low < mark.value < mark.high for mark in line)


def test_many_keys_become_their_median_and_nothing_is_hidden() -> None:
    claims = [measured(number, 10 + number / 100, **H100) for number in range(2, 32)]
    claims.append(measured(40, 0.1, **H100))
    (panel,) = latency(found(claims, trusted={key(31).peer_id})).panels
    assert isinstance(panel, Bars)
    kinds = [mark.kind for mark in panel.marks]
    assert (kinds.count("trusted"), kinds.count("claim"), kinds.count("many")) == (1, ALONE, 1)
    assert sum(mark.keys for mark in panel.marks) == len(claims)
    assert (panel.marks[0].unlike, panel.left_out) == ("faster", 0)  # what is flagged is always shown by itself


def test_what_does_not_fit_is_counted() -> None:
    claims = [one for n in range(2, 62) for one in usual(n, n, device="cuda:0", device_name=f"card {n}")]
    own = usual(1, 1000)
    panel, lines = latency(found(claims, own)).panels[0], throughput(found(claims, own)).panels[0]
    assert isinstance(panel, Bars)
    assert isinstance(lines, Lines)
    assert (len(panel.marks), panel.left_out) == (MOST_MARKS, 61 - MOST_MARKS)
    assert (len(lines.lines), lines.left_out) == (MOST_LINES, 61 - MOST_LINES)
    assert any(mark.kind == "own" for mark in panel.marks)
    assert any(line[0].kind == "own" for line in lines.lines)


def test_generation_and_loads() -> None:
    def of(by: int, name: str, ms: float, seq: int) -> Any:
        return measured(by, ms, workload=name, settings={"new_tokens": 1}, task="text-generation", seq=seq)

    answer = found([of(2, "tg128", 3000, 1), of(2, "load", 2500, 2), of(2, "pp512", 90, 3), of(2, "odd", 1, 4)])
    assert titles(latency(answer)) == [f"{name} (text-generation)" for name in ("pp512", "tg128", "load", "odd")]
    assert ["(s)" in panel.axis for panel in latency(answer).panels if isinstance(panel, Bars)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert titles(throughput(answer)) == ["pp512 (text-generation)", "tg128 (text-generation)"]
    assert throughput(answer).title == "Throughput by device"


def svg_texts(svg: bytes) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_an_svg_says_what_its_axes_bars_and_colours_are() -> None:
    answer = found([*usual(2, 0.5), *usual(3, 0.1, **H100), *usual(4, 1.0)], usual(1, 1.0), trusted={key(3).peer_id})
    charts = [latency(answer), throughput(answer)]
    svg = drawn("a model", charts, "svg")
    said = svg_texts(svg)
    for text in (
        "a model", "Latency by device", "Throughput by batch", "time of one request, median (ms)",
        "inputs of one request (batch)", "tokens per second, median", "this machine, measured here",
        "claim by a key that you trust", "claim by another key", "unlike", "encode-8x128 (embedding)", "8", "32",
    ):  # fmt: skip
        assert text in said, text
    assert sum("unlike: faster" in text for text in said) >= 4
    bars = sum(len(panel.marks) for panel in charts[0].panels if isinstance(panel, Bars))
    assert bars == 16
    hatched = [n for n in ElementTree.fromstring(svg).iter(f"{SVG}path") if "url(#h" in (n.get("style") or "")]
    assert len(hatched) == 12 + 2  # every claim's bar, and two entries of the legend
    for number in (2, 3, 4):
        assert sum(key_name(key(number).peer_id) in text for text in said) >= 5  # four bars and a line
    assert svg == drawn("a model", charts, "svg")  # nothing of when it was drawn


@pytest.mark.parametrize("name", [*NAMES[:4], "W" * 200, "$x_1$ $", "_hidden", "\\", "%s {0}"])
def test_any_name_can_be_drawn(name: str) -> None:
    text = plain(name)
    answer = found([*usual(2, 0.5, device="cuda:0", device_name=text), *usual(3, 0.1, cpu=text)], usual(1, 1.0))
    charts = [latency(answer), throughput(answer)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg, png = drawn(text, charts, "svg"), drawn(text, charts, "png")
    if len(text) < 12:
        assert sum(text in said for said in svg_texts(svg)) >= 8
    assert not {node.tag for node in ElementTree.fromstring(svg).iter()} & {f"{SVG}script", "script"}
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width == 1430


Box = tuple[float, float, float, float]  # left, bottom, right, top


def written(title: str, charts: list[Chart], monkeypatch: pytest.MonkeyPatch) -> tuple[list[tuple[str, Box]], Box]:
    """Every text that is drawn and where, and the whole picture; in dots."""
    drawn_texts: list[tuple[str, Box]] = []
    draw = Text.draw

    def noted(text: Text, renderer: Any, *more: Any, **named: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            extent = text.get_window_extent(renderer)
            drawn_texts.append((text.get_text(), (extent.x0, extent.y0, extent.x1, extent.y1)))
        draw(text, renderer, *more, **named)

    monkeypatch.setattr(Text, "draw", noted)
    with styled():
        made = figure(title, charts)
        made.canvas.draw()
        monkeypatch.undo()
        return drawn_texts, (0, 0, *made.bbox.size)


def lie_upon(one: Box, other: Box) -> bool:
    return min(one[2], other[2]) - max(one[0], other[0]) > 1 and min(one[3], other[3]) - max(one[1], other[1]) > 1


WIDE = "W" * 200


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (0, ""),
        (1, "NVIDIA H100"),
        (2, HOSTILE + "x" * 150),
        (30, WIDE),
        (5, "漢字" * 60),
        (12, "a very long name " * 10),
    ],
)
def test_nothing_lies_on_anything_else(count: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [
        one
        for n in range(2, 2 + count)
        for one in usual(n, n, device="cuda:0" if n % 2 else "x" * 200, device_name=f"{n} {name}"[:200])
    ]
    own = usual(1, 3.0, cpu=WIDE) if count else []
    same = [measured(n, n / 100, **H100) for n in range(50, 60)] if count > 5 else []
    answer = found([*claims, *same], own, trusted={key(3).peer_id})
    texts, whole = written(f"{WIDE}: {answer['model']}", [latency(answer), throughput(answer)], monkeypatch)
    assert len(texts) > 8 * count
    for text, box in texts:
        assert box[0] >= 0, text
        assert box[1] >= 0, text
        assert box[2] <= whole[2], text
        assert box[3] <= whole[3], text
    for index, (text, box) in enumerate(texts):
        for other, its in texts[index + 1 :]:
            assert not lie_upon(box, its), (text, other)
    if count == 0:
        assert "Nobody's results are known here." in [text for text, _ in texts]


def test_short_keeps_both_ends() -> None:
    assert short("abcdefghij", 5) == "ab…ij"
    assert short("abc", 3) == "abc"
    assert key_name("12D3KooWaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa12345678") == "12D3…12345678"


@given(st.text(max_size=60), st.integers(3, 50))
def test_short_is_never_longer(text: str, most: int) -> None:
    assert len(short(text, most)) <= most


# -- page


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


@pytest.mark.parametrize("name", [*NAMES, "\ud800", "-->", "</style><script>"])
def test_a_page_has_the_texts_and_obeys_none(name: str) -> None:
    text = name.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if name == "\ud800" else plain(name)
    answer = found(usual(2, 1.0, device="cuda:0", device_name=text), usual(1, 1.0))
    svg = drawn("", [latency(answer), throughput(answer)], "svg")
    made = page(name, svg, [Part("Table", ["name", "n"], [[name, "1"]], frozenset({1}))], notes=[name], rule=name)
    seen = Seen()
    seen.feed(made.decode())
    seen.close()
    assert seen.cells == ["name", "n", plain(name), "1"]
    assert not {"script", "img", "link", "iframe", "object", "embed", "foreignobject", "a"} & set(seen.tags)
    assert not [a for a, _ in seen.attributes if a.startswith("on")]
    loads = [v for a, v in seen.attributes if a in ("href", "src", "xlink:href") and not (v or "").startswith("#")]
    assert loads == []
    assert (seen.tags.count("svg"), seen.tags.count("meta")) == (1, 3)
    policy = next(v for a, v in seen.attributes if a == "content" and v and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    assert "url(http" not in made.decode()


# -- extras


@pytest.mark.parametrize(
    ("module", "check", "extra"), [("matplotlib", require, "plot"), ("pyarrow", require_parquet, "parquet")]
)
def test_a_missing_extra_is_named(module: str, check: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unavailable, match=rf"pip install 'ipfs-accelerate-node\[{extra}\]'") as raised:
        check()
    assert raised.value.code == "extra_missing"
