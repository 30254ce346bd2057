"""TS1 to TS3, and TS5: embeddings over HTTP, beside those who serve them and those who do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bed import Bed
from serving.contestants import (
    INFINITY_NAME,
    ST_OFFLINE,
    ST_SERVER,
    TEI,
    TOLERANCE,
    Offline,
    Server,
    Vectors,
    check_equal,
    ours,
    raw_loop,
    reference_vectors,
    rivals,
)
from serving.lines import Line, figure, percentile

CHECKED = 24  # texts
CLIENTS = 16
MANY_CLIENTS, TEXTS_A_REQUEST = 32, 8
SHARES = {"device busy": "busy", "tokenizer busy": "tokenizing", "tokens a pass": "pass", "padding": "padding"}
PRECISIONS = ("bf16", "f32")


class Field:
    """Everybody who is measured, started when first asked for, and checked to do equal work."""

    def __init__(self, bed: Bed, *, with_rivals: bool) -> None:
        self.bed = bed
        self.differ: dict[str, str] = {}
        self.default = ""  # the precision in which ours is served to who names none
        self._with_rivals = with_rivals
        self._texts = bed.words.mixed(CHECKED, seed=99)
        self._reference: Vectors | None = None
        self._ours: dict[str, Server | None] = {}
        self._raw: dict[str, Offline | None] = {}
        self._rivals: list[Server | Offline] | None = None

    @property
    def reference(self) -> Vectors:
        if self._reference is None:
            self._reference = reference_vectors(self.bed, self._texts)
        return self._reference

    def ours(self, precision: str) -> Server | None:
        if not self.default:
            self.default = self.bed.loaded(self.bed.sample, precision=None, task="embedding")["precision"]
        if precision not in self._ours:
            self._ours[precision] = self._equal(ours(self.bed, precision))
        return self._ours[precision]

    def raw(self, precision: str) -> Offline | None:
        """After ``ours`` of it."""
        if precision not in self._raw:
            self._raw[precision] = self._equal(raw_loop(self.bed, precision))
        return self._raw[precision]

    def rivals(self, *names: str) -> list[Server | Offline]:
        """Those of them that are here and do the same."""
        if self._rivals is None:
            known = (ST_SERVER, ST_OFFLINE, INFINITY_NAME, TEI) if self._with_rivals else ()
            self._rivals = rivals(self.bed, known)
            self.check(self._rivals)
        return [one for one in self._rivals if one.name in names and one.name not in self.differ]

    def _equal(self, one: Any) -> Any:
        """Itself, or None: it is not here, or does other work."""
        if one is not None:
            self.check([one])
        return None if one is None or one.name in self.differ else one

    def check(self, contestants: Sequence[Server | Offline]) -> None:
        for name in check_equal(self.bed, contestants, self._texts, self.reference):
            one = next(one for one in contestants if one.name == name)
            self.differ[name] = f"not ranked: cosine {one.cosine:.5f}, {TOLERANCE[one.precision]} is wanted"

    def finish(self, line: Line, among: Sequence[str], contestants: Sequence[Server | Offline]) -> Line:
        """Says who is missing, and how near the others are to what is right."""
        reasons = {**self.bed.absent, **self.differ}
        left_out = "left out of this run" if not self._with_rivals else "was not measured"
        named = {one.name for one in contestants}
        line.absent = {name: reasons.get(name, left_out) for name in among if name not in named}
        line.beside["least_cosine"] = {one.name: round(one.cosine or 0.0, 6) for one in contestants}
        return line


Rounds = dict[str, list[dict[str, float]]]


def interleaved(rounds: int, contestants: Mapping[str, Callable[[], dict[str, float]]]) -> Rounds:
    """Each one's rounds, taking turns; a first one warms up and is not counted."""
    found: Rounds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            once = run()
            if number:
                found[name].append(once)
    return found


def column(rounds: Rounds, name: str, value: str) -> list[float]:
    return [once[value] for once in rounds[name]]


# -- TS1


