"""Random names, addresses and words that fill the templates, and their split into two halves.

Half of the names look real, half are made of random syllables or letters, so that a model can
only get them right by copying. Knows no template and no tokenizer.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]

# One filling in ten is never seen in training.
_HELD_OUT_SHARE = 10

_FIRST_NAMES = """
John Ted Mary Anna Peter Linda James Robert Julia Thomas Laura Daniel Emma Paul Sophie Mark Alice
Henry Clara Martin Elena Victor Marie Pierre Claire Louis Camille Antoine Lucie Hans Greta Karl
Heidi Jonas Petra Carlos Lucia Pablo Carmen Diego Marta Giulia Marco Paolo Chiara Luca Sofia Amir
Leila Yuki Kenji Mei Ravi Priya Omar Fatima Ivan Olga Nina Oscar Ruth Simon Grace Felix Ada Alan
José Zoë Jürgen François Anne-Marie André Noël Sören Inés
""".split()
_LAST_NAMES = """
Smith Pot Miller Brown Taylor Wilson Clark Lewis Walker Hall Young King Wright Hill Green Baker
Dupont Durand Moreau Laurent Girard Mueller Schmidt Weber Wagner Becker Hoffmann Garcia Martinez
Lopez Sanchez Romero Rossi Russo Ferrari Bianchi Conti Tanaka Suzuki Chen Wang Singh Patel Haddad
Novak Kowalski Ivanova Larsen Nilsson Berg Murphy Kelly Turing Lovelace Hopper Curie Noether
O'Brien Müller Núñez Lefèvre García-Lorca Schröder Peña Björk Gómez
""".split()
_STREETS = """
Samuel Bisson Oak Maple Cedar Pine Church Station Park River Lake Garden Mill Bridge Market School
Victoria Queen High North South East West Rose Elm Spring Forest Meadow Harbour Castle Chapel
""".split()
_STREET_KINDS = ("Street", "Road", "Avenue", "Lane", "St.", "St.", "Ave.", "Rd.", "Square", "Way")
_CITIES = """
Paris London Berlin Madrid Rome Lyon Leeds Munich Seville Milan Boston Denver Dublin Vienna Prague
Oslo Lisbon Geneva Nantes Hamburg Turin Bristol Chicago Toronto Sydney Osaka Delhi Cairo Lima Porto
""".split()
_JOBS = """
baker teacher nurse doctor farmer painter driver lawyer writer singer pilot clerk tailor waiter
engineer gardener plumber butcher
""".split()
_ONSETS = tuple("b c d f g h j k l m n p r s t v w z".split()) + (
    "br",
    "ch",
    "st",
    "tr",
    "kl",
    "sh",
)
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "", "", "", "n", "r", "l", "s", "m", "nd", "rt")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Person:
    """What the extraction tasks ask for."""

    name: str
    lastname: str
    address: str
    age: str
    phone: str
    job: str

    def fields(self) -> dict[str, str]:
        """The values by their names."""
        return asdict(self)


def split_of(filling: str) -> Split:
    """Say on which side of the split a filling lies; the same on every machine."""
    digest = hashlib.blake2b(filling.encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest) % _HELD_OUT_SHARE == 0 else "train"


def draw(make: Callable[[], str], split: Split) -> str:
    """Call `make` until it gives a filling of `split`."""
    while True:
        filling = make()
        if split_of(filling) == split:
            return filling


def random_word(rng: Random) -> str:
    """A lower-case word of two or three syllables, or now and then of any letters."""
    if rng.random() < 0.2:
        return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(3, 8)))
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((2, 2, 3)))
    )


def random_person(rng: Random, split: Split) -> Person:
    """A person; the full name and the address each lie in `split`."""
    full_name = draw(lambda: f"{_name(rng, _FIRST_NAMES)}|{_name(rng, _LAST_NAMES)}", split)
    name, lastname = full_name.split("|")
    return Person(
        name,
        lastname,
        draw(lambda: _address(rng), split),
        age=str(rng.randint(18, 90)),
        phone=random_digits(rng, rng.randint(4, 7)),
        job=rng.choice(_JOBS),
    )


def random_value(rng: Random) -> str:
    """A name, two names, a number or an address."""
    style = rng.randrange(4)
    if style == 0:
        return _address(rng)
    if style == 1:
        return random_digits(rng, rng.randint(1, 6))
    name = _name(rng, _FIRST_NAMES)
    return name if style == 2 else f"{name} {_name(rng, _LAST_NAMES)}"


def random_place(rng: Random) -> str:
    """A city, real or not."""
    return _name(rng, _CITIES)


def random_digits(rng: Random, num_digits: int) -> str:
    """A number of exactly `num_digits` digits, the first one not zero."""
    return str(rng.randrange(10 ** (num_digits - 1), 10**num_digits))


def _name(rng: Random, real: Sequence[str]) -> str:
    return rng.choice(real) if rng.random() < 0.5 else random_word(rng).capitalize()


def _address(rng: Random) -> str:
    street = f"{_name(rng, _STREETS)} {rng.choice(_STREET_KINDS)}"
    number = rng.randint(1, 999)
    style = rng.random()
    if style < 0.4:
        return f"#{number} {street}"
    if style < 0.7:
        return f"{number} {street}"
    return f"{number} {street}, {random_place(rng)}"
