"""Everybody who can be measured on this machine, as commands; and who is absent, and why.

A rival runs in an environment of its own, which the user names; nothing is looked for.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.cells import LIMITS_NAME, Cell, Kind

RIVALS = Path(__file__).resolve().parent / "rivals"
JOB, PORT, MODEL = "{job}", "{port}", "{model}"

OURS = "mixray"
LINKED, HTTP = f"{OURS}-linked", f"{OURS}-http"

OFFLINE: tuple[Kind, ...] = ("decode", "prefill")
ENGINE: tuple[Kind, ...] = (*OFFLINE, "burst")
SERVER: tuple[Kind, ...] = ("server",)
SERVER_STREAMS = 16
SERVER_TOKENS = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One column of processes to measure.

    Attributes:
        command: with `JOB`, `PORT` and `MODEL` where those go.
        model: checkpoint folder or file that it reads.
        is_ours: runs in this checkout, with this Python.
    """

    name: str
    kinds: tuple[Kind, ...]
    command: tuple[str, ...]
    model: Path
    is_ours: bool = False

    @property
    def is_server(self) -> bool:
        """Whether it is asked over HTTP."""
        return self.kinds == SERVER

    @property
    def shown(self) -> str:
        """The command as others can repeat it: no folder of this machine is in it."""
        return without_folders(" ".join(self.command))

    def cells_of(self, cells: Sequence[Cell]) -> tuple[Cell, ...]:
        """Give those of the cells that it can do."""
        return tuple(cell for cell in cells if cell.kind in self.kinds)

    def command_with(self, job: str = "", port: int = 0) -> list[str]:
        """Fill the places in the command."""
        values = {JOB: job, PORT: str(port), MODEL: str(self.model)}
        return [values.get(word, word) for word in self.command]


@dataclass(frozen=True, kw_only=True, slots=True)
class Environments:
    """Where rivals are, and how mixray is to run; None: not here.

    Attributes:
        spin_count: GOMP_SPINCOUNT of mixray's engine.
        serve_settings: `name=value` for `mixray serve --set`.
        llama_cpp: folder of llama.cpp's programs.
        gguf: the model in llama.cpp's format.
    """

    model: Path
    threads: int
    num_hosts: int
    spin_count: str
    serve_settings: tuple[str, ...] = ()
    transformers_python: Path | None = None
    vllm_python: Path | None = None
    llama_cpp: Path | None = None
    gguf: Path | None = None


def without_folders(text: str) -> str:
    """Cut the folders off every absolute path in a text.

    `/home/me/env/bin/python -m x --model /tmp/mid` becomes `python -m x --model mid`.
    """
    return re.sub(r"(?<![\w.:/])/(?:[^\s/='\"]+/)*(?=[^\s/='\"]+)", "", text)


def limits(environments: Environments) -> Contestant:
    """Measure the machine itself."""
    command = (sys.executable, "-m", "loadtest.bench.limits", JOB)
    return _ours(LIMITS_NAME, ("limits",), command, environments)


def everybody(environments: Environments) -> tuple[list[Contestant], dict[str, str]]:
    """Give the contestants, and the reason of each who is absent."""
    present = _mixray(environments)
    absent: dict[str, str] = {}
    for name, found, missing in (
        ("transformers", _transformers(environments), "no --transformers-python"),
        ("vllm", _vllm(environments), "no --vllm-python"),
        ("llama.cpp", _llama_cpp(environments), "no --llama-cpp, or no GGUF file of the model"),
    ):
        present.extend(found)
        if not found:
            absent[name] = missing
    return present, absent


def chosen(contestants: Sequence[Contestant], only: Sequence[str]) -> list[Contestant]:
    """Keep those whose names begin with one of `only`; all if that is empty.

    Raises:
        ValueError: one of `only` is nobody's name.
    """
    for prefix in only:
        if not any(each.name.startswith(prefix) for each in contestants):
            names = ", ".join(each.name for each in contestants)
            raise ValueError(f"{prefix}: nobody here has such a name; there are {names}")
    return [each for each in contestants if not only or each.name.startswith(tuple(only))]


def _mixray(environments: Environments) -> list[Contestant]:
    spin = ("env", f"GOMP_SPINCOUNT={environments.spin_count}")
    engine = (*spin, sys.executable, "-m", "loadtest.bench.mixray_engine")
    serve = (sys.executable, "-m", "deploy", "serve", "--model", MODEL, "--port", PORT)
    hosts = ("--expert-hosts", str(environments.num_hosts))
    settings = [word for each in environments.serve_settings for word in ("--set", each)]
    return [
        _ours(f"{OURS}-local", ENGINE, (*engine, "local", JOB), environments),
        _ours(LINKED, ENGINE, (*engine, "linked", JOB), environments),
        _ours(HTTP, SERVER, (*serve, *hosts, *settings), environments),
    ]


def _ours(
    name: str, kinds: tuple[Kind, ...], command: tuple[str, ...], environments: Environments
) -> Contestant:
    return Contestant(
        name=name, kinds=kinds, command=command, model=environments.model, is_ours=True
    )


def _transformers(environments: Environments) -> list[Contestant]:
    if environments.transformers_python is None:
        return []
    command = (str(environments.transformers_python), str(RIVALS / "transformers_generate.py"), JOB)
    return [_rival("transformers", OFFLINE, command, environments.model)]


def _vllm(environments: Environments) -> list[Contestant]:
    if environments.vllm_python is None:
        return []
    # Left to itself it keeps one core free, and half of a machine of two is lost.
    cores = f"VLLM_CPU_OMP_THREADS_BIND=0-{environments.threads - 1}"
    quiet = ("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1")
    python = ("env", cores, "VLLM_CPU_KVCACHE_SPACE=1", *quiet, str(environments.vllm_python))
    script = (str(RIVALS / "vllm_offline.py"), JOB)
    # Its `vllm serve` misses package metadata in the CPU build.
    server = ("-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--port", PORT)
    size = ("--max-model-len", str(SERVER_TOKENS), "--max-num-seqs", str(SERVER_STREAMS))
    ways = ("--dtype", "bfloat16", "--enforce-eager", "--no-enable-prefix-caching")
    names = ("--served-model-name", "bench", "--host", "127.0.0.1")
    return [
        _rival("vllm", OFFLINE, (*python, *script), environments.model),
        _rival("vllm-http", SERVER, (*python, *server, *size, *ways, *names), environments.model),
    ]


def _llama_cpp(environments: Environments) -> list[Contestant]:
    folder, gguf = environments.llama_cpp, environments.gguf
    if folder is None or gguf is None:
        return []
    script = (sys.executable, str(RIVALS / "llama_cpp.py"), JOB, str(folder))
    program = (str(folder / "llama-server"), "-m", MODEL, "--port", PORT, "--host", "127.0.0.1")
    # Each stream gets an equal part of the context.
    streams = ("-np", str(SERVER_STREAMS), "--cont-batching", "-c", str(SERVER_STREAMS * 512))
    ways = ("-t", str(environments.threads), "-b", "2048", "-ub", "512", "--no-webui")
    return [
        _rival("llama.cpp", OFFLINE, script, gguf),
        _rival("llama.cpp-http", SERVER, (*program, *streams, *ways), gguf),
    ]


def _rival(name: str, kinds: tuple[Kind, ...], command: tuple[str, ...], model: Path) -> Contestant:
    return Contestant(name=name, kinds=kinds, command=command, model=model)
