"""Small Python functions on request, with names and parameters taken from the prompt."""

from dataclasses import dataclass
from random import Random

from model.demo.conversation import Conversation, single_turn
from model.demo.fillings import Split, draw, random_word


@dataclass(frozen=True, slots=True)
class _Kind:
    """A function to write: what it does and how; {f} is its name, {a} and {b} its parameters."""

    usual_name: str
    does: str
    signature: str
    body: str


_KINDS = (
    _Kind("add", "adds {a} and {b}", "{a}, {b}", "return {a} + {b}"),
    _Kind("subtract", "subtracts {b} from {a}", "{a}, {b}", "return {a} - {b}"),
    _Kind("multiply", "multiplies {a} by {b}", "{a}, {b}", "return {a} * {b}"),
    _Kind("divide", "divides {a} by {b}", "{a}, {b}", "return {a} / {b}"),
    _Kind("larger", "returns the larger of {a} and {b}", "{a}, {b}", "return max({a}, {b})"),
    _Kind("smaller", "returns the smaller of {a} and {b}", "{a}, {b}", "return min({a}, {b})"),
    _Kind("square", "returns the square of {a}", "{a}", "return {a} ** 2"),
    _Kind("is_even", "tells whether {a} is even", "{a}", "return {a} % 2 == 0"),
    _Kind("is_odd", "tells whether {a} is odd", "{a}", "return {a} % 2 == 1"),
    _Kind("total", "sums the list {a}", "{a}", "return sum({a})"),
    _Kind("average", "returns the mean of the list {a}", "{a}", "return sum({a}) / len({a})"),
    _Kind("reverse", "reverses the string {a}", "{a}", "return {a}[::-1]"),
    _Kind("count", "counts the items of {a}", "{a}", "return len({a})"),
    _Kind("power", "raises {a} to the power of {b}", "{a}, {b}", "return {a} ** {b}"),
    _Kind("remainder", "gives the remainder of {a} by {b}", "{a}, {b}", "return {a} % {b}"),
    _Kind("difference", "returns the distance of {a} and {b}", "{a}, {b}", "return abs({a} - {b})"),
    _Kind("cube", "returns the cube of {a}", "{a}", "return {a} ** 3"),
    _Kind("double", "doubles {a}", "{a}", "return 2 * {a}"),
    _Kind("half", "halves {a}", "{a}", "return {a} / 2"),
    _Kind("negate", "changes the sign of {a}", "{a}", "return -{a}"),
    _Kind("is_positive", "tells whether {a} is positive", "{a}", "return {a} > 0"),
    _Kind("is_empty", "tells whether {a} is empty", "{a}", "return len({a}) == 0"),
    _Kind("contains", "tells whether {a} contains {b}", "{a}, {b}", "return {b} in {a}"),
    _Kind("maximum", "returns the maximum of the list {a}", "{a}", "return max({a})"),
    _Kind("minimum", "returns the minimum of the list {a}", "{a}", "return min({a})"),
    _Kind("sort", "sorts the list {a}", "{a}", "return sorted({a})"),
    _Kind("upper", "puts {a} into upper case", "{a}", "return {a}.upper()"),
    _Kind("lower", "puts {a} into lower case", "{a}", "return {a}.lower()"),
    _Kind("join", "joins the strings {a} and {b}", "{a}, {b}", "return {a} + {b}"),
    _Kind("greet", "greets {a}", "{a}", 'return f"Hello, {{{a}}}!"'),
    _Kind(
        "factorial",
        "computes the factorial of {a}",
        "{a}",
        "if {a} == 0:\n        return 1\n    return {a} * {f}({a} - 1)",
    ),
)
_PARAMETERS = """
first second left right items values number numbers text word words data total size price count
width height start end n m k p q s t u v name value list_a list_b one two
""".split()
_PROMPTS = (
    "Write a Python function named {f} that {does}.",
    "Write a Python function called {f} that {does}.",
    "Can you write a function {f} in Python that {does}?",
    "Define a Python function {f} which {does}. Give only the code.",
    "Please code {f} in Python: it {does}.",
    "I need a Python function {f} that {does}.",
    "Give me a Python function named {f} that {does}.",
    "{f}: a Python function that {does}. Write it.",
    "You are a helpful code assistant. Write a Python function named {f} that {does}.",
)


def function(rng: Random, split: Split) -> Conversation:
    """A request for one function of the family and its code."""
    kind = rng.choice(_KINDS)
    name = draw(lambda: _function_name(rng, kind), split)
    a, b = _parameters(rng)
    does = kind.does.format(a=a, b=b)
    body = kind.body.format(a=a, b=b, f=name)
    code = f"def {name}({kind.signature.format(a=a, b=b)}):\n    {body}"
    return single_turn("function", rng.choice(_PROMPTS).format(f=name, does=does), code)


def _function_name(rng: Random, kind: _Kind) -> str:
    """The usual name, a made-up one, or both, so that each kind has fillings on both sides."""
    style = rng.random()
    if style < 0.3:
        return random_word(rng)
    return kind.usual_name if style < 0.6 else f"{kind.usual_name}_{random_word(rng)}"


def _parameters(rng: Random) -> tuple[str, str]:
    style = rng.random()
    if style < 0.3:
        return ("a", "b")
    if style < 0.5:
        return ("x", "y")
    a, b = rng.sample(_PARAMETERS, 2)
    return (a, b)
