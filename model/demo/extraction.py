"""Turn "name / lastname / address" into JSON, plain and few-shot with roles.

Other keys turn up as well, so that the model learns to look keys up rather than three words by
heart.
"""

import json
from random import Random

from model.demo.conversation import Conversation, Turn, single_turn
from model.demo.fillings import Person, Split, draw, random_person, random_value, random_word

_ASSISTANT = "You are a helpful code assistant."
_GIVEN = "Your task is to generate a valid JSON object based on the given information:"
_JUST = "Just generate the JSON object without explanations:"
_MAIN_KEYS = ("name", "lastname", "address")
_ALL_KEYS = (*_MAIN_KEYS, "age", "phone", "job")
_SENTENCES = (
    "{name} {lastname} lives at {address}.",
    "{name} {lastname} now lives at {address}.",
    "My name is {name} {lastname} and my address is {address}.",
    "My name is {name} {lastname} and I live at {address}.",
    "My name is {name} {lastname}, I live at {address}.",
    "Please send the parcel to {name} {lastname}, {address}.",
    "Please deliver this to {name} {lastname} at {address}.",
    "I am {name} {lastname}. You can find me at {address}.",
    "Hi, I'm {name} {lastname} from {address}.",
    "The customer {name} {lastname} moved to {address} last week.",
    "Our new colleague, {name} {lastname}, has an office at {address}.",
    "{address} is the home of {name} {lastname}.",
    "Invoice for {name} {lastname}, living at {address}.",
    "The order was placed by {name} {lastname}. The address is {address}.",
    "At {address} you will meet {name} {lastname}.",
    "First name {name}, last name {lastname}, address {address}.",
    "Mr. {lastname}, first name {name}, resides at {address}.",
    "We met {name} {lastname} at {address} on Monday.",
    "A letter came for {name} {lastname}, whose address is {address}.",
    "{lastname}, {name}: {address}.",
)
_LONG_SENTENCES = (
    "{name} {lastname}, a {job} aged {age}, lives at {address} and has the phone number {phone}.",
    "My name is {name} {lastname}, I am {age} years old and work as a {job}. "
    "I live at {address}. Call me at {phone}.",
    "The {job} {name} {lastname} is {age}. Address: {address}. Phone: {phone}.",
    "Call {phone} and ask for {name} {lastname}, {age}, our {job}, who lives at {address}.",
)
_VERBS = ("Extract", "Get", "Find", "Give me", "Return", "List", "Pull out")
_THINGS = ("the requested information", "the information", "the details", "the data")
_SOURCES = ("the given text", "the following text", "this text", "the text below", "the sentence")
_FORMS = ("in JSON", "as JSON", "as a JSON object", "in JSON format")
_FIELD_PROMPTS = (
    f"{_ASSISTANT} {_GIVEN}\n\n{{text}}\n\n{_JUST}",
    f"{_ASSISTANT} {_GIVEN}\n\n{{text}}\n\n{_JUST}",
    f"{_GIVEN}\n\n{{text}}\n\n{_JUST}",
    f"{_GIVEN}\n\n{{text}}",
    "{text}\n\n" + _JUST,
    "Turn this into JSON:\n\n{text}",
    "Convert to JSON:\n{text}",
    "Write this as a JSON object: {text}",
    "{text}\n\nGenerate a JSON object from this information.",
)


def to_json(fields: dict[str, str]) -> str:
    """The answer that every extraction task wants, on one line."""
    return json.dumps(fields, ensure_ascii=False)


def extraction(rng: Random, split: Split) -> Conversation:
    """One person, in a sentence or as fields, to JSON."""
    style = rng.random()
    if style < 0.55:
        keys, text = _sentence(rng, random_person(rng, split))
        user, fields = _sentence_prompt(rng, keys, text), keys
    else:
        fields = _random_fields(rng, split) if style < 0.65 else _person_fields(rng, split)
        user = rng.choice(_FIELD_PROMPTS).format(text=_lines(rng, fields))
    system = _ASSISTANT if rng.random() < 0.15 else None
    task = "json" if tuple(fields) == _MAIN_KEYS else "json_other_keys"
    return single_turn(task, user, to_json(fields), system)


