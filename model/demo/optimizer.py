"""The two optimisers of the demo model behind one step."""

from typing import Any

import torch

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

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {"momenta": self.muon.momenta, "adam": self.adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.muon.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])


def _is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    return name.startswith("blocks.") and parameter.ndim > 1 and not name.endswith("gate")
