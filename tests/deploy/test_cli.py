"""The command line: clear refusals that start nothing, a client of the API, tables."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from typer.testing import CliRunner, Result

from cluster.errors import NotReady
from deploy import cli
from deploy.cli import app, status_tables
from tests.checkpoints import write_serving_checkpoint
from tests.deploy.stub_server import (
    MODEL,
    Script,
    Stub,
    chat_events,
    error_event,
    serving,
    text_events,
)

STATUS = {
    "model": "mixray-demo",
    "version": 7,
    "status": "RUNNING",
    "deployments": [{"name": "Router", "status": "HEALTHY", "replicas": 2}],
    "expert_hosts": [
        {
            "id": "host-1",
            "pid": 101,
            "node": "10.0.0.1",
            "address": "tcp:10.0.0.1:7000",
            "addresses": ["tcp:10.0.0.1:7000"],
            "slots": 8,
            "experts": [0, 2, 5],
            "rows_by_expert": {"0": 40, "2": 2},
        },
        {
            "id": "host-2",
            "pid": 102,
            "node": "10.0.0.2",
            "address": "tcp:10.0.0.2:7000",
            "addresses": ["tcp:10.0.0.2:7000"],
            "slots": 8,
            "experts": [],
            "rows_by_expert": {},
        },
    ],
    "routers": [
        {
            "id": "router-1",
            "pid": 201,
            "node": "10.0.0.1",
            "running": 3,
            "waiting": 1,
            "kv_tokens_used": 16_384,
            "kv_tokens": 65_536,
            "lost_hosts": 1,
            "resent": 3,
        }
    ],
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_serving_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server with no scripts yet."""
    played = Stub([])
    with serving(played):
        yield played


