"""Fetching: targets TF1 to TF7, each with its rivals in the same run, interleaved, medians, the ratios last.

Whole nodes in processes of their own (`up`), fetching over loopback from another node or from capped and faulty HTTP
servers. Models are random bytes. Nothing is asserted about times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fetching import rivals
from fetching.bed import Bed
from fetching.targets import TARGETS


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench fetch", description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the models (TF5: a quarter, and twice as much)")
    parser.add_argument("--rounds", type=int, default=3, help="beside one that warms up")
    parser.add_argument("--only", default=",".join(TARGETS), metavar="tf1,tf2,…", help="which targets (all)")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.only.split(",") if name not in TARGETS]:
        parser.error(f"there is no {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders end with us
    result: dict[str, Any] = {"benchmark": "fetch", **conditions(options.mib, options.rounds)}
    for name in options.only.split(","):
        figures = result[name] = run(name, options)
        if not options.json:
            print(report(name, figures), flush=True)
    result["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(result) if options.json else ratios(result))
    return 0


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One target's figures, in a folder and with processes of its own."""
    with tempfile.TemporaryDirectory(prefix=f"bench-fetch-{name}-", dir=options.dir) as folder:
        with Bed(Path(folder), options.mib, options.rounds) as bed:
            return TARGETS[name](bed)


def conditions(mib: int, rounds: int) -> dict[str, Any]:
    return {
        "mib": mib,
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_average": os.getloadavg()[0],
        "rivals": rivals.versions(),
    }


def report(name: str, figures: dict[str, Any]) -> str:
    size = figures.get("size_bytes", 0)
    lines = [f"{name.upper()} {figures['what']}" + (f", {size / 2**20:.0f} MiB" if size else "")]
    for who, seconds in figures.get("seconds", {}).items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f}-{max(seconds):.2f} s"
        lines.append(f"  {who:<32} {median:7.2f} s  ({spread})  {size / median / 1e6:6.0f} MB/s")
    for who in figures.get("absent", []):
        lines.append(f"  {who:<32} absent")
    for key in ("named", "bytes_fetched", "memory", "seeded", "seed_note", "kubo_bytes", "bytes_copied", "range"):
        if key in figures:
            lines.append(f"  {key}: {figures[key]}")
    return "\n".join(lines)


def ratios(result: dict[str, Any]) -> str:
    """Every ratio of the run with its target."""
    lines = [
        "",
        f"{result['cpus']} CPUs, load {result['load_average']:.1f} before, {result['load_average_after']:.1f} after",
    ]
    for name in TARGETS:
        for what, entry in result.get(name, {}).get("ratios", {}).items():
            target = f"(target {entry['target']})" if entry["target"] else ""
            lines.append(f"  {name.upper()} {what:<40} {entry['value']:8.3f}  {target}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
