"""Weights into transformers' classes: nothing made up, nothing left out unsaid, names of all ages. Table M5."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ipfs_accelerate_node.errors import InferenceFailed, ModelUnsupported, NodeError
from ipfs_accelerate_node.inference.model_files import inspect
from tests.support.models import write_json
from tests.support.models_torch import LABELS, torch, write_sharded, written

from ipfs_accelerate_node.inference.torch.engine import TorchEngine, load  # isort: skip - after torch's own warnings

pytestmark = pytest.mark.timeout(120)

IDS = np.array([[2, 10, 11, 12, 3]])
GIVEN = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
Weights = dict[str, Any]


def engine(directory: Path, precision: str = "f32", task: str | None = None) -> TorchEngine:
    files = inspect(directory, available_bytes=1 << 32)
    return load(files, files.check_task(task), device="cpu", precision=precision)


def respell(directory: Path, spell: Callable[[str], str]) -> None:
    weights = load_file(directory / "model.safetensors")
    save_file({spell(name): value for name, value in weights.items()}, directory / "model.safetensors")


def first_logits(loaded: TorchEngine) -> Any:
    decoder = loaded.decoder()
    decoder.start(None)
    return decoder.step(IDS, np.ones_like(IDS))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    written(tmp_path, "bert", "BertForSequenceClassification", id2label=LABELS)
    return tmp_path


def _missing(weights: Weights) -> None:
    del weights["bert.encoder.layer.1.output.dense.bias"]


def _head(weights: Weights) -> None:
    del weights["classifier.weight"]


def _surplus(weights: Weights) -> None:
    weights["bert.encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)


def _shape(weights: Weights) -> None:
    weights["classifier.weight"] = weights["classifier.weight"][:2]


def _integers(weights: Weights) -> None:
    weights["classifier.weight"] = weights["classifier.weight"].astype(np.int8)


def _twice(weights: Weights) -> None:
    weights["encoder.layer.0.output.dense.bias"] = weights["bert.encoder.layer.0.output.dense.bias"]


@pytest.mark.parametrize("spoil", [_missing, _head, _surplus, _shape, _integers, _twice])
def test_m5_weights_that_do_not_fit_are_refused(classifier: Path, spoil: Callable[[Weights], None]) -> None:
    weights = load_file(classifier / "model.safetensors")
    spoil(weights)
    save_file(weights, classifier / "model.safetensors")
    with pytest.raises(ModelUnsupported) as caught:
        engine(classifier)
    assert caught.value.code == "bad_weights"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"hidden_act": "evil"}, "task_unsupported"),
        ({"num_attention_heads": 5}, "bad_config"),
        ({"hidden_size": 10**9}, "model_too_large"),
        ({"num_hidden_layers": 10**6}, "model_too_large"),
        ({"num_hidden_layers": 3}, "bad_weights"),
        ({"num_hidden_layers": 1}, "bad_weights"),
        ({"vocab_size": 67}, "bad_weights"),
        ({"id2label": {"0": "a", "2": "b"}}, "bad_config"),
        ({"id2label": {"0": ["a"]}}, "bad_config"),
        ({"id2label": {"0": "a"}}, "bad_weights"),
        ({"layer_norm_eps": "tiny"}, "bad_config"),
        ({"quantization_config": {"quant_method": "x"}}, "task_unsupported"),
        ({"architectures": "BertModel"}, "bad_config"),
    ],
)
def test_m4_m5_config_against_the_weights(classifier: Path, changes: dict[str, object], code: str) -> None:
    config = json.loads((classifier / "config.json").read_text())
    write_json(classifier / "config.json", config | changes)
    with pytest.raises(ModelUnsupported) as caught:
        engine(classifier)
    assert caught.value.code == code


def test_settings_that_only_steer_the_library_change_nothing(classifier: Path) -> None:
    before = engine(classifier).run("logits", GIVEN)["logits"]
    config = json.loads((classifier / "config.json").read_text())
    steering = {"return_dict": False, "output_attentions": True, "torchscript": True, "torch_dtype": "bfloat16",
                "dtype": "float16", "_attn_implementation": "flash_attention_2"}  # fmt: skip
    write_json(classifier / "config.json", config | steering)
    loaded = engine(classifier)
    np.testing.assert_array_equal(loaded.run("logits", GIVEN)["logits"], before)
    assert loaded.precision == "f32"


def test_a_head_that_is_not_needed_is_named(tmp_path: Path) -> None:
    written(tmp_path, "bert", "BertForPreTraining")
    loaded = engine(tmp_path)
    assert inspect(tmp_path, available_bytes=1 << 32).tasks == ("fill-mask", "embedding")
    assert any("4 tensors not needed for fill-mask are ignored (bert, cls)" in note for note in loaded.notes)


def test_a_model_of_another_task_lends_no_head(classifier: Path) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        engine(classifier, task="fill-mask")
    assert caught.value.code == "task_unsupported"
    assert "text-classification, embedding" in str(caught.value)


def test_gamma_and_beta_are_weight_and_bias(classifier: Path) -> None:
    before = engine(classifier).run("logits", GIVEN)["logits"]
    respell(
        classifier,
        lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    )
    np.testing.assert_allclose(engine(classifier).run("logits", GIVEN)["logits"], before, atol=1e-6)


def test_gpt2_of_old_has_no_prefix_and_has_its_masks(tmp_path: Path) -> None:
    written(tmp_path, "gpt2", "GPT2LMHeadModel")
    before = first_logits(engine(tmp_path))
    respell(tmp_path, lambda name: name.removeprefix("transformer."))
    weights = load_file(tmp_path / "model.safetensors")
    weights["h.0.attn.bias"] = np.ones((1, 1, 40, 40), np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    loaded = engine(tmp_path)
    np.testing.assert_allclose(first_logits(loaded), before, atol=1e-6)
    assert loaded.notes == ()


def test_pictures_of_old_spell_their_attention_otherwise(tmp_path: Path) -> None:
    """transformers 5 renamed ViT's tensors; every checkpoint on the Hub has the names before."""
    written(tmp_path, "vit", "ViTForImageClassification", id2label=LABELS)
    names = set(load_file(tmp_path / "model.safetensors"))
    old = "vit.encoder.layer.0.attention.attention.query.weight"
    assert {old, "vit.layers.0.attention.q_proj.weight"} & names
    assert engine(tmp_path).run("logits", {"pixel_values": np.zeros((1, 3, 16, 16), np.float32)})["logits"].shape == (
        1,
        3,
    )


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings(tmp_path: Path, tied: bool) -> None:
    model = written(tmp_path, "llama", "LlamaForCausalLM", tie_word_embeddings=tied)
    weights = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in weights) != tied
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(IDS)).logits[0, -1].numpy()
    np.testing.assert_allclose(first_logits(engine(tmp_path))[0], expected, atol=1e-5)
    if not tied:
        del weights["lm_head.weight"]
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(ModelUnsupported, match=r"lack lm_head\.weight"):
            engine(tmp_path)


