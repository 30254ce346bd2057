"""whisper-tiny.en in CTranslate2's form (f16, not quantised) → WhisperForConditionalGeneration.

whisper.py SOURCE TARGET     SOURCE holds model.bin, config.json and tokenizer.json.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
START, END, NO_TIMESTAMPS, PREVIOUS = 50257, 50256, 50362, 50360
TOKENIZER = {
    "tokenizer_class": "WhisperTokenizer",
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "add_prefix_space": False,
    "errors": "replace",
    "model_max_length": 1024,
    "return_attention_mask": False,
    "clean_up_tokenization_spaces": False,
    "processor_class": "WhisperProcessor",
}


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model.bin: version, name of the form, revision, then each variable."""
    with path.open("rb") as file:

        def number(form: str) -> int:
            return int(struct.unpack(form, file.read(struct.calcsize(form)))[0])

        def text() -> str:
            return file.read(number("<H")).decode().rstrip("\0")

        number("<I")
        if (form := text()) != "WhisperSpec":
            raise SystemExit(f"model.bin holds a {form}")
        number("<I")
        variables = {}
        for _ in range(number("<I")):
            name = text()
            shape = [number("<I") for _ in range(number("<B"))]
            kind = TYPES[number("<B")]
            variables[name] = np.frombuffer(file.read(number("<I")), kind).reshape(shape)
        return variables


class Renaming:
    """Collects tensors under the Hub's names. CTranslate2 keeps q, k and v of one attention in one matrix."""

    def __init__(self, variables: dict[str, np.ndarray]) -> None:
        self._variables = variables
        self.tensors: dict[str, Tensor] = {}
        self.width = int(variables["decoder/embeddings/weight"].shape[1])

    def plain(self, target: str, origin: str) -> None:
        self.tensors[target] = torch.from_numpy(self._variables[origin].copy())

    def norm(self, target: str, origin: str) -> None:
        self.plain(f"{target}.weight", f"{origin}/gamma")
        self.plain(f"{target}.bias", f"{origin}/beta")

    def linear(self, target: str, origin: str) -> None:
        self.plain(f"{target}.weight", f"{origin}/weight")
        self.plain(f"{target}.bias", f"{origin}/bias")

    def split(self, target: str, names: tuple[str, ...], origin: str) -> None:
        weight, bias = self._variables[f"{origin}/weight"], self._variables[f"{origin}/bias"]
        for number, name in enumerate(names):
            rows = slice(number * self.width, (number + 1) * self.width)
            self.tensors[f"{target}.{name}.weight"] = torch.from_numpy(weight[rows].copy())
            if name != "k_proj":  # Whisper's keys have no bias
                self.tensors[f"{target}.{name}.bias"] = torch.from_numpy(bias[rows].copy())
            elif bias[rows].any():
                raise SystemExit(f"{origin} has a bias for its keys")

    def layer(self, target: str, origin: str, *, crosses: bool) -> None:
        self.split(f"{target}.self_attn", ("q_proj", "k_proj", "v_proj"), f"{origin}/self_attention/linear_0")
        self.linear(f"{target}.self_attn.out_proj", f"{origin}/self_attention/linear_1")
        self.norm(f"{target}.self_attn_layer_norm", f"{origin}/self_attention/layer_norm")
        if crosses:
            self.linear(f"{target}.encoder_attn.q_proj", f"{origin}/attention/linear_0")
            self.split(f"{target}.encoder_attn", ("k_proj", "v_proj"), f"{origin}/attention/linear_1")
            self.linear(f"{target}.encoder_attn.out_proj", f"{origin}/attention/linear_2")
            self.norm(f"{target}.encoder_attn_layer_norm", f"{origin}/attention/layer_norm")
        self.linear(f"{target}.fc1", f"{origin}/ffn/linear_0")
        self.linear(f"{target}.fc2", f"{origin}/ffn/linear_1")
        self.norm(f"{target}.final_layer_norm", f"{origin}/ffn/layer_norm")


def layers_of(variables: dict[str, np.ndarray], side: str) -> int:
    numbers = {name.split("/")[1].removeprefix("layer_") for name in variables if name.startswith(f"{side}/layer_")}
    return sum(number.isdigit() for number in numbers)


def renamed(variables: dict[str, np.ndarray]) -> Renaming:
    out = Renaming(variables)
    for number in (1, 2):
        out.linear(f"model.encoder.conv{number}", f"encoder/conv{number}")
    for side in ("encoder", "decoder"):
        out.plain(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
        out.norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for number in range(layers_of(variables, side)):
            out.layer(f"model.{side}.layers.{number}", f"{side}/layer_{number}", crosses=side == "decoder")
    out.plain("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    return out


def configuration(variables: dict[str, np.ndarray], weights: Renaming) -> WhisperConfig:
    hidden = int(weights.tensors["model.encoder.layers.0.fc1.weight"].shape[0])
    config = WhisperConfig(
        vocab_size=int(weights.tensors["model.decoder.embed_tokens.weight"].shape[0]),
        num_mel_bins=80,
        d_model=weights.width,
        encoder_layers=layers_of(variables, "encoder"),
        decoder_layers=layers_of(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=hidden,
        decoder_ffn_dim=hidden,
        max_source_positions=1500,
        max_target_positions=448,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        architectures=["WhisperForConditionalGeneration"],
    )
    config.dtype = torch.float16
    return config


def generation(notes: dict[str, list[int]]) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        max_length=448,
        begin_suppress_tokens=notes["suppress_ids_begin"],
        suppress_tokens=notes["suppress_ids"],
        no_timestamps_token_id=NO_TIMESTAMPS,
        prev_sot_token_id=PREVIOUS,
        alignment_heads=notes["alignment_heads"],
        return_timestamps=False,
        is_multilingual=False,
        max_initial_timestamp_index=50,
    )


def main(source: Path, target: Path) -> None:
    variables = read_variables(source / "model.bin")
    weights = renamed(variables)
    save_file(weights.tensors, target / "model.safetensors", metadata={"format": "pt"})
    configuration(variables, weights).save_pretrained(target)
    generation(json.loads((source / "config.json").read_text())).save_pretrained(target)
    WhisperFeatureExtractor(
        feature_size=80, sampling_rate=16000, hop_length=160, chunk_length=30, n_fft=400
    ).save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text(json.dumps(TOKENIZER, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
