"""How a report looks: tables for a terminal, tab-separated rows for a pipe, Markdown for a file.

All of it may have come from another machine, so every text is escaped for where it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipfs_accelerate_node.benchmarks.cells import Cell, ClaimedCell, Comparison, Report, SideCell, matrix
from ipfs_accelerate_node.cli.render import clean, size, table

HEADER = (
    "model", "task", "device", "engine", "precision", "status", "agreement", "p50 ms", "p95 ms", "throughput",
    "memory", "load s",
)  # fmt: skip
_SHORT = (0, 2, 4, 5, 6, 7, 8, 9, 10, 11)  # of HEADER, where the width of a terminal counts


def row(cell: Cell) -> tuple[str, ...]:
    return (
        cell.model,
        cell.task,
        cell.device,
        cell.engine,
        cell.precision,
        cell.status,
        "" if cell.agreement is None else agreement(cell.agreement),
        "" if cell.p50_ms is None else f"{cell.p50_ms:.4g}",
        "" if cell.p95_ms is None else f"{cell.p95_ms:.4g}",
        _speed(cell),
        "" if cell.memory_bytes is None else size(cell.memory_bytes),
        "" if cell.load_s is None else f"{cell.load_s:.3g}",
    )


def _speed(cell: Cell | ClaimedCell) -> str:
    rate = cell.throughput
    return "" if rate is None else f"{rate:.0f} {cell.unit}" if rate >= 1000 else f"{rate:.4g} {cell.unit}"


def agreement(value: float) -> str:
    """Never rounded up to 1."""
    return "1" if value == 1.0 else f"{int(value * 1e6) / 1e6:.6f}" if value > 0 else f"{value:.6f}"


def remarks(cell: Cell) -> list[str]:
    """The reason, then the notes."""
    return [*([cell.reason] if cell.reason else []), *cell.notes]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """What the machine is, then a line per device that is there."""
    memory = machine.get("memory_bytes")
    parts = [
        machine.get("cpu"),
        f"{machine['cores']} cores" if "cores" in machine else None,
        f"{size(memory)} memory" if isinstance(memory, int) else None,
        machine.get("system"),
    ]
    lines = [", ".join(str(part) for part in parts if part)]
    devices = machine.get("devices")
    for device in devices if isinstance(devices, list) else []:
        if not isinstance(device, dict):
            continue
        versions = device.get("versions")
        told = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ""
        absent = "" if device.get("available") else f", not available: {device.get('reason') or 'no reason told'}"
        lines.append(f"{device.get('device')}: {device.get('name')}" + (f" ({told})" if told else "") + absent)
    return lines


CLAIM = "CLAIM"
HERE = "this machine"
CLAIMS = (
    "Rows marked CLAIM were signed by other nodes and not run here: who says so is proven, that it is true is not, and "
    "none of them makes a model REAL on this machine."
)


def claim_row(claim: ClaimedCell) -> tuple[str, ...]:
    """In the columns of HEADER. What was not measured there, or not told, is empty."""
    return (
        claim.model,
        claim.task,
        claim.device,
        claim.engine,
        claim.precision,
        CLAIM,
        "",
        "" if claim.p50_ms is None else f"{claim.p50_ms:.4g}",
        "",
        _speed(claim),
        "",
        "" if claim.load_s is None else f"{claim.load_s:.3g}",
    )


def claim_machine(claim: ClaimedCell) -> str:
    """Whose claim it is, and on what."""
    hardware = dict.fromkeys((claim.device_name, claim.cpu))
    return f"claim by {claim.signer} ({', '.join(name for name in hardware if name)})"


def claim_remarks(claim: ClaimedCell) -> list[str]:
    by = f"p50 by {claim.by}, throughput by {claim.throughput_by}"
    flags = (
        "signed, not run here",
        "a key that you trust" if claim.trusted else "",
        f"unlike: {claim.unlike} than others on like hardware, which does not mean wrong" if claim.unlike else "",
        by if claim.by else "",
    )
    return [flag for flag in flags if flag]


def with_machines(report: Report) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows, claims after the cells of their model; without claims no column says whose a row is."""
    if not report.claims:
        return HEADER, [row(cell) for cell in report.cells]
    rows: list[tuple[str, ...]] = []
    models = [*(cell.model for cell in report.cells), *(claim.model for claim in report.claims)]
    for model in dict.fromkeys(models):
        rows += [(HERE, *row(cell)) for cell in report.cells if cell.model == model]
        rows += [(claim_machine(claim), *claim_row(claim)) for claim in report.claims if claim.model == model]
    return ("machine", *HEADER), rows


def asked_nobody(report: Report) -> list[str]:
    return [f"{model} is private here: nobody was asked about it" for model in report.not_asked]


# -- terminal and pipe


def show(report: Report, *, terminal: bool) -> None:
    """Into a pipe one line per cell with everything in it; on a terminal the table, then its remarks."""
    if not terminal:
        _pipe(report)
        return
    for line in machine_lines(report.machine):
        print(clean(line))
    print()
    header, rows = with_machines(report)
    first = len(header) - len(HEADER)
    shown = [*range(first), *(first + i for i in _SHORT)]
    table([header[i] for i in shown], [[cells[i] for i in shown] for cells in rows])
    print()
    for cell in report.cells:
        for remark in remarks(cell):
            print(clean(f"{cell.model} on {cell.device} ({cell.precision}): {remark}"))
    if report.claims:
        print(clean(CLAIMS))
    for line in asked_nobody(report):
        print(clean(line))


