"""Tasks text-generation and text2text-generation: texts that go on from a prompt, or answer what an encoder read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ipfs_accelerate_node.errors import InferenceFailed
from ipfs_accelerate_node.inference.model import Chat, Generated, Ids, Item, Options, Output, Text
from ipfs_accelerate_node.inference.sequences import DecoderSequences, Sequences
from ipfs_accelerate_node.inference.session import Array, Engine
from ipfs_accelerate_node.inference.tasks import samples
from ipfs_accelerate_node.inference.tasks.answers import Answer
from ipfs_accelerate_node.inference.tasks.batches import batches
from ipfs_accelerate_node.inference.tasks.chat import ChatTemplate
from ipfs_accelerate_node.inference.tasks.checks import check_items, check_options, refuse
from ipfs_accelerate_node.inference.tasks.generation import Writing, forced, generate
from ipfs_accelerate_node.inference.tasks.generation_settings import GenerationSettings
from ipfs_accelerate_node.inference.tasks.rules import Choose, Rules, choice
from ipfs_accelerate_node.inference.tasks.telling import Telling
from ipfs_accelerate_node.inference.tasks.text_graphs import TextGraph
from ipfs_accelerate_node.inference.tasks.texts import Row, TextTokens, too_long
from ipfs_accelerate_node.inference.writing import Text as Written
from ipfs_accelerate_node.inference.writing import Writer

_BATCH_ROWS = 16
_PREFILL_TOKENS = 2048
# Of an answer in a chat where neither caller nor author says how long: room for most answers whole. The rest of a long
# context would be room that few answers need, and that others wait for.
CHAT_NEW_TOKENS = 2048
# Tokens that are given to a generator to compare two engines by.
COMPARED = 8


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """template: of chats, or why there is none. positions: tokens of prompt and answer together."""

    tokens: TextTokens
    settings: GenerationSettings
    template: ChatTemplate | str
    positions: int

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Text, Chat, Ids), task="text-generation")
        check_options(options)
        for index, item in enumerate(items):
            if isinstance(item, Chat) and isinstance(self.template, str):
                refuse(index, f"is a chat, and {self.template}")

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        """By themselves; ``scripts`` are what is written together with other requests'."""
        scripts = self.scripts(items, options)
        writer = Writer(self.sequences(engine))
        texts = [Written(0, index, script) for index, script in enumerate(scripts)]
        writer.add(texts)
        try:
            while writer.busy:
                between()
                writer.turn()
        finally:
            writer.drop(0)
        for text in texts:
            if text.error is not None:
                raise text.error
        return [script.output() for script in scripts]

    def sequences(self, engine: Engine) -> Sequences:
        """Where the engine writes texts together, or one after the other."""
        return engine.sequences() or DecoderSequences(engine.decoder, length=self.positions)

    def scripts(self, items: Sequence[Item], options: Options) -> list[TextScript]:
        """One for each item, in their order; in the thread that tokenizes. Raises InvalidInput, PayloadTooLarge."""
        return [
            self._script(index, self._prompt(index, item, options), options, chat=isinstance(item, Chat))
            for index, item in enumerate(items)
        ]

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """(positions, vocabulary): logits after the prompt without its last tokens, and after each of those."""
        ids = self._prompt(0, item, Options()).ids
        shown = max(1, len(ids) - COMPARED)
        sequences = self.sequences(engine)
        place = sequences.open(len(ids))
        if place is None:
            raise InferenceFailed("there is no room for one text")
        try:
            given = [ids[:shown], *([token] for token in ids[shown:])]
            return np.concatenate([sequences.read(place, tokens, scores=True).scores for tokens in given])
        finally:
            sequences.close(place)

    def example(self, number: int) -> Item:
        return Text(samples.PROMPTS[number % len(samples.PROMPTS)] if number < 4 else samples.text(number))

    def _prompt(self, index: int, item: Item, options: Options) -> Row:
        """The prompt's tokens, its beginning cut off where it leaves no room for an answer."""
        match item:
            case Text(text):
                ids = self.tokens.whole(index, text)
            case Chat(messages):
                assert isinstance(self.template, ChatTemplate)
                ids = self.tokens.whole(index, self.template.render(messages, index=index), special=False)
            case Ids():
                ids = self.tokens.checked(index, item.ids)
            case _:
                raise AssertionError("kinds are checked before")
        most = self.positions - 1
        if len(ids) <= most:
            return plain_row(ids, truncated=False)
        if not options.truncate:
            too_long(index, f"has {len(ids)} tokens, the model takes {most} and one to answer")
        return plain_row(ids[-most:], truncated=True)

    def _script(self, index: int, row: Row, options: Options, *, chat: bool) -> TextScript:
        most = options.max_new_tokens
        if most is None and chat and self.settings.max_new_tokens is None:
            most = CHAT_NEW_TOKENS
        limit = self.settings.limit(len(row.ids), most, positions=self.positions)
        rules = Rules(self.settings, len(row.ids), limit)
        answer = Answer(self.tokens, self.settings.eos, options.stop, after=row.ids)
        return TextScript(row, rules, choice(options, index), answer, best=rules.none and not options.temperature)