def test_tied_by_the_config_but_two_in_the_file_stay_two(tmp_path: Path) -> None:
    model = written(tmp_path, "llama", "LlamaForCausalLM", tie_word_embeddings=False)
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", config | {"tie_word_embeddings": True})
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(IDS)).logits[0, -1].numpy()
    loaded = engine(tmp_path)
    np.testing.assert_allclose(first_logits(loaded)[0], expected, atol=1e-5)
    assert any("lm_head.weight differs from model.embed_tokens.weight" in note for note in loaded.notes)


def test_only_the_head_of_a_tied_pair_is_in_the_file(tmp_path: Path) -> None:
    written(tmp_path, "t5", "T5ForConditionalGeneration", tie_word_embeddings=True)
    before = engine(tmp_path).run("encoder", GIVEN)["hidden"]
    respell(tmp_path, lambda name: "lm_head.weight" if name == "shared.weight" else name)
    np.testing.assert_allclose(engine(tmp_path).run("encoder", GIVEN)["hidden"], before, atol=1e-6)


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_give_what_one_file_gives(tmp_path: Path, shards: int) -> None:
    written(tmp_path, "qwen2", "Qwen2ForCausalLM")
    before = first_logits(engine(tmp_path))
    write_sharded(tmp_path, shards)
    np.testing.assert_allclose(first_logits(engine(tmp_path)), before, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_files_are_widened(tmp_path: Path, dtype: str) -> None:
    model = written(tmp_path, "llama", "LlamaForCausalLM").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    loaded = engine(tmp_path)
    assert loaded.precision == "f32"
    with torch.no_grad():
        expected = model.float()(input_ids=torch.tensor(IDS)).logits[0, -1].numpy()
    np.testing.assert_allclose(first_logits(loaded)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [("llama", "LlamaForCausalLM"), ("t5", "T5ForConditionalGeneration"), ("clip", "CLIPModel"),
     ("whisper", "WhisperForConditionalGeneration"), ("resnet", "ResNetForImageClassification")],
)  # fmt: skip
def test_bf16_is_read_back_and_near(tmp_path: Path, model_type: str, class_name: str) -> None:
    written(tmp_path, model_type, class_name)
    exact, narrow = engine(tmp_path), engine(tmp_path, "bf16")
    assert (exact.precision, narrow.precision) == ("f32", "bf16")
    generator = np.random.default_rng(0)
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "t5": ("encoder", GIVEN),
        "clip": ("image", {"pixel_values": generator.normal(size=(1, 3, 16, 16)).astype(np.float32)}),
        "whisper": ("encoder", {"input_features": generator.normal(size=(1, 8, 40)).astype(np.float32)}),
        "resnet": ("logits", {"pixel_values": generator.normal(size=(1, 3, 32, 32)).astype(np.float32)}),
    }
    if model_type == "llama":
        one, other = first_logits(exact), first_logits(narrow)
    else:
        graph, inputs = given[model_type]
        (one,), (other,) = exact.run(graph, inputs).values(), narrow.run(graph, inputs).values()
    assert one.dtype == other.dtype == np.float32
    assert float((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)) >= 0.999


