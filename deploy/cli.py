"""The command line: serve, chat, generate, status, stop."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import ClusterError
from deploy.http_client import ApiClient, ApiFailure
from deploy.server import Server, ServerError, application_status, stop_application
from deploy.settings import DEMO_CHECKPOINT, Settings, SettingsError
from model.errors import ModelError

DEFAULT_URL = "http://127.0.0.1:8000"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mixtral and Mistral on Ray.",
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option(help="where mixray serves")]
Address = Annotated[str, typer.Option(help="Ray cluster; auto: the one on this machine")]
MaxTokens = Annotated[int, typer.Option(help="most tokens to generate")]
Temperature = Annotated[float, typer.Option(help="0 is greedy")]


@app.command()
def serve(
    model: Annotated[Path, typer.Option(help="checkpoint folder")] = DEMO_CHECKPOINT,
    expert_hosts: Annotated[int, typer.Option(help="0: experts inside the routers")] = 2,
    routers: Annotated[int, typer.Option(help="router actors")] = 1,
    dtype: Annotated[str | None, typer.Option(help="default: the checkpoint's own")] = None,
    host: Annotated[str, typer.Option(help="address of the HTTP server")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="port of the HTTP server")] = 8000,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    address: Annotated[
        str | None, typer.Option(help="join this Ray cluster; default: start one here")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any other setting, as name=value")
    ] = None,
) -> None:
    """Serve a model in the foreground, until Ctrl-C."""
    try:
        settings = Settings.model_validate(
            {
                "model": model,
                "expert_hosts": expert_hosts,
                "routers": routers,
                "dtype": dtype,
                "device": device,
                **_named_values(set_ or []),
            }
        )
        Server(settings, host, port, address, out).run()
    except ValidationError as error:
        problem = error.errors()[0]
        _fail(SettingsError(f"{problem['loc'][0]}: {problem['msg']}"))
    except (ModelError, SettingsError, ServerError, ClusterError) as error:
        _fail(error)


@app.command()
def chat(
    url: Url = DEFAULT_URL,
    system: Annotated[str | None, typer.Option(help="system prompt")] = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talk to the model in the terminal; Ctrl-D or /exit ends, /new begins anew."""
    client = _client(url)
    opening = [] if system is None else [{"role": "system", "content": system}]
    messages = list(opening)
    out.print(f"[bold]{client.model}[/] at {url}. /new begins anew, /exit or Ctrl-D ends.\n")
    while (line := _read_line()) is not None:
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            _answer(client, messages, max_tokens, temperature)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="text, or - for standard input")],
    url: Url = DEFAULT_URL,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    raw: Annotated[bool, typer.Option(help="complete the text itself, without a chat")] = False,
) -> None:
    """Print the answer to one prompt, as it comes."""
    text = sys.stdin.read() if prompt == "-" else prompt
    options = {"max_tokens": max_tokens, "temperature": temperature}
    client = _client(url)
    try:
        pieces = (
            client.complete(text, options)
            if raw
            else client.chat([{"role": "user", "content": text}], options)
        )
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except ApiFailure as error:
        _fail(error)
    sys.stdout.write("\n")


@app.command()
def status(
    address: Address = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what runs where."""
    try:
        answer = application_status(address)
    except (ClusterError, ServerError) as error:
        _fail(error)
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        for table in status_tables(answer):
            out.print(table)


@app.command()
def stop(address: Address = "auto") -> None:
    """Stop the application; a `mixray serve` in the foreground ends by itself."""
    try:
        stop_application(address)
    except (ClusterError, ServerError) as error:
        _fail(error)
    out.print("stopped")


def status_tables(answer: dict[str, Any]) -> list[Table]:
    """The status as tables for people."""
    deployments = Table("deployment", "status", "replicas", title="deployments")
    for item in answer["deployments"]:
        deployments.add_row(item["name"], item["status"], str(item["replicas"]))
    hosts = Table("expert host", "node", "pid", "address", "experts", "rows", title="expert hosts")
    for host in answer["expert_hosts"]:
        experts = " ".join(map(str, host["experts"])) or "-"
        rows = str(sum(host["rows_by_expert"].values()))
        hosts.add_row(host["id"], host["node"], str(host["pid"]), host["address"], experts, rows)
    routers = Table(
        *("router", "node", "pid", "running", "waiting", "KV", "lost", "resent"),
        title="routers",
    )
    for item in answer["routers"]:
        share = f"{100 * item['kv_tokens_used'] / item['kv_tokens']:.0f} %"
        counts = (str(item["running"]), str(item["waiting"]))
        faults = (str(item["lost_hosts"]), str(item["resent"]))
        routers.add_row(item["id"], item["node"], str(item["pid"]), *counts, share, *faults)
    return [deployments, hosts, routers]


def _named_values(pairs: list[str]) -> dict[str, str]:
    wrong = next((pair for pair in pairs if "=" not in pair), None)
    if wrong is not None:
        raise SettingsError(f"--set {wrong}: want name=value")
    return dict(pair.split("=", 1) for pair in pairs)


def _client(url: str) -> ApiClient:
    try:
        return ApiClient(url)
    except ApiFailure as error:
        _fail(error)


def _read_line() -> str | None:
    try:
        line = out.input("[bold cyan]you[/]  ").strip()
    except (EOFError, KeyboardInterrupt):
        out.print()
        return None
    return None if line == "/exit" else line


def _answer(
    client: ApiClient, messages: list[dict[str, str]], max_tokens: int, temperature: float
) -> None:
    """Print the answer as it comes and keep it; a failed turn is taken back."""
    out.print("[bold green]model[/]", end=" ")
    text = ""
    try:
        options = {"max_tokens": max_tokens, "temperature": temperature}
        for piece in client.chat(messages, options):
            text += piece
            out.out(piece, end="")
    except ApiFailure as error:
        out.print(f"[red]{escape(str(error))}[/]")
        messages.pop()
        return
    except KeyboardInterrupt:
        out.print(" [dim](interrupted)[/]", end="")
    out.print("\n")
    if text:
        messages.append({"role": "assistant", "content": text})
    else:
        messages.pop()


def _fail(error: Exception) -> NoReturn:
    err.print(f"[red]mixray:[/] {escape(str(error))}", soft_wrap=True)
    raise typer.Exit(2)