def run(*arguments: object, typed: str = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def words(result: Result) -> str:
    """What was printed, on one line."""
    return " ".join(result.output.split())


def printed(answer: dict[str, Any]) -> str:
    """The tables as a terminal shows them."""
    console = Console(width=160)
    with console.capture() as capture:
        for table in status_tables(answer):
            console.print(table)
    return capture.get()


def assert_refused(result: Result, *clues: str) -> None:
    assert result.exit_code == 2, result.output
    assert words(result).startswith("mixray: ")
    assert all(clue in words(result) for clue in clues), result.output
    assert not ray.is_initialized()


def test_a_model_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = run("serve", "--model", tmp_path / "nowhere")

    assert_refused(result, "nowhere")


def test_an_empty_model_folder_is_refused(tmp_path: Path) -> None:
    result = run("serve", "--model", tmp_path)

    assert_refused(result)


def test_hosts_with_too_few_slots_are_refused(checkpoint: Path) -> None:
    result = run("serve", "--model", checkpoint, "--expert-hosts", 3, "--set", "slots_per_host=2")

    assert_refused(result, "3 hosts of 2 slots hold 6 experts; the model has 8")


def test_a_setting_without_a_value_is_refused() -> None:
    result = run("serve", "--set", "threads")

    assert_refused(result, "--set threads: want name=value")


@pytest.mark.parametrize("pair", ["thread=2", "threads=none", "link=pigeon"])
def test_a_wrong_setting_is_refused_by_its_name(pair: str) -> None:
    result = run("serve", "--set", pair)

    assert_refused(result, pair.partition("=")[0])


@pytest.mark.parametrize(
    ("option", "value"), [("--dtype", "int8"), ("--device", "tpu"), ("--routers", 0)]
)
def test_a_wrong_option_is_refused_by_its_name(option: str, value: object) -> None:
    result = run("serve", option, value)

    assert_refused(result, option[2:])


def test_a_port_that_is_taken_is_refused(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--model", checkpoint, "--port", port)

    assert_refused(result, f"127.0.0.1:{port}", "Address already in use")


def test_generate_prints_the_answer_as_it_comes(stub: Stub) -> None:
    stub.scripts = [chat_events("Par", "is.")]

    result = run("generate", "The capital?", "--url", stub.url, "--max-tokens", 5)

    assert (result.exit_code, result.output) == (0, "Paris.\n")
    assert stub.bodies == [
        {
            "model": MODEL,
            "stream": True,
            "messages": [{"role": "user", "content": "The capital?"}],
            "max_tokens": 5,
            "temperature": 0.0,
        }
    ]


def test_generate_reads_standard_input(stub: Stub) -> None:
    stub.scripts = [chat_events("yes")]

    run("generate", "-", "--url", stub.url, typed="from a pipe")

    assert stub.bodies[0]["messages"][0]["content"] == "from a pipe"


def test_generate_raw_completes_the_text_itself(stub: Stub) -> None:
    stub.scripts = [text_events(" Par", "is")]

    result = run("generate", "The capital is", "--raw", "--url", stub.url)

    assert result.output == " Paris\n"
    assert stub.bodies[0]["prompt"] == "The capital is"


def test_generate_fails_with_the_error_that_ends_a_stream(stub: Stub) -> None:
    stub.scripts = [[*chat_events("Par")[:-1], error_event("an expert is gone")]]

    result = run("generate", "The capital?", "--url", stub.url)

    assert result.exit_code == 2
    assert "Par" in result.output and "an expert is gone" in result.output


def test_generate_fails_when_the_stream_ends_without_done(stub: Stub) -> None:
    stub.scripts = [chat_events("Par")[:-1]]

    result = run("generate", "The capital?", "--url", stub.url)

    assert result.exit_code == 2
    assert "the answer broke off" in words(result)


def test_generate_fails_when_the_connection_breaks(stub: Stub) -> None:
    stub.scripts = [chat_events("Par")[:-1]]
    stub.is_cut = True

    result = run("generate", "The capital?", "--url", stub.url)

    assert result.exit_code == 2
    assert "broke" in words(result)


def test_a_refusal_is_shown_with_its_status(stub: Stub) -> None:
    stub.scripts = [400]

    result = run("generate", "The capital?", "--url", stub.url)

    assert result.exit_code == 2
    assert "400: no room for this" in words(result)


@pytest.mark.parametrize("command", [["generate", "Hello"], ["chat"]])
def test_a_server_that_is_not_there_is_named(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"

    result = run(*command, "--url", url)

    assert_refused(result, f"nothing serves at {url}")


def chat(stub: Stub, scripts: list[Script | int], typed: str, *options: str) -> Result:
    stub.scripts = scripts
    return run("chat", "--url", stub.url, *options, typed=typed)


def test_chat_keeps_the_conversation(stub: Stub) -> None:
    result = chat(stub, [chat_events("One."), chat_events("Two.")], "a\n\nb\n/exit\n")

    assert result.exit_code == 0
    assert "One." in result.output and "Two." in result.output
    assert stub.bodies[1]["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "b"},
    ]


def test_chat_begins_anew_and_keeps_the_system_prompt(stub: Stub) -> None:
    chat(stub, [chat_events("One."), chat_events("Two.")], "a\n/new\nb\n", "--system", "Be brief.")

    assert stub.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    "failing", [400, [error_event("an expert is gone")], chat_events("half")[:-1]]
)
def test_chat_takes_a_failed_turn_back_and_goes_on(stub: Stub, failing: Script | int) -> None:
    result = chat(stub, [failing, chat_events("Two.")], "a\nb\n/exit\n")

    assert result.exit_code == 0
    assert "Two." in result.output
    assert stub.bodies[1]["messages"] == [{"role": "user", "content": "b"}]


def test_the_status_tables_show_hosts_routers_and_deployments() -> None:
    shown = printed(STATUS)

    assert "0 2 5" in shown
    assert "tcp:10.0.0.2:7000" in shown
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert ["Router", "HEALTHY", "2"] in cells
    assert ["host-1", "10.0.0.1", "101", "tcp:10.0.0.1:7000", "0 2 5", "42"] in cells
    assert ["host-2", "10.0.0.2", "102", "tcp:10.0.0.2:7000", "-", "0"] in cells
    assert ["router-1", "10.0.0.1", "201", "3", "1", "25 %", "1", "3"] in cells


def test_the_status_tables_render_for_an_application_that_has_just_begun() -> None:
    shown = printed({"deployments": [], "expert_hosts": [], "routers": []})

    assert "expert hosts" in shown


def test_status_is_printed_as_json_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "application_status", lambda address: STATUS)

    result = run("status", "--json")

    assert json.loads(result.output) == STATUS


@pytest.mark.parametrize("command", ["status", "stop"])
def test_without_a_cluster_the_command_says_so(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(address: str) -> None:
        raise NotReady(f"no Ray cluster at {address}")

    name = {"status": "application_status", "stop": "stop_application"}[command]
    monkeypatch.setattr(cli, name, refuse)

    result = run(command)

    assert_refused(result, "no Ray cluster at auto")
