"""Every error of the rooms below the edge survives the trip through Ray."""

import pickle
from types import ModuleType

import pytest

from cluster import errors as cluster_errors
from cluster.errors import EngineBusy, RequestTooLarge
from routing import errors as routing_errors

ARGUMENTS = {EngineBusy: (7, 2.5), RequestTooLarge: (900, 512)}


def errors_of(module: ModuleType) -> list[type[Exception]]:
    """The classes that a module defines."""
    found = [value for value in vars(module).values() if isinstance(value, type)]
    return [kind for kind in found if kind.__module__ == module.__name__]


@pytest.mark.parametrize("kind", [*errors_of(cluster_errors), *errors_of(routing_errors)])
def test_an_error_is_the_same_after_pickling(kind: type[Exception]) -> None:
    error = kind(*ARGUMENTS.get(kind, ("what happened",)))

    arrived = pickle.loads(pickle.dumps(error))

    assert type(arrived) is kind
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))


@pytest.mark.parametrize("module", [cluster_errors, routing_errors])
def test_every_error_is_in_the_tree_of_the_module_docstring(module: ModuleType) -> None:
    drawn = [line.split()[0] for line in (module.__doc__ or "").splitlines() if line.strip()]

    assert {kind.__name__ for kind in errors_of(module)} <= set(drawn)
