"""TS9: twice what the node can do, for a while: how soon the others are refused, and what those notice who are not."""

from __future__ import annotations

from serving.bed import rss_bytes
from serving.contestants import Taken
from serving.embedding import CLIENTS, Field
from serving.lines import Line, Ratio, figure, percentile

MIB = 1 << 20
UNLOADED, HALF, OVER = 0.1, 0.5, 2.0
REFUSED_MS = 20.0


def _rate(taken: Taken) -> float:
    """Answered a second."""
    return taken.statuses.get(200, 0) / taken.wall_s


def ts9(field: Field) -> list[Line]:
    bed = field.bed
    precision = "bf16" if field.ours("bf16") is not None else "f32"
    one = field.ours(precision)
    if one is None:
        return []
    seconds = bed.sizes.seconds
    groups = [[text] for text in bed.words.mixed(max(64, bed.sizes.texts), seed=9)]
    requests = one.requests(bed, groups)
    one.run(bed, requests, clients=CLIENTS, count=len(groups)).whole()
    rate = max(_rate(one.run(bed, requests, clients=2 * CLIENTS, count=len(groups)).whole()) for _ in range(2))
    first = one.run(bed, requests, rate=OVER * rate, seconds=seconds / 3, clients=CLIENTS)
    rate = max(rate, _rate(first))  # what one overload leaves behind is there; and nothing hinders it to do more
    alone = one.run(bed, requests, rate=UNLOADED * rate, seconds=max(seconds / 2, 20 / rate), clients=4).whole()
    half = one.run(bed, requests, rate=HALF * rate, seconds=max(seconds / 2, 20 / rate), clients=CLIENTS)
    before = [rss_bytes(pid) for pid in one.pids]
    over = one.run(bed, requests, rate=OVER * rate, seconds=seconds, clients=CLIENTS)
    after = [rss_bytes(pid) for pid in one.pids]
    unloaded, accepted, refused = (1e3 * percentile(taken, 99) for taken in (
        alone.seconds(), over.seconds(), over.seconds(429),
    ))  # fmt: skip
    late = 1e3 * percentile([late for *_, late in over.took], 99)
    beside = {
        "most answered a second": rate,
        "answers": over.statuses,
        "load's CPU share": over.load_share,
        "sent late p99, ms": late,
        "answered a second": _rate(over),
    }
    lines = []
    if not over.seconds(429):
        bed.absent["TS9, answers of 429"] = f"nobody was refused: {over.statuses}"
    else:
        line = Line("TS9", f"429 at twice the rate for {seconds:g} s, p99, {precision}", figure(refused, "ms"))
        line.ratios = [Ratio("ms", refused, f"<= {REFUSED_MS:g}")]
        lines.append(line)
    line = Line("TS9", "p99 of those accepted meanwhile", figure(accepted, "ms"))
    line.ratios = [Ratio("unloaded p99", accepted / unloaded, "<= 2")]
    line.beside = {
        "unloaded p99, ms": unloaded,
        "unloaded p50, ms": 1e3 * percentile(alone.seconds(), 50),
        "half loaded p99, ms": 1e3 * percentile(half.seconds(), 99),
        "p50, ms": 1e3 * percentile(over.seconds(), 50),
        **beside,
    }
    if wrong := set(over.statuses) - {200, 429}:
        line.notes.append(f"answers other than 200 and 429: {sorted(wrong)} {over.errors}")
    lines.append(line)
    growth = Line("TS9", "memory of node and worker, after / before", figure(sum(after) / sum(before), "×"))
    growth.ratios = [Ratio("before", sum(after) / sum(before), "<= 1.02")]
    growth.beside = {"node, MiB": after[0] / MIB, "worker, MiB": after[1] / MIB}
    return [*lines, growth]
