"""`/metrics` as Prometheus reads it: names, units and histograms as its own checker wants them, figures that say what
was done, and no more series than there are routes and models, whatever is sent."""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ipfs_accelerate_node.api.metrics import MAX_MODELS, OTHER, Metrics
from ipfs_accelerate_node.api.pipeline import METRICS
from ipfs_accelerate_node.inference.mock import mock_model
from ipfs_accelerate_node.inference.model import ModelSpec
from tests.support.http import GAUGES
from tests.support.models import tiny_model
from tests.support.running import Running, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

PREFIX = "ipfs_accelerate_node_"
ALIAS = re.compile(r"te_[a-z_]+")
PROCESS = re.compile(r"process_[a-z_]+")  # as every client library calls them
WRONG_UNITS = re.compile(r"_(ms|milliseconds|minutes|hours|kb|mb|kilobytes|megabytes|bits|percent)(_|$)")
TINY = "org/tiny"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("metrics")
    async with running(folder / "cache", threads=1) as node:
        await node.node.add(tiny_model(folder / "tiny"), name=TINY)
        yield node


async def page(here: Running) -> str:
    reply = await here.ask("GET", "/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return reply.body.decode()


def value(text: str, name: str, **labels: str) -> float:
    """The sum over all series of that name that have those labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def embed(here: Running, model: str = TINY, **more: Any) -> None:
    body = {"model": model, "input": ["the cat sat", "on the mat"], **more}
    assert (await here.ask("POST", "/v1/embeddings", json=body)).status == 200


def faults(text: str) -> Iterator[str]:
    """What Prometheus' own checker would say of a page."""
    assert text.endswith("\n")
    families = list(text_string_to_metric_families(text))
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    for name, count in _counted(name for name, _ in types).items():
        if count > 1:
            yield f"{name} is told {count} times"
    for name, kind in types:
        if not helps.get(name):
            yield f"{name} has no help"
        if not name.startswith(PREFIX) and not ALIAS.fullmatch(name) and not PROCESS.fullmatch(name):
            yield f"{name} has a foreign prefix"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or WRONG_UNITS.search(name):
            yield f"{name} is no name, or has no base unit"
        if name.startswith(PREFIX) and (kind == "counter") != name.endswith("_total"):
            yield f"{name} is a {kind}"
        if kind == "histogram" and name.startswith(PREFIX) and not name.endswith(("_seconds", "_bytes")):
            yield f"{name} has no unit"
        if any(word in name for word in (kind, "histogram_")) and kind != "info":
            yield f"{name} holds its type"
    for family in families:
        yield from _samples(family)


def _counted(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return counts


def _samples(family: Metric) -> Iterator[str]:
    series = _counted(f"{s.name}{sorted(s.labels.items())}" for s in family.samples)
    for one, count in series.items():
        if count > 1:
            yield f"{one} has {count} values"
    for sample in family.samples:
        if math.isnan(sample.value) or (family.type in ("counter", "histogram") and sample.value < 0):
            yield f"{sample.name} is {sample.value}"
    if family.type != "histogram":
        return
    buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = defaultdict(list)
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in family.samples:
        labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        if sample.name.endswith("_bucket"):
            buckets[labels].append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[labels] = sample.value
    for labels, found in buckets.items():
        if found != sorted(found) or [n for _, n in found] != sorted(n for _, n in found):
            yield f"the buckets of {family.name} {labels} do not grow"
        if found[-1] != (math.inf, counts[labels]):
            yield f"the last bucket of {family.name} {labels} is not all"


async def test_the_page_is_as_prometheus_wants_it(here: Running) -> None:
    await embed(here)
    await here.ask("POST", "/v1/embeddings", json={"model": "mock:embedding", "input": "a"})
    await here.ask("POST", "/v1/embeddings", json={"model": "nobody", "input": "a"})
    assert list(faults(await page(here))) == []


@pytest.mark.parametrize(
    "bad",
    [
        "# HELP ipfs_accelerate_node_a A.\n# TYPE ipfs_accelerate_node_a counter\nipfs_accelerate_node_a 1\n",
        "# HELP other_thing A.\n# TYPE other_thing gauge\nother_thing 1\n",
        "# HELP ipfs_accelerate_node_a_ms A.\n# TYPE ipfs_accelerate_node_a_ms gauge\nipfs_accelerate_node_a_ms 1\n",
        "# TYPE ipfs_accelerate_node_a gauge\nipfs_accelerate_node_a 1\n",
        "# HELP ipfs_accelerate_node_a A.\n# TYPE ipfs_accelerate_node_a gauge\nipfs_accelerate_node_a 1\n"
        "ipfs_accelerate_node_a 2\n",
    ],
)
async def test_the_check_finds_what_is_wrong(bad: str) -> None:
    assert list(faults(bad))


async def test_what_a_request_did_is_counted_where_it_belongs(here: Running) -> None:
    before = await page(here)
    await embed(here)
    after = await page(here)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    asked = {"route": "/v1/embeddings", "model": TINY, "status": "200"}
    assert more(f"{PREFIX}requests_total", **asked) == 1
    assert more(f"{PREFIX}request_seconds_count", **asked) == 1
    assert more(f"{PREFIX}prompt_tokens_total", model=TINY, implementation="REAL") == 10  # with [CLS] and [SEP]
    assert more(f"{PREFIX}mock_responses_total") == 0
    for stage in ("tokenize", "queue", "compute", "serialize"):
        assert more(f"{PREFIX}{stage}_seconds_count", model=TINY) == 1, stage
    assert value(after, f"{PREFIX}compute_seconds_sum", model=TINY) > 0
    assert more(f"{PREFIX}model_requests_total", model=TINY) == 1
    assert more(f"{PREFIX}batch_rows_total", model=TINY) == 2
    assert more(f"{PREFIX}batch_tokens_total", model=TINY) == 10
    assert 1 <= more(f"{PREFIX}batches_total", model=TINY) <= 2
    assert more("te_request_count", method="batch") == 1
    assert more("te_request_success", method="batch") == 1
    assert more("te_embed_count") == 2
    assert more("te_embed_duration_count") == 1
    assert more("te_batch_next_size_sum") == 2


async def test_a_loaded_model_says_where_it_stands(here: Running) -> None:
    await embed(here)
    text = await page(here)
    (ready,) = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{PREFIX}model_state" and sample.value == 1 and sample.labels["model"] == TINY
    ]
    assert (ready.labels["model"], ready.labels["state"], ready.labels["task"]) == (TINY, "ready", "embedding")
    assert ready.labels["device"]
    assert value(text, f"{PREFIX}model_resident_bytes", model=TINY) > 1 << 20
    assert value(text, f"{PREFIX}load_seconds", model=TINY, phase="loading") > 0
    assert value(text, f"{PREFIX}queue_requests", model=TINY) == 0
    assert value(text, f"{PREFIX}worker_requests", model=TINY) == 0
    assert 0 <= value(text, f"{PREFIX}batch_padding_ratio", model=TINY) < 1
    assert value(text, "process_resident_memory_bytes") > 1 << 20
    assert value(text, "process_open_fds") > 3


async def test_identical_requests_are_counted_as_shared(here: Running) -> None:
    await embed(here)
    before = value(await page(here), f"{PREFIX}shared_total", model=TINY)
    many = {"model": TINY, "input": ["the same cat " * 8] * 200}
    replies = await asyncio.gather(*(here.ask("POST", "/v1/embeddings", json=many) for _ in range(4)))
    assert {reply.status for reply in replies} == {200}
    assert value(await page(here), f"{PREFIX}shared_total", model=TINY) > before


async def test_a_stream_tells_its_first_piece_and_the_others(here: Running) -> None:
    body = {"model": "mock:text-generation", "prompt": "a b c", "stream": True, "max_tokens": 8}
    before = await page(here)
    reply = await here.ask("POST", "/v1/completions", json=body)
    assert reply.body.endswith(b"data: [DONE]\n\n")
    after = await page(here)
    name = f"{PREFIX}time_to_first_token_seconds_count"
    assert value(after, name, model="mock:text-generation") == value(before, name, model="mock:text-generation") + 1
    written = f"{PREFIX}generated_tokens_total"
    assert value(after, written, implementation="MOCK") > value(before, written, implementation="MOCK")


async def test_the_pieces_of_a_stream_share_their_time_by_tokens() -> None:
    metrics = Metrics({name: lambda: 0.0 for name in GAUGES})
    root = "mock:text-generation"
    model = mock_model(ModelSpec(root=root, path=None, source="mock", task="text-generation", mock=True), ())
    metrics.piece(model, 0.5, first=True)
    metrics.piece(model, 0.3, first=False, tokens=3)
    text = metrics.page().decode()
    assert value(text, f"{PREFIX}time_to_first_token_seconds_sum") == 0.5
    assert value(text, f"{PREFIX}inter_token_seconds_count") == 3
    assert value(text, f"{PREFIX}inter_token_seconds_sum") == pytest.approx(0.3)


NAMES = 10_000


async def test_ten_thousand_names_of_models_make_no_series(here: Running, figure: Callable[[str], None]) -> None:
    """Asked for on every kind of route, and some in the path."""
    await here.ask("POST", "/v1/embeddings", json={"model": "nobody/first", "input": "a"})
    await here.ask("POST", "/embed?model=nobody/first", json={"inputs": "a"})
    await here.ask("POST", "/v2/models/nobody/first/infer", json={"inputs": []})
    await here.ask("GET", "/v1/models/nobody/first")
    before = (await page(here)).count("\n")
    places = asyncio.Semaphore(32)

    async def one(number: int) -> None:
        name = f"nobody/model-{number}"
        async with places:
            match number % 4:
                case 0:
                    await here.ask("POST", "/v1/embeddings", json={"model": name, "input": "a"})
                case 1:
                    await here.ask("POST", f"/embed?model={name}", json={"inputs": "a"})
                case 2:
                    await here.ask("POST", f"/v2/models/{name}/infer", json={"inputs": []})
                case _:
                    await here.ask("GET", f"/v1/models/{name}")

    await asyncio.gather(*(one(number) for number in range(NAMES)))
    text = await page(here)
    figure(f"{text.count(chr(10))} lines after {NAMES} unknown names, {before} before")
    assert text.count("\n") <= before + 40
    assert "nobody" not in text


async def test_more_models_than_there_are_labels_are_counted_together(here: Running) -> None:
    metrics = here.served.app[METRICS]
    labels = {metrics.label(f"model-{number}") for number in range(10 * MAX_MODELS)}
    assert OTHER in labels
    assert len(labels) <= MAX_MODELS
