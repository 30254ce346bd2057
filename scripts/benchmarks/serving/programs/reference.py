"""What is right: torch on the CPU in f32, one text at a time; mean over the tokens, length 1.

MODEL; lines as ``sentence_offline``."""

import json
import sys
import time

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModel.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
print(json.dumps({"ready": True}), flush=True)


def embedded(text: str) -> np.ndarray:
    given = tokenizer(text, return_tensors="pt")
    hidden = model(**given).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy()


for line in sys.stdin:
    order = json.loads(line)
    with open(order["texts"]) as file:
        texts = json.load(file)
    began = time.perf_counter()
    vectors = np.stack([embedded(text) for text in texts])
    seconds = time.perf_counter() - began
    if order.get("vectors"):
        np.save(order["vectors"], vectors)
    print(json.dumps({"seconds": seconds}), flush=True)
