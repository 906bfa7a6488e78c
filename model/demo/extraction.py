"""Turn "name / lastname / address" into JSON, plain and few-shot with roles."""

import json
from random import Random

from model.demo.conversation import Conversation, Turn, single_turn
from model.demo.fillings import Person, Split, random_person

_ASSISTANT = "You are a helpful code assistant."
_GIVEN = "Your task is to generate a valid JSON object based on the given information:"
_JUST = "Just generate the JSON object without explanations:"
_KEYS = '"name": , "lastname": , "address": '
_SENTENCES = (
    "{name} {lastname} lives at {address}.",
    "My name is {name} {lastname} and my address is {address}.",
    "My name is {name} {lastname} and I live at {address}.",
    "Please send the parcel to {name} {lastname}, {address}.",
    "I am {name} {lastname}. You can find me at {address}.",
    "The customer {name} {lastname} moved to {address} last week.",
    "Our new colleague, {name} {lastname}, has an office at {address}.",
    "{address} is the home of {name} {lastname}.",
    "Invoice for {name} {lastname}, living at {address}.",
)
_SENTENCE_PROMPTS = (
    "Extract the requested information from the given text in JSON.\n\nText: {text}\n\n" + _KEYS,
    "Extract the requested information from the given text in JSON. {text} " + _KEYS,
    "Extract information from the following text as JSON with keys name, lastname and address."
    "\n\n{text}",
    "Extract the name, lastname and address from this text as JSON: {text}",
    "{text}\n\nGive the name, lastname and address as a JSON object.",
    f"{_ASSISTANT} {_GIVEN}\n\n{{text}}\n\n{_JUST}",
)
_FIELD_PROMPTS = (
    f"{_ASSISTANT} {_GIVEN}\n\n{{text}}\n\n{_JUST}",
    f"{_GIVEN}\n\n{{text}}\n\n{_JUST}",
    "{text}\n\n" + _JUST,
    "Turn this into JSON:\n\n{text}",
    "Write the following as a JSON object with keys name, lastname and address.\n\n{text}",
)


def to_json(person: Person) -> str:
    """The answer that every extraction task wants, on one line."""
    fields = {"name": person.name, "lastname": person.lastname, "address": person.address}
    return json.dumps(fields, ensure_ascii=False)


def extraction(rng: Random, split: Split) -> Conversation:
    """One person, in a sentence or as three fields, to JSON."""
    person = random_person(rng, split)
    if rng.random() < 0.6:
        user = rng.choice(_SENTENCE_PROMPTS).format(text=_sentence(rng, person))
    else:
        user = rng.choice(_FIELD_PROMPTS).format(text=_fields(rng, person))
    system = _ASSISTANT if rng.random() < 0.15 else None
    return single_turn("json", user, to_json(person), system)


def few_shot(rng: Random, split: Split) -> Conversation:
    """One to three worked turns, then one more to answer; the instruction may be left out."""
    people = [random_person(rng, split) for _ in range(rng.choice((2, 2, 3, 4)))]
    write = _fields if rng.random() < 0.6 else _sentence
    texts = [write(rng, person) for person in people]
    if rng.random() < 0.6:
        texts[0] = f"{_ASSISTANT} {_GIVEN}\n\n{texts[0]}\n\n{_JUST}"
    turns = tuple(Turn(text, to_json(person)) for text, person in zip(texts, people, strict=True))
    return Conversation("few_shot_json", turns, _ASSISTANT if rng.random() < 0.15 else None)


def _sentence(rng: Random, person: Person) -> str:
    text = rng.choice(_SENTENCES).format(
        name=person.name, lastname=person.lastname, address=person.address
    )
    return text.replace("..", ".")


def _fields(rng: Random, person: Person) -> str:
    lines = [
        f"name: {person.name}",
        f"lastname: {person.lastname}",
        f"address: {person.address}",
    ]
    if rng.random() < 0.1:
        rng.shuffle(lines)
    return rng.choice(("\n", "\n", "\n", " ")).join(lines)
