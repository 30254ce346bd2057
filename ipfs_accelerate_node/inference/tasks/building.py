"""A model's files to the processing of one of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ipfs_accelerate_node.errors import ModelUnsupported
from ipfs_accelerate_node.inference import families
from ipfs_accelerate_node.inference.model_files import ModelFiles
from ipfs_accelerate_node.inference.session import Processing
from ipfs_accelerate_node.inference.strict_json import JsonObject, read_object
from ipfs_accelerate_node.inference.tasks.chat import ChatTemplate, read_chat_template
from ipfs_accelerate_node.inference.tasks.classification import Meaning, TextClassification, meaning_of
from ipfs_accelerate_node.inference.tasks.dual import DualEmbedding, ZeroShotImageClassification
from ipfs_accelerate_node.inference.tasks.embedding import TextEmbedding
from ipfs_accelerate_node.inference.tasks.entities import TokenClassification
from ipfs_accelerate_node.inference.tasks.fill_mask import FillMask
from ipfs_accelerate_node.inference.tasks.generation_settings import GenerationSettings, read_generation
from ipfs_accelerate_node.inference.tasks.image_classification import ImageClassification
from ipfs_accelerate_node.inference.tasks.logmel import read_logmel
from ipfs_accelerate_node.inference.tasks.picture_graphs import PictureGraph
from ipfs_accelerate_node.inference.tasks.picture_settings import read_picture_settings
from ipfs_accelerate_node.inference.tasks.speech import SpeechPrompt, SpeechRecognition
from ipfs_accelerate_node.inference.tasks.text_generation import TextGeneration, TextToText
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer

# Model types whose type_vocab_size counts though their own embeddings do not use it, or that have no such input.
_WITHOUT_TYPES = frozenset({"distilbert", "mpnet", "modernbert", "deberta", "deberta-v2"})
_DEFAULT_TYPES = {"bert": 2, "electra": 2, "albert": 2, "ernie": 4, "convbert": 2, "mobilebert": 2, "squeezebert": 2,
                  "megatron-bert": 2}  # fmt: skip
# Answers of models whose positions are relative and reach as far as the memory does.
_UNLIMITED_ANSWER = 4096


def processing_for(files: ModelFiles, task: str) -> Processing:
    """The processing of a task that the model can do. Raises ModelUnsupported: the tokenizer or the settings of the
    author are missing or of no use."""
    task = files.check_task(task)
    if files.family == "dual":
        return _dual(files, task)
    return _BUILDERS[task](files)


def notes_of(processing: Processing) -> tuple[str, ...]:
    """What a person should know of how a task is done: settings of the author that are not followed."""
    settings = getattr(processing, "settings", None)
    notes = settings.notes if isinstance(settings, GenerationSettings) else ()
    template = getattr(processing, "template", None)
    return (*notes, template) if isinstance(template, str) and "of no use" in template else notes


def _tokens(files: ModelFiles) -> TextTokens:
    tokenizer = read_tokenizer(files.model_directory, model_type=files.model_type)
    lower = files.sentence is not None and files.sentence.settings.lower_case
    known = files.vocab_size or tokenizer.tokenizer.get_vocab_size(with_added_tokens=True)
    return TextTokens(tokenizer, max_tokens=files.max_tokens, vocab_size=known, lower_case=lower)


def _text_graph(files: ModelFiles, graph: str) -> TextGraph:
    tokens = _tokens(files)
    return TextGraph(graph, tokens, _padding_id(files.config, tokens), types=_types(files))


def _padding_id(config: JsonObject, tokens: TextTokens) -> int:
    said = config.get("pad_token_id")
    if type(said) is int and 0 <= said < tokens.vocab_size:
        return said
    return tokens.id_of("pad_token") or 0


def _types(files: ModelFiles) -> bool:
    """Whether the model tells two texts apart by token types, and its tokenizer gives them.

    Source: ``model_input_names`` of transformers' tokenizers, which a general tokenizer class has without types.
    """
    if files.family != "encoder" or files.model_type in _WITHOUT_TYPES:
        return False
    count = files.config.get("type_vocab_size", _DEFAULT_TYPES.get(files.model_type, 0))
    if not isinstance(count, int) or count < 2:
        return False
    named = files.tokenizer_config.get("model_input_names")
    if isinstance(named, list):
        return "token_type_ids" in named
    return files.tokenizer_config.get("tokenizer_class") not in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _embedding(files: ModelFiles) -> TextEmbedding:
    assert files.sentence is not None
    prompts: Mapping[str, str] = {}
    path = files.directory / "config_sentence_transformers.json"
    if path.exists():
        said = read_object(path).get("prompts")
        named = said.items() if isinstance(said, dict) else ()
        prompts = {name: prompt for name, prompt in named if isinstance(prompt, str)}
    return TextEmbedding(_text_graph(files, "vectors"), prompts, files.sentence.settings.prompt)


def _text_classification(files: ModelFiles) -> TextClassification:
    meaning = meaning_of(files.config, len(files.labels))
    return TextClassification(_text_graph(files, "logits"), files.labels, meaning, pairs=False)


def _rerank(files: ModelFiles) -> TextClassification:
    return TextClassification(_text_graph(files, "logits"), files.labels, "any of", pairs=True)


def _token_classification(files: ModelFiles) -> TokenClassification:
    return TokenClassification(replace(_text_graph(files, "logits"), spans=True), files.labels)


def _fill_mask(files: ModelFiles) -> FillMask:
    graph = _text_graph(files, "logits")
    mask = graph.tokens.files.special.get("mask_token", "[MASK]")
    mask_id = graph.tokens.files.tokenizer.token_to_id(mask)
    if mask_id is None:
        raise ModelUnsupported("the tokenizer has no mask token", code="bad_config")
    return FillMask(graph, mask, int(mask_id))


def _pictures(files: ModelFiles, graph: str) -> PictureGraph:
    return PictureGraph(graph, read_picture_settings(files.preprocessor_config, model_type=files.model_type))


def _image_classification(files: ModelFiles) -> ImageClassification:
    meaning = meaning_of(files.config, len(files.labels))
    return ImageClassification(_pictures(files, "logits"), files.labels, meaning)


def _dual(files: ModelFiles, task: str) -> Processing:
    tokens = _tokens(files)
    siglip = files.model_type == "siglip"
    text = files.config.get("text_config")
    padding = _padding_id(text if isinstance(text, dict) else {}, tokens)
    if (named := tokens.id_of("pad_token")) is not None:
        padding = named
    graph = TextGraph("text", tokens, padding, full=files.max_tokens if siglip else 0)
    pictures = _pictures(files, "image")
    if task == families.EMBEDDING:
        return DualEmbedding(graph, pictures)
    meaning: Meaning = "any of" if siglip else "one of"
    return ZeroShotImageClassification(graph, pictures, meaning)


def _generation(files: ModelFiles, tokens: TextTokens) -> GenerationSettings:
    return read_generation(
        files.config, files.generation_config, vocab_size=tokens.vocab_size, eos_id=tokens.id_of("eos_token")
    )


def _text_generation(files: ModelFiles) -> TextGeneration:
    tokens = _tokens(files)
    return TextGeneration(tokens, _generation(files, tokens), _template(files, tokens), files.max_tokens)


def _template(files: ModelFiles, tokens: TextTokens) -> ChatTemplate | str:
    """A template of no use keeps nobody from prompts that are plain texts."""
    try:
        found = read_chat_template(files.model_directory, files.tokenizer_config, tokens.files.special)
    except ModelUnsupported as exc:
        return f"the model's chat template is of no use: {exc}"
    return found or "the model has no chat template"


def _text_to_text(files: ModelFiles) -> TextToText:
    graph = _text_graph(files, "encoder")
    settings = _generation(files, graph.tokens)
    if settings.start is None:
        raise ModelUnsupported("config.json: no decoder_start_token_id", code="bad_config")
    return TextToText(graph, settings, settings.start, _answer_positions(files))


def _answer_positions(files: ModelFiles) -> int:
    if files.model_type in ("t5", "mt5", "umt5"):
        return _UNLIMITED_ANSWER
    said = files.config.get("max_position_embeddings", files.max_tokens)
    return said if isinstance(said, int) else files.max_tokens


def _speech(files: ModelFiles) -> SpeechRecognition:
    tokens = _tokens(files)
    settings = _generation(files, tokens)
    if settings.start is None:
        raise ModelUnsupported("config.json: no decoder_start_token_id", code="bad_config")
    prompt = _speech_prompt(files, settings, settings.start, tokens.vocab_size)
    logmel = read_logmel(files.preprocessor_config)
    if files.config.get("num_mel_bins", 80) != logmel.mels:
        raise ModelUnsupported("preprocessor_config.json: feature_size is not the model's", code="bad_config")
    return SpeechRecognition(tokens, settings, prompt, logmel, files.max_tokens)


def _speech_prompt(files: ModelFiles, settings: GenerationSettings, start: int, vocab_size: int) -> SpeechPrompt:
    said = files.generation_config

    def token(value: object) -> int | None:
        return value if type(value) is int and 0 <= value < vocab_size else None

    def table(key: str) -> dict[str, int]:
        entries = said.get(key)
        found = {name: token(value) for name, value in entries.items()} if isinstance(entries, dict) else {}
        return {name: value for name, value in found.items() if value is not None}

    languages = {name.removeprefix("<|").removesuffix("|>"): value for name, value in table("lang_to_id").items()}
    forced = dict(settings.forced)
    transcribe = table("task_to_id").get("transcribe", forced.get(2))
    if 1 not in forced:  # the language's place, left open by the author: it is asked for or detected
        forced = {}
    return SpeechPrompt(
        start=start,
        forced=tuple(forced[at] for at in range(1, len(forced) + 1) if at in forced),
        languages=languages,
        transcribe=transcribe,
        no_timestamps=token(said.get("no_timestamps_token_id")),
    )


_BUILDERS: Mapping[str, Callable[[ModelFiles], Processing]] = {
    families.EMBEDDING: _embedding,
    families.TEXT_CLASSIFICATION: _text_classification,
    families.RERANK: _rerank,
    families.TOKEN_CLASSIFICATION: _token_classification,
    families.FILL_MASK: _fill_mask,
    families.IMAGE_CLASSIFICATION: _image_classification,
    families.TEXT_GENERATION: _text_generation,
    families.TEXT2TEXT: _text_to_text,
    families.SPEECH: _speech,
}
