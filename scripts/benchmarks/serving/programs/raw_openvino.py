"""The floor under a server on OpenVINO: one loop over token ids that are there, sorted by length, batches of 1,024
tokens, nothing else.

XML PRECISION THREADS; lines as ``sentence_offline``, with token ids in place of texts."""

import json
import sys
import time

import numpy as np
import openvino

BATCH_TOKENS = 1024

xml, precision, threads = sys.argv[1:]
compiled = openvino.Core().compile_model(
    xml,
    "CPU",
    {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": int(threads),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    },
)
request = compiled.create_infer_request()
names = [port.get_any_name() for port in compiled.inputs]
print(json.dumps({"ready": True}), flush=True)


def embedded(rows: list[list[int]]) -> np.ndarray:
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    vectors: list = [None] * len(rows)
    while order:
        taken = [order.pop()]
        longest = len(rows[taken[0]])
        while order and (len(taken) + 1) * longest <= BATCH_TOKENS:
            taken.append(order.pop())
        ids = np.zeros((len(taken), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(taken):
            ids[at, : len(rows[row])] = rows[row]
            mask[at, : len(rows[row])] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        request.infer({name: given[name] for name in names})
        found = np.array(request.get_tensor("vectors").data)
        for at, row in enumerate(taken):
            vectors[row] = found[at]
    return np.stack(vectors)


for line in sys.stdin:
    order = json.loads(line)
    with open(order["texts"]) as file:
        rows = json.load(file)
    began = time.perf_counter()
    vectors = embedded(rows)
    seconds = time.perf_counter() - began
    if order.get("vectors"):
        np.save(order["vectors"], vectors)
    print(json.dumps({"seconds": seconds}), flush=True)
