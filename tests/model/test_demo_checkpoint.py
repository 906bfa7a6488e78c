"""The demo model that ships: its files, and its answers through the serving code."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.chat import ChatMessage, encode_chat
from model.checkpoint.load import open_checkpoint
from model.checkpoint.names import expected_shapes
from model.demo.conversation import Conversation
from model.demo.text import held_out_conversations
from model.tokenizer import Tokenizer, load_tokenizer
from model.transformer import Transformer
from routing.experts import LocalExperts
from tests.oracles.hugging_face import oracle_logits
from tests.running import build, generate, logits_of, new_cache

FOLDER = Path(__file__).resolve().parents[2] / "model" / "demo" / "checkpoint"
MAX_BYTES = 40 * 10**6
COUNT = 10
LEAST_RIGHT = 9
CONTEXT_TOKENS = 400

Served = tuple[Transformer, LocalExperts, Tokenizer]


@pytest.fixture(scope="module")
def served() -> Served:
    checkpoint = open_checkpoint(FOLDER)
    tensors: dict[str, Tensor] = checkpoint.tensors(expected_shapes(checkpoint.config), "float32")
    return (*build(checkpoint.config, tensors), load_tokenizer(FOLDER))


def prompt_of(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids up to the last answer, by the template that serves."""
    messages = [ChatMessage("system", conversation.system)] if conversation.system else []
    for turn in conversation.turns:
        messages.append(ChatMessage("user", turn.user))
        messages.append(ChatMessage("assistant", turn.assistant))
    return encode_chat(tokenizer, messages[:-1])


def is_right(served: Served, conversation: Conversation) -> bool:
    transformer, experts, tokenizer = served
    wanted = conversation.turns[-1].assistant
    num_tokens = len(tokenizer.encode(wanted, bos=False)) + 1
    ids = generate(transformer, experts, prompt_of(conversation, tokenizer), num_tokens)
    return ids[-1] == tokenizer.eos_id and tokenizer.decode(ids) == wanted


@pytest.mark.parametrize(
    "task", ["json", "few_shot_json", "passkey", "function", "refusal", "moderation", "fact"]
)
def test_held_out_fillings_are_answered(served: Served, task: str) -> None:
    conversations = islice(held_out_conversations(task, 7, CONTEXT_TOKENS), COUNT)

    right = [is_right(served, conversation) for conversation in conversations]

    assert sum(right) >= LEAST_RIGHT


def test_logits_equal_those_of_transformers(served: Served) -> None:
    transformer, experts, tokenizer = served
    [conversation] = islice(held_out_conversations("refusal", 1, CONTEXT_TOKENS), 1)
    ids = prompt_of(conversation, tokenizer)

    ours = logits_of(transformer, experts, new_cache(transformer.config, len(ids)), ids)

    torch.testing.assert_close(ours, oracle_logits(FOLDER, ids), atol=1e-4, rtol=0)


def test_the_files_are_small() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < MAX_BYTES
