"""Which models can be run, and for what: the table of model types, and the tasks that a config.json stands for.

A model type that is not in the table is refused by name; the table also says by which of transformers' classes it is
computed, so that nothing in a model's files decides what is imported. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference.strict_json import JsonObject

Family = Literal["encoder", "dual", "seq2seq", "causal", "speech", "image"]

EMBEDDING = "embedding"
TEXT_CLASSIFICATION = "text-classification"
RERANK = "rerank"
TOKEN_CLASSIFICATION = "token-classification"
FILL_MASK = "fill-mask"
ZERO_SHOT_IMAGE = "zero-shot-image-classification"
TEXT2TEXT = "text2text-generation"
TEXT_GENERATION = "text-generation"
SPEECH = "automatic-speech-recognition"
IMAGE_CLASSIFICATION = "image-classification"
TASKS = (
    EMBEDDING,
    TEXT_CLASSIFICATION,
    RERANK,
    TOKEN_CLASSIFICATION,
    FILL_MASK,
    ZERO_SHOT_IMAGE,
    TEXT2TEXT,
    TEXT_GENERATION,
    SPEECH,
    IMAGE_CLASSIFICATION,
)

# What a head's class name ends with, and the tasks it is good for (without labels counted).
_HEADS: Mapping[str, tuple[str, ...]] = {
    "ForSequenceClassification": (TEXT_CLASSIFICATION,),
    "ForTokenClassification": (TOKEN_CLASSIFICATION,),
    "ForMaskedLM": (FILL_MASK,),
    "ForImageClassification": (IMAGE_CLASSIFICATION,),
}
# Whose ForPreTraining holds a masked language model beside the sentence order (ELECTRA's holds another head).
_MASKED_LM_INSIDE = frozenset({"bert", "albert", "ernie", "megatron-bert", "mobilebert"})
_HEAD_OF_TASK = {
    TEXT_CLASSIFICATION: "ForSequenceClassification",
    RERANK: "ForSequenceClassification",
    TOKEN_CLASSIFICATION: "ForTokenClassification",
    FILL_MASK: "ForMaskedLM",
    IMAGE_CLASSIFICATION: "ForImageClassification",
}


@dataclass(frozen=True, slots=True)
class ModelType:
    """One model type. module: of transformers.models. stem: what its class names begin with. generator: the class that
    writes text, where there is one. config: its configuration class."""

    name: str
    family: Family
    module: str
    stem: str
    generator: str = ""

    @property
    def config(self) -> str:
        return f"{self.stem}Config"

    def class_name(self, task: str) -> str:
        """The class of transformers that computes a task."""
        if head := _HEAD_OF_TASK.get(task):
            return self.stem + head
        if task == EMBEDDING or self.family == "dual":
            return f"{self.stem}Model"
        return self.generator


def _types(family: Family, rows: str) -> Iterable[tuple[str, ModelType]]:
    """rows: ``model_type Stem [GeneratorClass]`` per line; the module is the model type with underscores."""
    for row in rows.strip().splitlines():
        name, stem, *generator = row.split()
        yield name, ModelType(name, family, name.replace("-", "_"), stem, *generator)


MODEL_TYPES: Mapping[str, ModelType] = dict(
    [
        *_types(
            "encoder",
            """
            bert Bert
            roberta Roberta
            xlm-roberta XLMRoberta
            camembert Camembert
            electra Electra
            distilbert DistilBert
            mpnet MPNet
            albert Albert
            deberta Deberta
            deberta-v2 DebertaV2
            modernbert ModernBert
            ernie Ernie
            convbert ConvBert
            squeezebert SqueezeBert
            mobilebert MobileBert
            megatron-bert MegatronBert
            roberta-prelayernorm RobertaPreLayerNorm
            """,
        ),
        *_types(
            "dual",
            """
            clip CLIP
            siglip Siglip
            chinese_clip ChineseCLIP
            vision-text-dual-encoder VisionTextDualEncoder
            """,
        ),
        *_types(
            "seq2seq",
            """
            t5 T5 T5ForConditionalGeneration
            mt5 MT5 MT5ForConditionalGeneration
            umt5 UMT5 UMT5ForConditionalGeneration
            bart Bart BartForConditionalGeneration
            mbart MBart MBartForConditionalGeneration
            marian Marian MarianMTModel
            pegasus Pegasus PegasusForConditionalGeneration
            m2m_100 M2M100 M2M100ForConditionalGeneration
            blenderbot Blenderbot BlenderbotForConditionalGeneration
            blenderbot-small BlenderbotSmall BlenderbotSmallForConditionalGeneration
            """,
        ),
        *_types(
            "causal",
            """
            llama Llama LlamaForCausalLM
            mistral Mistral MistralForCausalLM
            qwen2 Qwen2 Qwen2ForCausalLM
            qwen3 Qwen3 Qwen3ForCausalLM
            gpt2 GPT2 GPT2LMHeadModel
            gpt_neo GPTNeo GPTNeoForCausalLM
            gpt_neox GPTNeoX GPTNeoXForCausalLM
            gptj GPTJ GPTJForCausalLM
            phi Phi PhiForCausalLM
            phi3 Phi3 Phi3ForCausalLM
            opt OPT OPTForCausalLM
            bloom Bloom BloomForCausalLM
            gemma Gemma GemmaForCausalLM
            gemma2 Gemma2 Gemma2ForCausalLM
            granite Granite GraniteForCausalLM
            olmo Olmo OlmoForCausalLM
            olmo2 Olmo2 Olmo2ForCausalLM
            stablelm StableLm StableLmForCausalLM
            starcoder2 Starcoder2 Starcoder2ForCausalLM
            smollm3 SmolLM3 SmolLM3ForCausalLM
            """,
        ),
        *_types("speech", "whisper Whisper WhisperForConditionalGeneration"),
        *_types(
            "image",
            """
            vit ViT
            deit DeiT
            resnet ResNet
            efficientnet EfficientNet
            convnext ConvNext
            convnextv2 ConvNextV2
            swin Swin
            dinov2 Dinov2
            mobilenet_v1 MobileNetV1
            mobilenet_v2 MobileNetV2
            """,
        ),
    ]
)


def model_type_of(config: JsonObject) -> ModelType:
    """The row of a config.json's ``model_type``. Raises ModelUnsupported(task_unsupported): not one of ours."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise ModelUnsupported(
            f"config.json: model_type {str(name)[:40]!r} is not supported; these are: {', '.join(MODEL_TYPES)}",
            code="task_unsupported",
        )
    return MODEL_TYPES[name]


