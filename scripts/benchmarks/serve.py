"""TS1 to TS9: a whole node under real load over HTTP, beside sentence-transformers, infinity-emb,
text-embeddings-inference (TEI_BIN names one) and a bare loop, interleaved, equal work checked first.

`--rivals` installs those that can be into environments of their own, `.bench/`; who is not installed is told as absent.
Nothing is asserted about times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.bed import CHECKOUT, Bed, Sizes
from serving.cuda import base_model, ts6, ts7
from serving.embedding import Field, ts1, ts2, ts3, ts5
from serving.environments import ENVIRONMENTS
from serving.lines import Line
from serving.overload import ts9
from serving.starting import ts4
from serving.writing import ts5b, ts8

SAMPLE = CHECKOUT / ".sample" / "minilm-l6"
WRITER = CHECKOUT / ".models" / "smollm2-135m"
SHOWN = ("openvino", "torch", "transformers", "aiohttp", "tokenizers")
FULL = Sizes(rounds=3, requests=300, texts=512, seconds=30.0, shapes=2000, tokens=96)
QUICK = Sizes(rounds=1, requests=60, texts=96, seconds=10.0, shapes=200, tokens=24)
CPU: dict[str, Callable[[Field], list[Line]]] = {
    "ts1": ts1, "ts2": ts2, "ts3": ts3, "ts4": ts4, "ts5": ts5,
    "ts5b": lambda field: ts5b(field.bed), "ts9": ts9,
}  # fmt: skip
CUDA: dict[str, Callable[[Bed], list[Line]]] = {"ts6": ts6, "ts7": ts7, "ts8": ts8}


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders end with us
    if options.rivals:
        for environment in ENVIRONMENTS:
            said = environment.build()
            print(f"{environment.name}: {said or 'installed'}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"benchmark": "serve", **_machine(), "device": options.device}
    lines, absent = measure(options)
    result |= {
        "lines": [line.told() for line in lines],
        "absent": absent,
        "load_average_after": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps(result))
    else:
        for name, reason in absent.items():
            print(f"absent: {name}: {reason}")
        machine = f"{result['cpu']}, {result['cpus']} CPUs, Python {result['python']}, {result['versions']}"
        print(f"{machine}, load {result['load_average']:.1f} before, {result['load_average_after']:.1f} after")
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench serve", description=__doc__)
    parser.add_argument("--device", default="openvino:CPU", help="where ours runs: openvino:CPU, cpu, cuda:0")
    parser.add_argument("--quick", action="store_true", help="one round, small sizes: to see that it works")
    for name, kind in Sizes.__annotations__.items():
        parser.add_argument(f"--{name}", type=float if kind == "float" else int, default=None)
    parser.add_argument("--only", default=None, metavar="ts1,ts2,…", help="which parts (all of the device)")
    parser.add_argument("--rivals", action="store_true", help="install the rivals first (minutes, once)")
    parser.add_argument("--no-rivals", action="store_true", help="ours and the floors alone")
    parser.add_argument("--model", type=Path, default=SAMPLE, help="embeds")
    parser.add_argument("--writer", type=Path, default=WRITER, help="a causal language model")
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    known = CUDA if options.device.startswith("cuda") else CPU
    options.parts = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in options.parts if name not in known]:
        parser.error(f"there is no {', '.join(unknown)} on {options.device}")
    return options


def measure(options: argparse.Namespace) -> tuple[list[Line], dict[str, str]]:
    """Each line is printed as soon as it is there, unless all is to be JSON."""
    base = QUICK if options.quick else FULL
    given = {name: getattr(options, name) for name in Sizes.__annotations__}
    sizes = Sizes(**{name: getattr(base, name) if value is None else value for name, value in given.items()})
    found: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="bench-serve-", dir=options.dir) as folder:
        on_cuda = options.device.startswith("cuda")
        sample = base_model(options.model, Path(folder)) if on_cuda else options.model
        writer = options.writer if (options.writer / "config.json").is_file() else None
        work = Path(folder) / "work"
        work.mkdir()
        with Bed(work, sizes, device=options.device, sample=sample, writer=writer) as bed:
            field = Field(bed, with_rivals=not options.no_rivals)
            for name in options.parts:
                lines = CUDA[name](bed) if on_cuda else CPU[name](field)
                found += lines
                if not options.json:
                    print("\n".join(map(str, lines)), flush=True)
            return found, {**bed.absent, **field.differ}


def _machine() -> dict[str, Any]:
    from importlib.metadata import distributions

    found = {one.metadata["Name"]: one.version for one in distributions()}
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: found[name] for name in SHOWN if name in found},
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
