"""Where real models lie: the sample model (unpacked by scripts/sample-model), those that scripts/models makes, and the
two in the checkout."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLE = CHECKOUT / ".sample" / "minilm-l6"
DATA = CHECKOUT / "tests" / "data"
CLIP = DATA / "models" / "clip-emoji-tiny"
T5 = DATA / "models" / "t5-g2p-tiny"


def made(name: str) -> Path:
    """The directory of a model that scripts/models makes: smollm2-135m, whisper-tiny-en or efficientnet-lite0."""
    return CHECKOUT / ".models" / name
