"""Adding a directory: our store against `ipfs add`, both offline, from page cache, into something new on the same disk.

Interleaved rounds, medians, the ratio last. Ours syncs every file before it counts; Kubo's flatfs syncs as it is
configured by default. The start of the `ipfs` process is measured too and taken off its time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from ipfs_accelerate_node.store import Provenance, Store, ingest  # noqa: E402

MIB = 1 << 20
ADD = "add -r -Q --offline --cid-version=1 --raw-leaves --chunker=size-1048576 --max-file-links=1024".split()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench add", description=__doc__)
    parser.add_argument("--mib", type=int, default=512, help="size of the file that is added")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory-mib", type=int, default=0, help="also: peak memory while a file of that size is added"
    )
    parser.add_argument("--dir", type=Path, default=None, help="where to work (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-add-", dir=options.dir) as folder:
        result = measure(Path(folder), options.mib, options.rounds)
        if options.memory_mib:
            result["peak_mib"] = peak_mib(Path(folder), options.memory_mib)
    print(json.dumps(result) if options.json else report(result))
    return 0


def measure(folder: Path, mib: int, rounds: int) -> dict[str, object]:
    """Seconds of each round and what follows from them. Raises SystemExit if the roots differ: unequal work."""
    source = folder / "source"
    source.mkdir()
    with (source / "weights.bin").open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    kubo = kubo_binary()
    ours: list[float] = []
    theirs: list[float] = []
    startup: list[float] = []
    for number in range(rounds + 1):  # the first one warms up
        seconds, root = add_ours(source, folder / "store")
        if number:
            ours.append(seconds)
        if kubo is None:
            continue
        started, seconds, kubo_root = add_kubo(kubo, source, folder / "repo")
        if root != kubo_root:
            raise SystemExit(f"not the same work: our root is {root}, Kubo's {kubo_root}")
        if number:
            startup.append(started)
            theirs.append(seconds)
    result: dict[str, object] = {
        "benchmark": "add",
        "mib": mib,
        "rounds": rounds,
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "ours_s": ours,
        "ours_mib_s": mib / statistics.median(ours),
        "kubo": None if kubo is None else version(kubo),
    }
    if theirs:
        net = [seconds - started for seconds, started in zip(theirs, startup, strict=True)]
        result |= {"kubo_s": theirs, "kubo_startup_s": startup, "kubo_mib_s": mib / statistics.median(net)}
        result["ratio"] = statistics.median(net) / statistics.median(ours)
    return result


def add_ours(source: Path, cache: Path) -> tuple[float, str]:
    """(seconds, root). Opening and removing the store are not counted."""
    os.sync()
    with Store.open(cache) as store:
        start = time.perf_counter()
        added = ingest(store, source, provenance=Provenance("local", "bench", "1970-01-01T00:00:00Z"))
        seconds = time.perf_counter() - start
    shutil.rmtree(cache)
    return seconds, str(added.model.root)


def add_kubo(kubo: Path, source: Path, repo: Path) -> tuple[float, float, str]:
    """(seconds that the bare process takes, seconds of the add, root)."""
    env = {**os.environ, "IPFS_PATH": str(repo), "IPFS_TELEMETRY": "off"}

    def run(*command: str) -> tuple[float, str]:
        start = time.perf_counter()
        ran = subprocess.run([str(kubo), *command], env=env, capture_output=True, text=True, check=True)
        return time.perf_counter() - start, ran.stdout.strip()

    run("init", "--empty-repo")
    os.sync()
    started, _ = run("repo", "version")
    seconds, root = run(*ADD, str(source))
    shutil.rmtree(repo)
    return started, seconds, root


def peak_mib(folder: Path, mib: int) -> float:
    """Resident memory of a process that does nothing but add a file of that size (a hole: reading it costs no disk)."""
    source = folder / "hole"
    source.mkdir()
    with (source / "weights.bin").open("wb") as file:
        file.truncate(mib * MIB)
    program = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n" + PEAK
    command = [sys.executable, "-c", program, str(folder / "peak"), str(source)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(folder / "peak")
    return int(ran.stdout) / 1024


PEAK = """
import resource
from pathlib import Path
from ipfs_accelerate_node.store import Provenance, Store, ingest
with Store.open(Path(sys.argv[1])) as store:
    ingest(store, Path(sys.argv[2]), provenance=Provenance("local", "bench", "1970-01-01T00:00:00Z"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def kubo_binary() -> Path | None:
    named = os.environ.get("IPFS_ACCELERATE_NODE_KUBO_BINARY") or shutil.which("ipfs")
    binary = Path(named) if named else CHECKOUT / ".kubo" / "ipfs"
    return binary if binary.is_file() else None


def version(kubo: Path) -> str:
    return subprocess.run([str(kubo), "version", "-n"], capture_output=True, text=True, check=True).stdout.strip()


def report(result: dict[str, object]) -> str:
    lines = [f"add {result['mib']} MiB, median of {result['rounds']}, {result['cpus']} CPUs"]
    lines.append(f"  ours       {result['ours_mib_s']:6.0f} MiB/s")
    if result["kubo"] is None:
        lines.append("  ipfs add   absent: no Kubo binary found")
    else:
        lines.append(f"  ipfs add   {result['kubo_mib_s']:6.0f} MiB/s  (Kubo {result['kubo']})")
        lines.append(f"  ratio      {result['ratio']:6.2f}  (target 0.8)")
    if "peak_mib" in result:
        lines.append(f"  peak RSS   {result['peak_mib']:6.0f} MiB  (target 150)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
