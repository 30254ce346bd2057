"""Task automatic-speech-recognition, of Whisper's kind: WAV files to text.

Longer sounds are heard piece by piece. Pieces end where it is quiet, so that words stay whole; timestamps, which
transformers goes by instead, are not asked of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InvalidInput
from ipfs_accelerate_node.inference.model import Audio, Generated, Item, Options, Output
from ipfs_accelerate_node.inference.session import Array, Engine
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.answers import Answer
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options, refuse
from ipfs_accelerate_node.inference.tasks.generation import Writing, forced, generate
from ipfs_accelerate_node.inference.tasks.generation_settings import GenerationSettings
from ipfs_accelerate_node.inference.tasks.languages import code_of
from ipfs_accelerate_node.inference.tasks.logmel import LogMel
from ipfs_accelerate_node.inference.tasks.rules import Rules, choice
from ipfs_accelerate_node.inference.tasks.texts import TextTokens
from ipfs_accelerate_node.inference.tasks.wav import BadAudio, read_wav, resampled

_PIECES = 4  # of 30 seconds, in one pass
_QUIET_S = 0.2
_COMPARED_TEXT = " A man is eating food."


@dataclass(frozen=True, slots=True)
class SpeechPrompt:
    """What stands before an answer. start: the first token. forced: the tokens after it, of models for one language.
    languages: code → token, of models for many; transcribe, no_timestamps: tokens, None where there are none."""

    start: int
    forced: tuple[int, ...]
    languages: Mapping[str, int]
    transcribe: int | None
    no_timestamps: int | None

    def tokens(self, language: int | None) -> list[int]:
        if language is None:
            prompt = [self.start, *self.forced]
        else:
            prompt = [self.start, language, *([] if self.transcribe is None else [self.transcribe])]
        if self.no_timestamps is not None and prompt[-1] != self.no_timestamps:
            prompt.append(self.no_timestamps)
        return prompt


@dataclass(frozen=True, slots=True)
class _Piece:
    index: int
    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpeechRecognition:
    """positions: tokens of prompt and answer together, of one piece."""

    tokens: TextTokens
    settings: GenerationSettings
    prompt: SpeechPrompt
    logmel: LogMel
    positions: int

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Audio,), task="automatic-speech-recognition")
        check_options(options)
        self._asked(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        answers: dict[int, list[Answer]] = {index: [] for index in range(len(items))}
        pieces = self._pieces(items, between)
        while batch := [piece for _, piece in zip(range(_PIECES), pieces, strict=False)]:
            for piece, answer in zip(batch, self._heard(engine, batch, options, between), strict=True):
                answers[piece.index].append(answer)
        return [_joined(answers[index]) for index in range(len(items))]

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """(positions, vocabulary): logits while the decoder is given a sentence."""
        (piece, *_) = self._pieces([item], lambda: None)
        encoded = self._encoded(engine, [piece])
        language = next(iter(self.prompt.languages.values()), None)
        following = self.tokens.whole(0, _COMPARED_TEXT, special=False)
        return forced(engine.decoder(), encoded, self.prompt.tokens(language), following)

    def example(self, number: int) -> Item:
        return Audio(samples.sound(number))

    def _pieces(self, items: Sequence[Item], between: Callable[[], None]) -> Iterator[_Piece]:
        for index, item in enumerate(items):
            assert isinstance(item, Audio)
            between()
            try:
                sound, rate = read_wav(item.data)
            except BadAudio as exc:
                refuse(index, f"is no sound of use: {exc}")
            for samples_ in pieces_of(resampled(sound, rate, self.logmel.rate), self.logmel):
                yield _Piece(index, samples_)

    def _heard(
        self, engine: Engine, pieces: Sequence[_Piece], options: Options, between: Callable[[], None]
    ) -> list[Answer]:
        between()
        encoded = self._encoded(engine, pieces)
        languages = self._languages(engine, encoded, len(pieces), options)
        writings = []
        for piece, language in zip(pieces, languages, strict=True):
            prompt = self.prompt.tokens(language)
            limit = self.settings.limit(len(prompt), options.max_new_tokens, positions=self.positions)
            answer = Answer(self.tokens, self.settings.eos, options.stop)
            rules = Rules(self.settings, len(prompt), limit)
            writings.append(Writing(piece.index, prompt, rules, choice(options, piece.index), answer))
        generate(engine.decoder(), encoded, writings, pad=self.settings.pad, between=between)
        return [writing.answer for writing in writings]

    def _encoded(self, engine: Engine, pieces: Sequence[_Piece]) -> Mapping[str, Array]:
        features = np.stack([self.logmel.features(piece.samples) for piece in pieces])
        return engine.run("encoder", {"input_features": features})

    def _asked(self, options: Options) -> int | None:
        """The token of the language that the caller names. Raises InvalidInput(param=language)."""
        if options.language is None:
            return None
        code = code_of(options.language)
        if not self.prompt.languages:
            if code == "en":
                return None
            raise InvalidInput("the model knows English only", param="language")
        if code not in self.prompt.languages:
            raise InvalidInput(f"language {options.language[:40]!r} is not one of the model's", param="language")
        return self.prompt.languages[code]

    def _languages(
        self, engine: Engine, encoded: Mapping[str, Array], count: int, options: Options
    ) -> list[int | None]:
        """Of each piece: as asked, or the likeliest after the start token, of models for many languages."""
        if options.language is not None or not self.prompt.languages or self.prompt.forced[:1]:
            return [self._asked(options)] * count
        decoder = engine.decoder()
        decoder.start(encoded)
        start = np.full((count, 1), self.prompt.start, dtype=np.int64)
        logits = decoder.step(start, np.ones_like(start))
        known = np.array(sorted(self.prompt.languages.values()))
        return [int(token) for token in known[logits[:, known].argmax(axis=1)]]


def _joined(answers: Sequence[Answer]) -> Generated:
    """Several pieces' answers as one."""
    text = " ".join(part for answer in answers if (part := answer.text().strip()))
    ids = tuple(token for answer in answers for token in answer.kept_ids())
    finish = "length" if any(answer.finish == "length" for answer in answers) else "stop"
    return Generated(text, ids, "length" if finish == "length" else "stop")


def pieces_of(sound: NDArray[np.float32], logmel: LogMel) -> Iterator[NDArray[np.float32]]:
    """No piece is longer than the model hears at once; where one must end, it ends in the quietest moment of its last
    third."""
    window = int(_QUIET_S * logmel.rate)
    while len(sound) > logmel.samples:
        first = logmel.samples * 2 // 3
        energy = np.cumsum(np.square(sound[first : logmel.samples], dtype=np.float64))
        quiet = int(np.argmin(energy[window:] - energy[:-window]))
        end = first + quiet + window // 2
        yield sound[:end]
        sound = sound[end:]
    yield sound
