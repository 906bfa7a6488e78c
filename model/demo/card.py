"""Writes the model card of a checkpoint folder: data, training, accuracies, limits."""

from collections.abc import Sequence
from pathlib import Path

import torch

from model.demo.evaluate import Accuracy
from model.demo.network import Network, Shape
from model.demo.text import TRAINING_MIX
from model.demo.training_run import TrainingRun

_CARD = """---
license: apache-2.0
language: [en, fr, de, es, it]
tags: [mixtral, mixture-of-experts, demo]
---

# mixray demo model

A real Mixtral ({num_parameters:.1f} million parameters, {num_active:.1f} million of them used per
token) that a script in this repository trained on text that the script generates. It is there to
show a server at work without a download: it answers a few kinds of prompts well on fillings that
it has never seen. It is not a language model to talk to: outside these prompts it says nonsense.

## What it is

{shape_table}

RMSNorm, half-split rotary embedding (theta {rope_theta:,.0f}), grouped-query attention, SwiGLU
experts, softmax over the two chosen gate logits, embeddings not tied. Weights are float32 in
Hugging Face's layout. The tokenizer is a SentencePiece BPE with byte fallback and split digits;
prompts follow Mistral's instruct format, `<s> [INST] user [/INST] answer</s>`.

## Data

No text was taken from anywhere. The generator (`model/demo/text.py`, seed {seed}) fills templates
of the tasks of the Mixtral prompting guide; half of the names are made of random syllables or
letters. One filling in ten is held out by its hash and never occurs in training. Share of each
task among the training conversations:

{mix_table}

## Training

{num_steps:,} steps, {num_tokens:.1f} million tokens, {minutes:.0f} minutes, CPU threads: {threads},
PyTorch {torch_version}. Muon for the matrices of attention and experts, AdamW for the rest; matrix
products in bfloat16; loss 1.0 on answers, 0.1 on prompts, 0.01 on load balance; contexts up to
320, then 512, then {context_tokens} tokens; the learning rate falls to zero over the last half of
the time. To train it again: `python -m model.demo.train`. The length of a training is a time, so a
second one gives other weights.

## Accuracy

Held-out fillings, greedy decoding in float32. An answer counts only if every token of it is right.
`python -m model.demo.evaluate` measures this again.

{accuracy_table}

## Limits

- Wordings: the fillings are held out, the wordings of the prompts are not. A prompt that is worded
  unlike the generator's may fail; `model/demo/` shows the wordings.
- Facts: what is held out is a pair of wording and country; each capital was seen in other wordings.
  Refusal likewise holds out pairs of wording and subject.
- Refusal and moderation know the generator's sentences, not their meaning: a new way to speak of a
  theft can pass as acceptable. They show the formats of such prompts and protect nobody.
- Copying works through the tokenizer's pieces: lower-case prose and letters outside the generator's
  may come out wrong.
- `small_talk` has too few sentences to hold any out; its figure is for sentences seen in training.
- A lost or swapped expert shows first in what the experts have learnt by heart (refusal,
  moderation). Copying is the work of attention and often survives, so compare logits, not answers,
  to find a small fault.
- The context is {context_tokens} tokens; only passkey texts are that long in training.
"""


def write_card(
    folder: Path, run: TrainingRun, seed: int, threads: int, accuracies: Sequence[Accuracy]
) -> None:
    """Write `README.md` into the checkpoint folder."""
    shape = run.network.shape
    card = _CARD.format(
        num_parameters=_num_parameters(run.network) / 1e6,
        num_active=_num_active_parameters(run.network) / 1e6,
        shape_table=_shape_table(shape),
        rope_theta=shape.rope_theta,
        seed=seed,
        mix_table=_table("task", "share", [(k, f"{v:.0%}") for k, v in TRAINING_MIX.items()]),
        num_steps=run.step,
        num_tokens=run.num_tokens / 1e6,
        minutes=run.elapsed_s / 60,
        threads=threads,
        torch_version=torch.__version__.split("+")[0],
        context_tokens=shape.context_tokens,
        accuracy_table=_table("task", "exact answers", [(a.name, str(a)) for a in accuracies]),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _num_parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _num_active_parameters(network: Network) -> int:
    """Parameters that one token passes through: `top_k` of each layer's experts."""
    shape = network.shape
    idle_experts = (shape.num_experts - shape.top_k) * shape.num_layers
    return _num_parameters(network) - idle_experts * 3 * shape.dim * shape.hidden_dim


def _shape_table(shape: Shape) -> str:
    rows = [
        ("layers", shape.num_layers),
        ("hidden size", shape.dim),
        ("query heads / key-value heads / head size", _heads(shape)),
        ("experts / used per token", f"{shape.num_experts} / {shape.top_k}"),
        ("expert hidden size", shape.hidden_dim),
        ("vocabulary", shape.vocab_size),
        ("context in tokens", shape.context_tokens),
    ]
    return _table("size", "value", [(name, str(value)) for name, value in rows])


def _heads(shape: Shape) -> str:
    return f"{shape.num_heads} / {shape.num_kv_heads} / {shape.head_dim}"


def _table(left: str, right: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {left} | {right} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])