def ts1(field: Field) -> list[Line]:
    """One client, one text of eight words at a time."""
    bed = field.bed
    among = (ST_SERVER, INFINITY_NAME, TEI)
    own = {precision: one for precision in PRECISIONS if (one := field.ours(precision)) is not None}
    others = [one for one in field.rivals(*among) if isinstance(one, Server)]
    groups = [[text] for text in bed.words.short(min(bed.sizes.requests, 256))]
    contestants = {one.name: single(bed, one, groups) for one in (*own.values(), *others)}
    rounds = interleaved(bed.sizes.rounds, contestants)
    lines = []
    for precision, one in own.items():
        wanted = _targets(precision, ("<= 0.35", "<= 0.25", "<= 1.0"), only="bf16" if "bf16" in own else "f32")
        line = Line(
            "TS1",
            f"p50 of one 8-word text, one client, {precision}",
            figure(column(rounds, one.name, "p50_ms"), "ms"),
            {other.name: figure(column(rounds, other.name, "p50_ms"), "ms") for other in others},
        )
        for name, target in zip(among, wanted, strict=True):
            line.against(name, target)
        line.beside = {
            "p99_ms": max(column(rounds, one.name, "p99_ms")),
            "of it in the model's passes, mean, ms": min(column(rounds, one.name, "compute_ms")),
            "load's CPU share": max(column(rounds, one.name, "load")),
            "served unless asked for another": field.default,
        }
        lines.append(field.finish(line, among, [one, *others]))
    return lines


def _targets(precision: str, targets: tuple[str, ...], *, only: str) -> tuple[str | None, ...]:
    return tuple(target if precision == only else None for target in targets)


def single(bed: Bed, one: Server, groups: list[list[str]]) -> Callable[[], dict[str, float]]:
    requests = one.requests(bed, groups)

    def run() -> dict[str, float]:
        before = counters(bed, one)
        taken = one.run(bed, requests, clients=1, count=bed.sizes.requests).whole()
        after, seconds = counters(bed, one), taken.seconds()
        computed = after.get("model_compute_seconds", 0.0) - before.get("model_compute_seconds", 0.0)
        return {
            "compute_ms": 1e3 * computed / len(seconds),
            "p50_ms": 1e3 * percentile(seconds, 50),
            "p99_ms": 1e3 * percentile(seconds, 99),
            "load": taken.load_share,
        }

    return run


# -- TS2


def ts2(field: Field) -> list[Line]:
    """Sixteen clients, one text of any length at a time."""
    bed = field.bed
    among = (ST_OFFLINE, ST_SERVER, INFINITY_NAME, TEI)
    texts = bed.words.mixed(bed.sizes.texts)
    own = {precision: one for precision in PRECISIONS if (one := field.ours(precision)) is not None}
    others = field.rivals(*among)
    groups = [[text] for text in texts]
    rounds = interleaved(
        bed.sizes.rounds, {one.name: throughput(bed, one, texts, groups, CLIENTS) for one in (*own.values(), *others)}
    )
    wanted: dict[str, tuple[str | None, ...]] = {
        "bf16": (">= 2.4", ">= 4", ">= 4", ">= 4"),
        "f32": (">= 1.4", None, None, ">= 2.4"),
    }
    lines = []
    for precision, one in own.items():
        what = f"real tokens over HTTP, mixed lengths, {CLIENTS} clients, {precision}"
        line = throughput_line("TS2", what, one, others, rounds)
        for name, target in zip(among, wanted[precision], strict=True):
            line.against(name, target)
        line.beside |= {"texts": len(texts), "tokens": bed.words.tokens(texts)}
        lines.append(field.finish(line, among, [one, *others]))
    return lines


def throughput_line(id: str, what: str, one: Server, others: Sequence[Server | Offline], rounds: Rounds) -> Line:
    return Line(
        id,
        what,
        figure(column(rounds, one.name, "tokens_per_s"), "tokens/s"),
        {other.name: figure(column(rounds, other.name, "tokens_per_s"), "tokens/s") for other in others},
        beside={
            "load's CPU share": max(column(rounds, one.name, "load")),
            "the node's": max(column(rounds, one.name, "server")),
            "p50_ms": column(rounds, one.name, "p50_ms")[0],
            **{
                what: shares[0]
                for what, value in SHARES.items()
                if (shares := sorted(column(rounds, one.name, value)))[0] >= 0
            },
        },
    )


