from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench.contestants import Environments, chosen, everybody, limits, without_folders

BARE = Environments(model=Path("/models/mid"), threads=2, num_hosts=2, spin_count="0")
FULL = replace(
    BARE,
    serve_settings=("threads=2",),
    transformers_python=Path("/a/bin/python"),
    vllm_python=Path("/b/bin/python"),
    llama_cpp=Path("/c/bin"),
    gguf=Path("/models/mid.gguf"),
)


def names(environments: Environments) -> list[str]:
    return [each.name for each in everybody(environments)[0]]


def test_mixray_is_always_there_and_the_absent_are_named_with_the_reason() -> None:
    present, absent = everybody(BARE)

    assert [each.name for each in present] == ["mixray-local", "mixray-linked", "mixray-http"]
    assert absent["vllm"] == "no --vllm-python"
    assert list(absent) == ["transformers", "vllm", "llama.cpp"]


def test_every_rival_whose_place_is_named_runs() -> None:
    assert names(FULL)[3:] == [
        "transformers",
        "vllm",
        "vllm-http",
        "llama.cpp",
        "llama.cpp-http",
    ]
    assert everybody(FULL)[1] == {}


def test_llama_cpp_needs_the_model_in_its_own_format() -> None:
    assert "llama.cpp" not in names(replace(FULL, gguf=None))


def test_places_in_a_command_are_filled_where_they_stand_alone() -> None:
    http = next(each for each in everybody(FULL)[0] if each.name == "mixray-http")

    command = http.command_with(port=81)

    assert command[-8:] == [
        *("--model", "/models/mid", "--port", "81"),
        *("--expert-hosts", "2", "--set", "threads=2"),
    ]


def test_mixray_runs_in_the_environment_that_serve_gives_its_routers() -> None:
    local = everybody(replace(BARE, spin_count="7"))[0][0]

    assert local.command[:2] == ("env", "GOMP_SPINCOUNT=7")


def test_no_folder_of_this_machine_is_shown() -> None:
    shown = [each.shown for each in [limits(FULL), *everybody(FULL)[0]]]

    assert not any("/" in command for command in shown)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("/home/me/env/bin/python -m x --model /tmp/mid", "python -m x --model mid"),
        ("A=0-1 /b/python --file=/c/d.gguf", "A=0-1 python --file=d.gguf"),
        ("http://127.0.0.1:80/v1 a/b", "http://127.0.0.1:80/v1 a/b"),
    ],
)
def test_folders_are_cut_off_absolute_paths_alone(text: str, cut: str) -> None:
    assert without_folders(text) == cut


def test_contestants_are_chosen_by_how_their_names_begin() -> None:
    present, _ = everybody(FULL)

    assert [each.name for each in chosen(present, ["vllm", "mixray-l"])] == [
        "mixray-local",
        "mixray-linked",
        "vllm",
        "vllm-http",
    ]
    assert chosen(present, []) == present


def test_a_name_that_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="sglang: nobody here has such a name; there are mixray-l"):
        chosen(everybody(BARE)[0], ["sglang"])
