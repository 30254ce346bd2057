"""What a config.json stands for: tasks, labels, sizes, limits; and what no model may ask for. Without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.families import MODEL_TYPES, TASKS
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect, tasks_of
from tests.support.models import write_json

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def model(directory: Path, config: dict[str, object], **files: object) -> Path:
    """A directory with this config.json, one tensor and further JSON files (``generation_config={…}``)."""
    directory.mkdir(exist_ok=True)
    write_json(directory / "config.json", config)
    save_file({"model.embed_tokens.weight": np.zeros((100, 16), np.float32)}, directory / "model.safetensors")
    for name, value in files.items():
        write_json(directory / f"{name}.json", value)
    return directory


def look(directory: Path, available_bytes: int = 1 << 30) -> ModelFiles:
    return inspect(directory, available_bytes=available_bytes)


def code_of(directory: Path, available_bytes: int = 1 << 30) -> str:
    with pytest.raises(ModelUnsupported) as caught:
        look(directory, available_bytes)
    return caught.value.code


@pytest.mark.parametrize(
    ("config", "tasks"),
    [
        ({"model_type": "bert"}, ("embedding",)),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ("embedding",)),
        ({"model_type": "bert", "architectures": []}, ("embedding",)),
        ({"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]}, ("fill-mask", "embedding")),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"]}, ("fill-mask", "embedding")),
        ({"model_type": "electra", "architectures": ["ElectraForPreTraining"]}, ("embedding",)),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
         ("text-classification", "embedding")),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}},
         ("rerank", "text-classification", "embedding")),
        ({"model_type": "roberta", "architectures": ["RobertaForSequenceClassification"], "num_labels": 1},
         ("rerank", "text-classification", "embedding")),
        ({"model_type": "distilbert", "architectures": ["DistilBertForTokenClassification"]},
         ("token-classification", "embedding")),
        ({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}, ("embedding",)),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, ("embedding", "zero-shot-image-classification")),
        ({"model_type": "siglip"}, ("embedding", "zero-shot-image-classification")),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, ("text2text-generation",)),
        ({"model_type": "bart", "architectures": ["BartForSequenceClassification"]}, ("text-classification",)),
        ({"model_type": "marian", "architectures": ["MarianMTModel"]}, ("text2text-generation",)),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ("text-generation",)),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ("text-generation",)),
        ({"model_type": "whisper"}, ("automatic-speech-recognition",)),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, ("image-classification",)),
    ],
)  # fmt: skip
def test_tasks(config: dict[str, object], tasks: tuple[str, ...]) -> None:
    assert tasks_of(config) == tasks
    assert set(tasks) <= set(TASKS)


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "task_unsupported"),
        ({"model_type": "evil"}, "task_unsupported"),
        ({"model_type": 7}, "task_unsupported"),
        ({"model_type": ["bert"]}, "task_unsupported"),
        ({"model_type": "bert", "architectures": "BertModel"}, "bad_config"),
        ({"model_type": "bert", "architectures": [7]}, "bad_config"),
        ({"model_type": "bert", "is_decoder": True}, "task_unsupported"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "task_unsupported"),
    ],
)
def test_what_is_no_model_of_ours(config: dict[str, object], code: str) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        tasks_of(config)
    assert caught.value.code == code


def test_every_model_type_has_a_class_for_its_default_task() -> None:
    for name, kind in MODEL_TYPES.items():
        architecture = kind.class_name("image-classification") if kind.family == "image" else ""
        default = tasks_of({"model_type": name, "architectures": [architecture] if architecture else []})[0]
        assert kind.class_name(default)


def test_a_classifier_that_gives_no_vectors_still_classifies(tmp_path: Path) -> None:
    """Our own forward pass knows absolute positions only; transformers' class for the head knows others."""
    config = {**LLAMA, "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    files = look(model(tmp_path, config | {"position_embedding_type": "relative_key"}))
    assert (files.tasks, files.sentence) == (("text-classification",), None)


def test_a_named_task_must_be_one_of_the_models(tmp_path: Path) -> None:
    directory = model(tmp_path, LLAMA)
    assert inspect(directory, available_bytes=1 << 30, task="text-generation").check_task(None) == "text-generation"
    for task in ("embedding", "nonsense"):
        with pytest.raises(ModelUnsupported) as caught:
            inspect(directory, available_bytes=1 << 30, task=task)
        assert caught.value.code == "task_unsupported"
        assert "text-generation" in str(caught.value)


def test_what_lies_beside_the_weights_is_told(tmp_path: Path) -> None:
    files = look(
        model(
            tmp_path,
            LLAMA,
            generation_config={"max_new_tokens": 5},
            tokenizer_config={"model_max_length": 32},
            processor_config={"image_processor": {"size": 8}},
        )
    )
    assert (files.family, files.model_type, files.tasks) == ("causal", "llama", ("text-generation",))
    assert (files.max_tokens, files.vocab_size, files.labels, files.sentence) == (32, 100, (), None)
    assert files.generation_config == {"max_new_tokens": 5}
    assert files.preprocessor_config == {"size": 8}
    assert (files.tokenizer_json, files.vocab_txt) == (None, None)
    assert files.estimate_bytes("bf16") == 2 * 1600


@pytest.mark.parametrize("file", ["config", "generation_config", "preprocessor_config", "processor_config"])
@pytest.mark.parametrize("asks", [{"auto_map": {"AutoModel": "x.Y"}}, {"deep": [{"trust_remote_code": True}]},
                                  {"_experts_implementation": "evil/repo"}])  # fmt: skip
def test_m1_m2_no_file_may_ask_for_code(tmp_path: Path, file: str, asks: dict[str, object]) -> None:
    directory = model(tmp_path, LLAMA)
    path = directory / f"{file}.json"
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | asks)
    assert code_of(directory) == "remote_code_refused"


