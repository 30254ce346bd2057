"""The tables of `results`: a row for each thing measured, for each key, or for each claim beside our own re-run."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from ipfs_accelerate_node.cli.render import clean
from ipfs_accelerate_node.cli.sheets import Column, Sheet, Value, milliseconds


def _ms(name: str, *, wide: bool = False) -> Column:
    return Column(name, "number", milliseconds, wide=wide)


_SUMMARY = (
    Column("model", wide=True), Column("task", wide=True), Column("device"), Column("cpu"), Column("engine"),
    Column("precision"), Column("workload"), Column("settings", wide=True), Column("keys", "count"),
    Column("trusted", "count"), Column("unlike", "count"), _ms("median_ms"), _ms("low_ms"), _ms("high_ms"),
    Column("per_s", "number"), Column("unit"), _ms("own_ms"), _ms("own_low_ms", wide=True),
    _ms("own_high_ms", wide=True), Column("own_per_s", "number"),
)  # fmt: skip
_BY_KEY = (
    Column("model", wide=True), Column("task", wide=True), Column("who"), Column("key"), Column("trusted", "flag"),
    Column("counted", "flag", wide=True), Column("unlike"), Column("device"), Column("cpu"), Column("cores", "count"),
    Column("engine"), Column("precision"), Column("workload"), Column("settings", wide=True), _ms("median_ms"),
    _ms("low_ms"), _ms("high_ms"), Column("per_s", "number"), Column("unit"), Column("samples", "count", wide=True),
    Column("at", wide=True), Column("record", wide=True),
)  # fmt: skip
_BESIDE = (
    Column("model", wide=True), Column("task", wide=True), Column("key"), Column("trusted", "flag"),
    Column("verdict"), Column("workload"), Column("settings", wide=True), Column("precision"), Column("device"),
    Column("own_device"), _ms("median_ms"), _ms("low_ms", wide=True), _ms("high_ms", wide=True), _ms("own_ms"),
    _ms("own_low_ms", wide=True), _ms("own_high_ms", wide=True), Column("ratio", "number"),
    Column("most", "number", wide=True), Column("reason"), Column("differs", wide=True),
    Column("record", wide=True), Column("own_record", wide=True),
)  # fmt: skip


def summary(found: Mapping[str, Any]) -> Sheet:
    """Medians of the keys, what this node measured beside them."""
    return _sheet(_SUMMARY, (_summarised(found["model"], result) for result in found["results"]))


def by_key(found: Mapping[str, Any]) -> Sheet:
    """A row for each key of each result, this machine's own first."""
    return _sheet(_BY_KEY, (row for result in found["results"] for row in _keys(found["model"], result)))


def beside(done: Mapping[str, Any]) -> Sheet:
    """What was run again here beside what was claimed."""
    return _sheet(_BESIDE, (_pair(done["model"], pair) for pair in done["beside"]))


def _sheet(columns: tuple[Column, ...], rows: Iterable[Mapping[str, Any]]) -> Sheet:
    return Sheet(columns, tuple(tuple(_typed(column, row.get(column.name)) for column in columns) for row in rows))


def _typed(column: Column, value: Any) -> Value:
    if value is None:
        return None
    if column.type == "text":
        return clean(value)
    if column.type == "number":
        return float(value)
    return bool(value) if column.type == "flag" else int(value)


def _same(model: str, result: Mapping[str, Any]) -> dict[str, Any]:
    named = ("task", "engine", "precision", "workload", "settings")
    device = result["device"]
    if result["device_name"] and result["device_name"] not in (device, *result["cpus"]):
        device = f"{device} ({result['device_name']})"
    return {"model": model, "device": device, "unit": f"{result['unit']}/s", **{name: result[name] for name in named}}


def _summarised(model: str, result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_same(model, result),
        "cpu": ", ".join(result["cpus"]),
        "keys": result["keys"],
        "trusted": result["trusted"],
        "unlike": sum(1 for vote in result["votes"] if vote["unlike"]),
        "per_s": result["per_s"],
        **_times(result),
        **_own(result["own"]),
    }


def _keys(model: str, result: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    same = _same(model, result)
    if result["own"] is not None:
        yield {**same, **_vote(result["own"]), "who": "own", "trusted": None, "counted": None}
    for vote in result["votes"]:
        yield {**same, **_vote(vote), "who": "claim"}


def _vote(vote: Mapping[str, Any]) -> dict[str, Any]:
    named = ("trusted", "counted", "unlike", "cpu", "cores", "per_s", "samples")
    return {
        **{name: vote[name] for name in named},
        "key": vote["signer"],
        "at": _at(vote["created"]),
        "record": vote["envelope_cid"],
        **_times(vote),
    }


def _own(own: Mapping[str, Any] | None) -> dict[str, Any]:
    if own is None:
        return {}
    times = {f"own_{name}": value for name, value in _times(own).items()}
    return {**times, "own_ms": times["own_median_ms"], "own_per_s": own["per_s"]}


def _pair(model: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    claim, own = pair["claim"], pair["own"]
    named = ("task", "workload", "settings", "precision", "trusted", "verdict", "ratio", "most", "reason")
    return {
        "model": model,
        **{name: pair[name] for name in named},
        **_times(claim),
        **_own(own),
        "key": pair["signer"],
        "device": _device(claim),
        "own_device": _device(own),
        "differs": "; ".join(pair["differs"]),
        "record": claim["envelope_cid"],
        "own_record": own["envelope_cid"],
    }


def _device(figure: Mapping[str, Any]) -> str:
    name = figure["device_name"] or figure["cpu"]
    return f"{figure['device']} ({name})" if name and name != figure["device"] else str(figure["device"])


def _times(said: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_ms": _in_ms(said[f"{name}_ns"]) for name in ("median", "low", "high")}


def _in_ms(ns: int | None) -> float | None:
    return None if ns is None else ns / 1e6


def _at(created: int) -> str:
    """The day: of when records are made nobody needs to know more."""
    return datetime.datetime.fromtimestamp(created, datetime.UTC).strftime("%Y-%m-%d")