class TextScript:
    """One prompt and the answer to it, as it is written; see ``writing.Script``."""

    def __init__(self, row: Row, rules: Rules, choose: Choose, answer: Answer, *, best: bool) -> None:
        self.prompt = row.ids
        self.limit = rules.limit
        self.best = best
        self.answer = answer
        self._telling = Telling(answer)
        self._told = 0
        self._row = row
        self._rules = rules
        self._choose = choose
        self._history = list(row.ids)

    def choose(self, scores: NDArray[np.float32]) -> int:
        return self._choose(self._rules.apply(self._history, scores))

    def add(self, token: int) -> bool:
        self._history.append(token)
        self.answer.add(token)
        if self.answer.finish is None and len(self._history) >= self.limit:
            self.answer.finish = "length"
        return self.answer.finish is not None

    def more(self) -> tuple[str, tuple[int, ...]]:
        """See ``writings.Told``."""
        text = self._telling.more()
        if not text and self.answer.finish is None:
            return "", ()
        told, kept = self._told, self.answer.ids if self.answer.finish is None else self.answer.kept_ids()
        self._told = max(told, len(kept))
        return text, tuple(kept[told:])

    def output(self) -> Generated:
        """The whole answer, once it is done."""
        return generated(self.answer, len(self._row.ids), truncated=self._row.truncated)


def plain_row(ids: Sequence[int], *, truncated: bool) -> Row:
    return Row(list(ids), [0] * len(ids), truncated, [(0, 0)] * len(ids), [0] * len(ids))


def generated(answer: Answer, tokens_in: int, *, truncated: bool) -> Generated:
    assert answer.finish is not None
    return Generated(answer.text(), answer.kept_ids(), answer.finish, tokens_in, truncated)


@dataclass(frozen=True, slots=True)
class TextToText:
    """positions: tokens of the answer, the start token included."""

    graph: TextGraph
    settings: GenerationSettings
    start: int
    positions: int

    def check(self, items: Sequence[Item], options: Options) -> None:
        check_items(items, (Text, Ids), task="text2text-generation")
        check_options(options)

    def infer(
        self, engine: Engine, items: Sequence[Item], options: Options, between: Callable[[], None]
    ) -> list[Output]:
        rows = self.graph.rows(items, options)
        found: dict[int, Output] = {}
        for batch in batches([len(row.ids) for row in rows], _PREFILL_TOKENS, most=_BATCH_ROWS):
            between()
            encoded = self._encoded(engine, [rows[index] for index in batch])
            writings = [self._writing(index, rows[index], options) for index in batch]
            generate(engine.decoder(), encoded, writings, pad=self.settings.pad, between=between)
            for writing in writings:
                row = rows[writing.index]
                found[writing.index] = generated(writing.answer, len(row.ids), truncated=row.truncated)
        return [found[index] for index in range(len(items))]

    def primary(self, engine: Engine, item: Item) -> NDArray[np.float32]:
        """(positions, vocabulary): logits while the decoder is given what the encoder read."""
        (row,) = self.graph.rows([item], Options())
        following = row.ids[: min(COMPARED, self.positions - 1)]
        return forced(engine.decoder(), self._encoded(engine, [row]), [self.start], following)

    def example(self, number: int) -> Item:
        return Text(samples.WORDS[number % len(samples.WORDS)] if number < 8 else samples.text(number))

    def _encoded(self, engine: Engine, rows: Sequence[Row]) -> Mapping[str, Array]:
        inputs = self.graph.arrays(rows)
        return {**engine.run(self.graph.graph, inputs), "attention_mask": inputs["attention_mask"]}

    def _writing(self, index: int, row: Row, options: Options) -> Writing:
        limit = self.settings.limit(1, options.max_new_tokens, positions=self.positions)
        rules = Rules(self.settings, 1, limit, source=row.ids)
        answer = Answer(self.graph.tokens, self.settings.eos, options.stop)
        return Writing(index, [self.start], rules, choice(options, index), answer)