def _pipe(report: Report) -> None:
    said = ["; ".join(remarks(cell)) for cell in report.cells]
    if not report.claims:
        table((*HEADER, "remarks"), [(*row(cell), more) for cell, more in zip(report.cells, said, strict=True)])
        return
    rows = [(HERE, *row(cell), more) for cell, more in zip(report.cells, said, strict=True)]
    rows += [(claim_machine(c), *claim_row(c), "; ".join(claim_remarks(c))) for c in report.claims]
    table(("machine", *HEADER, "remarks"), rows)


def show_many(together: Comparison) -> None:
    for index, machine in enumerate(together.machines):
        for number, line in enumerate(machine_lines(machine)):
            print(clean(f"{letter(index)}  {line}" if number == 0 else f"   {line}"))
    print()
    header, rows = overview(together)
    table(header, rows)
    print()
    for line in differing(together):
        print(clean(line))
    table(("machine", *(HEADER[i] for i in _SHORT)), [(letter(c.machine), *short(c)) for c in together.cells])


def differing(together: Comparison) -> list[str]:
    """A line for each model whose cells are not of the same thing on all machines."""
    lines: list[str] = []
    for difference in together.differences:
        told = [f"{', '.join(of)} [{letter(index)}]" for index, of in enumerate(difference.values) if of]
        what = "is not the same model everywhere" if difference.what == "root" else "ran in different precisions"
        lines.append(f"≠ {difference.model} {what}: {'; '.join(told)}")
    return lines


def short(cell: Cell) -> tuple[str, ...]:
    cells = row(cell)
    return tuple(cells[i] for i in _SHORT)


def letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def overview(together: Comparison) -> tuple[list[str], list[list[str]]]:
    """Models by devices, each with the best that any of the machines has, and which one that is. ≠: see `differing`."""
    models, devices, best = matrix(together.cells)
    unlike = {(difference.model, difference.what) for difference in together.differences}

    def text(model: str, device: str) -> str:
        cell = best.get((model, device))
        if not isinstance(cell, SideCell):
            return "—"
        told = f" {cell.p50_ms:.4g} ms" if cell.p50_ms is not None and cell.status == "REAL" else ""
        if (model, "precision") in unlike and cell.status == "REAL":
            told += f" {cell.precision}"
        return f"{cell.status}{told} [{letter(cell.machine)}]"

    def named(model: str) -> str:
        return f"{model} ≠" if (model, "root") in unlike else model

    return ["model", *devices], [[named(model), *(text(model, device) for device in devices)] for model in models]


# -- Markdown


def markdown(report: Report) -> str:
    lines = ["# Report", "", *_machine_markdown(report.machine), ""]
    lines += _markdown_table(*with_machines(report))
    lines += ["", *_evidence(report.cells)]
    if report.claims:
        lines += ["", escaped(CLAIMS), ""]
        lines += [
            f"- {escaped(c.model)} on {escaped(c.device)} ({escaped(c.precision)}), {escaped(claim_machine(c))}: "
            f"{escaped('; '.join(claim_remarks(c)))}"
            for c in report.claims
        ]
    lines += [f"- {escaped(line)}" for line in asked_nobody(report)]
    return "\n".join(lines) + "\n"


def markdown_of_many(together: Comparison) -> str:
    lines = ["# Report of several machines", ""]
    for index, machine in enumerate(together.machines):
        lines += [f"**{letter(index)}**", "", *_machine_markdown(machine), ""]
    header, rows = overview(together)
    lines += [*_markdown_table(header, rows), ""]
    if unlike := differing(together):
        lines += [*(f"- {escaped(line)}" for line in unlike), ""]
    lines += _markdown_table(("machine", *HEADER), [(letter(cell.machine), *row(cell)) for cell in together.cells])
    return "\n".join([*lines, "", *_evidence(together.cells)]) + "\n"


def _machine_markdown(machine: dict[str, Any]) -> list[str]:
    return [f"- {escaped(line)}" for line in machine_lines(machine)]


def _evidence(cells: Sequence[Cell]) -> list[str]:
    """Roots once per model, then what is to be said of each cell."""
    roots = dict.fromkeys((cell.model, cell.root) for cell in cells if cell.model != cell.root)
    lines = [f"- {escaped(model)} is {escaped(root)}" for model, root in roots]
    for cell in cells:
        where = f"[{letter(cell.machine)}] " if isinstance(cell, SideCell) else ""
        lines += [
            f"- {where}{escaped(cell.model)} on {escaped(cell.device)} ({escaped(cell.precision)}): {escaped(remark)}"
            for remark in remarks(cell)
        ]
    return lines


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(escaped(title) for title in header)} |", "|" + "---|" * len(header)]
    return lines + [f"| {' | '.join(escaped(cell) for cell in cells)} |" for cells in rows]


def escaped(text: str) -> str:
    """Plain text in Markdown: no markup, no HTML, no end of a table's cell."""
    plain = clean(text)
    for mark in "\\`*_[]<>|#":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
