"""The types of the API's fields: what each accepts, what it becomes, how OpenAPI describes it."""

from typing import Annotated

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from model.config import MAX_CONTEXT_TOKENS
from model.sampling_params import (
    MAX_BIAS,
    MAX_BIASES,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MIN_REPETITION_PENALTY,
)

MAX_PARTS = 1_024
MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PRIORITY = 1_000
MAX_SALT_CHARS = 128

# What stands between the text parts of one message, as in mistral-common.
PART_SEPARATOR = "\n\n"


def _join_parts(value: object) -> object:
    """Make one text of a message's list of text parts."""
    if not isinstance(value, list):
        return value
    if len(value) > MAX_PARTS:
        raise PydanticCustomError("array_above_max_length", f"want at most {MAX_PARTS} parts")
    return PART_SEPARATOR.join(_part_text(part) for part in value)


def _part_text(part: object) -> str:
    if not isinstance(part, dict) or "type" not in part:
        raise PydanticCustomError("invalid_type", 'want parts {"type": "text", "text": "..."}')
    if part["type"] != "text":
        raise PydanticCustomError("unsupported_content_type", "only parts of type text are served")
    if set(part) != {"type", "text"} or not isinstance(part["text"], str):
        raise PydanticCustomError("invalid_type", 'want parts {"type": "text", "text": "..."}')
    return part["text"]


def as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def as_prompts(value: object) -> object:
    """Make a list of prompts of one: a text, or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return value


STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
            "maxItems": MAX_STOPS,
        },
    ]
}
CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "maxItems": MAX_PARTS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
        },
    ]
}
TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        TOKEN_IDS_SCHEMA,
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, TOKEN_IDS_SCHEMA]},
            "minItems": 1,
            "maxItems": MAX_PROMPTS,
        },
    ]
}

StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Text = Annotated[str, BeforeValidator(_join_parts), WithJsonSchema(CONTENT_SCHEMA)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_CONTEXT_TOKENS)]
TEXT_TAG, IDS_TAG = "<text>", "<ids>"
# What pydantic puts after a key that is wrong itself.
KEY_STEP = "[key]"
Prompt = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[TokenIds, Tag(IDS_TAG)],
    Discriminator(lambda value: TEXT_TAG if isinstance(value, str) else IDS_TAG),
]
MaxTokens = Annotated[int, Field(ge=1, le=MAX_CONTEXT_TOKENS)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
# Both 0 and -1 are off, as in vLLM.
TopK = Annotated[int, Field(ge=-1)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
RepetitionPenalty = Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)]
TokenIdText = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")]
LogitBias = Annotated[
    dict[TokenIdText, Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES),
]
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
CacheSalt = Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)]
