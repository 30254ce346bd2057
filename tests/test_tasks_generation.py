"""Generated answers are those of transformers' ``generate``, token by token, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from numpy.typing import NDArray
from tokenizers import processors

from ipfs_accelerate_node.errors import InferenceFailed, InvalidInput, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Audio, Chat, Generated, Ids, Item, Message, Options, Text
from ipfs_accelerate_node.inference.tasks import notes_of, samples
from ipfs_accelerate_node.inference.tasks.generation_settings import GenerationSettings
from ipfs_accelerate_node.inference.tasks.logmel import LogMel
from ipfs_accelerate_node.inference.tasks.speech import pieces_of
from ipfs_accelerate_node.inference.tasks.text_generation import TextGeneration
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.tokenizer_files import read_tokenizer
from ipfs_accelerate_node.inference.tasks.wav import read_wav
from tests.support.models import write_json
from tests.support.models_tasks import ScriptedEngine, byte_level, infer, loaded, random_model, saved, unigram

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
PROMPTS = [
    "The weather in",
    "Two children play chess in the park while their",
    "A man is",
    "Rain",
    "She bought a second",
]


def llama(directory: Path) -> Path:
    config = tf.LlamaConfig(
        vocab_size=400, **SMALL, num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    tokenizer = byte_level("<pad>", "<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model = random_model(tf.LlamaForCausalLM, config)
    return saved(directory, model, tokenizer, eos_token="</s>", bos_token="<s>")


def gpt2(directory: Path) -> Path:
    config = tf.GPT2Config(
        vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    model = random_model(tf.GPT2LMHeadModel, config, seed=3)
    model.generation_config.update(
        eos_token_id=[0, 7], repetition_penalty=1.2, no_repeat_ngram_size=3, suppress_tokens=[9]
    )
    return saved(directory, model, byte_level("<|endoftext|>"))


def t5(directory: Path) -> Path:
    config = tf.T5Config(
        vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = random_model(tf.T5ForConditionalGeneration, config, seed=1, spread=4.0)
    return saved(directory, model, unigram("<pad>", "</s>", "<unk>"))


def bart(directory: Path) -> Path:
    config = tf.BartConfig(vocab_size=300, max_position_embeddings=64, **SEQ2SEQ, pad_token_id=1, bos_token_id=0,
                           eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)  # fmt: skip
    model = random_model(tf.BartForConditionalGeneration, config, seed=5)
    model.generation_config.update(
        forced_bos_token_id=0, no_repeat_ngram_size=2, min_length=6, max_length=14, bad_words_ids=[[40], [50, 51]],
        encoder_no_repeat_ngram_size=2, begin_suppress_tokens=[70],
    )  # fmt: skip
    return saved(directory, model, unigram("<s>", "<pad>", "</s>", "<unk>"))


def marian(directory: Path) -> Path:
    config = tf.MarianConfig(vocab_size=300, max_position_embeddings=64, **SEQ2SEQ, pad_token_id=299, bos_token_id=0,
                             eos_token_id=0, decoder_start_token_id=299, forced_eos_token_id=0)  # fmt: skip
    model = random_model(tf.MarianMTModel, config, seed=6)
    model.generation_config.update(bad_words_ids=[[299]], num_beams=4, max_length=20, no_repeat_ngram_size=2)
    return saved(directory, model, unigram("</s>", "<unk>"))


def reference_model(directory: Path) -> Any:
    config = tf.AutoConfig.from_pretrained(directory)
    cls = tf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else tf.AutoModelForCausalLM
    return cls.from_pretrained(directory).eval()


def reference(model: Any, ids: Sequence[int], **how: Any) -> list[int]:
    """What generate adds to one prompt, or writes for one source; its start token and the end left out."""
    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        found = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, num_beams=1, **how)[0]
    answer: list[int] = found[1 if model.config.is_encoder_decoder else len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return answer[:-1] if answer and answer[-1] in ends else answer


MAKERS: list[Callable[[Path], Path]] = [llama, gpt2, t5, bart, marian]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_greedy_answers_are_those_of_generate_alone_and_in_a_batch(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    directory = make(tmp_path / "model")
    found = loaded(directory)
    model = reference_model(directory)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    texts: list[Item] = [Text(prompt) for prompt in PROMPTS]
    together = infer(found, texts, max_new_tokens=12)
    written: set[int] = set()
    for text, answer in zip(PROMPTS, together, strict=True):
        assert isinstance(answer, Generated)
        ids = tokenizer(text)["input_ids"]
        expected = reference(model, ids, max_new_tokens=12)
        assert list(answer.ids) == expected
        written |= set(expected)
        assert answer.tokens_in == len(ids)
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
        (alone,) = infer(found, [Text(text)], max_new_tokens=12)
        assert alone == answer
    assert len(written) > 8, "the same few tokens over and over would show little"


@pytest.mark.parametrize("make", [bart, marian])
def test_without_a_wish_answers_are_as_long_as_the_author_says(make: Callable[[Path], Path], tmp_path: Path) -> None:
    directory = make(tmp_path / "model")
    found = loaded(directory)
    ids = infer_ids(found, "The weather in Lisbon")
    (answer,) = infer(found, [Text("The weather in Lisbon")])
    assert isinstance(answer, Generated)
    assert list(answer.ids) == reference(reference_model(directory), ids)


def infer_ids(found: Any, text: str) -> list[int]:
    _, processing, _ = found
    return list(processing.graph.rows([Text(text)], Options())[0].ids)


def test_a_model_of_one_speech_language_answers_as_generate_does(tmp_path: Path) -> None:
    check_whisper(whisper(tmp_path / "model", forced_decoder_ids=[[1, 299]]), languages=[None])


def test_a_model_of_many_languages_hears_which_one_it_is(tmp_path: Path) -> None:
    check_whisper(many_languages(tmp_path / "model"), languages=[None, "de", "French"])


def many_languages(directory: Path) -> Path:
    return whisper(
        directory,
        lang_to_id={"<|en|>": 292, "<|de|>": 293, "<|fr|>": 294},
        task_to_id={"transcribe": 295, "translate": 296},
        no_timestamps_token_id=299,
        is_multilingual=True,
    )


def whisper(directory: Path, **generation: object) -> Path:
    """Of four seconds; special tokens come last, from 290."""
    config = tf.WhisperConfig(
        vocab_size=300, num_mel_bins=16, max_source_positions=200, max_target_positions=40, **SEQ2SEQ,
        decoder_start_token_id=291, eos_token_id=290, pad_token_id=290, bos_token_id=290,
    )  # fmt: skip
    config.suppress_tokens = config.begin_suppress_tokens = None
    model = random_model(tf.WhisperForConditionalGeneration, config, seed=8)
    tokenizer = byte_level(size=290)
    special = ["endoftext", "startoftranscript", "en", "de", "fr", "transcribe", "translate", "x", "y", "notimestamps"]
    tokenizer.add_special_tokens([f"<|{word}|>" for word in special])
    saved(directory, model, tokenizer, eos_token="<|endoftext|>")
    said = {"eos_token_id": 290, "pad_token_id": 290, "decoder_start_token_id": 291, "max_length": 40,
            "suppress_tokens": [11], "begin_suppress_tokens": [290, 220], "no_repeat_ngram_size": 2,
            **generation}  # fmt: skip
    write_json(directory / "generation_config.json", said)
    write_json(directory / "preprocessor_config.json", {"feature_size": 16, "chunk_length": 4})
    return directory


def check_whisper(directory: Path, *, languages: Sequence[str | None]) -> None:
    found = loaded(directory)
    model = tf.WhisperForConditionalGeneration.from_pretrained(directory).eval()
    clips: list[Item] = [Audio(samples.sound(number)) for number in range(3)]
    for language in languages:
        answers = infer(found, clips, language=language, max_new_tokens=10)
        for number, answer in enumerate(answers):
            assert isinstance(answer, Generated)
            wave, _ = read_wav(samples.sound(number))
            features = torch.tensor(LogMel(mels=16, chunk_s=4).features(wave))[None]
            asked = {"language": language, "task": "transcribe"} if len(languages) > 1 else {}
            with torch.inference_mode():
                ids = model.generate(features, do_sample=False, max_new_tokens=10, return_timestamps=False, **asked)
            expected = [token for token in ids[0].tolist() if token != 290]
            assert list(answer.ids) == expected
            assert len(set(expected)) > 2


def test_long_sound_is_heard_to_its_end(tmp_path: Path) -> None:
    found = loaded(whisper(tmp_path / "model", forced_decoder_ids=[[1, 299]]))
    short = infer(found, [Audio(samples.sound(1, seconds=3))], max_new_tokens=5)
    long = infer(found, [Audio(samples.sound(1, seconds=11))], max_new_tokens=5)
    assert isinstance(short[0], Generated)
    assert isinstance(long[0], Generated)
    assert len(short[0].ids) == 5
    assert len(long[0].ids) == 5 * len(list(pieces_of(read_wav(samples.sound(1, seconds=11))[0], LogMel(chunk_s=4))))


def test_a_named_language_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    found = loaded(whisper(tmp_path / "model", forced_decoder_ids=[[1, 299]]))
    with pytest.raises(InvalidInput) as caught:
        infer(found, [Audio(samples.sound(0))], language="de")
    assert caught.value.detail["param"] == "language"
    assert infer(found, [Audio(samples.sound(0))], language="English", max_new_tokens=2)


def test_what_is_no_wav_file_is_refused_with_its_index(tmp_path: Path) -> None:
    found = loaded(whisper(tmp_path / "model", forced_decoder_ids=[[1, 299]]))
    with pytest.raises(InvalidInput) as caught:
        infer(found, [Audio(samples.sound(0)), Audio(b"ID3 no wav")])
    assert caught.value.detail["index"] == 1


# From here on no model: a script says what comes next.


def scripted(
    tmp_path: Path, answers: Sequence[str], *, positions: int = 400, eos: int = 2
) -> tuple[TextGeneration, ScriptedEngine, TextTokens]:
    """A generator that goes through the texts of ``answers``, one per prompt."""
    byte_level("<pad>", "<s>", "</s>").save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "</s>"})
    tokens = TextTokens(read_tokenizer(tmp_path, model_type="llama"), max_tokens=positions, vocab_size=400)
    scripts = [[*tokens.whole(0, answer), eos] for answer in answers]
    begun: dict[int, int] = {}

    def logits(rows: list[list[int]]) -> NDArray[np.float32]:
        found = np.zeros((len(rows), 400), dtype=np.float32)
        for at, row in enumerate(rows):
            if not row:
                continue
            done = len(row) - begun.setdefault(at, len(row))
            found[at, scripts[at][done] if done < len(scripts[at]) else 0] = 5.0
        return found

    processing = TextGeneration(
        tokens, GenerationSettings(None, (eos,), 0), "the model has no chat template", positions
    )
    return processing, ScriptedEngine(logits), tokens


def answers_of(processing: TextGeneration, engine: ScriptedEngine, *prompts: str, **how: Any) -> list[Generated]:
    items = [Text(prompt) for prompt in prompts]
    outputs = processing.infer(engine, items, Options(**how), lambda: None)
    return [output for output in outputs if isinstance(output, Generated)]


def test_a_stop_text_ends_the_answer_before_it(tmp_path: Path) -> None:
    processing, engine, tokens = scripted(tmp_path, ["One, two, three and four."])
    (answer,) = answers_of(processing, engine, "Count:", stop=("nothing", "three"))
    assert (answer.text, answer.finish) == ("One, two, ", "stop")
    # the token that the stop text begins in counts, since a part of it is shown; those after it do not
    assert tokens.text(answer.ids) == "One, two, t"


def test_the_first_of_several_stop_texts_counts_also_inside_a_token(tmp_path: Path) -> None:
    processing, engine, _ = scripted(tmp_path, ["The committee will publish its report."])
    (answer,) = answers_of(processing, engine, "Say:", stop=("report", "mmit"))
    assert answer.text == "The co"


@pytest.mark.parametrize("stop", [(), ("\n",)])
def test_an_answer_that_ends_by_itself_is_whole(tmp_path: Path, stop: tuple[str, ...]) -> None:
    processing, engine, _ = scripted(tmp_path, [" Paris."])
    (answer,) = answers_of(processing, engine, "The capital of France is", stop=stop)
    assert (answer.text, answer.finish) == (" Paris.", "stop")


def test_a_character_cut_in_half_is_not_shown(tmp_path: Path) -> None:
    processing, engine, tokens = scripted(tmp_path, ["é🙂🙂"])
    length = len(tokens.whole(0, "é🙂"))
    for count in range(1, length):
        (answer,) = answers_of(processing, engine, "Smile:", max_new_tokens=count)
        assert answer.finish == "length"
        assert answer.text in ("", "é")
        assert len(answer.ids) == count
        processing, engine, _ = scripted(tmp_path, ["é🙂🙂"])
    (answer,) = answers_of(processing, engine, "Smile:", max_new_tokens=length)
    assert answer.text == "é🙂"


def test_every_row_of_a_batch_ends_by_itself(tmp_path: Path) -> None:
    processing, engine, _ = scripted(tmp_path, ["short", "a much longer answer than that", "mid size"])
    answers = answers_of(processing, engine, "longest prompt of all", "middle one", "x", max_new_tokens=40)
    assert [answer.text for answer in answers] == ["short", "a much longer answer than that", "mid size"]


def test_a_prompt_without_room_for_an_answer_loses_its_beginning(tmp_path: Path) -> None:
    processing, engine, tokens = scripted(tmp_path, ["ab"], positions=12)
    long = "The weather in Lisbon is mild for most of the year."
    (answer,) = answers_of(processing, engine, long)
    assert (answer.tokens_in, answer.truncated, answer.finish, len(answer.ids)) == (11, True, "length", 1)
    with pytest.raises(PayloadTooLarge, match="11 and one to answer"):
        answers_of(processing, engine, long, truncate=False)
    assert len(tokens.whole(0, long)) > 12


def test_between_may_end_the_work_at_any_token(tmp_path: Path) -> None:
    class Left(Exception):
        pass

    processing, engine, _ = scripted(tmp_path, ["One, two, three"])
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Left

    with pytest.raises(Left):
        processing.infer(engine, [Text("Count:")], Options(), between)
    assert calls == 4


def test_long_prompts_go_through_in_pieces(tmp_path: Path) -> None:
    processing, engine, _ = scripted(tmp_path, ["x"], positions=5000)
    ids = tuple([50, 51, 52] * 1000)
    passes: list[int] = []
    items = [Ids(ids)]
    (answer,) = processing.infer(engine, items, Options(max_new_tokens=3), lambda: passes.append(1))
    assert isinstance(answer, Generated)
    assert answer.tokens_in == 3000
    assert len(passes) >= 3


def test_scores_that_are_no_numbers_are_a_failure_with_the_index(tmp_path: Path) -> None:
    processing, _, _ = scripted(tmp_path, ["x", "y"])

    def logits(rows: list[list[int]]) -> NDArray[np.float32]:
        found = np.zeros((len(rows), 400), dtype=np.float32)
        found[-1] = np.nan
        return found

    with pytest.raises(InferenceFailed) as caught:
        processing.infer(ScriptedEngine(logits), [Text("long prompt"), Text("x")], Options(), lambda: None)
    assert caught.value.detail["index"] == 1


def test_what_is_not_followed_or_of_no_use_is_told_and_plain_prompts_go_on(tmp_path: Path) -> None:
    directory = llama(tmp_path / "model")
    write_json(directory / "generation_config.json", {"eos_token_id": 2, "num_beams": 4})
    (directory / "chat_template.jinja").write_text("{% for %}")
    _, processing, _ = found = loaded(directory)
    assert [note.split()[0] for note in notes_of(processing)] == ["num_beams", "the"]
    with pytest.raises(InvalidInput, match="chat template is of no use"):
        infer(found, [Chat((Message("user", "hi"),))])
    assert infer(found, [Text("Rain")], max_new_tokens=2)


def test_a_chat_needs_a_template(tmp_path: Path) -> None:
    processing, _, _ = scripted(tmp_path, ["x"])
    with pytest.raises(InvalidInput, match="no chat template"):
        processing.check([Text("x"), Chat((Message("user", "hi"),))], Options())
