"""Where the sample model lies (all-MiniLM-L6-v2, unpacked by scripts/sample-model)."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLE = CHECKOUT / ".sample" / "minilm-l6"
