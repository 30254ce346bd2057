"""TS6 and TS7 as a client sees them: packed batches and single queries of a BERT of the base size, over HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from serving.bed import Bed
from serving.contestants import check_equal, ours, reference_vectors
from serving.embedding import column, interleaved, single, throughput, throughput_line
from serving.lines import Line, figure

TEXTS_A_REQUEST, CLIENTS = 32, 96
MEDIAN_WORDS, QUERY_WORDS = 60, 30
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_RANDOM = """
import json, sys
import torch
from transformers import BertConfig, BertModel
torch.manual_seed(0)
BertModel(BertConfig(**json.load(open(sys.argv[1] + "/config.json")))).save_pretrained(sys.argv[1])
"""


def base_model(sample: Path, folder: Path) -> Path:
    """A BERT of the base size with the sample's tokenizer; its weights are random."""
    model = folder / "bert-base-random"
    shutil.copytree(sample, model, ignore=shutil.ignore_patterns("*.safetensors", "*.md"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **BASE}))
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 512, "do_lower_case": false}')
    subprocess.run([sys.executable, "-c", _RANDOM, str(model)], check=True, capture_output=True)
    return model


def ts6(bed: Bed) -> list[Line]:
    """32 texts a request, base64; what limits it is read off the shares of time."""
    one = ours(bed, "bf16")
    if one is None:
        return []
    differ = _differ(bed)
    texts = bed.words.mixed(max(bed.sizes.texts, 4 * TEXTS_A_REQUEST), median=MEDIAN_WORDS)
    groups = [texts[at : at + TEXTS_A_REQUEST] for at in range(0, len(texts), TEXTS_A_REQUEST)]
    rounds = interleaved(bed.sizes.rounds, {one.name: throughput(bed, one, texts, groups, CLIENTS)})
    what = f"BERT-base (random weights), real tokens over HTTP, {TEXTS_A_REQUEST} texts a request, bf16"
    line = throughput_line("TS6", what, one, [], rounds)
    line.beside |= {"clients": CLIENTS, "tokens": bed.words.tokens(texts), "tokens in the worker": "see the tests"}
    line.notes = [differ, _limit(line)]
    return [line]


def ts7(bed: Bed) -> list[Line]:
    one = ours(bed, "bf16")
    if one is None:
        return []
    groups = [[text] for text in bed.words.mixed(256, seed=7, median=QUERY_WORDS)]
    rounds = interleaved(bed.sizes.rounds, {one.name: single(bed, one, groups)})
    line = Line("TS7", "p50 of one query over HTTP, one client, bf16", figure(column(rounds, one.name, "p50_ms"), "ms"))
    line.beside = {"of which in the model's passes, mean, ms": max(column(rounds, one.name, "compute_ms"))}
    return [line]


def _differ(bed: Bed) -> str:
    """Random weights say little in bf16, so it is f32 that is compared."""
    exact = ours(bed, "f32")
    if exact is None:
        return f"not compared with torch on the CPU: {bed.absent['ours f32']}"
    texts = bed.words.mixed(8, seed=99, median=MEDIAN_WORDS)
    differ = check_equal(bed, [exact], texts, reference_vectors(bed, texts))
    bed.request("DELETE", f"/api/loads/{exact.model}")
    return f"f32 on the card {'DIFFERS from' if differ else 'agrees with'} torch on the CPU: cosine {exact.cosine:.6f}"


def _limit(line: Line) -> str:
    beside = line.beside
    busy = beside.get("device busy")
    load, node = beside["load's CPU share"], beside["the node's"]
    shares = f"load {load:.2f} and node {node:.2f} of a core"
    return f"{shares}, device busy {'unknown' if busy is None else f'{busy:.0%}'} of the time"
