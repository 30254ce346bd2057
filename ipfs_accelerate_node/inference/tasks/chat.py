"""Chat templates: the model author's Jinja, rendered in a sandbox, with what transformers offers and within limits.

A template is a stranger's program: see ``sandbox``. It gets plain texts only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from jinja2.exceptions import SecurityError

from ipfs_accelerate_node.errors import InvalidInput, ModelUnsupported, PayloadTooLarge
from ipfs_accelerate_node.inference.model import Message
from ipfs_accelerate_node.inference.strict_json import JsonObject, read_bytes, read_object
from ipfs_accelerate_node.inference.tasks.sandbox import Limits, TemplateStopped, environment

MAX_TEMPLATE_BYTES = 256 << 10
MAX_CHAT_CHARS = 512 << 10
MAX_RENDERED_CHARS = 8 << 20


class ChatTemplate:
    """One model's template, compiled. special: ``bos_token``, ``eos_token``, … as the template may write them."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """Raises ModelUnsupported(bad_config): too long, or not Jinja."""
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise ModelUnsupported(f"the chat template is longer than {MAX_TEMPLATE_BYTES:,} bytes", code="bad_config")
        self._special = dict(special)
        try:
            with Limits():
                self._template = environment().from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError, TemplateStopped) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc

    def render(self, messages: Sequence[Message], *, index: int = 0) -> str:
        """The prompt whose continuation is the assistant's answer. index: of the chat, for errors.

        Raises InvalidInput: the template refuses these messages. PayloadTooLarge. ModelUnsupported(bad_config): it
        fails, tries what the sandbox forbids, or goes over a limit.
        """
        if sum(len(message.content) for message in messages) > MAX_CHAT_CHARS:
            raise PayloadTooLarge(f"chat {index} has over {MAX_CHAT_CHARS:,} characters", param="input", index=index)
        plain = [{"role": message.role, "content": message.content} for message in messages]
        pieces: list[str] = []
        length = 0
        try:
            with Limits():
                for piece in self._template.generate(
                    messages=plain, tools=None, documents=None, add_generation_prompt=True, **self._special
                ):
                    length += len(piece)
                    if length > MAX_RENDERED_CHARS:
                        raise TemplateStopped("writes too much text")
                    pieces.append(piece)
        except (SecurityError, jinja2.UndefinedError, TemplateStopped, RecursionError, MemoryError) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc
        except jinja2.TemplateError as exc:
            raise InvalidInput(f"the model's chat template says: {_said(exc)}", param="input", index=index) from exc
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
            raise ModelUnsupported(f"the chat template: {_said(exc)}", code="bad_config") from exc
        return "".join(pieces)


def _said(exc: BaseException) -> str:
    return f"{str(exc)[:300] or type(exc).__name__}"


def read_chat_template(
    directory: Path, tokenizer_config: JsonObject, special: Mapping[str, str]
) -> ChatTemplate | None:
    """chat_template.jinja, else chat_template.json, else what tokenizer_config.json holds; None where there is none.

    Of several named ones, ``default``. Raises ModelUnsupported(bad_config).
    """
    if (directory / "chat_template.jinja").exists():
        data = read_bytes(directory / "chat_template.jinja", max_bytes=MAX_TEMPLATE_BYTES, code="bad_config")
        return ChatTemplate(data.decode("utf-8", "replace"), special)
    value = tokenizer_config.get("chat_template")
    if (directory / "chat_template.json").exists():
        value = read_object(directory / "chat_template.json").get("chat_template", value)
    if isinstance(value, list):
        named = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
        value = named.get("default")
    return ChatTemplate(value, special) if isinstance(value, str) else None
