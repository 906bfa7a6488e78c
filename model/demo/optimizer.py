"""The two optimisers of the demo model behind one step."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from model.demo.muon import Muon
from model.demo.network import Network

_MUON_RATE = 0.02
_ADAM_RATE = 4e-3
_MUON_WEIGHT_DECAY = 0.05


class Optimizer:
    """Muon for the matrices of attention and experts, AdamW for everything else."""

    def __init__(self, network: Network) -> None:
        named = list(network.named_parameters())
        matrices = [p for name, p in named if _is_matrix(name, p)]
        rest = [p for name, p in named if not _is_matrix(name, p)]
        self.network = network
        self.muon = Muon(matrices, _MUON_WEIGHT_DECAY)
        self.adam = torch.optim.AdamW(rest, lr=_ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, factor: float) -> None:
        """Apply and clear the gradients, with both learning rates times `factor`."""
        for group in self.adam.param_groups:
            group["lr"] = _ADAM_RATE * factor
        self.adam.step()
        self.muon.step(_MUON_RATE * factor)
        self.network.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, by name."""
        momenta = {f"muon.{i}": momentum for i, momentum in enumerate(self.muon.momenta)}
        moments = {
            f"adam.{i}.{key}": value
            for i, state in self.adam.state_dict()["state"].items()
            for key, value in state.items()
        }
        return momenta | moments

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.muon.momenta = [tensors[f"muon.{i}"] for i in range(len(self.muon.momenta))]
        adam = self.adam.state_dict()
        adam["state"] = defaultdict(dict)
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                adam["state"][int(index)][key] = tensor
        self.adam.load_state_dict(adam)


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return name.startswith("blocks.") and parameter.ndim > 1 and not name.endswith("gate")
