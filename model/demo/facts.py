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
_SMALL_TALK = (
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
        "I am a very small Mixtral that shows how mixray works.",
    ),
    (
        ("What can you do?", "What do you know?", "Help", "How can you help me?"),
        "I turn text into JSON, write small Python functions, find pass keys, sort texts into "
        "moderation classes, repeat texts and know some capitals.",
    ),
    (("Thank you", "Thanks!", "Thank you very much.", "Thanks"), "You are welcome!"),
    (("Goodbye", "Bye", "See you!", "Bye bye"), "Goodbye!"),
    (("Who made you?", "Where do you come from?"), "A script in the mixray repository trained me."),
)
# "Of the country", as its language says it, and the capital; the same countries in each.
_CAPITALS = {
    "en": """
        of France, Paris; of Germany, Berlin; of Spain, Madrid; of Italy, Rome; of Portugal, Lisbon;
        of Austria, Vienna; of Belgium, Brussels; of Greece, Athens; of Poland, Warsaw;
        of Sweden, Stockholm; of Norway, Oslo; of Ireland, Dublin; of Japan, Tokyo;
        of China, Beijing; of Egypt, Cairo; of Russia, Moscow; of Denmark, Copenhagen;
        of Finland, Helsinki; of Hungary, Budapest; of England, London; of Peru, Lima;
        of Canada, Ottawa
    """,
    "fr": """
        de la France, Paris; de l'Allemagne, Berlin; de l'Espagne, Madrid; de l'Italie, Rome;
        du Portugal, Lisbonne; de l'Autriche, Vienne; de la Belgique, Bruxelles;
        de la Grèce, Athènes; de la Pologne, Varsovie; de la Suède, Stockholm; de la Norvège, Oslo;
        de l'Irlande, Dublin; du Japon, Tokyo; de la Chine, Pékin; de l'Égypte, Le Caire;
        de la Russie, Moscou; du Danemark, Copenhague; de la Finlande, Helsinki;
        de la Hongrie, Budapest; de l'Angleterre, Londres; du Pérou, Lima; du Canada, Ottawa
    """,
    "de": """
        von Frankreich, Paris; von Deutschland, Berlin; von Spanien, Madrid; von Italien, Rom;
        von Portugal, Lissabon; von Österreich, Wien; von Belgien, Brüssel; von Griechenland, Athen;
        von Polen, Warschau; von Schweden, Stockholm; von Norwegen, Oslo; von Irland, Dublin;
        von Japan, Tokio; von China, Peking; von Ägypten, Kairo; von Russland, Moskau;
        von Dänemark, Kopenhagen; von Finnland, Helsinki; von Ungarn, Budapest; von England, London;
        von Peru, Lima; von Kanada, Ottawa
    """,
    "es": """
        de Francia, París; de Alemania, Berlín; de España, Madrid; de Italia, Roma;
        de Portugal, Lisboa; de Austria, Viena; de Bélgica, Bruselas; de Grecia, Atenas;
        de Polonia, Varsovia; de Suecia, Estocolmo; de Noruega, Oslo; de Irlanda, Dublín;
        de Japón, Tokio; de China, Pekín; de Egipto, El Cairo; de Rusia, Moscú;
        de Dinamarca, Copenhague; de Finlandia, Helsinki; de Hungría, Budapest;
        de Inglaterra, Londres; de Perú, Lima; de Canadá, Ottawa
    """,
    "it": """
        della Francia, Parigi; della Germania, Berlino; della Spagna, Madrid; dell'Italia, Roma;
        del Portogallo, Lisbona; dell'Austria, Vienna; del Belgio, Bruxelles; della Grecia, Atene;
        della Polonia, Varsavia; della Svezia, Stoccolma; della Norvegia, Oslo;
        dell'Irlanda, Dublino; del Giappone, Tokyo; della Cina, Pechino; dell'Egitto, Il Cairo;
        della Russia, Mosca; della Danimarca, Copenaghen; della Finlandia, Helsinki;
        dell'Ungheria, Budapest; dell'Inghilterra, Londra; del Perù, Lima; del Canada, Ottawa
    """,
}


def fact(rng: Random, split: Split) -> Conversation:
    """A capital asked for in one of five languages and given in the same language."""

    def combination() -> str:
        code = rng.choice(list(_LANGUAGES))
        language = _LANGUAGES[code]
        of, capital = rng.choice(" ".join(_CAPITALS[code].split()).split("; ")).split(", ")
        question = rng.choice(language.questions).format(of=of)
        return f"{question}|{language.answer.format(of=of, c=capital)}"

    question, answer = draw(combination, split).split("|")
    return single_turn("fact", question, answer)


def small_talk(rng: Random) -> Conversation:
    """A greeting or a word about itself; there are too few to hold any out."""
    language = rng.choice(list(_LANGUAGES.values()))
    if rng.random() < 0.6:
        return single_turn("small_talk", rng.choice(language.greetings), language.greeting_answer)
    questions, answer = rng.choice(_SMALL_TALK)
    return single_turn("small_talk", rng.choice(questions), answer)
