import json

import pytest

from loadtest.bench.answer import Answer, parse_answer
from loadtest.bench.rivals.llama_cpp import (
    batched_bench_command,
    bench_command,
    parse_batched_bench,
    parse_bench,
)

BATCHED = """
main: n_kv_max = 544, n_batch = 2048, flash_attn = -1, n_threads = 2

|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|    16 |     64 |    4 |    320 |    0.031 |  2064.52 |    0.629 |   407.05 |    0.660 |   484.85 |

llama_perf_context_print:        load time =      41.13 ms
"""
BENCH = json.dumps(
    [{"build_commit": "0c1e570", "n_prompt": 512, "samples_ts": [640.1, 650.2], "avg_ts": 645.2}]
)
JOB = {"model": "m.gguf", "threads": 2}
CELL = {"batch": 4, "prompt_tokens": 16, "new_tokens": 64, "repeats": 3}


def test_the_decode_rate_is_read_from_llama_batched_bench_s_table() -> None:
    assert parse_batched_bench(BATCHED, batch=4) == 407.05


def test_a_table_without_the_batch_is_a_fault() -> None:
    with pytest.raises(ValueError, match="no row"):
        parse_batched_bench(BATCHED, batch=16)


def test_every_repetition_of_llama_bench_is_a_sample() -> None:
    assert parse_bench(BENCH) == ([640.1, 650.2], "0c1e570")


def test_llama_cpp_s_programs_are_asked_for_the_cell() -> None:
    batched, prefill = batched_bench_command(JOB, CELL, "bin"), bench_command(JOB, CELL, "bin")

    assert batched[0] == "bin/llama-batched-bench"
    assert " ".join(batched).endswith("-c 576 -b 2048 -ub 512 -npl 4 -npp 16 -ntg 64")
    assert prefill == "bin/llama-bench -m m.gguf -t 2 -o json -p 16 -n 0 -r 3".split()


def test_an_answer_is_a_line_of_json_and_anything_else_is_noise() -> None:
    line = json.dumps({"cell": "decode-1", "values": {"tokens_per_s": [1.0]}, "peak_bytes": 7})

    assert parse_answer(line) == Answer(
        cell="decode-1", values={"tokens_per_s": [1.0]}, peak_bytes=7
    )
    for noise in ("Loading weights: 100%", "[1, 2]", "3", '{"cell": "c", "unknown": 1}', "{}"):
        assert parse_answer(noise) is None
