"""TS4: from a saved model to the first vector in a new process, and what that takes however many shapes come."""

from __future__ import annotations

import sys
import time

from serving.bed import PROGRAMS, Bed, rss_bytes
from serving.contestants import Server
from serving.embedding import Field
from serving.lines import Line, Ratio, figure

MIB = 1 << 20
LOAD_S = 2.0


def ts4(field: Field) -> list[Line]:
    from ipfs_accelerate_node.inference.openvino import artefacts

    bed = field.bed
    precision = "bf16" if field.ours("bf16") is not None else "f32"
    one = field.ours(precision)
    if one is None:
        return []
    stored = next(
        found.path
        for found in artefacts.stored(bed.node.cache, root=bed.root(bed.sample))
        if found.artefact.weights == "f32"
    )
    program = [sys.executable, str(PROGRAMS / "first_vector.py"), str(bed.sample), str(stored)]
    whole, node, resident = [], [], 0
    for number in range(bed.sizes.rounds + 1):
        began = time.perf_counter()
        child = bed.child([*program, bed.device, precision, str(bed.threads)])
        said = child.heard()
        seconds = time.perf_counter() - began
        child.close()
        through = _through_the_node(bed, one, precision)
        if number:
            whole.append(seconds)
            node.append(through)
            resident = max(resident, said["rss_bytes"])
    first = Line("TS4", f"saved OpenVINO model to the first vector, new process, {precision}", figure(whole, "s"))
    first.ratios.append(Ratio("seconds", first.ours.median, f"<= {LOAD_S}"))
    first.beside = {"through the node, its worker process included": str(figure(node, "s"))}
    return [first, _memory(bed, one, resident)]


def _through_the_node(bed: Bed, one: Server, precision: str) -> float:
    """Unloaded, loaded again, one text."""
    bed.request("DELETE", f"/api/loads/{one.model}")
    began = time.perf_counter()
    said = bed.loaded(bed.sample, precision=precision, alias=one.model, task="embedding")
    one.pids = [one.pids[0], said["pid"]]
    one.vectors(bed, ["a word"])
    return time.perf_counter() - began


def _memory(bed: Bed, one: Server, resident: int) -> Line:
    """Of the served model's process, before and after so many shapes, the smallest ones there are."""
    weights = (bed.sample / "model.safetensors").stat().st_size
    limit = 1.3 * weights + 300 * MIB
    word = bed.words.short(1)[0].split()[0]
    most = max(8, 2 * bed.sizes.shapes)
    shapes = sorted(
        ((rows, words) for rows in range(1, 257) for words in range(1, 254) if rows * words <= most),
        key=lambda shape: shape[0] * shape[1],
    )[: bed.sizes.shapes]
    warm = [[" ".join([word] * words)] for words in range(1, 254, 8)]
    requests = one.requests(bed, warm)
    one.run(bed, requests, clients=1, count=len(warm)).whole()
    before = rss_bytes(one.pids[1])
    groups = [[" ".join([word] * words)] * rows for rows, words in shapes]
    one.run(bed, one.requests(bed, groups), clients=2, count=len(groups)).whole()
    after = rss_bytes(one.pids[1])
    line = Line("TS4", f"memory of the model's process after {len(groups)} shapes", figure(after / MIB, "MiB"))
    line.ratios = [
        Ratio("of 1.3 × weights + 300 MiB", max(after, resident) / limit, "<= 1"),
        Ratio("after / before", after / before, "<= 1.1"),
    ]
    line.beside = {"before, MiB": before / MIB, "fresh process, MiB": resident / MIB, "weights, MiB": weights / MIB}
    return line