@pytest.mark.parametrize("file", ["generation_config", "preprocessor_config", "tokenizer_config"])
def test_settings_that_are_no_json_are_refused(tmp_path: Path, file: str) -> None:
    directory = model(tmp_path, LLAMA)
    (directory / f"{file}.json").write_text('{"a": 1, "a": 2}')
    assert code_of(directory) == "bad_config"
    (directory / f"{file}.json").unlink()
    (directory / f"{file}.json").symlink_to("/etc/hostname")
    assert code_of(directory) == "bad_config"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("hidden_size", 10**9, "model_too_large"),
        ("vocab_size", 10**12, "model_too_large"),
        ("num_hidden_layers", 10**6, "model_too_large"),
        ("intermediate_size", 10**30, "model_too_large"),
        ("max_position_embeddings", 10**30, "model_too_large"),
        ("hidden_size", -16, "bad_config"),
        ("hidden_size", 0, "bad_config"),
        ("hidden_size", "16", "bad_config"),
        ("hidden_size", True, "bad_config"),
        ("hidden_size", 16.0, "bad_config"),
        ("hidden_size", None, "bad_config"),
        ("num_key_value_heads", -1, "bad_config"),
        ("hidden_act", "evil", "task_unsupported"),
        ("hidden_act", ["silu"], "task_unsupported"),
        ("quantization_config", {"quant_method": "gptq"}, "task_unsupported"),
        ("pruned_heads", {"0": [1]}, "task_unsupported"),
        ("num_labels", 10**9, "bad_config"),
        ("attention_types", [[["global", "local"], 10**9]], "model_too_large"),
        ("num_feedforward_networks", 10**6, "model_too_large"),
    ],
)
def test_m4_absurd_sizes_of_any_family(tmp_path: Path, key: str, value: object, code: str) -> None:
    assert code_of(model(tmp_path, LLAMA | {key: value})) == code


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_m4_absurd_sizes_inside_a_part(tmp_path: Path, part: str) -> None:
    sizes = {"hidden_size": 10**9, "num_hidden_layers": 12, "intermediate_size": 3072}
    assert code_of(model(tmp_path, {"model_type": "clip", part: sizes})) == "model_too_large"
    assert code_of(model(tmp_path, {"model_type": "clip", part: sizes | {"hidden_size": "big"}})) == "bad_config"


def test_m4_lists_of_sizes(tmp_path: Path) -> None:
    resnet: dict[str, object] = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1]}
    assert look(model(tmp_path, resnet)).max_tokens == 0
    assert code_of(model(tmp_path, resnet | {"hidden_sizes": [8, "16"]})) == "bad_config"
    assert code_of(model(tmp_path, resnet | {"depths": [1] * 2000})) == "model_too_large"
    assert code_of(model(tmp_path, resnet | {"depths": [1, 10**6]})) == "model_too_large"
    assert code_of(model(tmp_path, resnet | {"hidden_sizes": [8, 10**20]})) == "model_too_large"


def test_too_large_counts_the_precision(tmp_path: Path) -> None:
    directory = model(tmp_path, LLAMA)
    assert code_of(directory, available_bytes=6399) == "model_too_large"
    assert inspect(directory, available_bytes=6399, precision="bf16").numbers == 1600


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, ("no", "yes")),
        ({"id2label": {"1": "yes", "0": "no"}}, ("no", "yes")),
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"0": "no", "2": "yes"}}, None),
        ({"id2label": {"0": 1}}, None),
        ({"id2label": ["no"]}, None),
        ({"id2label": {}}, None),
        ({"id2label": {"0": "x" * 600}}, None),
        ({"num_labels": 10**9}, None),
        ({"num_labels": "3"}, None),
    ],
)
def test_labels(tmp_path: Path, labels: dict[str, object], expected: tuple[str, ...] | None) -> None:
    directory = model(tmp_path, {"model_type": "resnet", **labels})
    if expected is None:
        assert code_of(directory) == "bad_config"
    else:
        assert look(directory).labels == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gpt2", "n_positions": 24}, 24),
        ({"model_type": "gpt2"}, 1024),
        ({"model_type": "t5"}, 4096),
        ({"model_type": "clip", "text_config": {"max_position_embeddings": 30}}, 30),
        ({"model_type": "clip"}, 77),
        ({"model_type": "whisper", "max_target_positions": 99}, 99),
        ({"model_type": "bart", "max_position_embeddings": 50}, 50),
        ({"model_type": "vit"}, 0),
    ],
)
def test_max_tokens(tmp_path: Path, config: dict[str, object], expected: int) -> None:
    assert look(model(tmp_path, config)).max_tokens == expected


def test_a_vocabulary_left_to_defaults_is_read_off_the_weights(tmp_path: Path) -> None:
    assert look(model(tmp_path, {"model_type": "mistral"})).vocab_size == 100


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl", "tf_model.h5", "m.ckpt", "m.onnx"])
def test_m8_other_formats_are_refused_by_name(tmp_path: Path, name: str) -> None:
    directory = model(tmp_path, LLAMA)
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(ModelUnsupported, match="safetensors and OpenVINO") as caught:
        look(directory)
    assert caught.value.code == "format_refused"
    assert name in str(caught.value)


def test_s6_what_only_calls_itself_safetensors(tmp_path: Path) -> None:
    directory = model(tmp_path, LLAMA)
    weights = directory / "model.safetensors"
    weights.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00" + b"." * 64)
    assert code_of(directory) == "bad_weights"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ModelUnsupported, match="git lfs pull"):
        look(directory)
