"""The state of one training run: what a stop must not lose, and one optimiser step on it."""

# T tokens of a batch, D hidden size, V vocabulary

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from model.demo.batches import Batch
from model.demo.network import Network
from model.demo.optimizer import Optimizer

_BALANCE_WEIGHT = 0.01


@dataclass(slots=True)
class TrainingRun:
    """Weights, optimiser, and how much has been done. Steps change it in place."""

    network: Network
    optimizer: Optimizer
    step: int = 0
    num_tokens: int = 0
    elapsed_s: float = 0.0

    def learn(self, batches: list[Batch], learning_rate_factor: float) -> float:
        """Do one optimiser step; gives the mean loss of the answers' tokens."""
        total_weight = sum(batch.weights_T.sum().item() for batch in batches)
        answer_loss, num_answer_tokens = 0.0, 0
        for batch in batches:
            hidden_TD, balance = self.network(batch.ids_T, batch.lengths_B)
            logits_TV = self.network.logits(hidden_TD)
            losses_T = F.cross_entropy(logits_TV, batch.targets_T, reduction="none")
            loss = losses_T @ batch.weights_T / total_weight
            (loss + _BALANCE_WEIGHT * balance / len(batches)).backward()
            is_answer_T = batch.weights_T == 1
            answer_loss += losses_T.detach()[is_answer_T].sum().item()
            num_answer_tokens += int(is_answer_T.sum())
        self.optimizer.step(learning_rate_factor)
        self.step += 1
        self.num_tokens += sum(int(batch.lengths_B.sum()) for batch in batches)
        return answer_loss / num_answer_tokens

    def save(self, path: Path) -> None:
        """Write everything that `restore` needs, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        weights = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        progress = torch.tensor([self.step, self.num_tokens, self.elapsed_s], dtype=torch.float64)
        save_file(weights | self.optimizer.tensors() | {"progress": progress}, partial)
        os.replace(partial, path)

    def restore(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        tensors = load_file(path)
        prefix = "network."
        self.network.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
        self.optimizer.restore(tensors)
        step, num_tokens, self.elapsed_s = tensors["progress"].tolist()
        self.step, self.num_tokens = int(step), int(num_tokens)
