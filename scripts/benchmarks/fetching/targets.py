"""TF1 to TF7, each a function from the bed to its figures, among them ``ratios`` with the target of each."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fetching import rivals
from fetching.bed import MIB, Bed, Model
from tests.support.node import disk_bytes
from tests.support.pinning import Pin

CAP_BYTES = 80_000_000
KILL_CAP_BYTES = 200_000_000
KILL_AT = 0.6
CORRUPT_EVERY = 8  # leaves

Figures = dict[str, Any]


def tf1(bed: Bed) -> Figures:
    """A verified fetch from one HTTP source, to a committed model, beside those who verify nothing."""
    model = bed.model("tf1")
    seed = bed.node("seed")
    if (added := seed.json("add", str(model.folder)))["root"] != model.root:
        raise SystemExit(f"not the same work: {added['root']} was added, not {model.root}")
    static = bed.server(model)
    taker = bed.node("taker", "--peer", seed.url)

    def ours(source: str) -> Callable[[], float]:
        def once() -> float:
            seconds = taker.fetch(model, source).seconds
            taker.forget(model)
            return seconds

        return once

    contestants = {
        "ours from a node": ours(seed.url),
        "curl from a node": rivals.curl(bed, model, seed.url),
        "ours from a file server": ours(static.url),
        "curl from a file server": rivals.curl(bed, model, static.url),
        "hf_hub_download": rivals.hf_hub_download(bed, model, static.url),
        "ipfs get": rivals.ipfs_get(bed, model),
    }
    taken = interleaved(bed.rounds, {name: run for name, run in contestants.items() if run is not None})
    ratios = {
        "curl / ours, from a node": (ratio(taken, "curl from a node", "ours from a node"), ">= 0.9"),
        "curl / ours, from a file server": (
            ratio(taken, "curl from a file server", "ours from a file server"),
            ">= 0.9",
        ),
        "hf_hub_download / ours": (ratio(taken, "hf_hub_download", "ours from a file server"), None),
        "ipfs get / ours": (ratio(taken, "ipfs get", "ours from a node"), ">= 4"),
    }
    return {"what": "fetch from one HTTP source", "size_bytes": model.size_bytes, **timed(taken, contestants, ratios)}


def tf2(bed: Bed) -> Figures:
    """Three capped sources beside one."""
    model = bed.model("tf2")
    servers = [bed.server(model, rate_bytes=CAP_BYTES, have=True) for _ in range(3)]
    taker = bed.node("taker", *peers(server.url for server in servers))

    def ours(source: str | None) -> Callable[[], float]:
        def once() -> float:
            seconds = taker.fetch(model, source).seconds
            taker.forget(model)
            return seconds

        return once

    taken = interleaved(bed.rounds, {"one source": ours(servers[0].url), "three sources": ours(None)})
    ratios = {"one / three": (ratio(taken, "one source", "three sources"), ">= 2.7")}
    return {
        "what": f"sources of {CAP_BYTES / 1e6:.0f} MB/s each",
        "size_bytes": model.size_bytes,
        **timed(taken, taken, ratios),
    }


def tf3(bed: Bed) -> Figures:
    """One honest, one corrupting and one stalling source beside the honest one alone, all of one rate. Each round has a
    node that knows none of them."""
    model = bed.model("tf3")
    good = bed.server(model, rate_bytes=CAP_BYTES, have=True)
    named: list[dict[str, str | None]] = []
    fetched: list[float] = []

    def alone() -> float:
        taker = bed.node("alone", *peers([good.url]))
        seconds = taker.fetch(model).seconds
        taker.stop()
        bed.drop(taker.cache)
        return seconds

    def together() -> float:
        corrupt = bed.server(model, rate_bytes=CAP_BYTES, have=True, corrupt_every=CORRUPT_EVERY)
        stalling = bed.server(model, rate_bytes=CAP_BYTES, have=True, stall_after=model.size_bytes // 8)
        taker = bed.node("together", *peers([corrupt.url, stalling.url, good.url]))
        done = taker.fetch(model)
        taker.stop()
        bed.drop(taker.cache)
        assert done.receipt is not None
        failures = {failure["source"]: failure["code"] for failure in done.receipt["failures"]}
        named.append({"corrupting": failures.get(corrupt.url), "stalling": failures.get(stalling.url)})
        fetched.append(done.receipt["bytes_fetched"] / model.size_bytes)
        return done.seconds

    taken = interleaved(bed.rounds, {"the good one alone": alone, "with the bad two": together})
    ratios = {"with the bad two / alone": (ratio(taken, "with the bad two", "the good one alone"), "<= 1.3")}
    return {
        "what": f"one honest, one corrupting, one stalling, {CAP_BYTES / 1e6:.0f} MB/s each",
        "size_bytes": model.size_bytes,
        **timed(taken, taken, ratios),
        "named": named,
        "bytes_fetched": fetched,
    }


def tf4(bed: Bed) -> Figures:
    """kill -9 when the source has sent 60 %, start again: what it sends the second time."""
    model = bed.model("tf4")
    shares, seconds = [], []
    for _ in range(bed.rounds):
        server = bed.server(model, rate_bytes=KILL_CAP_BYTES, have=True)
        taker = bed.node("taker", *peers([server.url]))
        pin = Pin(taker, model.root)
        first = server.wait_for(int(KILL_AT * model.size_bytes), timeout_s=rivals.TIMEOUT_S)
        taker.kill()
        if first < KILL_AT * model.size_bytes:
            raise SystemExit(f"the source sent {first} bytes of {model.size_bytes} only: {pin.job}")
        before = server.sent_bytes()
        taker.start()
        seconds.append(taker.fetch(model).seconds)
        shares.append((server.sent_bytes() - before) / model.size_bytes)
        taker.stop()
        bed.drop(taker.cache)
    return {
        "what": "kill -9 when 60 % was sent, start again",
        "size_bytes": model.size_bytes,
        "seconds": {"the second time": seconds},
        "ratios": {"sent the second time / size": {"value": statistics.median(shares), "target": "<= 0.42"}},
        "range": {"sent the second time / size": [min(shares), max(shares)]},
    }


def tf5(bed: Bed) -> Figures:
    """Peak resident memory of the daemon while it fetches, above what it had when idle, without its worker process."""
    ratios, peaks = {}, {}
    for mib in (max(1, bed.mib // 4), 2 * bed.mib):
        model = bed.model("tf5", mib)
        server = bed.server(model, have=True)
        taker = bed.node("taker", *peers([server.url]))
        assert taker.process is not None
        Path(f"/proc/{taker.process.pid}/clear_refs").write_text("5")
        idle = taker.rss_peak_bytes()
        taker.fetch(model)
        peaks[f"{mib} MiB"] = {"idle_bytes": idle, "peak_bytes": (peak := taker.rss_peak_bytes())}
        ratios[f"MiB above idle, {mib} MiB"] = {"value": (peak - idle) / MIB, "target": "<= 64"}
        taker.stop()
        bed.drop(taker.cache, model.folder)
    return {"what": "memory of the daemon while it fetches", "memory": peaks, "ratios": ratios}


def tf6(bed: Bed) -> Figures:
    """Disk of a model that is pinned, served and seeded, Kubo's repo included."""
    if rivals.find_kubo() is None:
        return {"what": "disk", "absent": "no Kubo binary found"}
    model = bed.model("tf6")
    server = bed.server(model, have=True)
    taker = bed.node("taker", "--kubo", "managed", "--bootstrap", "none", *peers([server.url]))
    taker.wait_for_kubo()
    done = taker.fetch(model)
    assert done.receipt is not None
    used = disk_bytes(taker.cache)
    return {
        "what": "disk of a pinned, served and seeded model",
        "size_bytes": model.size_bytes,
        "seeded": done.receipt["seeded"],
        "seed_note": done.receipt["seed_note"],
        "kubo_bytes": disk_bytes(taker.cache / "kubo"),
        "ratios": {"disk / size": {"value": used / model.size_bytes, "target": "<= 1.02"}},
    }


