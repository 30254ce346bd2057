"""TS5b and TS8: a causal language model that writes, one text and eight together, beside transformers' ``generate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.bed import Bed, Child, ChildEnded
from serving.contestants import Server, Taken, ours
from serving.embedding import column, interleaved
from serving.lines import Line, Ratio, figure

STREAMS = 8
COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"  # what comes next is the same in any arithmetic
COUNTED_TOKENS = 24
SUBJECTS = ("sea", "mountain", "river", "forest", "city", "desert", "island", "village")
COMPLETIONS = "/v1/completions"


def written(bed: Bed, *, id: str, precision: str, target: str, together: str | None) -> list[Line]:
    """target: of one stream over torch's; together: of eight streams over one."""
    if bed.writer is None:
        bed.absent[id] = "no causal language model here (scripts/models makes one)"
        return []
    one = ours(bed, precision, model=bed.writer, task="text-generation")
    if one is None:
        return []
    prompts = [f"Once upon a time, in a {subject} far away, there lived" for subject in SUBJECTS]
    torch = f"torch {precision} generate"
    child = _torch(bed, precision, torch)
    contestants: dict[str, Callable[[], dict[str, float]]] = {
        one.name: _ours(bed, one, prompts[:1], clients=1),
        f"{one.name}, {STREAMS} together": _ours(bed, one, prompts, clients=STREAMS),
    }
    if child is not None:
        contestants[torch] = _theirs(bed, child, prompts[0], streams=1)
        contestants[f"{torch}, {STREAMS} together"] = _theirs(bed, child, prompts[0], streams=STREAMS)
    rounds = interleaved(bed.sizes.rounds, contestants)
    rates = {name: figure(column(rounds, name, "tokens_per_s"), "tokens/s") for name in contestants}
    name = bed.writer.name
    single = Line(id, f"{name}, one stream, {precision} on {one.versions['device']}", rates[one.name])
    if child is not None:
        single.rivals = {torch: rates[torch]}
        agreed, equal = _agreement(bed, one, child, precision)
        single.notes.append(agreed)
        if equal:
            single.against(torch, target)
    else:
        single.absent = {torch: bed.absent[torch]}
    single.beside = {
        "tokens in one go": bed.sizes.tokens,
        "the node's CPU share": max(column(rounds, one.name, "server")),
    }
    many = Line(id, f"{name}, {STREAMS} streams together", rates[f"{one.name}, {STREAMS} together"])
    if child is not None:
        many.rivals = {f"{torch}, a batch of {STREAMS}": rates[f"{torch}, {STREAMS} together"]}
    many.ratios = [Ratio("one stream", many.ours.median / single.ours.median, together)]
    return [single, many]


def ts5b(bed: Bed) -> list[Line]:
    return written(bed, id="TS5b", precision="bf16", target=">= 1.8", together=">= 3")


def ts8(bed: Bed) -> list[Line]:
    return written(bed, id="TS8", precision="bf16", target=">= 3", together=None)


def _torch(bed: Bed, precision: str, name: str) -> Child | None:
    device = bed.device if bed.device.startswith("cuda") else "cpu"
    try:
        return bed.program("torch_writer", str(bed.writer), device, precision, str(bed.threads))
    except ChildEnded as exc:
        bed.absent[name] = " ".join(str(exc).split())[-300:]
        return None


def _bodies(bed: Bed, one: Server, prompts: list[str], tokens: int) -> Path:
    path = bed.new("prompts") / "requests"
    fixed: dict[str, Any] = {"model": one.model, "max_tokens": tokens, "temperature": 0}
    path.write_text("\n".join(json.dumps({**fixed, "prompt": prompt}) for prompt in prompts) + "\n")
    return path


def _ours(bed: Bed, one: Server, prompts: list[str], *, clients: int) -> Callable[[], dict[str, float]]:
    requests = _bodies(bed, one, prompts, bed.sizes.tokens)

    def run() -> dict[str, float]:
        taken, replies = _asked(bed, one, requests, clients, len(prompts))
        tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
        return {"tokens_per_s": tokens / taken.wall_s, "server": taken.server_share}

    return run


def _asked(bed: Bed, one: Server, requests: Path, clients: int, count: int) -> tuple[Taken, list[dict[str, Any]]]:
    answers = requests.with_name("answers")
    taken = one.run(bed, requests, path=COMPLETIONS, clients=clients, count=count, answers=str(answers)).whole()
    return taken, [json.loads(line) for line in answers.open()]


def _theirs(bed: Bed, child: Child, prompt: str, *, streams: int) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        said = child.ask({"prompt": prompt, "tokens": bed.sizes.tokens, "streams": streams})
        return {"tokens_per_s": said["tokens"] / said["seconds"]}

    return run


def _agreement(bed: Bed, one: Server, child: Child, precision: str) -> tuple[str, bool]:
    """Whether both count on in the same way."""
    theirs: str = child.ask({"prompt": COUNTED, "tokens": COUNTED_TOKENS})["text"]
    requests = _bodies(bed, one, [COUNTED], COUNTED_TOKENS)
    own: str = _asked(bed, one, requests, 1, 1)[1][0]["choices"][0]["text"]
    equal = own.strip() == theirs.strip()
    said = f"the same {COUNTED_TOKENS} tokens in {precision}" if equal else f"not ranked: {own!r}, torch {theirs!r}"
    return said, equal
