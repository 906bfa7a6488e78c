"""transformers' Mixtral and Mistral as an oracle, on the same checkpoint files."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()


@torch.inference_mode()
def oracle_logits(folder: Path, token_ids: list[int]) -> Tensor:
    """Logits of every position, (T, V), float32, by transformers' eager implementation."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    logits: Tensor = model.eval()(torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits.float()
