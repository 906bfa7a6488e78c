"""Reading checkpoints: Hugging Face's and Mistral's own layout."""

from model.checkpoint.load import Checkpoint, Progress, open_checkpoint
from model.checkpoint.names import expected_shapes, expert_names, router_names

__all__ = [
    "Checkpoint",
    "Progress",
    "expected_shapes",
    "expert_names",
    "open_checkpoint",
    "router_names",
]