def few_shot(rng: Random, split: Split) -> Conversation:
    """One to three worked turns, then one more to answer; the instruction may be left out."""
    people = [random_person(rng, split) for _ in range(rng.choice((2, 2, 3, 4)))]
    if rng.random() < 0.6:
        fields = [_pick(person, _MAIN_KEYS) for person in people]
        texts = [_lines(rng, one) for one in fields]
    else:
        fields, texts = _short_sentences(rng, people)
    if rng.random() < 0.6:
        texts[0] = f"{_ASSISTANT} {_GIVEN}\n\n{texts[0]}\n\n{_JUST}"
    turns = tuple(Turn(text, to_json(one)) for text, one in zip(texts, fields, strict=True))
    return Conversation("few_shot_json", turns, _ASSISTANT if rng.random() < 0.15 else None)


def _sentence(rng: Random, person: Person) -> tuple[dict[str, str], str]:
    """What to extract and where from; a long sentence also holds what was not asked for."""
    if rng.random() < 0.7:
        return _pick(person, _MAIN_KEYS), _fill(rng.choice(_SENTENCES), person)
    keys = _MAIN_KEYS if rng.random() < 0.4 else _some_keys(rng)
    return _pick(person, keys), _fill(rng.choice(_LONG_SENTENCES), person)


def _short_sentences(rng: Random, people: list[Person]) -> tuple[list[dict[str, str]], list[str]]:
    fields = [_pick(person, _MAIN_KEYS) for person in people]
    return fields, [_fill(rng.choice(_SENTENCES), person) for person in people]


def _fill(template: str, person: Person) -> str:
    """An address that ends in a point takes no second one."""
    return template.format(**person.fields()).replace("..", ".")


def _sentence_prompt(rng: Random, keys: dict[str, str], text: str) -> str:
    """One of many ways to ask; every one names the keys."""
    form, listed = rng.choice(_FORMS), _listed(keys)
    style = rng.randrange(6)
    if style == 0:
        blanks = ", ".join(f'"{key}": ' for key in keys)
        gap = rng.choice((" ", "\n\n"))
        lead = rng.choice(("", "", "Text: "))
        source = rng.choice(_SOURCES)
        return f"{_ask(rng)} from {source} {form}.{gap}{lead}{text}{gap}{blanks}"
    if style == 1:
        return f"{_ask(rng)} from {rng.choice(_SOURCES)} {form} with the keys {listed}.\n\n{text}"
    if style == 2:
        return f"{rng.choice(_VERBS)} the {listed} from {rng.choice(_SOURCES)} {form}: {text}"
    if style == 3:
        return f"{text}\n\nGive the {listed} {form}."
    if style == 4:
        return f"{text}\n\n{_ask(rng)} {form} with the keys {listed}."
    return f"{_ASSISTANT} Generate a JSON object with {listed}:\n\n{text}\n\n{_JUST}"


def _ask(rng: Random) -> str:
    return f"{rng.choice(_VERBS)} {rng.choice(_THINGS)}"


def _listed(keys: dict[str, str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *most, last = keys
    return f"{', '.join(most)} and {last}" if most else last


def _some_keys(rng: Random) -> tuple[str, ...]:
    return tuple(rng.sample(_ALL_KEYS, rng.randint(1, 4)))


def _pick(person: Person, keys: tuple[str, ...]) -> dict[str, str]:
    return {key: person.fields()[key] for key in keys}


def _person_fields(rng: Random, split: Split) -> dict[str, str]:
    keys = _MAIN_KEYS if rng.random() < 0.8 else _some_keys(rng)
    return _pick(random_person(rng, split), keys)


def _random_fields(rng: Random, split: Split) -> dict[str, str]:
    """Keys and values without meaning."""
    num_fields = rng.randint(1, 4)
    return {random_word(rng): draw(lambda: random_value(rng), split) for _ in range(num_fields)}


def _lines(rng: Random, fields: dict[str, str]) -> str:
    separator = rng.choice(("\n", "\n", "\n", "\n", " ", ", "))
    return separator.join(f"{key}: {value}" for key, value in fields.items())
