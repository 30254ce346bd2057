"""What a worker process does from its start to the first vector. MODEL ARTEFACT DEVICE PRECISION THREADS."""

import json
import sys
from pathlib import Path

from ipfs_accelerate_node.inference import wire
from ipfs_accelerate_node.inference.model import Options, Text
from ipfs_accelerate_node.inference.opening import open_session

model, artefact, device, precision, threads = sys.argv[1:]
load = wire.Load(str(Path(model).absolute()), "embedding", device, precision, artefact)
session, _ = open_session(load, "openvino", int(threads), lambda phase: None)
vector = session.infer([Text("a word")], Options(), lambda: None)[0].values
status = Path("/proc/self/status").read_text().splitlines()
resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))
print(json.dumps({"width": len(vector), "rss_bytes": resident}), flush=True)
sys.stdin.read()
