"""How a step's time grows: `python -m loadtest.bench.scaling`, or `make bench-scaling`.

Against sequences at once, against context, against requests that wait; and what the engine takes
beside the model. One process, experts and all, some seconds each.
"""

import importlib.metadata
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from loadtest.bench.curves import Curve, Overhead, ScalingRecord, draw_curves, scaling_page
from loadtest.bench.driving import Clock, Steps, Streaming, finish, random_prompt
from loadtest.bench.engine_adapter import (
    DrivenEngine,
    Limits,
    local_engine,
    random_engine,
    timed_engine,
)
from loadtest.bench.publish import publish
from loadtest.bench.sizes import SIZES
from loadtest.results import RESULTS, commit, hardware, result_stem

DEMO = Path(__file__).resolve().parent.parent.parent / "model" / "demo" / "checkpoint"
TINY = SIZES["tiny"]
MODELS: dict[str, Callable[[Limits], tuple[DrivenEngine, int]]] = {
    "demo": partial(local_engine, DEMO),
    TINY.name: partial(random_engine, TINY),
}
SEED = 5

NUM_ROUNDS = 3
NUM_STEPS = 20
WARM_UP_STEPS = 5
PROMPT_TOKENS = 16

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (256, 512, 1_024, 2_048, 4_096, 8_192, 16_384)
WINDOW_TOKENS = 1_024
NUM_WAITING = (0, 10, 100, 1_000, 10_000)
NUM_RUNNING = 4
OVERHEAD_BATCH = 16

# Never reached: streams are dropped with their engine.
ENDLESS_TOKENS = 4_096


def main(
    results: Annotated[Path, typer.Option(help="table, record and plot go here")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Measure every curve, and write them."""
    torch.set_num_threads(threads)
    console = Console(highlight=False)
    curves: list[Curve] = []
    for measure in (batch_curves, context_curves, waiting_curves):
        for curve in measure():
            console.print(f"{curve.model} against {curve.against}: done")
            curves.append(curve)
    record = ScalingRecord(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        hardware=hardware(),
        threads=threads,
        torch=importlib.metadata.version("torch"),
        curves=curves,
        overhead=demo_overhead(),
    )
    publish(
        results / result_stem("scaling"),
        scaling_page(record),
        record.to_json(),
        lambda path: draw_curves(record, path),
        lambda text: console.print(text, markup=False, soft_wrap=True),
    )


def batch_curves() -> Iterable[Curve]:
    """Decode steps of more and more sequences."""
    for name, new_engine in MODELS.items():
        engine, vocab_size = new_engine(Limits(max_running=max(BATCHES)))
        asked = {batch: prompts(batch, PROMPT_TOKENS, vocab_size) for batch in BATCHES}
        steps_s = rounds_of(engine, asked)
        yield Curve(against="sequences at once", model=name, steps_s=steps_s)


def context_curves() -> Iterable[Curve]:
    """Decode steps of one sequence that is longer and longer, with and without a window."""
    room = 2 * max(CONTEXTS)
    limits = Limits(kv_tokens=room, step_tokens=2_048)
    for window_tokens in (None, WINDOW_TOKENS):
        engine, vocab_size = random_engine(
            TINY, limits, context_tokens=room, window_tokens=window_tokens
        )
        asked = {context: prompts(1, context, vocab_size) for context in CONTEXTS}
        steps_s = rounds_of(engine, asked)
        name = TINY.name if window_tokens is None else f"{TINY.name}, window {window_tokens:,}"
        yield Curve(against="tokens of context", model=name, steps_s=steps_s)


def waiting_curves() -> Iterable[Curve]:
    """Decode steps of a few sequences while more and more requests wait behind them."""
    limits = Limits(max_running=NUM_RUNNING, max_waiting=max(NUM_WAITING))
    for name, new_engine in MODELS.items():
        steps_s: dict[int, list[float]] = {number: [] for number in NUM_WAITING}
        for _ in range(NUM_ROUNDS):
            for number in NUM_WAITING:
                # A new engine each time, since the sequences that run grow from step to step.
                engine, vocab_size = new_engine(limits)
                [queued, *running] = prompts(1 + NUM_RUNNING, PROMPT_TOKENS, vocab_size)
                waiting = [queued] * number
                steps_s[number] += waiting_steps(engine, running, waiting, time.perf_counter)
        yield Curve(against="requests waiting", model=name, steps_s=steps_s)


def demo_overhead() -> Overhead:
    """Decode steps of the demo model, and how much of each is the model's."""
    engine, model_time, vocab_size = timed_engine(DEMO, Limits())
    begin(engine, prompts(OVERHEAD_BATCH, PROMPT_TOKENS, vocab_size), ENDLESS_TOKENS)
    steps_s: list[float] = []
    model_s: list[float] = []
    for _ in range(WARM_UP_STEPS + NUM_ROUNDS * NUM_STEPS):
        model_time.seconds = 0.0
        steps_s += step_times(engine, 1, time.perf_counter)
        model_s.append(model_time.seconds)
    return Overhead(
        model="demo",
        batch=OVERHEAD_BATCH,
        steps_s=steps_s[WARM_UP_STEPS:],
        model_s=model_s[WARM_UP_STEPS:],
    )


def prompts(number: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    """Draw prompts at random."""
    rng = random.Random(SEED + num_tokens)
    return [random_prompt(rng, num_tokens, vocab_size) for _ in range(number)]


def rounds_of(
    engine: Steps,
    asked: Mapping[int, Sequence[Sequence[int]]],
    now_s: Clock = time.perf_counter,
) -> dict[int, list[float]]:
    """Measure decode steps of each group of prompts in turn, some rounds.

    From the second round on the engine remembers the prompts: only decode steps are measured, so
    that saves time and nothing else.
    """
    steps_s: dict[int, list[float]] = {x: [] for x in asked}
    for _ in range(NUM_ROUNDS):
        for x, group in asked.items():
            steps_s[x] += decode_steps(engine, group, now_s)
    return steps_s


def decode_steps(engine: Steps, prompts: Sequence[Sequence[int]], now_s: Clock) -> list[float]:
    """Measure decode steps of these prompts, and let them end."""
    num_tokens = 1 + WARM_UP_STEPS + NUM_STEPS
    streams = begin(engine, prompts, num_tokens)
    step_times(engine, WARM_UP_STEPS, now_s)
    steps_s = step_times(engine, NUM_STEPS, now_s)
    finish(engine, streams, num_tokens)
    return steps_s


def waiting_steps(
    engine: Steps,
    running: Sequence[Sequence[int]],
    waiting: Sequence[Sequence[int]],
    now_s: Clock,
) -> list[float]:
    """Measure decode steps of `running` while the others wait behind them."""
    begin(engine, running, ENDLESS_TOKENS)
    for prompt in waiting:
        engine.add(prompt, 1)
    # The first of these steps takes the new requests in.
    step_times(engine, WARM_UP_STEPS, now_s)
    return step_times(engine, NUM_STEPS, now_s)


def begin(engine: Steps, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Streaming]:
    """Queue requests, and step until each has its first token."""
    streams = [engine.add(prompt, num_tokens) for prompt in prompts]
    finish(engine, streams, 1)
    return streams


def step_times(engine: Steps, number: int, now_s: Clock) -> list[float]:
    """Seconds of each of so many steps."""
    times_s = [now_s()]
    for _ in range(number):
        engine.step()
        times_s.append(now_s())
    return [after - before for before, after in zip(times_s, times_s[1:], strict=False)]


if __name__ == "__main__":
    typer.run(main)