def tf7(bed: Bed) -> Figures:
    """A fine-tune, every tenth leaf of which is new, of a model that is here."""
    model = bed.model("tf7")
    tuned = fine_tune(model, bed.new("tf7-tuned"))
    first, server = bed.server(model, have=True), bed.server(tuned, have=True)
    taker = bed.node("taker", *peers([first.url, server.url]))
    taker.fetch(model)
    done = taker.fetch(tuned)
    assert done.receipt is not None
    return {
        "what": "a fine-tune that shares 90 % of its leaves with a model that is here",
        "size_bytes": tuned.size_bytes,
        "seconds": {"the fine-tune": [done.seconds]},
        "bytes_copied": done.receipt["bytes_copied"],
        "ratios": {"sent / size": {"value": server.sent_bytes() / tuned.size_bytes, "target": "<= 0.11"}},
    }


def fine_tune(model: Model, folder: Path) -> Model:
    """The same files, with one leaf of ten rewritten; of a model of less than ten leaves one."""
    folder.mkdir()
    for path in model.files:
        with (model.folder / path).open("rb") as old, (folder / path).open("wb") as new:
            for at in range(0, os.fstat(old.fileno()).st_size, MIB):
                leaf = old.read(MIB)
                new.write(os.urandom(len(leaf)) if path == "weights.bin" and at // MIB % 10 == 5 else leaf)
    return Model.of(folder)


def peers(urls: Any) -> list[str]:
    return [part for url in urls for part in ("--peer", url)]


# -- rounds and ratios


def interleaved(rounds: int, contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of every round by contestant, A-B-A-B; a first round warms up and is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            seconds = run()
            if number:
                taken[name].append(seconds)
    return taken


def ratio(taken: dict[str, list[float]], one: str, other: str) -> float | None:
    if one not in taken or other not in taken:
        return None
    return statistics.median(taken[one]) / statistics.median(taken[other])


def timed(
    taken: dict[str, list[float]], contestants: Any, ratios: dict[str, tuple[float | None, str | None]]
) -> Figures:
    return {
        "seconds": taken,
        "absent": [name for name in contestants if name not in taken],
        "ratios": {name: {"value": value, "target": target} for name, (value, target) in ratios.items() if value},
    }


TARGETS: dict[str, Callable[[Bed], Figures]] = {
    "tf1": tf1,
    "tf2": tf2,
    "tf3": tf3,
    "tf4": tf4,
    "tf5": tf5,
    "tf6": tf6,
    "tf7": tf7,
}
