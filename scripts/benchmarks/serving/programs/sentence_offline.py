"""sentence-transformers without a server: every text at once, which it sorts by length itself.

MODEL DEVICE; each line that it reads names a JSON file of texts, and one for the vectors; it answers with the
seconds."""

import json
import sys
import time

import numpy as np
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device=sys.argv[2])
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    with open(order["texts"]) as file:
        texts = json.load(file)
    began = time.perf_counter()
    vectors = model.encode(texts, batch_size=32, normalize_embeddings=True)
    seconds = time.perf_counter() - began
    if order.get("vectors"):
        np.save(order["vectors"], vectors)
    print(json.dumps({"seconds": seconds}), flush=True)
