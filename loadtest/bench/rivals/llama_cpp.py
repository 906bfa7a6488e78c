"""llama.cpp, by its own benchmark programs: `python llama_cpp.py JOB BIN_FOLDER`.

Decode cells come from llama-batched-bench, prefill cells from llama-bench; both warm up by
themselves. Needs no package at all.
"""

import json
import os
import re
import resource
import subprocess
import sys
from typing import Any

SPARE_TOKENS = 256


def main() -> None:
    """Entry point of the process."""
    job, folder = json.loads(sys.argv[1]), sys.argv[2]
    for cell in job["cells"]:
        line: dict[str, Any] = {"cell": cell["name"]}
        try:
            rates, build = measure(job, cell, folder)
            line["values"] = {"tokens_per_s": rates}
            line["versions"] = {"llama.cpp": build} if build else {}
        except Exception as error:
            print(f"{cell['name']}: {error!r}", file=sys.stderr, flush=True)
            line["error"] = type(error).__name__
        # Of the largest child so far, which is the model's only process.
        line["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(json.dumps(line), flush=True)
        sys.stdin.readline()


def measure(job: dict[str, Any], cell: dict[str, Any], folder: str) -> tuple[list[float], str]:
    """Tokens per second, a sample for each repetition, and the build."""
    if cell["kind"] == "prefill":
        return parse_bench(run(bench_command(job, cell, folder)))
    text = run(batched_bench_command(job, cell, folder))
    return [parse_batched_bench(text, cell["batch"])], ""


def bench_command(job: dict[str, Any], cell: dict[str, Any], folder: str) -> list[str]:
    """Prompt processing alone."""
    sizes = ["-p", str(cell["prompt_tokens"]), "-n", "0", "-r", str(cell["repeats"])]
    common = ["-m", job["model"], "-t", str(job["threads"]), "-o", "json"]
    return [os.path.join(folder, "llama-bench"), *common, *sizes]


def batched_bench_command(job: dict[str, Any], cell: dict[str, Any], folder: str) -> list[str]:
    """Sequences with prompts of their own."""
    length = cell["prompt_tokens"] + cell["new_tokens"]
    context = cell["batch"] * length + SPARE_TOKENS
    common = ["-m", job["model"], "-t", str(job["threads"]), "-c", str(context)]
    batch = ["-b", "2048", "-ub", "512", "-npl", str(cell["batch"])]
    sizes = ["-npp", str(cell["prompt_tokens"]), "-ntg", str(cell["new_tokens"])]
    return [os.path.join(folder, "llama-batched-bench"), *common, *batch, *sizes]


def run(command: list[str]) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def parse_bench(text: str) -> tuple[list[float], str]:
    """Samples and build of llama-bench's JSON."""
    [row] = json.loads(text)
    return row["samples_ts"], row.get("build_commit", "")


def parse_batched_bench(text: str, batch: int) -> float:
    """Tokens per second of llama-batched-bench's table: PP TG B N_KV T_PP S_PP T_TG S_TG T S."""
    for line in text.splitlines():
        columns = re.findall(r"[\d.]+", line)
        if re.match(r"\|\s*\d", line) and int(columns[2]) == batch:
            return float(columns[7])
    raise ValueError("no row of the table")


if __name__ == "__main__":
    main()
