"""Rules of the whole repository that no single room's tests can see."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from deploy.api.errors import ERROR_TABLE

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("routing", "model", "cluster", "deploy", "loadtest")
FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 80

RAY_FILES = {
    "cluster/expert_host.py",
    "cluster/handle.py",
    "cluster/placement_follower.py",
    "cluster/router.py",
    "cluster/router_client.py",
    "cluster/whereabouts.py",
    "deploy/app.py",
    "deploy/loading.py",
    "deploy/ingress.py",
    "deploy/server.py",
}
ENVIRONMENT_FILES = {"deploy/environment.py"}
WEB_MODULES = {"fastapi", "starlette", "pydantic"}
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "putenv"}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> set[str]:
    """First parts of the names of all imported modules, imports inside functions included."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.split(".")[0])
    return names


def calls_of(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call))


def files_that_import(modules: set[str]) -> set[str]:
    return {name_of(path) for path in FILES if imports_of(path) & modules}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter without a GPU."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_rooms_import_only_from_below() -> None:
    # In a process of its own: the linter turns off the loggers of the one that it runs in.
    done = run_python(
        "from importlinter.cli import lint_imports\nexit(lint_imports(no_cache=True))"
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_s_generic_name_means_this_repository(room: str) -> None:
    spec = importlib.util.find_spec(room)

    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).resolve() == REPOSITORY / room / "__init__.py"


def process_of(path: Path) -> str:
    """Where a module runs: Locust patches its own process, which spoils it for most others."""
    name = name_of(path)
    if name.startswith("loadtest/bench/"):
        return "bench"
    return "locust" if name.startswith("loadtest/") else "server"


@pytest.mark.parametrize("process", ["server", "locust", "bench"])
def test_every_module_imports_without_a_gpu(process: str) -> None:
    names = [
        name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in FILES
        if process_of(path) == process
    ]

    done = run_python(f"import importlib\nfor name in {names}:\n    importlib.import_module(name)")

    assert done.returncode == 0, done.stderr


def test_the_python_handle_needs_no_torch() -> None:
    done = run_python("import sys, cluster.handle\nprint('torch' in sys.modules)")

    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("module", ["model.sampling_params", "cluster.engine.request"])
def test_what_clients_share_with_the_server_needs_neither_torch_nor_ray(module: str) -> None:
    done = run_python(f"import sys, {module}\nprint({{'torch', 'ray'}} & sys.modules.keys())")

    assert done.stdout == "set()\n", done.stderr


def test_ray_is_imported_only_where_actors_and_the_application_are() -> None:
    assert files_that_import({"ray"}) == RAY_FILES


def test_web_frameworks_are_imported_only_at_the_edge() -> None:
    found = files_that_import(WEB_MODULES)

    assert {name for name in found if not name.startswith("deploy/")} == set()


def test_nothing_is_unpickled_or_evaluated() -> None:
    calls = {
        f"{name_of(path)}: {call.func.id}"
        for path in FILES
        for call in calls_of(path)
        if isinstance(call.func, ast.Name) and call.func.id in UNSAFE_CALLS
    }

    assert files_that_import(UNSAFE_MODULES) | calls == set()


def test_nothing_is_loaded_by_torch_which_may_unpickle() -> None:
    calls = [ast.unparse(call.func) for path in FILES for call in calls_of(path)]

    assert "torch.load" not in calls


def test_the_environment_is_touched_in_one_file_only() -> None:
    found = {
        name_of(path)
        for path in FILES
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT_NAMES)
        or (isinstance(node, ast.alias) and node.name in ENVIRONMENT_NAMES)
    }

    assert found == ENVIRONMENT_FILES


def test_every_file_begins_with_a_docstring() -> None:
    assert [name_of(path) for path in FILES if not ast.get_docstring(tree_of(path))] == []


def test_files_are_short() -> None:
    long = [name_of(path) for path in FILES if len(path.read_text().splitlines()) > MAX_FILE_LINES]

    assert long == []


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}: {node.name}"
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    }

    assert long == set()


def test_packages_hold_nothing_but_a_docstring() -> None:
    packages = [path for path in FILES if path.name == "__init__.py"]

    assert [name_of(path) for path in packages if len(tree_of(path).body) != 1] == []


@pytest.mark.parametrize("room", ["routing", "model", "cluster"])
def test_every_error_has_an_answer_at_the_edge(room: str) -> None:
    module = importlib.import_module(f"{room}.errors")
    errors = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }

    assert errors <= ERROR_TABLE.keys()
