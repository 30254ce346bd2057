"""The Hub's endpoint: how much later than the upstream's its first byte comes, what a warm load and each call of the
API cost, what twenty clients cost upstream, and what becomes of a corrupt file.

Whole nodes in processes of their own (`up`), an upstream in its own, on loopback; real clients. Nothing is asserted
about times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from hub_endpoint.bed import CHECKOUT, Bed
from hub_endpoint.targets import TARGETS, Line


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench hub", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="loads, and files whose first byte is waited for")
    parser.add_argument("--requests", type=int, default=300, help="of each call of the API")
    parser.add_argument("--mib", type=int, default=200, help="size of the file of the crowd, and of the corrupt one")
    parser.add_argument("--model", type=Path, default=CHECKOUT / ".sample" / "minilm-l6")
    parser.add_argument("--only", default=",".join(TARGETS), metavar="first,warm,…", help="which parts (all)")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.only.split(",") if name not in TARGETS]:
        parser.error(f"there is no {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders end with us
    result: dict[str, Any] = {
        "benchmark": "hub",
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
    for name in options.only.split(","):
        lines = run(name, options)
        result[name] = [line.told() for line in lines]
        if not options.json:
            print("\n".join(map(told, lines)), flush=True)
    result["load_average_after"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['cpus']} CPUs, load {result['load_average']:.1f} before, {result['load_average_after']:.1f} after"
        )
    return 0


def run(name: str, options: argparse.Namespace) -> list[Line]:
    """In a folder and with processes of its own."""
    with tempfile.TemporaryDirectory(prefix=f"bench-hub-{name}-", dir=options.dir) as folder:
        bed = Bed(Path(folder), rounds=options.rounds, requests=options.requests, mib=options.mib, sample=options.model)
        with bed:
            return TARGETS[name](bed)


def told(line: Line) -> str:
    figure = line.figure if isinstance(line.figure, str) else f"{line.figure:.2f} {line.unit}"
    target = "" if line.target is None else f"target {_bound(line.target, line.unit)}: {'yes' if line.holds else 'NO'}"
    beside = ", ".join(f"{key} {_shown(value)}" for key, value in line.beside.items() if not isinstance(value, list))
    return f"{line.what:<72} {figure:>12}  {target:<28} {beside}".rstrip()


def _bound(target: float | str, unit: str) -> str:
    return target if isinstance(target, str) else f"≤ {target:g} {unit}"


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
