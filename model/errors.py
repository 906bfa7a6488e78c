"""What can go wrong with a model, its files and its prompts.

ModelError
    ConfigError          a value in config.json or params.json is missing, absurd or unsupported
    CheckpointError      a checkpoint folder cannot be used
        MissingTensor
        UnexpectedTensor
        ShapeMismatch
    TokenizerError       the tokenizer file cannot be used
    PromptError          the messages or token ids cannot be made into a prompt
    SamplingError        a sampling parameter is out of its range
"""

import reprlib
from collections.abc import Sequence
from typing import Any

_MAX_NAME_CHARS = 120
_MAX_LISTED = 5


class ModelError(Exception):
    """Root of this room's errors. They survive a trip through Ray, which pickles them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


class ConfigError(ModelError):
    """A configuration value that cannot be served."""

    def __init__(self, field: str, got: object, want: str, where: str = "") -> None:
        place = f"{where}: {field}" if where else field
        super().__init__(f"{place}: got {reprlib.repr(got)}, want {want}")
        self.field = field
        self.got = got
        self.want = want

    def in_file(self, where: str) -> "ConfigError":
        """Give the same error, naming the file that holds the value."""
        return ConfigError(self.field, self.got, self.want, where)


class CheckpointError(ModelError):
    """A checkpoint folder, or one file of it, that cannot be used."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where


class MissingTensor(CheckpointError):
    """The checkpoint lacks a tensor that the configuration calls for."""

    def __init__(self, where: str, *tensors: str) -> None:
        super().__init__(where, f"missing {_listed(tensors)}")
        self.tensors = tensors


class UnexpectedTensor(CheckpointError):
    """The checkpoint holds a tensor that the configuration does not know."""

    def __init__(self, where: str, *tensors: str) -> None:
        super().__init__(where, f"not part of this configuration: {_listed(tensors)}")
        self.tensors = tensors


class ShapeMismatch(CheckpointError):
    """A tensor's shape differs from the one that the configuration implies."""

    def __init__(self, where: str, tensor: str, got: Sequence[int], want: Sequence[int]) -> None:
        hint = "; is it stored transposed?" if tuple(got) == tuple(reversed(want)) else ""
        super().__init__(where, f"{tensor}: got {tuple(got)}, want {tuple(want)}{hint}")
        self.tensor = tensor


class TokenizerError(ModelError):
    """The tokenizer file is missing or cannot be read."""


class PromptError(ModelError):
    """Messages or token ids that cannot be made into a prompt."""

    def __init__(self, message: str, param: str, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class SamplingError(ModelError):
    """A sampling parameter out of its range."""

    def __init__(self, field: str, got: object, want: str) -> None:
        super().__init__(f"{field}: got {got!r}, want {want}")
        self.field = field


def _restore(kind: type[ModelError], args: tuple[Any, ...], state: dict[str, Any]) -> ModelError:
    """Make an error from its message and fields, without its constructor."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def shorten(text: str) -> str:
    """Make text from a file fit for one line of a message: printable ASCII, of bounded length."""
    plain = text if text.isascii() and text.isprintable() else ascii(text)
    return plain if len(plain) <= _MAX_NAME_CHARS else plain[:_MAX_NAME_CHARS] + "..."


def _listed(tensors: Sequence[str]) -> str:
    names = ", ".join(shorten(name) for name in tensors[:_MAX_LISTED])
    more = len(tensors) - _MAX_LISTED
    return f"{'tensors' if len(tensors) > 1 else 'tensor'} {names}" + (
        f" and {more} more" if more > 0 else ""
    )
