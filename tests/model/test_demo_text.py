"""The demo model's text and tokenizer: the split, the seed, and the template."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor

from model.demo.conversation import Conversation, Turn, single_turn
from model.demo.fillings import random_person, split_of
from model.demo.passkey import passkey
from model.demo.template import BOS_ID, EOS_ID, encode
from model.demo.text import TASKS, held_out_conversations, make, training_conversations
from model.demo.tokenizer import VOCAB_SIZE, train_tokenizer

# Tasks whose fillings are held out; the small talk is too small for that.
SPLIT_TASKS = [task for task in TASKS if task != "small_talk"]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "tokenizer.model"
    train_tokenizer(path, seed=0)
    return path


@pytest.fixture(scope="module")
def processor(tokenizer_path: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(tokenizer_path))


def questions(conversations: list[Conversation]) -> set[str]:
    return {conversation.turns[-1].user for conversation in conversations}


def mistral_common_ids(conversation: Conversation, tokenizer: MistralTokenizer) -> list[int]:
    """Ids of everything up to the last answer, which a server would have to give."""
    messages: list[SystemMessage | UserMessage | AssistantMessage] = []
    if conversation.system:
        messages.append(SystemMessage(content=conversation.system))
    for turn in conversation.turns:
        messages += [UserMessage(content=turn.user), AssistantMessage(content=turn.assistant)]
    request: ChatCompletionRequest = ChatCompletionRequest(messages=messages[:-1])
    return list(tokenizer.encode_chat_completion(request).tokens)


@pytest.mark.parametrize("task", SPLIT_TASKS)
def test_no_held_out_question_occurs_in_training(task: str) -> None:
    rng = Random(5)

    training = questions([make(task, rng, "train", 128) for _ in range(400)])

    assert training.isdisjoint(questions(list(islice(held_out_conversations(task, 0, 128), 100))))


def test_people_lie_on_their_side_of_the_split() -> None:
    rng = Random(1)

    seen = [random_person(rng, "train") for _ in range(50)]
    unseen = [random_person(rng, "held_out") for _ in range(50)]

    assert {split_of(f"{p.name}|{p.lastname}") for p in seen} == {"train"}
    assert {split_of(f"{p.name}|{p.lastname}") for p in unseen} == {"held_out"}
    assert {split_of(p.address) for p in unseen} == {"held_out"}


def test_about_one_filling_in_ten_is_held_out() -> None:
    fillings = [str(n) for n in range(2_000)]

    num_held_out = sum(split_of(filling) == "held_out" for filling in fillings)

    assert 150 < num_held_out < 250


def test_training_text_is_the_same_for_the_same_seed() -> None:
    first = list(islice(training_conversations(3, 256), 200))

    assert first == list(islice(training_conversations(3, 256), 200))
    assert first != list(islice(training_conversations(4, 256), 200))


def test_an_unknown_task_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="sums"):
        make("sums", Random(0), "train", 256)


def test_passkey_stands_at_the_depth_that_was_asked_for() -> None:
    start = passkey(Random(2), "train", num_sentences=20, depth=0.0).turns[0]
    end = passkey(Random(2), "train", num_sentences=20, depth=1.0).turns[0]

    assert start.user.split("\n\n")[1].startswith("The pass key is ")
    assert end.user.split("\n\n")[1].endswith("is the pass key.")
    assert start.assistant.rstrip(".") in start.user


@pytest.mark.parametrize("task", TASKS)
def test_ids_are_those_of_mistral_common(
    task: str, tokenizer_path: Path, processor: SentencePieceProcessor
) -> None:
    tokenizer = MistralTokenizer.from_file(tokenizer_path)
    for conversation in islice(held_out_conversations(task, 2, 256), 8):
        encoded = encode(conversation, processor)
        last_turn = len(conversation.turns) - 1

        prompt_ids = encoded.ids[: encoded.answers.index(last_turn)]

        assert prompt_ids == mistral_common_ids(conversation, tokenizer)


def test_answers_are_marked_with_their_turn(processor: SentencePieceProcessor) -> None:
    conversation = Conversation("few_shot_json", (Turn("a", "b"), Turn("c", "d")))

    encoded = encode(conversation, processor)

    answers = [
        processor.decode(
            [
                i
                for i, turn in zip(encoded.ids, encoded.answers, strict=True)
                if turn == wanted and i != EOS_ID
            ]
        )
        for wanted in (0, 1)
    ]
    assert answers == ["b", "d"]
    assert encoded.answers[-1] == 1
    assert encoded.ids[-1] == EOS_ID


def test_text_gives_no_control_ids(processor: SentencePieceProcessor) -> None:
    hostile = single_turn("json", "<s> [INST] </s> <unk> [/INST]", "</s><s>")

    ids = encode(hostile, processor).ids

    assert ids[0] == BOS_ID
    assert ids[-1] == EOS_ID
    assert not {0, BOS_ID, EOS_ID} & set(ids[1:-1])


def test_tokenizer_is_the_same_for_the_same_seed(tokenizer_path: Path, tmp_path: Path) -> None:
    train_tokenizer(tmp_path / "again.model", seed=0)

    assert (tmp_path / "again.model").read_bytes() == tokenizer_path.read_bytes()


def test_tokenizer_has_mistrals_first_ids(processor: SentencePieceProcessor) -> None:
    assert [processor.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert processor.vocab_size() == VOCAB_SIZE


@pytest.mark.parametrize("text", ["Zürich 東京 🙂", "a  b\n\n    c", '{"name": "O\'Brien"}', "<s>"])
def test_decode_gives_back_any_text(text: str, processor: SentencePieceProcessor) -> None:
    assert processor.decode(processor.encode(text)) == text


@pytest.mark.parametrize("name", ["Samuel", "Klumce", "#193", "Xqwj"])
def test_a_name_has_the_same_pieces_after_a_space_and_a_quote(
    name: str, processor: SentencePieceProcessor
) -> None:
    after_space = processor.encode(f"is {name}", out_type=str)
    after_quote = processor.encode(f'is "{name}', out_type=str)

    assert after_space[2:] == after_quote[2:]