def throughput(
    bed: Bed, one: Server | Offline, texts: list[str], groups: list[list[str]], clients: int
) -> Callable[[], dict[str, float]]:
    """A closed loop over the groups, each sent once a round. busy, tokenizing: share of the time in which the
    device computed, and the tokenizer was at it; as the node tells them, -1 where it does not."""
    tokens = bed.words.tokens(texts)
    if isinstance(one, Offline):
        given = bed.written("texts", bed.words.ids(texts) if one.ids else texts)
        return lambda: {"tokens_per_s": tokens / one.run(given)}
    requests = one.requests(bed, groups)

    def run() -> dict[str, float]:
        before = counters(bed, one)
        taken = one.run(bed, requests, clients=clients, count=len(groups)).whole()
        after = counters(bed, one)
        spent = {name: after[name] - before[name] for name in after if name in before}
        computed = spent.get("model_compute_seconds")
        padded = spent.get("batch_padded_tokens", 0.0)
        return {
            "tokens_per_s": tokens / taken.wall_s,
            "load": taken.load_share,
            "server": taken.server_share,
            "p50_ms": 1e3 * percentile(taken.seconds(), 50),
            "busy": -1.0 if computed is None else computed / taken.wall_s,
            "pass": spent["batch_tokens"] / spent["batches"] if spent.get("batches") else -1.0,
            "tokenizing": spent.get("model_tokenize_seconds", -1.0 * taken.wall_s) / taken.wall_s,
            "padding": 1 - spent["batch_tokens"] / padded if padded else -1.0,
        }

    return run


def counters(bed: Bed, one: Server) -> dict[str, float]:
    return bed.counters(one.model) if one.origin == bed.node.url else {}


# -- TS3


def ts3(field: Field) -> list[Line]:
    """What HTTP, queue and tokenizer cost, beside a bare loop over the same graph."""
    bed, lines = field.bed, []
    texts = bed.words.mixed(4 * bed.sizes.texts, seed=3)
    groups = [texts[at : at + TEXTS_A_REQUEST] for at in range(0, len(texts), TEXTS_A_REQUEST)]
    for precision in PRECISIONS:
        one = field.ours(precision)
        raw = field.raw(precision) if one is not None else None
        if one is None or raw is None:
            continue
        rounds = interleaved(
            bed.sizes.rounds,
            {each.name: throughput(bed, each, texts, groups, MANY_CLIENTS) for each in (one, raw)},
        )
        what = f"{MANY_CLIENTS} clients, {TEXTS_A_REQUEST} texts a request, beside the bare loop, {precision}"
        line = throughput_line("TS3", what, one, [raw], rounds)
        line.against(raw.name, ">= 0.9")
        lines.append(field.finish(line, [raw.name], [one, raw]))
    return lines


# -- TS5


def ts5(field: Field) -> list[Line]:
    """int8, where it can be had, beside bf16; how near it stays to f32."""
    bed = field.bed
    texts = bed.words.mixed(bed.sizes.texts)
    base = field.ours("bf16") or field.ours("f32")
    one = ours(bed, "int8")
    if one is None or base is None:
        bed.absent.setdefault("ours int8", "nothing to compare it with")
        return []
    field.check([one])  # it is shown, however far it is, but not ranked
    groups = [[text] for text in texts]
    rounds = interleaved(
        bed.sizes.rounds, {each.name: throughput(bed, each, texts, groups, CLIENTS) for each in (one, base)}
    )
    line = throughput_line("TS5", f"int8, real tokens over HTTP, {CLIENTS} clients", one, [base], rounds)
    if one.name in field.differ:
        line.notes.append(field.differ[one.name])
    else:
        line.against(base.name, ">= 1.5")
    line.beside |= _nearness(bed, texts, one, field.ours("f32"))
    return [field.finish(line, [base.name], [one, base])]


def _nearness(bed: Bed, texts: list[str], one: Server, exact: Server | None) -> dict[str, Any]:
    """Over the texts of the load, words without sense that nothing was calibrated with; and what the conversion found
    over its own."""
    found: dict[str, Any] = {}
    if exact is not None:
        near, right = one.vectors(bed, texts), exact.vectors(bed, texts)
        cosines = (near * right).sum(axis=1)
        changed = (_neighbours(near) != _neighbours(right)).mean()
        found = {"min cosine": float(cosines.min()), "neighbours changed": float(changed)}
    for path in Path(bed.node.cache, "artefacts").glob("*/artefact.json"):
        if gate := json.loads(path.read_text()).get("gate"):
            found["at conversion"] = {name: round(value, 5) for name, value in gate.items()}
    return found


def _neighbours(vectors: Vectors) -> NDArray[np.int64]:
    near = vectors @ vectors.T
    np.fill_diagonal(near, -1)
    found: NDArray[np.int64] = near.argmax(axis=1)
    return found
