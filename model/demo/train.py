"""Train the demo model: `python -m model.demo.train`.

Writes a checkpoint folder in Hugging Face's layout. The length of the training is a time, since
that is what a newcomer knows about a machine; `--resume` continues after a stop.
"""

import argparse
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from sentencepiece import SentencePieceProcessor

from model.demo.batches import step_batches
from model.demo.card import write_card
from model.demo.evaluate import as_table, evaluate
from model.demo.export import load_network, save_network
from model.demo.network import Network, Shape
from model.demo.optimizer import Optimizer
from model.demo.progress import ProgressDisplay, Report
from model.demo.schedule import CONTEXT_TOKENS, context_at, learning_rate_factor
from model.demo.scoring import exact_answers
from model.demo.text import TASKS, held_out_conversations
from model.demo.tokenizer import train_tokenizer
from model.demo.training_run import TrainingRun

HERE = Path(__file__).parent
_SAVE_EVERY_S = 240.0
# The small evaluation during training only shows the trend.
_TREND_COUNT = 16
_FINAL_COUNT = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line says."""

    minutes: float
    threads: int
    out: Path
    seed: int
    resume: bool

    @property
    def state_path(self) -> Path:
        """Where the training state lies; never committed."""
        return HERE / ".state" / f"{self.out.name}-seed{self.seed}.safetensors"


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m model.demo.train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=90.0, help="length of the training")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--out", type=Path, default=HERE / "checkpoint", help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of text and weights")
    parser.add_argument("--resume", action="store_true", help="continue a stopped training")
    options = Options(**vars(parser.parse_args()))
    if options.resume and not options.state_path.exists():
        parser.error(f"--resume: there is no training state at {options.state_path}")
    train(options)


def train(options: Options) -> None:
    """Train for `minutes`, then evaluate and write the model card."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    options.state_path.parent.mkdir(exist_ok=True)
    tokenizer_path = options.out / "tokenizer.model"
    if not options.resume:
        train_tokenizer(tokenizer_path, options.seed)
    processor = SentencePieceProcessor(model_file=str(tokenizer_path))
    network = Network(Shape(vocab_size=processor.vocab_size(), context_tokens=CONTEXT_TOKENS))
    run = TrainingRun(network, Optimizer(network))
    if options.resume:
        run.restore(options.state_path)
    with ProgressDisplay() as display:
        _train_until_time(run, processor, options, display)
        _save(run, options)
        display.say("evaluating on held-out fillings")
    accuracies = evaluate(load_network(options.out), processor, _FINAL_COUNT)
    write_card(options.out, run, options.seed, options.threads, accuracies)
    Console().print(as_table(accuracies))


def _train_until_time(
    run: TrainingRun,
    processor: SentencePieceProcessor,
    options: Options,
    display: ProgressDisplay,
) -> None:
    started_s = time.monotonic() - run.elapsed_s
    next_save_s = run.elapsed_s + _SAVE_EVERY_S / 4
    while (progress := run.elapsed_s / (options.minutes * 60)) < 1:
        context_tokens = context_at(progress)
        batches = step_batches(processor, options.seed, run.step, context_tokens)
        tokens_before, before_s = run.num_tokens, run.elapsed_s
        loss = run.learn(batches, learning_rate_factor(progress, run.step))
        run.elapsed_s = time.monotonic() - started_s
        rate = (run.num_tokens - tokens_before) / (run.elapsed_s - before_s)
        display.update(Report(progress, run.step, run.num_tokens, context_tokens, loss, rate))
        if run.elapsed_s > next_save_s:
            next_save_s = run.elapsed_s + _SAVE_EVERY_S
            _save(run, options)
            display.say(_trend(run.network, processor, context_tokens))


def _save(run: TrainingRun, options: Options) -> None:
    save_network(run.network, options.out)
    run.save(options.state_path)


def _trend(network: Network, processor: SentencePieceProcessor, context_tokens: int) -> str:
    """Exact answers per task on a few held-out conversations, as one line."""
    counts = {}
    for task in TASKS:
        conversations = held_out_conversations(task, 1, context_tokens)
        some = islice(conversations, _TREND_COUNT)
        counts[task] = sum(exact_answers(network, processor, some))
    shown = " ".join(f"{task}={count}" for task, count in counts.items())
    return f"exact of {_TREND_COUNT}: {shown}"


if __name__ == "__main__":
    main()
