"""Table M of the bad-input catalogue, and what a model directory says about itself; no worker, no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.architectures import EncoderConfig, MatchedTensors
from ipfs_accelerate_node.inference.model_files import ModelFiles, inspect
from ipfs_accelerate_node.inference.sentence import SentenceSettings, read_sentence_settings
from tests.support.models import WORDS, random_weights, tiny_config, tiny_model, write_json, write_pooling

PLENTY = 1 << 30


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def look(directory: Path) -> ModelFiles:
    return inspect(directory, available_bytes=PLENTY)


def encoder_of(directory: Path) -> EncoderConfig:
    sentence = look(directory).sentence
    assert sentence is not None
    assert sentence.encoder is not None
    return sentence.encoder


def matched(directory: Path) -> MatchedTensors:
    sentence = look(directory).sentence
    assert sentence is not None
    assert sentence.tensors is not None
    return sentence.tensors


def settings_of(directory: Path) -> SentenceSettings:
    sentence = look(directory).sentence
    assert sentence is not None
    return sentence.settings


def code_of(directory: Path) -> str:
    with pytest.raises(ModelUnsupported) as caught:
        look(directory)
    return caught.value.code


def change(directory: Path, file: str = "config.json", **changes: object) -> None:
    path = directory / file
    write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | changes)


def test_a_sound_model_passes(model: Path) -> None:
    files = look(model)
    encoder = encoder_of(model)
    assert (encoder.architecture, encoder.width, files.max_tokens, files.vocab_size) == ("bert", 16, 40, len(WORDS))
    numbers = sum(w.size for w in random_weights(tiny_config()).values())
    assert [files.estimate_bytes(p) for p in ("f32", "bf16", "f16", "int8")] == [n * numbers for n in (4, 2, 2, 1)]
    assert (files.tasks, files.labels, files.model_type) == (("embedding",), (), "bert")
    assert files.notes == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModel": "modeling_evil.Evil"}},
        {"trust_remote_code": True},
        {"text_config": {"auto_map": {"AutoModel": "x.Y"}}},
        {"_attn_implementation_internal": "evil/repo"},
        {"_attn_implementation": "kernels-community/flash-attn:run"},
        {"use_kernels": True},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "evil/repo:RMSNorm"}}},
    ],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_m1_m2_code_from_elsewhere_is_refused(model: Path, file: str, changes: dict[str, object]) -> None:
    change(model, file, **changes)
    assert code_of(model) == "remote_code_refused"


@pytest.mark.parametrize("name", ["modeling_evil.py", "sub/EVIL.PY", "native.so", "2_Normalize/x.pyc"])
def test_m1_code_in_the_directory_is_refused(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("raise SystemExit")
    assert code_of(model) == "remote_code_refused"


def test_m1_a_module_of_the_authors_own_is_refused(model: Path) -> None:
    write_json(model / "modules.json", [{"type": "custom_st.Transformer", "path": ""}])
    assert code_of(model) == "remote_code_refused"


def test_a_training_record_is_no_reason_to_refuse(model: Path) -> None:
    (model / "train_script.py").write_text("raise SystemExit")
    assert encoder_of(model).layers == 2


def test_plain_attention_names_are_nothing_to_fear(model: Path) -> None:
    change(model, _attn_implementation="sdpa", auto_map=None, trust_remote_code=False)
    assert encoder_of(model).layers == 2


@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file"])
@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret", "..", "a\\b", "", 7, ["x"]])
def test_m3_paths_in_the_tokenizer_settings_are_refused(model: Path, key: str, path: object) -> None:
    change(model, "tokenizer_config.json", **{key: path})
    assert code_of(model) == "bad_config"


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("hidden_size", 10**9, "model_too_large"),
        ("vocab_size", 10**15, "model_too_large"),
        ("num_hidden_layers", 10**6, "model_too_large"),
        ("intermediate_size", 10**30, "model_too_large"),
        ("hidden_size", -16, "bad_config"),
        ("hidden_size", 0, "bad_config"),
        ("hidden_size", "16", "bad_config"),
        ("hidden_size", True, "bad_config"),
        ("hidden_size", 16.0, "bad_config"),
        ("hidden_size", None, "bad_config"),
        ("num_attention_heads", 5, "bad_config"),
        ("layer_norm_eps", "tiny", "bad_config"),
        ("layer_norm_eps", 0, "bad_config"),
        ("pad_token_id", 10**6, "bad_config"),
        ("hidden_act", "evil", "task_unsupported"),
        ("hidden_act", ["gelu"], "task_unsupported"),
        ("model_type", "evil", "task_unsupported"),
        ("model_type", ["bert"], "task_unsupported"),
        ("model_type", None, "task_unsupported"),
        ("is_decoder", True, "task_unsupported"),
        ("position_embedding_type", "relative_key", "task_unsupported"),
        ("quantization_config", {"quant_method": "x"}, "task_unsupported"),
    ],
)
def test_m4_m5_absurd_settings(model: Path, key: str, value: object, code: str) -> None:
    change(model, "config.json", **{key: value})
    assert code_of(model) == code


@pytest.mark.parametrize("number", ["NaN", "1e400", "-Infinity", "1" * 5000])
def test_m4_numbers_that_are_none(model: Path, number: str) -> None:
    (model / "config.json").write_text(f'{{"model_type": "bert", "hidden_size": {number}}}')
    assert code_of(model) == "bad_config"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":1,"a":1}', '{"a":' * 100_000, "\ufeff{}", '"bert"'])
def test_config_that_is_no_object(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    assert code_of(model) == "bad_config"


def test_config_missing_or_a_link(model: Path) -> None:
    (model / "config.json").rename(model / "elsewhere.json")
    assert code_of(model) == "bad_config"
    (model / "config.json").symlink_to(model / "elsewhere.json")
    assert code_of(model) == "bad_config"


def test_too_large_for_this_machine(model: Path) -> None:
    with pytest.raises(ModelUnsupported) as caught:
        inspect(model, available_bytes=1000)
    assert caught.value.code == "model_too_large"


Weights = dict[str, np.ndarray]
WORDS_TENSOR = "embeddings.word_embeddings.weight"


def _missing(weights: Weights) -> None:
    del weights["encoder.layer.1.output.dense.bias"]


def _extra_layer(weights: Weights) -> None:
    weights["encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)


def _shape(weights: Weights) -> None:
    weights[WORDS_TENSOR] = weights[WORDS_TENSOR][:-1]


def _integers(weights: Weights) -> None:
    weights[WORDS_TENSOR] = weights[WORDS_TENSOR].astype(np.int8)


def _twice(weights: Weights) -> None:
    weights[f"bert.{WORDS_TENSOR}"] = weights[WORDS_TENSOR]


@pytest.mark.parametrize("spoil", [_missing, _extra_layer, _shape, _integers, _twice])
def test_m5_weights_that_do_not_fit_the_config(model: Path, spoil: Callable[[Weights], None]) -> None:
    weights = load_file(model / "model.safetensors")
    spoil(weights)
    save_file(weights, model / "model.safetensors")
    assert code_of(model) == "bad_weights"


def test_heads_and_index_buffers_are_ignored_and_heads_named(model: Path) -> None:
    weights = {f"bert.{name}": value for name, value in load_file(model / "model.safetensors").items()}
    weights["bert.embeddings.position_ids"] = np.arange(40)[None]
    weights["bert.pooler.dense.bias"] = weights["cls.predictions.bias"] = np.zeros(4, np.float32)
    save_file(weights, model / "model.safetensors")
    files = look(model)
    assert sorted(matched(model).ignored) == ["bert.pooler.dense.bias", "cls.predictions.bias"]
    assert any("2 tensors not needed" in note for note in files.notes)


def test_gamma_and_beta_are_weight_and_bias(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    renamed = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for n, w in weights.items()
    }
    save_file(renamed, model / "model.safetensors")
    assert matched(model).entries["embeddings.LayerNorm.weight"][0] == "embeddings.LayerNorm.gamma"


class TestSentenceSettings:
    def test_nothing_said_means_mean_and_normalised_and_is_noted(self, tmp_path: Path) -> None:
        files = look(tiny_model(tmp_path / "m", pooling=()))
        assert (settings_of(files.directory).pooling, settings_of(files.directory).normalize) == (("mean",), True)
        assert any("no modules.json" in note for note in files.notes)

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["cls_token"], ("cls",)),
            (["mean_tokens", "cls_token"], ("cls", "mean")),  # the order is sentence-transformers', not the file's
            (["lasttoken", "max_tokens", "mean_sqrt_len_tokens"], ("max", "mean_sqrt_len", "lasttoken")),
            (["weightedmean_tokens"], ("weightedmean",)),
        ],
    )
    def test_pooling(self, model: Path, flags: list[str], expected: tuple[str, ...]) -> None:
        write_pooling(model, *flags, normalize=False)
        found = read_sentence_settings(model)
        assert (found.pooling, found.normalize) == (expected, False)

    @pytest.mark.parametrize(("named", "expected"), [("cls", ("cls",)), (["mean", "max"], ("max", "mean"))])
    def test_pooling_by_name(self, model: Path, named: object, expected: tuple[str, ...]) -> None:
        write_json(model / "1_Pooling/config.json", {"pooling_mode": named})
        assert read_sentence_settings(model).pooling == expected

    @pytest.mark.parametrize(
        "config", [{}, {"pooling_mode_new_tokens": True, "pooling_mode_cls_token": True}, {"pooling_mode": "new"}]
    )
    def test_pooling_that_is_not_known(self, model: Path, config: object) -> None:
        write_json(model / "1_Pooling/config.json", config)
        assert code_of(model) == "task_unsupported"

    @pytest.mark.parametrize(
        ("declared", "author", "expected"),
        [(None, None, 40), (30, None, 30), (30, 20, 20), (None, 100, 40), (10**30, None, 40), (10, 20, 20)],
    )
    def test_max_tokens(self, model: Path, declared: int | None, author: int | None, expected: int) -> None:
        if declared is not None:
            change(model, "tokenizer_config.json", model_max_length=declared)
        write_pooling(model, "mean_tokens", max_tokens=author)
        assert look(model).max_tokens == expected

    def test_positions_of_roberta_start_after_padding(self, tmp_path: Path) -> None:
        assert look(tiny_model(tmp_path / "m", "roberta")).max_tokens == 38

    @pytest.mark.parametrize("path", ["../x", "/etc", "a/b", "..", "a\\b"])
    def test_paths_stay_inside(self, model: Path, path: str) -> None:
        modules = json.loads((model / "modules.json").read_text())
        modules[1]["path"] = path
        write_json(model / "modules.json", modules)
        assert code_of(model) == "bad_config"

    @pytest.mark.parametrize(
        ("kinds", "code"),
        [
            (["Transformer"], "task_unsupported"),
            (["Pooling", "Transformer"], "task_unsupported"),
            (["Transformer", "Pooling", "Normalize", "Dense"], "task_unsupported"),
            (["Transformer", "Pooling", "LSTM"], "task_unsupported"),
        ],
    )
    def test_other_chains(self, model: Path, kinds: list[str], code: str) -> None:
        modules = [{"type": f"sentence_transformers.models.{k}", "path": f"{i}_{k}"} for i, k in enumerate(kinds)]
        write_json(model / "modules.json", modules)
        assert code_of(model) == code

    @pytest.mark.parametrize("modules", [{}, [], [1], [{"type": 1}], [{"path": ""}], "x"])
    def test_modules_that_are_none(self, model: Path, modules: object) -> None:
        write_json(model / "modules.json", modules)
        assert code_of(model) == "bad_config"

    def test_prompt(self, model: Path) -> None:
        prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
        write_json(model / "config_sentence_transformers.json", prompts)
        assert read_sentence_settings(model).prompt == "query: "
        write_json(model / "config_sentence_transformers.json", prompts | {"default_prompt_name": "other"})
        assert code_of(model) == "bad_config"

    def test_dense_needs_safetensors_and_fitting_widths(self, model: Path) -> None:
        modules = json.loads((model / "modules.json").read_text())
        modules[2] = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
        write_json(model / "modules.json", modules)
        write_json(model / "2_Dense/config.json", {"in_features": 16, "out_features": 4, "bias": False})
        assert code_of(model) == "format_refused"
        save_file({"linear.weight": np.zeros((4, 16), np.float32)}, model / "2_Dense/model.safetensors")
        assert settings_of(model).dense[0].out == 4
        save_file({"linear.weight": np.zeros((4, 15), np.float32)}, model / "2_Dense/model.safetensors")
        assert code_of(model) == "bad_weights"
        write_json(model / "2_Dense/config.json", {"in_features": 15, "out_features": 4, "bias": False})
        assert code_of(model) == "bad_config"


@pytest.mark.model
def test_the_sample_model_says_what_its_card_says() -> None:
    sample = Path(__file__).parent.parent / ".sample/minilm-l6"
    assert (encoder_of(sample).width, look(sample).max_tokens, settings_of(sample).pooling) == (384, 256, ("mean",))
    assert settings_of(sample).normalize
