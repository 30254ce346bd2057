"""A causal language model written by ``generate`` of transformers, greedily, its end token ignored.

MODEL DEVICE PRECISION THREADS; each line that it reads is {"prompt", "tokens", "streams"}; it answers with seconds, the
text of the first stream and how many tokens were written."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

path, device, precision, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.set_grad_enabled(False)
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, dtype={"bf16": torch.bfloat16, "f32": torch.float32}[precision])
model = model.to(device).eval()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    given = tokenizer([order["prompt"]] * order.get("streams", 1), return_tensors="pt").to(device)
    began = time.perf_counter()
    written = model.generate(
        **given, do_sample=False, max_new_tokens=order["tokens"], min_new_tokens=order["tokens"], pad_token_id=0
    )
    new = written[:, given["input_ids"].shape[1] :].cpu()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "tokens": new.numel(), "text": tokenizer.decode(new[0])}), flush=True)
