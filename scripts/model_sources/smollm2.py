"""SmolLM2-135M-Instruct, a 4-bit GGUF → LlamaForCausalLM in bf16, with its tokenizer and chat template.

smollm2.py SOURCE TARGET     SOURCE holds model.gguf.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

GGUF = "model.gguf"


def save_weights(source: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tensors = {name: t.detach().to(torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    for name in [n for n in config if n.startswith("_") or n == "quantization_config"]:
        del config[name]
    config |= {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2).save_pretrained(target)


def save_tokenizer(source: Path, target: Path) -> None:
    """A GGUF does not say how text is split before the merges: as upstream, digit by digit, then bytes."""
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.save_pretrained(target)


def main(source: Path, target: Path) -> None:
    save_weights(source, target)
    save_tokenizer(source, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
