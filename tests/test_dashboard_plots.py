"""The plots: figures of strangers may be anything, marks stay inside; what was measured is what is shown."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_accelerate_node.api.dashboard.page import rendered
from ipfs_accelerate_node.api.dashboard.plots import WIDTH, BarPlot, LinePlot, PairPlot, latency, plots_of
from ipfs_accelerate_node.api.dashboard.results import Findings, Measured, ModelResults
from ipfs_accelerate_node.api.dashboard.words import size
from ipfs_accelerate_node.peers.ranking import ranked
from tests.support.results import claim, key

HOSTILE = "\"'><script>alert(1)</script>"

CLAIMED: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    ns=st.integers(1, 24 * 3600 * 10**9 // 3),
    device=st.sampled_from(["cpu", "cuda:0", "openvino:CPU", HOSTILE]),
    name=st.sampled_from(["encode-1x128", "encode-8x128", "tg128", "load", "x"]),
    batch=st.sampled_from([None, 0, 1, 8, 1 << 40]),
    work=st.integers(0, 1 << 53),
    who=st.integers(1, 5),
)


@given(st.lists(CLAIMED, max_size=30))
@settings(max_examples=60)
def test_whatever_figures_there_are_every_mark_is_inside_its_plot(figures: list[dict[str, Any]]) -> None:
    now = int(time.time())
    made = []
    for seq, one in enumerate(figures):
        workload = {"name": one["name"], "repeats": 3, **({} if one["batch"] is None else {"batch": one["batch"]})}
        made.append(claim(key(one["who"]), created=now, seq=seq, ns=one["ns"], device=one["device"],
                          work=[one["work"]] * 3, workload=workload))  # fmt: skip
    own = [one for one in made if one.signer == key(1).peer_id]
    others = [one for one in made if one.signer != key(1).peer_id]
    rows = [Measured(result, own[0] if result.own_ns and own else None) for result in ranked(others, own)]
    model = ModelResults("root", "", tuple(rows), 0, len(others), now)
    assert "<script" not in rendered("results.html", found=Findings((model,), 0, 0), cards=[(model, plots_of(model))])
    for plot in plots_of(model):
        match plot:
            case BarPlot():
                places = [x for bar in plot.bars for x in (bar.width, bar.low or 0, bar.high or 0)]
                assert 0 < len(plot.bars) <= 8
            case PairPlot():
                places = [x for pair in plot.pairs for x in (pair.own or 0, pair.peers, pair.low, pair.high)]
                assert all(pair.low <= pair.peers <= pair.high for pair in plot.pairs)
            case LinePlot():
                places = [x for one in plot.series for point in one.points for x in (point.x, point.y)]
        assert all(0 <= x <= WIDTH for x in places)


def test_a_latency_plot_has_the_times_that_were_measured() -> None:
    now = int(time.time())
    made = [claim(key(2), created=now, seq=n, ns=ns, device=device, precision="f32",
                  workload={"name": "encode-8x128", "batch": 8, "length": 128, "repeats": 3})
            for n, (device, ns) in enumerate((("cpu", 10_000_000), ("cuda:0", 1_000_000)))]  # fmt: skip
    rows = [Measured(result, None) for result in ranked(made, [])]
    plot = latency(rows)
    assert plot is not None
    assert [(bar.label, bar.value, bar.claim) for bar in plot.bars] == [
        ("cuda:0 f32", "2.00 ms", True),
        ("cpu f32", "20.0 ms", True),
    ]
    assert plot.bars[1].width == pytest.approx(10 * plot.bars[0].width, rel=0.01)
    assert plot.ticks[0].text == "0"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_500, "1.00 MB"), (21_430_000, "21.4 MB"),
     (5 * 10**9, "5.00 GB"), (10**19, "10,000 PB"), (None, "–")],
)  # fmt: skip
def test_sizes_read_well(count: int | None, text: str) -> None:
    assert size(count) == text
