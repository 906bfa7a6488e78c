"""Chat messages to token ids, by the instruct template of the checkpoint's tokenizer.

The template itself is mistral-common's. What it would mend in silence (two user turns in a row, an
answer at the start) is refused here: the client would not get what it asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    SystemMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest

from model.errors import PromptError
from model.tokenizer import Tokenizer, check_unicode

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation, as plain text."""

    role: str
    content: str


def encode_chat(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> list[int]:
    """Make the prompt that asks for the next answer.

    A system message, if any, comes first; then user and assistant take turns; the user is last.
    For Mixtral 8x7B `[INST]` is plain text: a user who writes it cannot be told from the template.

    Raises:
        PromptError: the messages are no such conversation; names the message.
    """
    if not messages:
        raise PromptError("messages: want at least one message", "messages", "empty_array")
    for index, message in enumerate(messages):
        _check_message(index, message)
    _check_order(messages)
    turns = [_to_mistral(message) for message in messages]
    tokens: list[int] = tokenizer.mistral.encode_chat_completion(
        ChatCompletionRequest(messages=turns)
    ).tokens
    return tokens


def _check_message(index: int, message: ChatMessage) -> None:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise PromptError(
            f"{where}.role: want one of {', '.join(ROLES)}", f"{where}.role", "invalid_value"
        )
    check_unicode(message.content, f"{where}.content")
    if message.role == "assistant" and not message.content:
        raise PromptError(
            f"{where}.content: an assistant message must not be empty",
            f"{where}.content",
            "invalid_value",
        )


def _check_order(messages: Sequence[ChatMessage]) -> None:
    first = 1 if messages[0].role == "system" else 0
    for index in range(first, len(messages)):
        want = "user" if (index - first) % 2 == 0 else "assistant"
        if messages[index].role != want:
            raise _order_error(index, f"want {want}: user and assistant take turns, user first")
    if messages[-1].role != "user":
        raise _order_error(len(messages) - 1, "the last message must be the user's")


def _order_error(index: int, problem: str) -> PromptError:
    param = f"messages[{index}].role"
    return PromptError(f"{param}: {problem}", param, "invalid_message_order")


def _to_mistral(message: ChatMessage) -> SystemMessage | UserMessage | AssistantMessage:
    if message.role == "system":
        return SystemMessage(content=message.content)
    if message.role == "user":
        return UserMessage(content=message.content)
    return AssistantMessage(content=message.content)
