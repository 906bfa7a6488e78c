"""vLLM on CPU, by its offline class: `python vllm_offline.py JOB`.

The decode rate is that of (all new tokens) less (one new token). Eager, without prefix caching.
"""

import json
import random
import sys
import time
from typing import Any

MAX_TOKENS = 1_024


def main() -> None:
    """Entry point of the process."""
    import torch
    import vllm

    job = json.loads(sys.argv[1])
    llm = vllm.LLM(
        job["model"],
        dtype="bfloat16",
        max_model_len=MAX_TOKENS,
        max_num_seqs=16,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    rng = random.Random(job["seed"])
    for cell in job["cells"]:
        line = {"cell": cell["name"], "versions": versions}
        try:
            line["values"] = {"tokens_per_s": measure(llm, cell, rng)}
        except Exception as error:
            print(f"{cell['name']}: {error!r}", file=sys.stderr, flush=True)
            line["error"] = type(error).__name__
        print(json.dumps(line), flush=True)
        sys.stdin.readline()


def measure(llm: Any, cell: dict[str, Any], rng: random.Random) -> list[float]:
    """Warm up, then measure as often as the cell asks for."""
    rate = prefill_rate if cell["kind"] == "prefill" else decode_rate
    generate(llm, cell, rng, min(3, cell["new_tokens"]))
    return [rate(llm, cell, rng) for _ in range(cell["repeats"])]


def prefill_rate(llm: Any, cell: dict[str, Any], rng: random.Random) -> float:
    """Prompt tokens per second."""
    num_tokens: int = cell["batch"] * cell["prompt_tokens"]
    return num_tokens / generate(llm, cell, rng, 1)


def decode_rate(llm: Any, cell: dict[str, Any], rng: random.Random) -> float:
    """Generated tokens per second after the first."""
    first_s = min(generate(llm, cell, rng, 1) for _ in range(2))
    seconds = generate(llm, cell, rng, cell["new_tokens"]) - first_s
    num_tokens: int = cell["batch"] * (cell["new_tokens"] - 1)
    return num_tokens / seconds


def generate(llm: Any, cell: dict[str, Any], rng: random.Random, num_tokens: int) -> float:
    """Seconds that it takes to generate so many tokens, greedily."""
    import vllm

    vocab_size = llm.llm_engine.model_config.get_vocab_size()
    prompts = [
        {"prompt_token_ids": [1, *(rng.randrange(3, vocab_size) for _ in range(length - 1))]}
        for length in [cell["prompt_tokens"]] * cell["batch"]
    ]
    params = vllm.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    started_s = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started_s
    if any(len(output.outputs[0].token_ids) != num_tokens for output in outputs):
        raise RuntimeError(f"not every sequence has {num_tokens} tokens")
    return seconds


if __name__ == "__main__":
    main()
