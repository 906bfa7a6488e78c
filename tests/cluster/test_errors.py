"""Every error of the rooms below the edge survives the trip through Ray."""

import pickle
from types import ModuleType

import pytest

from cluster import errors as cluster_errors
from cluster.errors import EngineBusy, RequestTooLarge
from model import errors as model_errors
from model.errors import (
    CheckpointError,
    ConfigError,
    MissingTensor,
    PromptError,
    SamplingError,
    ShapeMismatch,
    UnexpectedTensor,
)
from routing import errors as routing_errors

ARGUMENTS: dict[type[Exception], tuple[object, ...]] = {
    EngineBusy: (7, 2.5),
    RequestTooLarge: (900, 512),
    ConfigError: ("dim", 0, "a number from 1", "config.json"),
    CheckpointError: ("model.safetensors", "too short"),
    MissingTensor: ("folder", "a", "b"),
    UnexpectedTensor: ("folder", "a"),
    ShapeMismatch: ("folder", "a", (2, 3), (3, 2)),
    PromptError: ("empty", "messages", "empty_array"),
    SamplingError: ("top_p", 2, "at most 1"),
}
ROOMS = [routing_errors, model_errors, cluster_errors]


def errors_of(module: ModuleType) -> list[type[Exception]]:
    """The classes that a module defines."""
    found = [value for value in vars(module).values() if isinstance(value, type)]
    return [kind for kind in found if kind.__module__ == module.__name__]


@pytest.mark.parametrize("kind", [kind for room in ROOMS for kind in errors_of(room)])
def test_an_error_is_the_same_after_pickling(kind: type[Exception]) -> None:
    error = kind(*ARGUMENTS.get(kind, ("what happened",)))

    arrived = pickle.loads(pickle.dumps(error))

    assert type(arrived) is kind
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


@pytest.mark.parametrize("module", ROOMS)
def test_every_error_is_in_the_tree_of_the_module_docstring(module: ModuleType) -> None:
    drawn = [line.split()[0] for line in (module.__doc__ or "").splitlines() if line.strip()]

    assert {kind.__name__ for kind in errors_of(module)} <= set(drawn)