def test_s7_weights_that_are_not_finite_are_flagged(classifier: Path) -> None:
    weights = load_file(classifier / "model.safetensors")
    weights["classifier.bias"][0] = np.inf
    weights["bert.pooler.dense.bias"][0] = np.nan
    save_file(weights, classifier / "model.safetensors")
    assert engine(classifier).notes == ("weights hold NaN or infinity: bert.pooler.dense.bias, classifier.bias",)


def test_what_the_library_says_of_bad_arrays_is_ours(classifier: Path) -> None:
    loaded = engine(classifier)
    for inputs in ({"input_ids": IDS + 10_000, "attention_mask": np.ones_like(IDS)}, {"input_ids": IDS[:, :, None]}):
        with pytest.raises(InferenceFailed):
            loaded.run("logits", inputs)
    with pytest.raises(InferenceFailed, match="no graph"):
        loaded.run("vectors", GIVEN)
    with pytest.raises(InferenceFailed, match="does not generate"):
        loaded.decoder()


@pytest.mark.parametrize("inner", ["evil", "llama", None])
def test_towers_of_a_type_that_is_not_known_are_refused(tmp_path: Path, inner: object) -> None:
    written(tmp_path, "vision-text-dual-encoder", "VisionTextDualEncoderModel")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["model_type"] = inner
    write_json(tmp_path / "config.json", config)
    with pytest.raises(NodeError) as caught:
        engine(tmp_path)
    assert caught.value.code == "task_unsupported"


def test_an_embedding_model_needs_no_transformers() -> None:
    """Importing it takes several times as long as torch: a worker for embeddings starts without."""
    code = (
        "import sys; from ipfs_accelerate_node.inference.torch import engine; "
        "assert 'torch' in sys.modules; assert not [m for m in sys.modules if m.split('.')[0] == 'transformers']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_checking_files_needs_no_torch() -> None:
    code = (
        "import sys; from ipfs_accelerate_node.inference import model_files; "
        "assert not {'torch', 'transformers', 'openvino'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
