"""Hugging Face transformers on CPU, by `generate`: `python transformers_generate.py JOB`.

Each cell is measured with both ways of computing experts, and the faster counts. The decode rate is
that of (all new tokens) less (one new token).
"""

import json
import sys
import time
from typing import Any

WAYS = ("grouped_mm", "eager")


def main() -> None:
    """Entry point of the process."""
    import torch
    import transformers

    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.bfloat16, experts_implementation=WAYS[0]
    )
    model.eval()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    for cell in job["cells"]:
        line = {"cell": cell["name"], "versions": versions}
        try:
            line["note"], line["values"] = measure_best(model, cell)
        except Exception as error:
            print(f"{cell['name']}: {error!r}", file=sys.stderr, flush=True)
            line["error"] = type(error).__name__
        print(json.dumps(line), flush=True)
        sys.stdin.readline()


def measure_best(model: Any, cell: dict[str, Any]) -> tuple[str, dict[str, list[float]]]:
    """Measure a cell in every way; give the best one's name and values."""
    import torch

    measured = {}
    with torch.inference_mode():
        for way in WAYS:
            model.set_experts_implementation(way)
            measured[way] = measure(model, cell)
    best = max(WAYS, key=lambda way: sum(measured[way]))
    return best, {"tokens_per_s": measured[best]}


def measure(model: Any, cell: dict[str, Any]) -> list[float]:
    """Warm up, then measure as often as the cell asks for."""
    rate = prefill_rate if cell["kind"] == "prefill" else decode_rate
    generate(model, prompts(model, cell), min(3, cell["new_tokens"]))
    return [rate(model, cell) for _ in range(cell["repeats"])]


def prefill_rate(model: Any, cell: dict[str, Any]) -> float:
    """Prompt tokens per second."""
    num_tokens: int = cell["batch"] * cell["prompt_tokens"]
    return num_tokens / generate(model, prompts(model, cell), 1)


def decode_rate(model: Any, cell: dict[str, Any]) -> float:
    """Generated tokens per second after the first."""
    ids = prompts(model, cell)
    first_s = generate(model, ids, 1)
    seconds = generate(model, ids, cell["new_tokens"]) - first_s
    num_tokens: int = cell["batch"] * (cell["new_tokens"] - 1)
    return num_tokens / seconds


def prompts(model: Any, cell: dict[str, Any]) -> Any:
    """Random ids, without the control tokens."""
    import torch

    shape = (cell["batch"], cell["prompt_tokens"])
    return torch.randint(3, model.config.vocab_size, shape)


def generate(model: Any, ids: Any, num_tokens: int) -> float:
    """Seconds that it takes to generate so many tokens, greedily."""
    import torch

    started_s = time.perf_counter()
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    seconds = time.perf_counter() - started_s
    if found.shape[1] != ids.shape[1] + num_tokens:
        raise RuntimeError(f"{found.shape[1] - ids.shape[1]} of {num_tokens} tokens")
    return seconds


if __name__ == "__main__":
    main()