def tasks_of(config: JsonObject) -> tuple[str, ...]:
    """The tasks that a config.json stands for, by its ``architectures`` and ``model_type``; the first is the default.

    Raises ModelUnsupported. task_unsupported: a model type or head that cannot be run. bad_config: ``architectures`` is
    no list of names.
    """
    kind = model_type_of(config)
    named = _architecture(config)
    head = next((end for end in _HEADS if named.endswith(end)), "")
    if named.endswith("ForPreTraining") and kind.name in _MASKED_LM_INSIDE:
        head = "ForMaskedLM"
    if kind.family in ("encoder", "seq2seq", "causal") and head == "ForSequenceClassification":
        tasks: tuple[str, ...] = (RERANK, TEXT_CLASSIFICATION) if label_count(config) == 1 else (TEXT_CLASSIFICATION,)
        return (*tasks, EMBEDDING) if kind.family == "encoder" else tasks
    if kind.family == "encoder":
        if config.get("is_decoder") or config.get("add_cross_attention") or config.get("is_encoder_decoder"):
            raise ModelUnsupported(
                "config.json: an encoder used as a decoder is not supported", code="task_unsupported"
            )
        return (*_HEADS.get(head, ()), EMBEDDING)
    if kind.family == "dual":
        return (EMBEDDING, ZERO_SHOT_IMAGE)
    if kind.family == "image":
        if named and head != "ForImageClassification":
            raise ModelUnsupported(f"config.json: {named[:80]} has no classifier", code="task_unsupported")
        return (IMAGE_CLASSIFICATION,)
    if kind.family == "causal":
        return (TOKEN_CLASSIFICATION,) if head == "ForTokenClassification" else (TEXT_GENERATION,)
    return (SPEECH,) if kind.family == "speech" else (TEXT2TEXT,)


def _architecture(config: JsonObject) -> str:
    """The class that the author saved; empty when config.json does not say."""
    named = config.get("architectures")
    if named is None or named == []:
        return ""
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ModelUnsupported("config.json: architectures is not a list of names", code="bad_config")
    return str(named[0])


def label_count(config: JsonObject) -> int:
    """How many labels a classifier of this config has; transformers' default is two."""
    labels = config.get("id2label")
    if isinstance(labels, dict):
        return len(labels)
    count = config.get("num_labels")
    return count if type(count) is int else 2
