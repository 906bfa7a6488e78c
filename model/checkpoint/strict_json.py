"""JSON from files that others wrote: small, shallow, without repeated keys or non-numbers."""

import json
from typing import Any, NoReturn

from model.errors import CheckpointError, shorten


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        CheckpointError: not UTF-8 JSON, not an object, a key twice, NaN or Infinity, a byte order
            mark, or nested too deeply; names `where`.
    """
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise CheckpointError(where, "JSON nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(where, f"not valid JSON: {shorten(str(error))}") from error
    if not isinstance(value, dict):
        raise CheckpointError(where, f"a JSON object is wanted, found {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shorten(key)} appears twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
