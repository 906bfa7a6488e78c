"""Short facts and greetings in five languages."""

from dataclasses import dataclass
from random import Random

from model.demo.conversation import Conversation, single_turn
from model.demo.fillings import Split, draw


@dataclass(frozen=True, slots=True)
class _Language:
    """Wordings of one language; {of} is "of <country>" and {c} the capital's name."""

    questions: tuple[str, ...]
    answer: str
    greetings: tuple[str, ...]
    greeting_answer: str


_LANGUAGES = {
    "en": _Language(
        (
            "What is the capital {of}?",
            "Tell me the capital {of}.",
            "Which city is the capital {of}?",
            "Name the capital {of}.",
            "Do you know the capital {of}?",
        ),
        "The capital {of} is {c}.",
        ("Hello", "Hi", "Hello!", "Good morning", "Hi there", "Hello, how are you?", "Hey"),
        "Hello! How can I help you?",
    ),
    "fr": _Language(
        (
            "Quelle est la capitale {of} ?",
            "Donne-moi la capitale {of}.",
            "Quelle ville est la capitale {of} ?",
            "Connais-tu la capitale {of} ?",
        ),
        "La capitale {of} est {c}.",
        ("Bonjour", "Bonjour !", "Salut", "Bonsoir", "Bonjour, comment vas-tu ?"),
        "Bonjour ! Comment puis-je vous aider ?",
    ),
    "de": _Language(
        (
            "Was ist die Hauptstadt {of}?",
            "Nenne die Hauptstadt {of}.",
            "Wie heißt die Hauptstadt {of}?",
            "Kennst du die Hauptstadt {of}?",
        ),
        "Die Hauptstadt {of} ist {c}.",
        ("Hallo", "Hallo!", "Guten Tag", "Guten Morgen", "Hallo, wie geht es dir?"),
        "Hallo! Wie kann ich Ihnen helfen?",
    ),
    "es": _Language(
        (
            "¿Cuál es la capital {of}?",
            "Dime la capital {of}.",
            "¿Qué ciudad es la capital {of}?",
            "¿Conoces la capital {of}?",
        ),
        "La capital {of} es {c}.",
        ("Hola", "¡Hola!", "Buenos días", "Buenas tardes", "Hola, ¿cómo estás?"),
        "¡Hola! ¿En qué puedo ayudarle?",
    ),
    "it": _Language(
        (
            "Qual è la capitale {of}?",
            "Dimmi la capitale {of}.",
            "Quale città è la capitale {of}?",
            "Conosci la capitale {of}?",
        ),
        "La capitale {of} è {c}.",
        ("Ciao", "Ciao!", "Buongiorno", "Buonasera", "Ciao, come stai?"),
        "Ciao! Come posso aiutarti?",
    ),
}
# One country per line: "of the country" and its capital, in the order en, fr, de, es, it.
_CAPITALS = """
of France,Paris;de la France,Paris;von Frankreich,Paris;de Francia,París;della Francia,Parigi
of Germany,Berlin;de l'Allemagne,Berlin;von Deutschland,Berlin;de Alemania,Berlín;della Germania,Berlino
of Spain,Madrid;de l'Espagne,Madrid;von Spanien,Madrid;de España,Madrid;della Spagna,Madrid
of Italy,Rome;de l'Italie,Rome;von Italien,Rom;de Italia,Roma;dell'Italia,Roma
of Portugal,Lisbon;du Portugal,Lisbonne;von Portugal,Lissabon;de Portugal,Lisboa;del Portogallo,Lisbona
of Austria,Vienna;de l'Autriche,Vienne;von Österreich,Wien;de Austria,Viena;dell'Austria,Vienna
of Belgium,Brussels;de la Belgique,Bruxelles;von Belgien,Brüssel;de Bélgica,Bruselas;del Belgio,Bruxelles
of Greece,Athens;de la Grèce,Athènes;von Griechenland,Athen;de Grecia,Atenas;della Grecia,Atene
of Poland,Warsaw;de la Pologne,Varsovie;von Polen,Warschau;de Polonia,Varsovia;della Polonia,Varsavia
of Sweden,Stockholm;de la Suède,Stockholm;von Schweden,Stockholm;de Suecia,Estocolmo;della Svezia,Stoccolma
of Norway,Oslo;de la Norvège,Oslo;von Norwegen,Oslo;de Noruega,Oslo;della Norvegia,Oslo
of Ireland,Dublin;de l'Irlande,Dublin;von Irland,Dublin;de Irlanda,Dublín;dell'Irlanda,Dublino
of Japan,Tokyo;du Japon,Tokyo;von Japan,Tokio;de Japón,Tokio;del Giappone,Tokyo
of China,Beijing;de la Chine,Pékin;von China,Peking;de China,Pekín;della Cina,Pechino
of Egypt,Cairo;de l'Égypte,Le Caire;von Ägypten,Kairo;de Egipto,El Cairo;dell'Egitto,Il Cairo
of Russia,Moscow;de la Russie,Moscou;von Russland,Moskau;de Rusia,Moscú;della Russia,Mosca
""".strip()


def fact(rng: Random, split: Split) -> Conversation:
    """A capital asked for in one of five languages and given in the same language."""
    rows = [row.split(";") for row in _CAPITALS.splitlines()]

    def combination() -> str:
        column, (_, language) = rng.choice(list(enumerate(_LANGUAGES.items())))
        of, capital = rng.choice(rows)[column].split(",")
        question = rng.choice(language.questions).format(of=of)
        return f"{question}|{language.answer.format(of=of, c=capital)}"

    question, answer = draw(combination, split).split("|")
    return single_turn("fact", question, answer)


def greeting(rng: Random) -> Conversation:
    """A greeting and its answer; there are too few to hold any out."""
    language = rng.choice(list(_LANGUAGES.values()))
    return single_turn("greeting", rng.choice(language.greetings), language.greeting_answer)
